"""The text that a ladder is fitted on: its portions, and what is found out only from enough of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import Folds, TokenTable
from sae_placebo.latents.ladder.fit_text import LadderText, Stacked, rows_to_fit_on
from sae_placebo.latents.ladder.fitting import RUNGS
from sae_placebo.latents.ladder.ladder import Ladder, ladder
from sae_placebo.latents.ladder.predictors import Readouts
from sae_placebo.latents.ladder.token_features import LadderSpec, TokenFeatures
from sae_placebo.latents.origin.rule import EXPLAINED, NOT_EXPLAINED, verdicts

VOCABULARY, CONTEXT, ROWS_EACH = 150, 65, 4
SPEC = LadderSpec(bag=8, window=(8, 8), decays=(0.9,))
RARE, NOISE = range(2)


def text_of(n_documents: int, draw: np.random.Generator) -> TokenTable:
    """Return random tokens, none of which says anything of the next."""
    n = n_documents * ROWS_EACH
    ids = draw.integers(0, VOCABULARY, (n, CONTEXT)).astype(np.int32)
    owners = (np.arange(n) // ROWS_EACH).astype(np.int32)
    names = tuple(f"document {i}" for i in range(n_documents))
    rows = Rows(ids, np.full(n, CONTEXT, dtype=np.int32), owners, names)
    places = np.argwhere(rows.usable()).astype(np.int64)
    return TokenTable(rows, places, tuple(map(str, range(VOCABULARY))))


def codes_of(tokens: TokenTable, draw: np.random.Generator) -> Any:
    """Return a latent on every tenth pair, each seen twice in 45,000 tokens, and one on nothing."""
    pairs = tokens.ids.astype(np.int64) * VOCABULARY + tokens.previous
    # a hash of the pair that nothing linear in its tokens tells
    on = pairs * 2_654_435_761 % 2**32 % 10 == 0
    noise = draw.random(len(tokens)) < 0.1
    return csr_matrix(np.stack([on, noise], axis=1).astype(np.float32))


@pytest.fixture(scope="module")
def held() -> TokenTable:
    return text_of(80, np.random.default_rng(0))


@pytest.fixture(scope="module")
def folds(held: TokenTable) -> Folds:
    return Folds.of(held.documents, held.n_documents, 0)


def climbed(text: LadderText, codes: Stacked) -> Ladder:
    return ladder(codes, Readouts.of(TokenFeatures.of(text, None, 0, SPEC), ()), None)


def verdict_of(found: Ladder, portion: int) -> list[int]:
    rungs = dict(zip(found.rungs, found.by_portion[portion], strict=True))
    judged = np.ones(found.r2[0].shape, dtype=bool)
    return verdicts(judged, rungs, ~judged, judged, 0.5, {}).verdict[:, 0].tolist()


def test_a_latent_on_rare_pairs_is_not_explained_only_where_too_little_text_was_read(
    held: TokenTable, folds: Folds
) -> None:
    draw = np.random.default_rng(1)
    codes = codes_of(held, draw)
    within = climbed(LadderText.within(held, folds, 0), Stacked([codes]))
    # every pair occurs less than once in the half of the text that is fitted on
    assert verdict_of(within, -1) == [NOT_EXPLAINED, NOT_EXPLAINED]
    fit = text_of(800, draw)
    both = Stacked([codes, codes_of(fit, draw)])
    beside = climbed(LadderText.beside(held, folds, fit, 0), both)
    assert verdict_of(beside, -1) == [EXPLAINED, NOT_EXPLAINED]
    at = RUNGS.index("pair")
    by_portion = beside.by_portion[:, at, RARE, 0]
    assert by_portion[-1] > 0.6
    assert (np.diff(by_portion) > 0.02).all(), "it rises with the text"
    assert np.abs(beside.by_portion[:, :-2, NOISE, 0]).max() < 0.02
    assert np.allclose(beside.fit_tokens, len(fit) * np.array([0.125, 0.25, 0.5, 1]), rtol=0.01)
    assert beside.fit_documents == (100, 200, 400, 800)


def test_the_whole_text_gives_what_its_portions_add_up_to(held: TokenTable, folds: Folds) -> None:
    """All fit text as one portion: the sums over four nested portions are those of the whole."""
    draw = np.random.default_rng(3)
    fit = text_of(60, draw)
    codes = Stacked([codes_of(held, draw), codes_of(fit, draw)])
    text = LadderText.beside(held, folds, fit, 0)
    assert len(text.fit) == 4
    once = LadderText(
        text.tokens,
        (np.concatenate(text.fit),),
        text.choose,
        text.score,
        text.n_groups,
        text.n_documents[-1:],
    )
    several, one = climbed(text, codes), climbed(once, codes)
    assert one.by_portion.shape[0] == 1
    np.testing.assert_allclose(one.r2, several.r2, atol=1e-5)


def test_documents_serve_one_purpose_and_portions_are_nested(
    held: TokenTable, folds: Folds
) -> None:
    fit = text_of(40, np.random.default_rng(4))
    text = LadderText.beside(held, folds, fit, 0)
    owners = text.tokens.documents
    parts = [owners[one] for one in (*text.fit, text.choose, *(some for _, some in text.score))]
    sets = [set(part.tolist()) for part in parts]
    assert sum(map(len, sets)) == len(set().union(*sets)) == held.n_documents + 40
    assert all(min(one) >= held.n_documents for one in sets[:4])
    np.testing.assert_array_equal(text.tokens.ids[len(held) :], fit.ids)
    np.testing.assert_array_equal(text.tokens.previous[: len(held)], held.previous)
    # all held-out documents that nothing is chosen on are scored
    assert sum(len(some) for _, some in text.score) + len(text.choose) == len(held)


def test_few_documents_have_fewer_portions(held: TokenTable, folds: Folds) -> None:
    one = LadderText.beside(held, folds, text_of(1, np.random.default_rng(5)), 0)
    assert len(one.fit) == 1
    assert one.n_documents == (1,)


def test_rows_to_fit_on_are_whole_documents_up_to_a_number_of_tokens() -> None:
    rows = text_of(50, np.random.default_rng(6)).rows
    each = ROWS_EACH * (CONTEXT - 1)
    found = rows_to_fit_on(rows, 10 * each + 1, 0)
    assert len(found.names) == 10
    assert int(found.usable().sum()) == 10 * each
    for index, name in enumerate(found.names):
        own = rows.token_ids[rows.documents == rows.names.index(name)]
        np.testing.assert_array_equal(found.token_ids[found.documents == index], own)
    assert rows_to_fit_on(rows, 10**9, 0).names == rows.names
    assert len(rows_to_fit_on(rows, 1, 0).names) == 1
