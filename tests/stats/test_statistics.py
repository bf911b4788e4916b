"""Intervals: worked cases, reasons, and coverage by simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas
import pytest
from scipy import stats

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.components import Component, document_component, interval
from sae_placebo.stats.effects import COLUMNS, arm_bounds, document_weights, effects
from sae_placebo.stats.inference import DifferenceOfShares, difference
from sae_placebo.stats.replicates import ReplicateKey, ReplicateTable
from sae_placebo.stats.spreads import Spreads, components_of, mean_squares


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
    squares = mean_squares(np.array([[1.0, 3.0]]), drawn=False)
    found = interval(2.0, components_of(squares, 2))
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
    # seed by seed 3 and 5, re-draw by re-draw 4.5 and 3.5, both together 1/2 off: mean squares 4, 1 and 1
    assert row["se"] == pytest.approx(((4 + 1 - 1) / 4) ** 0.5)
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
    row = row_of(table_of({"a": one, "b": other}, given=()), "a", "b")
    assert row["se"] == pytest.approx((2 / 2 + 1 / 3) ** 0.5)


def test_what_a_seed_and_a_redraw_do_together_counts_once() -> None:
    """By hand: 0, 0, 0, 4: both mean squares are 4, what is left is 4: (4 + 4 - 4) / 4."""
    table = table_of({"redraw": constant([[0.0, 0.0], [0.0, 4.0]])}, given=())
    found = Spreads(table).of(ReplicateKey("redraw", "resid_post.1", "topk", "score"))
    assert sum(part.variance for part in found.seeds) == pytest.approx(1.0)


def test_what_a_document_and_a_seed_do_together_counts_once() -> None:
    """Each seed reads the documents with noise of its own: the spread between seeds holds all of it."""
    random = numpy_generator(0, "documents by seeds")
    weights = document_weights(200, 300, 0)
    values = (random.normal(size=(1, 4, 200)) @ weights) / 200
    spread = Spreads(table_of({"trained": values}, 200)).of(
        ReplicateKey("trained", "resid_post.1", "topk", "score")
    )
    documents = spread.components(200)[0].variance
    assert documents < 0.4 * spread.replicates.var(ddof=1)


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
    hits = 0
    cells = [ReplicateKey(arm, "resid_post.1", "topk", "score") for arm in ("trained", "redraw")]
    for _ in range(trials):
        trained, control = simulate(draw, n_documents, shape, spread)
        spreads = Spreads(table_of({"trained": trained, "redraw": control}, n_documents))
        found = difference(spreads, (cells[0], cells[1])).bounds()
        hits += found.low <= 0 <= found.high
    return hits / trials


@pytest.mark.parametrize("shape", [(2, 2), (3, 3)])
@pytest.mark.parametrize("name", list(SPREADS))
def test_coverage(name: str, shape: tuple[int, int]) -> None:
    # one metric alone: nothing to moderate by; 600 trials have a standard error of 0.9%
    assert 0.92 <= coverage(60, shape, SPREADS[name], 600, seed=3) <= 0.995


def test_the_interval_of_one_arm_covers() -> None:
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        _, control = simulate(draw, 60, (2, 2), Spread(1, 0, 1, 0))
        cell = ReplicateKey("redraw", "resid_post.1", "topk", "score")
        low, high = arm_bounds(Spreads(table_of({"redraw": control}, 60)), cell)
        hits += low <= 0 <= high
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


# --- shares of what is counted


def shares(
    random: np.random.Generator, rates: Mapping[str, np.ndarray], rho: float, n: int = 1_024
) -> ReplicateTable:
    """Return the shares of classes: beta-binomial counts of n, 2 SAE seeds, 2 re-draws of what is drawn."""
    table = ReplicateTable({"here": 60}, {"here": 600}, frozenset(rates) - {"trained"})
    for arm, of_arm in rates.items():
        for c, rate in enumerate(of_arm):
            for model, seed in np.ndindex(1 if arm == "trained" else 2, 2):
                p = random.beta(rate * (1 / rho - 1), (1 - rate) * (1 / rho - 1))
                value = np.full(4, random.binomial(n, p) / n)
                cell = ReplicateKey(arm, "here", "sae", f"share_{c}")
                table.add(cell, model, seed, value, counted=n)
    return table


def test_shares_cover_at_every_rate_and_never_leave_0_to_100() -> None:
    random = numpy_generator(0, "planted shares")
    expected = np.array([0.5, 1, 2, 5, 10, 20, 50, 100, 300, 900])
    hits, widths, trials = np.zeros(len(expected)), np.zeros(len(expected)), 150
    for _ in range(trials):
        rates = {"trained": expected / 1_024, "a": expected / 1_024, "b": expected / 1_024}
        spreads = Spreads(shares(random, rates, 1e-3))
        for c, rate in enumerate(expected / 1_024):
            low, high = arm_bounds(spreads, ReplicateKey("a", "here", "sae", f"share_{c}"))
            assert 0 <= low <= high <= 1
            hits[c] += low <= rate <= high
            widths[c] += (high - low) / trials
    # 93% less three standard errors; the mean of ten classes has one of half a percent
    assert (hits / trials).min() >= 0.87
    assert 0.93 <= hits.mean() / trials <= 0.99
    # 10% of latents: a standard deviation of 0.74 points for a mean of four SAEs
    assert 0.02 <= widths[7] <= 0.05


def test_a_share_that_is_seven_times_another_is_never_equivalent() -> None:
    random = numpy_generator(1, "planted shares")
    usual = np.array([0.01, 0.03, 0.1, 0.2, 0.3])
    seen = {"same": 0, "apart": 0}
    for _ in range(40):
        rates = {
            "trained": np.array([0.015, 0.3, *usual]),
            "redraw": np.array([0.002, 0.3, *usual]),
        }
        found = effects(
            shares(random, rates, 2e-4),
            [("trained", "redraw")],
            {f"share_{c}": Described() for c in range(7)},
        )
        assert (found["seoi_unit"] == "log odds").all()
        seen["apart"] += found["conclusion"][0] == "equivalent"
        seen["same"] += found["conclusion"][1] == "equivalent"
        assert (found["low"] >= -1).all()
        assert (found["high"] <= 1).all()
    assert seen["apart"] == 0
    assert seen["same"] >= 30


def test_no_latent_in_either_arm_is_never_equivalent() -> None:
    random = numpy_generator(2, "planted shares")
    usual = np.array([1e-9, 0.03, 0.1, 0.2, 0.3])
    table = shares(random, {"trained": usual, "redraw": usual}, 2e-4)
    cells = [ReplicateKey(arm, "here", "sae", "share_0") for arm in ("trained", "redraw")]
    found = difference(Spreads(table), (cells[0], cells[1]))
    assert isinstance(found, DifferenceOfShares)
    low, high = found.bounds()
    assert -0.01 < low < 0 < high < 0.01
    assert not np.isfinite(found.against_margin()).any()
