"""Every data control, on real text and on made-up rows: what it declares is what it does."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import architectures
from sae_placebo.controls.data import (
    DATA_CONTROLS,
    DATA_INVARIANTS,
    ActivationControl,
    DataControl,
    parse_data,
)
from sae_placebo.core.errors import SpecError, TextError
from sae_placebo.data.text import Rows, TextSpec, tokenize
from sae_placebo.models.activations import Calibration, TokenMeans, blocks
from sae_placebo.models.diagnostics import r2_of_token
from sae_placebo.models.gaussian import SecondMoments
from sae_placebo.models.loading import Reader, load_model

Splits = dict[str, Rows]
KINDS = ["shuffle_tokens", "unigram", "markov", "gaussian", "surrogate"]
TEXT_KINDS = KINDS[:3]
# tied and untied; rotary, learned and ALiBi positions; experts; an embedding that scales its output
ARCHITECTURES = [
    *("llama", "llama_untied", "qwen3_moe", "gemma2", "gemma3", "phi", "phi3", "gpt2", "gpt_neox"),
    *("opt", "bloom", "mpt", "falcon_alibi"),
]


@pytest.fixture(params=KINDS)
def control(request: pytest.FixtureRequest) -> DataControl:
    return parse_data(request.param)


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no_bos"])
def real(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> Splits:
    """80,000 and 20,000 tokens of Python's own library, in rows of 64."""
    spec = TextSpec(
        source="python-stdlib",
        context_tokens=64,
        train_tokens=80_000,
        heldout_tokens=20_000,
        bos="auto" if request.param else "none",
    )
    return tokenize(spec, tiny_tokenizer, 0)


def made(lengths: list[int], owners: list[int], token: Callable[[int, int], int]) -> Rows:
    """Rows with BOS 0 and `token(row, position)`; their documents are `owners`."""
    width = max(lengths) + 1
    token_ids = np.zeros((len(lengths), width), np.int32)
    for i, length in enumerate(lengths):
        token_ids[i, 1:length] = [token(i, p) for p in range(1, length)]
    names = tuple(f"d{i}" for i in range(max(owners) + 1))
    return Rows(token_ids, np.array(lengths, np.int32), np.array(owners, np.int32), names)


@st.composite
def any_rows(draw: st.DrawFn) -> Callable[[], Rows]:
    """What makes the rows: type checks draw from `random`, which a strategy must not."""
    n = draw(st.integers(1, 8))
    lengths = draw(st.lists(st.integers(2, 9), min_size=n, max_size=n))
    owners = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    vocabulary = draw(st.integers(1, 30))
    bos = draw(st.booleans())

    def make() -> Rows:
        rows = made(lengths, owners, lambda i, p: int(random.integers(0, vocabulary)))
        if not bos:  # the first token is any, seen elsewhere or not
            rows.token_ids[:, 0] = random.integers(0, vocabulary + 5, n)
        return rows

    return make


