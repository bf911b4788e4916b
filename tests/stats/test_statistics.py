"""Intervals: worked cases, reasons, and coverage by simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas
import pytest
from scipy import stats

from sae_placebo.core.errors import NotEstimable
from sae_placebo.stats.effects import (
    COLUMNS,
    Component,
    ReplicateKey,
    Replicates,
    ReplicateTable,
    arm_interval,
    between,
    document_component,
    document_weights,
    effect_interval,
    effects,
    interval,
)


@dataclass(frozen=True)
class Described:
    unit: str = "share"
    better: str = "higher"
    null: str = "0"


METRICS = {"score": Described()}


def table_of(
    arms: Mapping[str, np.ndarray],
    n_documents: int = 50,
    given: tuple[str, ...] = ("trained",),
    null_value: float | None = None,
) -> ReplicateTable:
    """Return a table with each arm's values [model, sae_seed, replicate]."""
    drawn = frozenset(arms) - frozenset(given)
    table = ReplicateTable({"resid_post.1": n_documents}, {"resid_post.1": 1_000}, drawn)
    for arm, values in arms.items():
        for model, seed in np.ndindex(values.shape[:2]):
            cell = ReplicateKey(arm, "resid_post.1", "topk", "score")
            table.add(cell, model, seed, values[model, seed], null_value)
    return table


def row_of(table: ReplicateTable, arm: str = "trained", control: str = "redraw") -> pandas.Series:
    found = effects(table, [(arm, control)], METRICS)
    assert len(found) == 1
    return found.iloc[0]


def constant(values: list[list[float]], replicates: int = 20) -> np.ndarray:
    """Return values [model, sae_seed] that are the same in every resample."""
    return np.repeat(np.array(values)[:, :, None], replicates + 1, axis=2)


# --- document weights


def test_weights_are_counts_of_documents_drawn_with_replacement() -> None:
    found = document_weights(30, 400, 7)
    assert found.shape == (30, 401)
    assert np.all(found[:, 0] == 1)
    assert np.all(found.sum(0) == 30)
    assert np.all(found == np.rint(found))
    assert found[:, 1:].var() == pytest.approx(1 - 1 / 30, rel=0.05)
    np.testing.assert_array_equal(found, document_weights(30, 400, 7))
    assert np.any(found != document_weights(30, 400, 8))


# --- intervals by hand


def test_one_source_gives_students_interval() -> None:
    found = interval(2.0, [between(np.array([1.0, 3.0]), "sae_seeds")])
    assert found.se == pytest.approx(1)  # s2 = 2, over 2
    assert found.df == pytest.approx(1)
    assert found.high == pytest.approx(2 + stats.t.ppf(0.975, 1))


def test_equal_seed_components_pool_their_degrees_of_freedom() -> None:
    parts = [Component("sae_seeds", 0.5, 1), Component("model_seeds", 0.5, 2)]
    found = interval(0.0, parts)
    assert found.se == pytest.approx(1)
    assert found.df == pytest.approx(1 / (0.25 / 1 + 0.25 / 2))


def test_documents_and_seeds_weigh_their_quantiles() -> None:
    found = interval(0.0, [Component("documents", 3, 50), Component("sae_seeds", 1, 1)])
    quantile = 0.75 * stats.t.ppf(0.975, 50) + 0.25 * stats.t.ppf(0.975, 1)
    assert found.high == pytest.approx(2 * quantile)
    assert found.df is not None
    assert found.high == pytest.approx(stats.t.ppf(0.975, found.df) * found.se)


def test_document_component_is_the_variance_of_a_mean() -> None:
    x = np.random.default_rng(0).normal(size=40)
    weights = document_weights(40, 20_000, 1)
    found = document_component((x @ weights)[1:] / 40, 40)
    assert found.variance == pytest.approx(x.var(ddof=1) / 40, rel=0.03)
    assert found.df == pytest.approx(39, rel=0.01)


def test_undefined_resamples() -> None:
    replicates = np.random.default_rng(0).normal(size=100)
    replicates[:10] = np.nan
    assert document_component(replicates, 30).df < 29
    replicates[:11] = np.nan
    with pytest.raises(NotEstimable, match="11 of 100"):
        document_component(replicates, 30)


