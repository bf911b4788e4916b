"""Differences of shares: interval and p say the same at every level, and small counts give sensible ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.components import Component
from sae_placebo.stats.inference import (
    ArmNumber,
    DifferenceOfShares,
    difference,
    p_of_large,
    p_of_none,
    p_of_small,
)
from sae_placebo.stats.replicates import ReplicateKey, ReplicateTable
from sae_placebo.stats.scales import CountScale
from sae_placebo.stats.spreads import Spread, Spreads

N = 1_024
LEVELS = (0.5, 0.2, 0.05, 0.01, 1e-3, 1e-5, 1e-8)


def trial(trained: list[list[int]], control: list[list[int]], documents: float = 0.0) -> Spreads:
    """Return a trial of one class with these counts, beside ten usual ones.

    `documents` is the standard deviation of the trained arm's count over documents; the control's is 0.
    """
    random = numpy_generator(0, "shares apart")
    table = ReplicateTable({"here": 60}, {"here": 600}, frozenset({"control", "one", "two"}))

    def put(arm: str, metric: str, counts: np.ndarray, spread: float = 0.0) -> None:
        changed = np.concatenate([[0.0], random.normal(0, spread, 100)])
        for (model, seed), count in np.ndenumerate(counts):
            cell = ReplicateKey(arm, "here", "sae", metric)
            table.add(cell, model, seed, np.maximum(count + changed, 0) / N, counted=N)

    put("trained", "share", np.array(trained), documents)
    put("control", "share", np.array(control))
    for c, rate in enumerate(np.geomspace(0.004, 0.3, 10)):
        for arm in ("trained", "control", "one", "two"):
            size = (1 if arm == "trained" else 2, 2)
            put(arm, f"share_{c}", random.binomial(N, rate, size))
    return Spreads(table)


def apart(spreads: Spreads) -> DifferenceOfShares:
    cells = [ReplicateKey(arm, "here", "sae", "share") for arm in ("trained", "control")]
    found = difference(spreads, (cells[0], cells[1]))
    assert isinstance(found, DifferenceOfShares)
    return found


def number(count: float, variance: float, df: float = math.inf) -> ArmNumber:
    scale = CountScale(N)
    parts = (Component("documents", variance / 2, 50.0), Component("sae_seeds", variance / 2, df))
    center = float(scale.forward(np.array([count / N]))[0])
    return ArmNumber(count / N, Spread(scale, center, np.empty(0), 0.0, parts[1:], 0.0), parts)


def of(
    arm: float, control: float, r: float, variances: tuple[float, float] = (0.6, 0.3)
) -> DifferenceOfShares:
    """Return the difference of two counts whose parts all have correlation r."""
    sides = number(arm, variances[0]), number(control, variances[1])
    total = sum(variances) - 2 * r * math.sqrt(variances[0] * variances[1])
    parts = (Component("documents", total / 2, 50.0), Component("sae_seeds", total / 2, 9.0))
    return DifferenceOfShares(sides[0], sides[1], parts)


@pytest.mark.parametrize(
    "counts", [(9.5, 2.25), (8.0, 0.0), (1.5, 0.0), (3.0, 12.0), (400.0, 330.0)]
)
@pytest.mark.parametrize("r", [-0.3, 0.0, 0.6, 0.95])
def test_interval_and_p_say_the_same_and_wider_holds_narrower(
    counts: tuple[float, float], r: float
) -> None:
    found = of(*counts, r)
    p = p_of_none(found)
    last, last_odds = found.bounds(0.01), found.against_margin(0.01)
    for level in LEVELS:
        low, high = found.bounds(1 - level)
        assert (low > 0 or high < 0) == (p < level)
        assert low <= last.low <= last.high <= high
        odds = found.against_margin(1 - level)
        assert odds.low <= last_odds.low <= last_odds.high <= odds.high
        assert (odds.low > 0 or odds.high < 0) == (p < level)
        last, last_odds = found.bounds(1 - level), odds
    assert -1 <= last.low <= last.high <= 1
    # found by bisection, to a millionth
    assert p <= 1.00001 * p_of_small(found, 0.1) <= 1.00002 * p_of_small(found, 0.4)
    assert p_of_large(found, 1.0) <= p_of_large(found, 0.4)


def test_p_falls_as_the_counts_move_apart() -> None:
    for r in (0.0, 0.5, 0.9):
        p = [p_of_none(of(count, 2.0, r)) for count in (3, 4, 6, 9, 13, 20, 40)]
        assert (np.diff(p) < 0).all()


def test_small_counts_give_no_p_that_they_cannot_bear() -> None:
    """12 and 7 latents against 2, 3, 1 and 3 had p = 1e-12, and 7 and 9 against none 2e-11."""
    few = p_of_none(apart(trial([[12, 7]], [[2, 3], [1, 3]])))
    assert 2e-4 < few < 1e-2
    assert few < p_of_none(apart(trial([[12, 7]], [[2, 3], [1, 3]], documents=3.0))) < 0.1
    # 16 of 2,048 against none of 4,096, by Fisher's exact test: 2e-8
    none = p_of_none(apart(trial([[7, 9]], [[0, 0], [0, 0]])))
    assert 1e-7 < none < 1e-4
    assert 1e-4 < p_of_none(apart(trial([[7, 9]], [[0, 0], [0, 0]], documents=2.5))) < 1e-2
    assert p_of_none(apart(trial([[1, 0]], [[0, 0], [0, 0]]))) > 0.2


def test_the_covariance_is_at_most_what_it_can_be_source_by_source() -> None:
    """Documents move the trained arm alone, so no covariance can come of them."""
    found = apart(trial([[12, 7]], [[2, 3], [1, 3]], documents=3.0))
    assert found.control.components[0].variance == pytest.approx(0)
    assert found.components[0].variance == pytest.approx(found.arm.components[0].variance)
    seeds = [sum(p.variance for p in side.components[1:]) for side in (found.arm, found.control)]
    assert abs(found.covariance) <= math.sqrt(seeds[0] * seeds[1]) + 1e-12


def test_a_share_of_some_latents_stays_between_0_and_1() -> None:
    """Of how many differs between SAEs, so it is on its own scale; of R2 below 0 nothing is cut."""
    for name, whole in (("share of some", (0.0, 1.0)), ("R2", (-math.inf, math.inf))):
        shares = frozenset({name} if whole[0] == 0 else ())
        table = ReplicateTable({"here": 60}, {"here": 600}, frozenset(), shares=shares)
        random = numpy_generator(0, "share of some")
        for arm, values in (("low", (0.0, 0.02)), ("high", (0.97, 1.0))):
            cell = ReplicateKey(arm, "here", "sae", name)
            for seed, value in enumerate(values):
                table.add(cell, 0, seed, value + np.r_[0, random.normal(0, 0.01, 100)])
        low, high = (
            ArmNumber.of(Spreads(table), ReplicateKey(arm, "here", "sae", name)).bounds()
            for arm in ("low", "high")
        )
        assert (low.low == 0.0) == (whole[0] == 0)
        assert (high.high == 1.0) == (whole[0] == 0)
        assert min(low.high, high.low) > 0
