"""The ladder on latents whose rung is known by construction, and against predictions written down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from sae_placebo.core.errors import NotEstimable
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import Encoded, Folds, TokenTable
from sae_placebo.latents.ladder.fit_text import LadderText, Stacked
from sae_placebo.latents.ladder.ladder import (
    RUNGS,
    Ladder,
    _climb,
    _partners,
    ladder,
    whole_ladder,
)
from sae_placebo.latents.ladder.predictors import Readouts
from sae_placebo.latents.ladder.targets import Latents
from sae_placebo.latents.ladder.token_features import LadderSpec, TokenFeatures
from sae_placebo.latents.ladder.vectors import Vector
from sae_placebo.report import Tables
from sae_placebo.report.build import render_section
from sae_placebo.report.sections import SECTIONS, View
from sae_placebo.report.sections.ladder import COLUMNS
from sae_placebo.saes import SAE
from sae_placebo.saes.topk import TopKSpec

VOCABULARY, WIDTH, CONTEXT, N_ROWS = 48, 12, 33, 1_280
EMBEDDED = object()
SPEC = LadderSpec(bag=12, window=(12, 12, 12, 12), position_bins=32)
NAMES = (
    *("token", "previous", "pair", "position", "bag", "placebo", "placebo latent"),
    *("noise", "rare noise", "dead"),
)


class KeptActivations:
    """Random text, embeddings, a placebo model, and one latent of each kind."""

    def __init__(self) -> None:
        random = np.random.default_rng(3)
        ids = random.integers(0, VOCABULARY, (N_ROWS, CONTEXT)).astype(np.int32)
        owners = (np.arange(N_ROWS) // 4).astype(np.int32)
        names = tuple(f"document {i}" for i in range(owners[-1] + 1))
        lengths = np.full(N_ROWS, CONTEXT, dtype=np.int32)
        rows = Rows(ids, lengths, owners, names)
        places = np.argwhere(rows.usable()).astype(np.int64)
        self.tokens = TokenTable(rows, places, tuple(str(i) for i in range(VOCABULARY)))
        self.folds = spread_folds(len(names))
        self.embeddings = random.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
        n = len(places)
        x = random.standard_normal((n, 16)).astype(np.float32)
        other = random.standard_normal((n, 16)).astype(np.float32)
        mine = random.random((n, 30)).astype(np.float32) * (random.random((n, 30)) < 0.1)
        self.placebo = torch.from_numpy(other), csr_matrix(mine)
        u, w, p = self.tokens.previous, self.tokens.ids, self.tokens.positions
        bag = np.zeros(n)
        for back in range(1, CONTEXT):
            there = p >= back
            before = ids[places[:, 0], np.maximum(p - back, 0)]
            bag += there * 0.97 ** (back - 1) * self.embeddings[before, 0]
        columns = [
            (w % 5 == 0) * (1 + w / 20),
            (u % 5 == 0) * (1 + u / 20),
            ((u + w) % 7 == 0) * 1.0,
            (p % 8 == 3) * (1 + p / 9),
            bag - bag.min() + 1,
            other[:, 0] + 0.5 * other[:, 1] + 9,
            2 * mine[:, 4] + 0.3 * mine[:, 5],
            (random.random(n) < 0.3) * random.random(n),
            (random.random(n) < 0.003) * random.random(n),
            np.zeros(n),
        ]
        codes = csr_matrix(np.stack(columns, axis=1).astype(np.float32))
        # only its width is read
        sae = SAE(TopKSpec(d_sae=len(columns), k=1), {})
        self.reading = Encoded(sae, self.tokens, codes, torch.from_numpy(x))

    def ladder(self, folds: Folds | None = None, **changed: Any) -> Ladder:
        given: dict[str, Any] = {"embeddings": self.embeddings, "placebo": self.placebo} | changed
        placebo, reading = given["placebo"], given.get("reading", self.reading)
        x = () if placebo is None else placebo[:1]
        readouts = Readouts.of(self.features(folds, given["embeddings"]), x)
        others = None if placebo is None else Stacked(placebo[1:])
        whole = whole_ladder(Stacked([reading.activations.numpy()]), readouts, others)
        return ladder(Stacked([reading.codes]), readouts, others, whole)

    def features(self, folds: Folds | None = None, embeddings: Any = EMBEDDED) -> TokenFeatures:
        rows = self.embeddings if embeddings is EMBEDDED else embeddings
        text = LadderText.within(self.tokens, folds or self.folds, 0)
        return TokenFeatures.of(text, rows, 0, SPEC)

    def readouts(self) -> Readouts:
        return Readouts.of(self.features(), self.placebo[:1])

    def targets(self, dense: bool = False) -> Any:
        readouts, placebo = self.readouts(), Stacked(self.placebo[1:])
        codes = self.reading.codes.toarray() if dense else self.reading.codes
        partners = _partners(Stacked([codes]), placebo, readouts.tokens)
        kind = Vector if dense else Latents
        return kind(Stacked([codes]), readouts, partners, placebo)


def spread_folds(n_documents: int, n_groups: int = 5) -> Folds:
    document = np.arange(n_documents)
    purposes = np.array([0, 1, 2, 0, 0, 2, 1, 0])[document // n_groups % 8]
    return Folds(document % n_groups, purposes)


@pytest.fixture(scope="module")
def bed() -> KeptActivations:
    return KeptActivations()


@pytest.fixture(scope="module")
def climbed(bed: KeptActivations) -> Ladder:
    return bed.ladder()


@pytest.mark.parametrize(
    ("kind", "rung", "least"),
    [
        ("token", "token", 0.99),
        ("pair", "pair", 0.95),
        ("position", "position", 0.99),
        ("bag", "bag", 0.9),
        ("placebo", "placebo_readout", 0.99),
        ("placebo latent", "placebo_latents", 0.99),
    ],
)
def test_a_planted_latent_is_explained_at_its_rung(
    climbed: Ladder, kind: str, rung: str, least: float
) -> None:
    r2 = climbed.r2[:, NAMES.index(kind), 0]
    at = RUNGS.index(rung)
    assert r2[at] > least
    # but that a bag is smaller where a row begins
    assert abs(r2[at - 1]) < (0.08 if kind == "bag" else 0.02), "nothing is explained before"
    assert np.abs(np.diff(r2[at:])).max(initial=0) < 0.07 * (1.01 - r2[at]) + 0.005, "nor after"


def test_the_token_before_is_seen_alone_and_in_the_pair(climbed: Ladder) -> None:
    of = NAMES.index("previous")
    assert climbed.columns()["r2_previous"][of, 0] > 0.99
    assert abs(climbed.columns()["r2_token"][of, 0]) < 0.01
    # the table of pairs is shrunk; the window of embeddings sees only what is linear in them
    assert climbed.columns()["r2_pair"][of, 0] > 0.9
    assert climbed.r2[RUNGS.index("token"), of, 0] < 0.01 < 0.9 < climbed.r2[3, of, 0]


@pytest.mark.parametrize(
    ("kind", "column"), [("token", "token"), ("position", "position"), ("bag", "bag")]
)
def test_alone_is_as_good_as_nested_where_nothing_else_matters(
    climbed: Ladder, kind: str, column: str
) -> None:
    of = NAMES.index(kind)
    nested = climbed.r2[RUNGS.index(column), of, 0]
    assert climbed.columns()[f"r2_{column}"][of, 0] == pytest.approx(nested, abs=0.02)
    assert climbed.columns()["r2_previous"][of, 0] < 0.5


@pytest.mark.parametrize("kind", ["noise", "rare noise"])
def test_noise_is_not_explained(climbed: Ladder, kind: str) -> None:
    of = NAMES.index(kind)
    for name in RUNGS:
        r2 = climbed.r2[RUNGS.index(name), of]
        # delete-a-group jackknife
        deviation = r2[1:] - r2[1:].mean()
        error = np.sqrt((len(r2) - 2) / (len(r2) - 1) * (deviation**2).sum())
        assert -0.02 < r2[0] < max(3 * error, 1e-3), name


def test_a_dead_latent_has_no_r2(climbed: Ladder) -> None:
    assert np.isnan(climbed.r2[:, NAMES.index("dead")]).all()
    assert np.isfinite(climbed.r2[:, :-1]).all()
    assert np.isfinite(climbed.mean()).all()
    assert climbed.mean()[0] == pytest.approx(climbed.r2[0, :-1].mean(0))


def test_noise_activations_are_explained_by_nothing_as_a_whole(climbed: Ladder) -> None:
    assert climbed.whole.shape == (len(RUNGS), 6)
    assert np.abs(climbed.whole).max() < 0.01


def test_a_vector_of_embeddings_is_explained_by_its_rungs(bed: KeptActivations) -> None:
    values = bed.embeddings[bed.tokens.ids] + 0.5 * bed.embeddings[bed.tokens.previous]
    noise = np.random.default_rng(5).standard_normal(values.shape)
    x = torch.from_numpy((values + 0.5 * noise).astype(np.float32))
    reading = Encoded(bed.reading.sae, bed.tokens, bed.reading.codes, x)
    whole = bed.ladder(reading=reading, placebo=None).whole[:, 0]
    of_token = bed.embeddings.var(0).sum()
    total = 1.25 * of_token + 0.25 * WIDTH
    assert whole[RUNGS.index("token")] == pytest.approx(of_token / total, abs=0.01)
    # the token before is in the table of pairs, thin as it is, and in the window
    assert whole[RUNGS.index("window")] == pytest.approx(1.25 * of_token / total, abs=0.01)
    assert np.isnan(whole[-2:]).all()


def test_sums_over_keys_equal_predictions_written_down(bed: KeptActivations) -> None:
    latents, vector = bed.targets(), bed.targets(dense=True)
    assert np.array_equal(latents.partners, vector.partners)
    sparse, written = _climb(latents, latents.readouts), _climb(vector, vector.readouts)
    for found, expected in zip(sparse, written, strict=True):
        assert found.shape == expected.shape
    assert np.array_equal(sparse[3], written[3])
    live = sparse[1] > 0
    ratio = (sparse[0] - written[0]) / np.where(live, sparse[1], 1)[:, None]
    ratio = np.where(live[:, None], ratio, 0)
    assert np.abs(ratio).max() < 2e-4


def test_partners_added_up_give_the_errors_of_each(bed: KeptActivations) -> None:
    """One weighted column in place of all partners changes no squared error."""
    latents = bed.targets()
    mix = np.random.default_rng(8).standard_normal(latents.partners.shape)
    sums, portion = latents.readouts.score[1], latents.at(3)
    each, one = portion.moments(sums).gram, portion.moments(sums, mix).gram
    joint = np.zeros((len(NAMES), 6, 9))
    joint[:, np.arange(5), np.arange(5)] = 1
    joint[:, 5, 5:] = mix.T
    expected = joint @ each @ joint.transpose(0, 2, 1)
    scale = np.sqrt(np.einsum("mkk->mk", expected))
    assert (scale[:-1, 5] > 0).all()
    apart = (one - expected) / np.maximum(scale[:, :, None] * scale[:, None], 1e-9)
    assert np.abs(apart[:-1]).max() < 1e-5


def test_readouts_hold_no_second_copy_of_what_tokens_tell(bed: KeptActivations) -> None:
    readouts = bed.readouts()
    tokens = readouts.tokens
    assert readouts.own is not None
    assert readouts.own.shape == (len(tokens.order), 16)
    for sums in (readouts.choose, *readouts.score):
        shared, own = sums.parts
        assert np.shares_memory(shared, tokens.x)
        assert np.shares_memory(own, readouts.own)
    x = np.concatenate(readouts.rows(slice(0, len(tokens.fit))), axis=1)
    assert x[:, 1:].mean(0) == pytest.approx(0, abs=1e-5)
    assert x.std(0)[1:] == pytest.approx(1, abs=1e-4)
    assert readouts._grams[-1] == pytest.approx(x.T.astype(float) @ x, abs=0.1)


def test_the_rung_of_the_token_by_hand(bed: KeptActivations, climbed: Ladder) -> None:
    """R2 of position and token, with tables and weights computed one token at a time."""
    of = NAMES.index("token")
    a = bed.reading.codes[:, of].toarray().ravel().astype(float)
    a += 0  # the target as it is
    purpose = bed.folds.purposes[bed.tokens.documents]
    fit, choose, score = (purpose == p for p in (0, 1, 2))
    mean = a[fit].mean()
    features = bed.readouts().tokens
    pieces = []
    for keys in (features.keys.bins, bed.tokens.ids):
        table = np.array(
            [
                (a[fit & (keys == k)] - mean).sum() / ((fit & (keys == k)).sum() + 1)
                for k in range(99)
            ]
        )
        pieces.append(table[keys])
    x = np.stack(pieces, axis=1)
    events = (a[choose] ** 2).sum() ** 2 / (a[choose] ** 4).sum()
    gram = x[choose].T @ x[choose]
    gram += np.diag(np.diag(gram)) / events
    weights = np.linalg.solve(gram, x[choose].T @ (a[choose] - mean))
    left = a[score] - mean - x[score] @ weights
    expected = 1 - (left**2).sum() / ((a[score] - mean) ** 2).sum()
    assert climbed.r2[RUNGS.index("token"), of, 0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("group", [0, 3])
def test_a_fold_is_the_ladder_scored_without_that_group(
    bed: KeptActivations, climbed: Ladder, group: int
) -> None:
    purposes = bed.folds.purposes.copy()
    purposes[(bed.folds.groups == group) & (purposes == 2)] = 3
    without = bed.ladder(Folds(bed.folds.groups, purposes))
    living = slice(None, -1)
    assert climbed.r2[:, living, 1 + group] == pytest.approx(without.r2[:, living, 0], abs=1e-5)
    assert climbed.whole[:, 1 + group] == pytest.approx(without.whole[:, 0], abs=1e-5)
    for name, values in climbed.columns().items():
        assert values[living, 1 + group] == pytest.approx(
            without.columns()[name][living, 0], abs=1e-5
        )


def test_without_a_placebo_its_rungs_are_null_with_a_reason(
    bed: KeptActivations, climbed: Ladder
) -> None:
    alone = bed.ladder(placebo=None)
    assert np.isnan(alone.r2[-2:]).all()
    assert set(alone.reasons) == {"placebo_readout", "placebo_latents"}
    assert not climbed.reasons
    assert alone.r2[:-2, :-1] == pytest.approx(climbed.r2[:-2, :-1], abs=1e-6)


def test_random_rows_stand_for_tokens_without_embeddings(bed: KeptActivations) -> None:
    found = bed.ladder(embeddings=None)
    assert found.features == "fixed random rows by token"
    # a bag of other vectors still knows the tokens, if not linearly as well
    bag = NAMES.index("bag")
    assert found.r2[RUNGS.index("bag"), bag, 0] > 0.05
    assert np.array_equal(found.r2, bed.ladder(embeddings=None).r2, equal_nan=True)


def test_r2_does_not_depend_on_units(bed: KeptActivations, climbed: Ladder) -> None:
    reading = Encoded(bed.reading.sae, bed.tokens, bed.reading.codes * 64, bed.reading.activations)
    other = bed.ladder(reading=reading)
    assert np.nan_to_num(other.r2) == pytest.approx(np.nan_to_num(climbed.r2), abs=1e-4)


def test_too_few_documents_are_refused(bed: KeptActivations) -> None:
    nothing = Folds(bed.folds.groups, np.zeros_like(bed.folds.purposes))
    with pytest.raises(NotEstimable, match="more documents"):
        bed.ladder(nothing)


def test_embeddings_of_too_few_tokens_are_refused(bed: KeptActivations) -> None:
    with pytest.raises(ValueError, match="embeddings of 5 tokens"):
        bed.ladder(embeddings=bed.embeddings[:5])


def shown_table(arms: tuple[str, ...] = ("trained", "redraw")) -> Any:
    import pandas

    rows = []
    for arm in arms:
        for subject, n in (("latents", 900), ("activations", 256)):
            value: float | None = 0.0
            for i, rung in enumerate(RUNGS[1:]):
                missing = arm == "redraw" and i >= 5
                gain = None if missing else 0.05 + 0.01 * i
                value = None if gain is None or value is None else value + gain
                around = (None, None) if value is None else (value - 0.01, value + 0.01)
                near = (None, None) if gain is None else (gain - 0.004, gain + 0.004)
                why = "no <b>placebo</b>" if missing else None
                place = [arm, None, None, "block1.out", "topk", subject]
                rows.append([*place, rung, value, gain, *around, *near, n, why])
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def test_the_section_shows_each_arm_on_one_scale() -> None:
    tables = read_tables_of(shown_table())
    section = SECTIONS["ladder"]
    content = section.build(View.of(tables))
    assert len(content.figures) == 4
    ranges = {tuple(f["layout"]["xaxis"]["range"]) for f in content.figures.values()}
    assert ranges == {(-0.02, 1.02)}
    bars = [t for t in content.figures["ladder-0"]["data"] if t["type"] == "bar"]
    assert len(bars) == 8
    ends = np.array([[t["base"][0], t["base"][0] + t["x"][0]] for t in bars])
    assert ends[1:, 0] == pytest.approx(ends[:-1, 1], abs=1e-5), "a bar begins where one ended"
    assert ends[-1, 1] == pytest.approx(1)
    html = render_section(section, View.of(tables))
    assert "Left over, 1 − R²" in html
    assert "<b>placebo</b>" not in html
    assert "&lt;b&gt;placebo" in html
    # 1 less the six rungs up to the placebo's activations
    assert ">0.550<" in html


def test_the_section_says_where_there_is_no_ladder() -> None:
    html = render_section(SECTIONS["ladder"], View.of(read_tables_of(None)))
    assert "no ladder.parquet" in html


def read_tables_of(ladder_table: Any) -> Any:
    """Tables of a trial that hold nothing but a ladder."""
    import pandas

    from sae_placebo.report.tables import COLUMNS as KNOWN

    empty = {n: pandas.DataFrame(columns=list(KNOWN[n])) for n in ("effects", "latents")}
    rest = {n: pandas.DataFrame(columns=list(KNOWN[n])) for n in ("measurements", "passages")}
    arms = {"trained": {"control": "none"}, "redraw": {"control": {"kind": "redraw"}}}
    own = {} if ladder_table is None else {"ladder": ladder_table}
    return Tables(trial={"name": "a trial", "arms": arms}, **empty, **rest, **own)
