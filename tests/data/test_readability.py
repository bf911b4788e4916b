from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from sae_placebo.data.labels.base import Labels
from sae_placebo.data.readability import PREDICTORS, Readability, readability
from sae_placebo.data.text import Rows
from sae_placebo.data.token_predictors import WINDOW_TOKENS, labeled

VOCABULARY = 30
NAMES = ("token", "pair", "window", "context", "coin", "always", "rare")
# opens and closes something that lasts long
OPEN, CLOSE = 5, 6


def rows(n_documents: int, seed: int) -> Rows:
    """Return rows of random tokens behind BOS, 4 to a document, with labels that look back so far.

    `token` holds on some ids, `pair` after some pairs, `window` where id 3 was 2 to 4 tokens ago,
    `context` between OPEN and CLOSE, `coin` at random, `always` nearly everywhere.
    """
    draw = np.random.default_rng(seed)
    n, context = 4 * n_documents, 65
    rates = np.full(VOCABULARY, 1.0)
    rates[[0, OPEN, CLOSE]] = 0, 0.25, 0.25
    ids = draw.choice(VOCABULARY, (n, context), p=rates / rates.sum()).astype(np.int32)
    ids[:, 0] = 0
    lengths = draw.integers(40, context + 1, n).astype(np.int32)
    ids[np.arange(context) >= lengths[:, None]] = 0
    before = np.zeros_like(ids)
    before[:, 1:] = ids[:, :-1]
    recent = np.zeros(ids.shape, dtype=bool)
    for back in (2, 3, 4):
        recent[:, back:] |= ids[:, :-back] == 3
    state = np.zeros(ids.shape, dtype=bool)
    for position in range(1, context):
        now = ids[:, position]
        state[:, position] = np.where(now == OPEN, True, state[:, position - 1]) & (now != CLOSE)
    random = draw.random((*ids.shape, 3)) < [0.2, 0.97, 0.001]
    present = np.stack(
        [
            np.isin(ids, [1, 2, 3, 4]),
            np.isin(ids, range(1, 15)) & np.isin(before, range(10, 25)),
            recent,
            state & ~np.isin(ids, [OPEN]),
            random[..., 0],
            random[..., 1],
            random[..., 2],
        ],
        axis=-1,
    )
    known = np.zeros(ids.shape, dtype=bool)
    known[:, 1:] = np.arange(1, context) < lengths[:, None]
    known &= draw.random(ids.shape) < 0.98
    bits = np.packbits(present & known[..., None], axis=-1, bitorder="little")
    documents = np.repeat(np.arange(n_documents), 4).astype(np.int32)
    names = tuple(f"document {i}" for i in range(n_documents))
    return Rows(ids, lengths, documents, names, labels=Labels(NAMES, bits, known))


@pytest.fixture(scope="module")
def heldout() -> Rows:
    return rows(30, 1)


@pytest.fixture(scope="module")
def found(heldout: Rows) -> Readability:
    return readability(rows(100, 0), heldout, VOCABULARY, seed=0)


def test_groups_say_how_far_one_must_look_back(found: Readability) -> None:
    groups = dict(zip(NAMES, found.groups, strict=True))
    assert groups == {
        "token": "token",
        "pair": "window",
        "window": "window",
        "context": "context",
        "coin": "context",
        "always": "context",
        "rare": "rare",
    }
    f1 = {name: dict(zip(PREDICTORS, found.f1[:, i], strict=True)) for i, name in enumerate(NAMES)}
    assert f1["token"]["lookup"] == 1
    assert f1["pair"]["bigram"] > 0.98
    assert f1["pair"]["lookup"] < 0.8
    assert f1["window"]["window"] > 0.98
    assert f1["window"]["bigram"] < 0.6


def test_what_cannot_be_read_scores_as_always_yes_does(found: Readability) -> None:
    coin, always = NAMES.index("coin"), NAMES.index("always")
    # a threshold chosen on the tokens that a table was fitted on would be far too sure of itself
    np.testing.assert_allclose(found.f1[:, coin], found.always_f1[coin], atol=0.03)
    np.testing.assert_allclose(found.f1[:, always], found.always_f1[always], atol=0.01)
    assert found.always_f1[always] > 0.97