def test_effect_by_hand() -> None:
    trained = constant([[5.0, 7.0]])
    redraw = constant([[1.0, 2.0], [3.0, 2.0]])
    row = row_of(table_of({"trained": trained, "redraw": redraw}, null_value=0.25))
    assert row["effect"] == pytest.approx(6 - 2)
    # seed by seed: 5 - 2 and 7 - 2: s2 = 2; re-draws: 1.5 and 2.5: s2 = 0.5; each over 2
    assert row["se"] == pytest.approx((2 / 2 + 0.5 / 2) ** 0.5)
    assert row["low"] < row["effect"] < row["high"]
    assert row["high"] - row["effect"] == pytest.approx(row["effect"] - row["low"])
    assert row[["arm_value", "control_value", "null"]].tolist() == [6, 2, 0]
    assert row[["n_sae_seeds", "n_arm_models", "n_control_models"]].tolist() == [2, 1, 2]
    assert row[["n_documents", "n_tokens"]].tolist() == [50, 1_000]
    assert row["metric_null"] == "0 (0.25 in trained, 0.25 in redraw)"
    assert row["reason"] is None
    # the trained arm's own interval has its SAE seeds alone: s2 = 2, over 2, one degree of freedom
    assert row["arm_high"] == pytest.approx(6 + stats.t.ppf(0.975, 1))


def test_what_arms_share_by_seed_and_document_cancels() -> None:
    draw = np.random.default_rng(0)
    shared = draw.normal(size=(1, 3, 51)) + draw.normal(size=(1, 1, 51))
    redraw = np.repeat(shared, 2, axis=0) + np.array([0.1, 0.3])[:, None, None]
    row = row_of(table_of({"trained": shared + 2, "redraw": redraw}))
    assert row["effect"] == pytest.approx(1.8)
    assert row["se"] == pytest.approx(0.1)  # re-draws alone: s2 = 0.02, over 2
    assert row["arm_high"] - row["arm_low"] > 1


def test_two_controls_are_paired_by_model_seed() -> None:
    draw = np.random.default_rng(1)
    one = draw.normal(size=(3, 2, 31))
    row = row_of(table_of({"redraw": one, "permute": one + 1.0}), "permute", "redraw")
    assert row["effect"] == pytest.approx(1)
    assert row["se"] == pytest.approx(0, abs=1e-9)