@st.composite
def patterned_rows(draw: st.DrawFn) -> Callable[[], Rows]:
    """Rows that count in steps of 1, 2 or 3, one step per row, in an alphabet of the document's own.

    So every word of `DATA_INVARIANTS` that is about tokens has something to destroy: the step is
    known from any two tokens and from no single one.
    """
    alphabet = draw(st.integers(11, 23))
    n_documents = draw(st.integers(2, 4))
    n = n_documents * draw(st.integers(3, 5))
    lengths = draw(st.lists(st.integers(40, 60), min_size=n, max_size=n))
    owners = [i % n_documents for i in range(n)]
    return functools.partial(
        made,
        lengths,
        owners,
        lambda i, p: 1 + owners[i] * alphabet + (p * (1 + i // n_documents % 3)) % alphabet,
    )


# --- what the words mean ----------------------------------------------------------------------------


def same_layout(a: Rows, b: Rows) -> bool:
    outside = ~a.usable()
    return (
        a.token_ids.shape == b.token_ids.shape
        and a.token_ids.dtype == b.token_ids.dtype
        and np.array_equal(a.lengths, b.lengths)
        and np.array_equal(a.documents, b.documents)
        and a.names == b.names
        and np.array_equal(a.token_ids[outside], b.token_ids[outside])
    )


def document_counts(rows: Rows) -> dict[int, Counter[int]]:
    counts: dict[int, Counter[int]] = {}
    for ids, keep, owner in zip(rows.token_ids, rows.usable(), rows.documents, strict=True):
        counts.setdefault(int(owner), Counter()).update(ids[keep].tolist())
    return counts


def grams(rows: Rows, *back: int) -> Counter[tuple[int, ...]]:
    """Counts of each token with those `back` positions before it, in the same row."""
    usable, ids = rows.usable(), rows.token_ids
    deepest = max(back, default=0)
    here = usable[:, deepest:]
    parts = [ids[:, deepest - b : ids.shape[1] - b][here].tolist() for b in (*back, 0)]
    return Counter(zip(*parts, strict=True))


def distance(a: Counter[Any], b: Counter[Any]) -> float:
    """Total variation between two empirical distributions, 0 to 1."""
    total_a, total_b = a.total(), b.total()
    return sum(abs(a[key] / total_a - b[key] / total_b) for key in a.keys() | b.keys()) / 2


STATISTICS: dict[str, tuple[int, ...]] = {"unigrams": (), "bigrams": (1,), "order": (2, 1)}


def is_kept(word: str, original: Rows, first: Rows, second: Rows) -> tuple[float, float]:
    """Return how far the rewritten rows are from the original, and from one another.

    Over the original's 300 commonest grams and all others together: rare ones are in no two samples.
    """
    counts = [grams(rows, *STATISTICS[word]) for rows in (original, first, second)]
    common = {gram for gram, _ in counts[0].most_common(300)}
    for one in counts:
        rest = sum(n for gram, n in one.items() if gram not in common)
        for gram in set(one) - common:
            del one[gram]
        one[()] = rest
    return distance(counts[0], counts[1]), distance(counts[1], counts[2])


def both_draws(splits: Splits, kind: str) -> tuple[Splits, Splits]:
    control = parse_data(kind)
    return control.rewrite(splits, 0, 0), control.rewrite(splits, 0, 1)


# --- declarations -----------------------------------------------------------------------------------


def test_every_registered_control_is_under_contract_and_sorts_every_word() -> None:
    assert set(KINDS) == set(DATA_CONTROLS)
    for cls in DATA_CONTROLS.entries.values():
        assert cls.preserves | cls.destroys == set(DATA_INVARIANTS)
        assert not cls.preserves & cls.destroys
    assert [k for k in KINDS if parse_data(k).of_activations] == ["gaussian", "surrogate"]
    assert [k for k in KINDS if parse_data(k).is_fair] == ["surrogate"]
    assert [k for k in KINDS if not parse_data(k).follows_tokens] == ["gaussian"]


def test_a_control_that_leaves_a_word_out_is_not_registered() -> None:
    class Half(DataControl):
        kind: str = "half"
        preserves = frozenset({"layout"})
        destroys = frozenset({"order"})

        def rewrite(self, splits: Any, seed: int, model_seed: int) -> dict[str, Rows]:
            return dict(splits)

    with pytest.raises(ValueError, match="must sort each"):
        DATA_CONTROLS.add(Half)


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_a_table_and_a_dump_are_read_alike(kind: str) -> None:
    control = parse_data(kind)
    assert parse_data({"kind": kind}) == control
    assert parse_data(control.model_dump(mode="json")) == control


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("shufle_tokens", "no data control is called 'shufle_tokens'. Did you mean 'shuffle_tok"),
        ({"kind": "bigram"}, "Known: gaussian, markov, shuffle_tokens, surrogate, unigram"),
        ({"kind": "markov", "odrer": 2}, "no setting of data control 'markov' is called 'odrer'"),
        ({"kind": "surrogate", "key": "bigram"}, "key"),
        ({"order": 2}, "names its kind"),
        ({"kind": 3}, "names its kind"),
        (3, "found 3"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(value: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_data(value)


# --- real text --------------------------------------------------------------------------------------


def test_layout_stays_and_the_given_rows_are_untouched(real: Splits, control: DataControl) -> None:
    before = {split: rows.token_ids.copy() for split, rows in real.items()}
    found = control.rewrite(real, 0, 0)
    assert list(found) == list(real)
    for split, rows in real.items():
        assert np.array_equal(rows.token_ids, before[split])
        assert same_layout(rows, found[split])
        same = np.array_equal(rows.token_ids, found[split].token_ids)
        assert same == control.of_activations
        if not control.of_activations:
            assert getattr(found[split], "labels", None) is None


def test_labels_are_dropped_where_rows_have_them(
    real: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclasses.dataclass(frozen=True)
    class Labelled(Rows):
        labels: Any = None

    plain = {f.name: getattr(real["train"], f.name) for f in dataclasses.fields(Rows)}
    rows = Labelled(**plain | {"labels": "of the text as it was"})
    for kind in KINDS:
        found = parse_data(kind).rewrite({"train": rows}, 0, 0)["train"]
        assert isinstance(found, Labelled)
        assert found.labels == (None if kind in TEXT_KINDS else "of the text as it was")


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_same_seeds_same_tokens_other_seeds_other_tokens(real: Splits, kind: str) -> None:
    control = parse_data(kind)
    found, again = control.rewrite(real, 3, 1), control.rewrite(real, 3, 1)
    for split in real:
        assert np.array_equal(found[split].token_ids, again[split].token_ids)
        for seeds in ((3, 2), (4, 1)):
            other = control.rewrite(real, *seeds)
            assert not np.array_equal(found[split].token_ids, other[split].token_ids)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_splits_of_the_same_rows_are_drawn_independently(real: Splits, kind: str) -> None:
    twins = {"train": real["train"], "heldout": real["train"]}
    found = parse_data(kind).rewrite(twins, 0, 0)
    usable = real["train"].usable()
    a, b = (found[split].token_ids[usable] for split in twins)
    # as rarely alike, place by place, as the train draws are with themselves one row further
    assert abs((a == b).mean() - (a[64:] == a[:-64]).mean()) < 0.03
    # and one split's draws do not depend on whether there is another
    alone = parse_data(kind).rewrite({"train": real["train"]}, 0, 0)
    assert np.array_equal(alone["train"].token_ids, found["train"].token_ids)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_what_a_text_control_declares_about_tokens_holds_on_real_text(
    real: Splits, kind: str
) -> None:
    control = parse_data(kind)
    first, second = both_draws(real, kind)
    for split in real:
        kept = document_counts(real[split]) == document_counts(first[split])
        assert kept == ("document_unigrams" in control.preserves)
    for word in STATISTICS:
        away, apart = is_kept(word, real["train"], first["train"], second["train"])
        if word in control.preserves:
            # two samples of one law are as far from each other as either is from a third
            assert away <= 1.05 * apart, (word, away, apart)
        else:
            assert away >= 5 * apart, (word, away, apart)


@pytest.mark.parametrize("kind", ["unigram", "markov"])
def test_heldout_rows_follow_the_training_law(real: Splits, kind: str) -> None:
    control = parse_data(kind)
    first, second = both_draws(real, kind)
    for word in set(STATISTICS) & control.preserves:
        away, apart = is_kept(word, real["train"], first["heldout"], second["heldout"])
        assert away <= 1.05 * apart, (word, away, apart)


def test_markov_rows_start_as_the_training_rows_do(real: Splits) -> None:
    if real["train"].token_ids[0, 0] != 0:
        pytest.skip("the rows have no BOS: the start is the row's own first token")
    first, second = both_draws(real, "markov")
    starts = [Counter(rows["train"].token_ids[:, 1].tolist()) for rows in (real, first, second)]
    assert distance(starts[0], starts[1]) <= 1.1 * distance(starts[1], starts[2])


@pytest.fixture(scope="module")
def reader(tiny_model: Any) -> Any:
    return Reader(load_model(str(tiny_model)), ["resid_post.1"])


@pytest.fixture(scope="module")
def original(reader: Any, real: Splits) -> tuple[SecondMoments, TokenMeans]:
    return _moments(reader, real["train"])


def drawn_by(control: DataControl, reader: Any, rows: Rows) -> list[Any]:
    """Return readers of two re-draws of what a control puts in the place of what `reader` reads."""
    assert isinstance(control, ActivationControl)
    whole = {
        n: Calibration(torch.zeros(width), 1.0, 1.0, 1.0, math.inf, 1, 0)
        for n, width in reader.widths.items()
    }
    counting = control.counting(rows, whole, 0)
    for block in blocks(reader, rows, np.arange(len(rows.lengths)), 256):
        counting.add(block)
    return [counting.reader(0, model_seed) for model_seed in (0, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_control_declares_about_activations_holds(
    real: Splits, kind: str, reader: Any, original: tuple[SecondMoments, TokenMeans]
) -> None:
    control = parse_data(kind)
    readers, rows = [reader, reader], [real["train"]] * 2
    if control.of_activations:
        readers = drawn_by(control, reader, real["train"])
    else:
        rows = [splits["train"] for splits in both_draws(real, kind)]
    found = [_moments(r, one) for r, one in zip(readers, rows, strict=True)]
    unit, own = original
    spreads = {
        "mean_and_covariance": lambda a, b: _spread(a[0], b[0], unit),
        "token_means": lambda a, b: _apart(a[1], b[1], own),
    }
    for word, spread in spreads.items():
        away = sum(spread(original, one) for one in found) / 2
        apart = spread(*found)
        if word in control.preserves:
            assert away < 0.9 * apart, (word, away, apart)
        else:
            assert away > 1.15 * apart, (word, away, apart)
    assert _follows_tokens(readers[0]) == ("token_identity" in control.preserves)


def _moments(reader: Any, rows: Rows) -> tuple[SecondMoments, TokenMeans]:
    center = torch.zeros(reader.widths[reader.names[0]])
    moments, means = SecondMoments(center), TokenMeans(600, center)
    for block in blocks(reader, rows, np.arange(len(rows.lengths)), 256):
        x = block.activations[reader.names[0]]
        moments.add(x)
        means.add(block.token_ids, x)
    return moments, means


def _apart(a: TokenMeans, b: TokenMeans, of: TokenMeans) -> float:
    """Distance of the mean activations of the tokens that are common in a text, by how common they are."""
    common = torch.stack([one.counts for one in (a, b, of)]).amin(0) >= 100
    means = [one.sums[common] / one.counts[common, None] for one in (a, b)]
    squares = (means[0] - means[1]).square().sum(1)
    return float((of.counts[common] * squares).sum() / of.counts[common].sum()) ** 0.5


def _spread(a: SecondMoments, b: SecondMoments, unit: SecondMoments) -> float:
    """Distance of the second moments about zero, mean and covariance in one, where `unit` is white."""
    (mean_a, cov_a), (mean_b, cov_b) = a.mean_and_covariance(), b.mean_and_covariance()
    difference = cov_a + torch.outer(mean_a, mean_a) - cov_b - torch.outer(mean_b, mean_b)
    inverse = torch.linalg.inv(torch.linalg.cholesky(unit.mean_and_covariance()[1]))
    return float((inverse @ difference @ inverse.T).norm())


def _follows_tokens(reader: Any) -> bool:
    """Whether a token's activation is the same wherever the same tokens precede it."""
    rows = torch.arange(2, 14).repeat(2, 1)
    rows[1, 8:] = 3
    one, other = reader.read(rows)[reader.names[0]]
    return torch.allclose(one[:8], other[:8], atol=1e-4)


# --- a surrogate of any model ----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["token", "pair"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_surrogate_has_a_models_moments_and_what_its_tokens_explain(name: str, key: str) -> None:
    random = np.random.default_rng(0)
    n, width = 240, 24
    ids = random.zipf(1.3, (n, width)).clip(max=architectures.VOCABULARY - 3) + 2
    documents = (np.arange(n) // 4).astype(np.int32)
    rows = Rows(
        ids.astype(np.int32), np.full(n, width, np.int32), documents, tuple(map(str, range(60)))
    )
    with architectures.one_thread():
        reader = Reader(architectures.build(name), ["resid_post.1", "resid_post.2", "z.2"])
        control = parse_data({"kind": "surrogate", "key": key})
        first, second = drawn_by(control, reader, rows)
        assert first.names == reader.names
        assert first.widths == reader.widths
        diagnostics = first.diagnostics(rows)
        for place in reader.names:
            assert diagnostics[place]["surrogate_moment_error"]["value"] < 0.01
            assert diagnostics[place]["surrogate_unseen_share"]["value"] == 0.0
            json.dumps(diagnostics[place], allow_nan=False)
        own, drawn, again = (
            next(blocks(one, rows, np.arange(n), n)) for one in (reader, first, second)
        )
    for place in reader.names:
        x, y, z = (one.activations[place] for one in (own, drawn, again))
        assert not torch.equal(y, z)
        assert r2_of_token(y, own.token_ids) > r2_of_token(x, own.token_ids) - 0.05
        if key == "token":
            assert r2_of_token(y, own.token_ids) < r2_of_token(x, own.token_ids) + 0.05


# --- made-up rows -----------------------------------------------------------------------------------


@given(train=any_rows(), heldout=any_rows(), seed=st.integers(0, 99), kind=st.sampled_from(KINDS))
@settings(max_examples=150, deadline=None)
def test_any_rows_keep_what_must_stay_exactly(
    train: Callable[[], Rows], heldout: Callable[[], Rows], seed: int, kind: str
) -> None:
    control, splits = parse_data(kind), {"heldout": heldout(), "train": train()}
    found = control.rewrite(splits, seed, 0)
    rows = splits["train"]
    seen, pairs = set(rows.token_ids[rows.usable()].tolist()), grams(rows, 1)
    followed = {before for before, _ in pairs}
    for split, rows in splits.items():
        new = found[split]
        assert same_layout(rows, new)
        if "document_unigrams" in control.preserves:
            assert document_counts(rows) == document_counts(new)
        if kind in ("unigram", "markov"):
            assert set(new.token_ids[new.usable()].tolist()) <= seen
        if kind == "markov":
            assert all(pair in pairs for pair in grams(new, 1) if pair[0] in followed)


@given(make=patterned_rows(), seed=st.integers(0, 99), kind=st.sampled_from(TEXT_KINDS))
@settings(max_examples=40, deadline=None)
def test_made_up_structure_goes_and_stays_as_declared(
    make: Callable[[], Rows], seed: int, kind: str
) -> None:
    control, rows = parse_data(kind), make()
    new = control.rewrite({"train": rows}, seed, 0)["train"]
    kept = document_counts(rows) == document_counts(new)
    assert kept == ("document_unigrams" in control.preserves)
    assert set(grams(new)) <= set(grams(rows))
    within = {  # chains stay within the pairs that the text has; shuffled tokens do not
        "bigrams": set(grams(new, 1)) <= set(grams(rows, 1)),
        "order": set(grams(new, 2, 1)) <= set(grams(rows, 2, 1)),
    }
    assert within == {word: word in control.preserves for word in within}


def test_a_document_is_shuffled_over_all_its_rows_wherever_they_stand() -> None:
    owners = [0, 1, 0, 1, 0]
    rows = made([12] * 5, owners, lambda i, p: 100 * (1 + i) + p)
    new = parse_data("shuffle_tokens").rewrite({"train": rows}, 0, 0)["train"]
    for row, owner in zip(new.token_ids, owners, strict=True):
        came_from = {int(t) // 100 - 1 for t in row[1:12]}
        assert {owners[i] for i in came_from} == {owner}
        assert len(came_from) > 1


def test_every_order_of_a_document_is_equally_likely() -> None:
    rows = made([4] * 6_000, list(range(6_000)), lambda i, p: p)
    new = parse_data("shuffle_tokens").rewrite({"train": rows}, 0, 0)["train"]
    counts = Counter(map(tuple, new.token_ids[:, 1:4].tolist()))
    assert len(counts) == 6
    assert max(abs(n - 1_000) for n in counts.values()) < 5 * 1_000**0.5


def test_a_token_that_nothing_follows_is_followed_by_any_token_at_its_frequency() -> None:
    # 9 ends every row; it is followed by 1, 2 or 9 at their frequencies, never by nothing
    train = made([4] * 3_000, [0] * 3_000, lambda i, p: 9 if p == 3 else 1 + i % 2)
    start = made([2_000], [0], lambda i, p: 1)
    new = parse_data("markov").rewrite({"train": train, "heldout": start}, 0, 0)["heldout"]
    after = Counter({b: n for (a, b), n in grams(new, 1).items() if a == 9})
    assert distance(after, Counter({1: 1, 2: 1, 9: 1})) < 0.08


def test_heldout_ids_that_training_never_saw_are_no_error() -> None:
    train = made([6, 6], [0, 1], lambda i, p: p)
    heldout = made([6], [0], lambda i, p: 500)
    heldout.token_ids[:, 0] = 700
    new = parse_data("markov").rewrite({"train": train, "heldout": heldout}, 0, 0)["heldout"]
    assert new.token_ids[0, 0] == 700
    assert set(new.token_ids[0, 1:6].tolist()) <= {1, 2, 3, 4, 5}


@pytest.mark.parametrize("kind", ["unigram", "markov"])
def test_no_training_tokens_is_said(kind: str) -> None:
    rows = made([1, 1], [0, 0], lambda i, p: 1)
    for splits in ({"train": rows}, {"heldout": made([5], [0], lambda i, p: 1)}):
        with pytest.raises(TextError, match="there are none; raise"):
            parse_data(kind).rewrite(splits, 0, 0)


def test_a_chain_is_fast_enough() -> None:
    """350,000 tokens in rows of 128 over 4,096 ids take under 0.1 s; the bound leaves room for a busy CPU."""
    import time

    random = np.random.default_rng(0)
    rows = Rows(
        random.zipf(1.3, (2_756, 128)).clip(max=4_095).astype(np.int32),
        np.full(2_756, 128, np.int32),
        np.arange(2_756, dtype=np.int32) // 8,
        tuple(str(i) for i in range(345)),
    )
    began = time.process_time()
    parse_data("markov").rewrite({"train": rows}, 0, 0)
    assert time.process_time() - began < 1