def test_no_predictor_sees_past_its_window_or_its_row(heldout: Rows) -> None:
    assert heldout.labels is not None
    tokens = labeled(heldout, heldout.labels, VOCABULARY)
    for (row, position), recent in zip(tokens.places[:200], tokens.recent, strict=False):
        seen = heldout.token_ids[row, : position + 1][::-1][:WINDOW_TOKENS]
        assert recent[: len(seen)].tolist() == seen.tolist()
        assert (recent[len(seen) :] == VOCABULARY).all()


def test_held_out_labels_change_no_prediction(found: Readability, heldout: Rows) -> None:
    assert heldout.labels is not None
    bits = heldout.labels.bits ^ np.uint8(0b0011011)
    other = dataclasses.replace(heldout, labels=dataclasses.replace(heldout.labels, bits=bits))
    again = readability(rows(100, 0), other, VOCABULARY, seed=0)
    np.testing.assert_array_equal(again.predictions, found.predictions)
    np.testing.assert_array_equal(again.second_half, found.second_half)


def test_comes_back_from_its_artefact(found: Readability) -> None:
    again = Readability.load(json.loads(json.dumps(found.record())), found.arrays())
    for field in dataclasses.fields(Readability):
        left, right = getattr(found, field.name), getattr(again, field.name)
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype
        else:
            assert left == right


def test_truth_counts_the_tokens_that_are_asked_for(found: Readability, heldout: Rows) -> None:
    assert heldout.labels is not None
    places = np.argwhere(heldout.usable()).astype(np.int64)
    whole = found.truth(heldout.labels, places)
    for i, predictor in enumerate(PREDICTORS):
        hits, false, missed = whole.baselines[predictor].sum(1).T
        there = hits + missed > 0
        f1 = (2 * hits / (2 * hits + false + missed))[there]
        np.testing.assert_allclose(f1, found.f1[i, there])
    assert whole.known.sum() == found.n_tokens
    kept = places[np.random.default_rng(0).random(len(places)) < 0.5]
    half = found.truth(heldout.labels, kept)
    known = heldout.labels.known[kept[:, 0], kept[:, 1]]
    np.testing.assert_array_equal(half.known, known)
    np.testing.assert_array_equal(half.present, heldout.labels.at(kept))
    for counts in half.baselines.values():
        positive = counts[..., 0] + counts[..., 2]
        assert positive.sum(1).tolist() == half.present[known].sum(0).tolist()
    lookup = half.baselines["lookup"][0]
    of_document = heldout.documents[kept[known, 0]]
    expected = np.bincount(of_document[half.present[known, 0]], minlength=len(heldout.names))
    np.testing.assert_array_equal(lookup[:, 0], expected)
    assert lookup[:, 1:].sum() == 0


def test_halves_are_halves(found: Readability) -> None:
    assert found.second_half.sum() == 15
    other = readability(rows(4, 0), rows(30, 1), VOCABULARY, seed=1)
    assert (other.second_half != found.second_half).any()


def test_too_little_text_makes_every_label_rare() -> None:
    few = readability(rows(4, 0), rows(3, 1), VOCABULARY, seed=0)
    assert set(few.groups) == {"rare"}
    nothing = rows(6, 0)
    assert nothing.labels is not None
    unknown = np.zeros_like(nothing.labels.known)
    nothing = dataclasses.replace(
        nothing, labels=dataclasses.replace(nothing.labels, known=unknown)
    )
    for train, heldout in ((nothing, rows(6, 1)), (rows(6, 1), nothing)):
        found = readability(train, heldout, VOCABULARY, seed=0)
        assert set(found.groups) == {"rare"}
        Readability.load(json.loads(json.dumps(found.record())), found.arrays())


def test_refuses_rows_without_labels(heldout: Rows) -> None:
    with pytest.raises(ValueError, match="labels"):
        readability(dataclasses.replace(heldout, labels=None), heldout, VOCABULARY, seed=0)