def test_unequal_seeds_are_not_paired() -> None:
    one, other = constant([[0.0, 0.0], [2.0, 2.0]]), constant([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    a = Replicates(one, (0, 1), (0, 1), drawn=True)
    b = Replicates(other, (0, 1, 2), (0, 1), drawn=True)
    assert effect_interval(a, b, 9).se == pytest.approx((2 / 2 + 1 / 3) ** 0.5)


def test_no_variation_is_a_point() -> None:
    same = constant([[32.0, 32.0], [32.0, 32.0]])
    row = row_of(table_of({"trained": same[:1], "redraw": same}))
    assert row[["effect", "low", "high", "se"]].tolist() == [0, 0, 0, 0]
    assert pandas.isna(row["df"])
    assert row["reason"] is None


# --- what cannot be estimated


@pytest.mark.parametrize(
    ("shape", "n_documents", "reason"),
    [
        ((2, 1), 50, "one SAE seed"),
        ((1, 2), 50, "one re-draw"),
        ((2, 2), 1, "one document"),
    ],
)
def test_no_interval_without_variation(
    shape: tuple[int, int], n_documents: int, reason: str
) -> None:
    values = np.random.default_rng(0).normal(size=(*shape, 31))
    row = row_of(table_of({"trained": values[:1], "redraw": values}, n_documents))
    assert np.isfinite(row["effect"])
    assert row[["low", "high", "se", "df", "control_low"]].isna().all()
    assert reason in row["reason"]


def test_a_missing_value_travels_with_its_reason() -> None:
    values = np.random.default_rng(0).normal(size=(2, 2, 31))
    table = table_of({"trained": values[:1], "redraw": values})
    cell = ReplicateKey("redraw", "resid_post.1", "topk", "score")
    table.add(cell, 1, 1, None, reason="every latent is dead")
    row = row_of(table)
    assert row[["effect", "low", "control_value", "aa_effect"]].isna().all()
    assert np.isfinite(row["arm_value"])
    assert row["reason"] == row["aa_reason"] == "redraw: every latent is dead"


def test_an_incomplete_grid_is_refused() -> None:
    values = np.random.default_rng(0).normal(size=(2, 2, 31))
    table = table_of({"trained": values[:1], "redraw": values})
    table.add(ReplicateKey("redraw", "resid_post.1", "topk", "score"), 2, 0, values[0, 0])
    assert "5 SAEs" in row_of(table)["reason"]


def test_columns_and_empty_table() -> None:
    empty = effects(ReplicateTable({}, {}, frozenset()), [("a", "b")], METRICS)
    assert list(empty.columns) == list(COLUMNS)
    assert len(empty) == 0
    assert empty["low"].dtype == float


# --- placebo against placebo


def test_placebo_halves_by_hand() -> None:
    redraw = constant([[1.0, 1.0], [2.0, 2.0], [5.0, 7.0]])
    row = row_of(table_of({"trained": redraw[:1], "redraw": redraw}))
    assert row["aa_effect"] == pytest.approx(1 - 4)
    assert row["aa_control"] == "redraw: model_seed 0 minus 1, 2"
    # within the second half: 2 and 6, s2 = 8 on one degree of freedom; times 1/1 + 1/2
    half = stats.t.ppf(0.975, 1) * (8 * 1.5) ** 0.5
    assert row["aa_high"] - row["aa_effect"] == pytest.approx(half)
    assert row["aa_reason"] is None


def test_two_redraws_borrow_from_the_other_controls() -> None:
    redraw = constant([[1.0, 1.0], [4.0, 4.0]])
    others = {"permute": constant([[0.0, 0.0], [2.0, 2.0]]), "step0": constant([[9.0, 9.0]])}
    table = table_of({"trained": redraw[:1], "redraw": redraw, **others}, given=("trained",))
    row = row_of(table)
    half = stats.t.ppf(0.975, 1) * (2 * 2.0) ** 0.5  # s2 of permute = 2, two halves of one
    assert row["aa_high"] - row["aa_effect"] == pytest.approx(half)
    alone = row_of(table_of({"trained": redraw[:1], "redraw": redraw}))
    assert alone["aa_effect"] == pytest.approx(-3)
    assert pandas.isna(alone["aa_low"])
    assert "at least three model_seeds" in alone["aa_reason"]


def test_two_redraws_borrow_from_their_own_family_and_never_from_a_twin() -> None:
    redraw = constant([[1.0, 1.0], [4.0, 4.0]])
    shuffle = constant([[0.0, 0.0], [0.1, 0.1]])
    arms = {"trained": redraw[:1], "redraw": redraw, "shuffle": shuffle, "twin": redraw}
    table = table_of(arms, given=("trained",))
    families = {"redraw": "weights", "twin": "weights", "shuffle": "data: shuffle_tokens"}
    # what varies little says nothing of a re-draw, and an arm with the same SAEs covers anything
    apart = ReplicateTable(
        table.n_documents, table.n_tokens, table.drawn, families, {"twin": "redraw"}
    )
    apart._values.update(table._values)
    assert "no other control of its family" in row_of(apart)["aa_reason"]
    assert pandas.isna(row_of(apart)["aa_low"])
    assert row_of(table)["aa_low"] is not None


def test_a_given_control_has_no_placebo_comparison() -> None:
    values = constant([[1.0, 2.0]])
    row = row_of(
        table_of({"trained": values, "step0": values}, given=("trained", "step0")), control="step0"
    )
    assert "given, not drawn" in row["aa_reason"]
    assert row["reason"] is None


# --- coverage


@dataclass(frozen=True)
class Spread:
    """Standard deviations of what varies, each as that of the mean that it enters."""

    documents: float
    sae_seeds: float
    models: float
    joint: float


def simulate(
    draw: np.random.Generator, n_documents: int, shape: tuple[int, int], spread: Spread
) -> tuple[np.ndarray, np.ndarray]:
    """Return the trained arm's and a control's values, with no difference between them."""
    models, seeds = shape
    weights = np.concatenate(
        [
            np.ones((1, n_documents)),
            draw.multinomial(n_documents, np.full(n_documents, 1 / n_documents), size=100),
        ]
    )
    by_arm = draw.normal(0, spread.documents * n_documents**0.5, (2, n_documents))
    documents = by_arm @ weights.T / n_documents / 2**0.5
    trained = documents[0] + draw.normal(0, spread.sae_seeds * seeds**0.5, (1, seeds, 1))
    control = (
        documents[1]
        + draw.normal(0, spread.models * models**0.5, (models, 1, 1))
        + draw.normal(0, spread.joint * (models * seeds) ** 0.5, (models, seeds, 1))
    )
    return trained, control


SPREADS = {
    "documents": Spread(1, 0, 0, 0),
    "sae_seeds": Spread(0.2, 1, 0, 0),
    "models": Spread(0.2, 0, 1, 0),
    "joint": Spread(0.2, 0, 0, 1),
    "all": Spread(1, 1, 1, 0.5),
}


def coverage(
    n_documents: int, shape: tuple[int, int], spread: Spread, trials: int, seed: int
) -> float:
    """Return how often the interval of an effect of 0 holds 0."""
    draw = np.random.default_rng(seed)
    models, seeds = tuple(range(shape[0])), tuple(range(shape[1]))
    hits = 0
    for _ in range(trials):
        trained, control = simulate(draw, n_documents, shape, spread)
        found = effect_interval(
            Replicates(trained, (0,), seeds, drawn=False),
            Replicates(control, models, seeds, drawn=True),
            n_documents,
        )
        hits += found.low <= 0 <= found.high
    return hits / trials


@pytest.mark.parametrize("shape", [(2, 2), (3, 3)])
@pytest.mark.parametrize("name", list(SPREADS))
def test_coverage(name: str, shape: tuple[int, int]) -> None:
    # 93 to 99% with 2,500 trials; 600 trials add a standard error of 0.9%
    assert 0.92 <= coverage(60, shape, SPREADS[name], 600, seed=3) <= 0.995


def test_the_interval_of_one_arm_covers() -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        _, control = simulate(draw, 60, (2, 2), Spread(1, 0, 1, 0))
        found = arm_interval(Replicates(control, (0, 1), (0, 1), drawn=True), 60)
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / 600 <= 0.995


def placebo_rejections(models: int, spread: Spread, trials: int, seed: int) -> float:
    """Return how often the placebo comparison of a control excludes zero."""
    draw = np.random.default_rng(seed)
    out = 0
    for _ in range(trials):
        arms = {name: simulate(draw, 60, (models, 2), spread)[1] for name in ("a", "b", "c")}
        row = row_of(table_of(arms, 60, given=()), "b", "a")
        out += not row["aa_low"] <= 0 <= row["aa_high"]
    return out / trials


@pytest.mark.parametrize("models", [2, 3, 4])
def test_placebo_against_placebo_excludes_zero_one_time_in_twenty(models: int) -> None:
    rate = placebo_rejections(models, Spread(0.1, 0, 1, 0.5), 400, seed=models)
    assert 0.02 <= rate <= 0.085


def test_two_equal_counts_are_not_certainty() -> None:
    step = 1 / 2_048
    equal = np.array([3 * step, 3 * step])
    assert between(equal, "sae_seeds").variance == 0
    assert between(equal, "sae_seeds", step).variance == pytest.approx(step**2 / 24)
    apart = np.array([3 * step, 9 * step])
    assert between(apart, "sae_seeds", step) == between(apart, "sae_seeds")


def test_rounded_shares_keep_their_coverage() -> None:
    random = np.random.default_rng(11)
    covered, step, trials = 0, 1 / 512, 1_500
    for _ in range(trials):
        # two seeds whose counts vary by a third of a latent: they tie most of the time
        values = np.round(random.normal(10.4, 0.35, size=2)) * step
        component = between(values, "sae_seeds", step)
        found = interval(float(values.mean()), [component])
        truth = 10.4 * step
        covered += found.low <= truth <= found.high
    assert covered / trials > 0.93
