"""Shares counted in several SAEs: intervals that hold planted truths, and that leave no share's range."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sae_placebo.core.errors import NotEstimable
from sae_placebo.stats.clustered_shares import (
    COUNTING,
    Counted,
    Dispersion,
    between,
    difference,
    interval,
    pooled,
)
from sae_placebo.stats.proportions import wilson


def test_one_sae_says_nothing_of_dispersion_and_gives_the_score_interval() -> None:
    one = Counted((3,), (40,))
    assert between(one).df == 0
    assert pooled([between(one)]) == COUNTING
    found = interval(one, COUNTING)
    assert (found.value, found.low, found.high) == (3 / 40, *wilson(3, 40))
    with pytest.raises(NotEstimable):
        interval(Counted((0,), (0,)), COUNTING)


def test_saes_that_differ_widen_the_interval_and_nothing_leaves_its_range() -> None:
    apart, alike = Counted((10, 70), (100, 100)), Counted((40, 40), (100, 100))
    assert between(apart).ratio > 20 > 1 > between(alike).ratio
    over = pooled([between(apart), between(alike)])
    assert over.df == 2
    wide, narrow = interval(apart, over), interval(apart, COUNTING)
    assert 0 < wide.low < narrow.low < narrow.high < wide.high < 1
    ends = difference(interval(Counted((99,), (100,)), over), interval(Counted((0,), (90,)), over))
    assert -1 <= ends.low < ends.value < ends.high <= 1


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_intervals_hold_planted_shares_and_differences(ratio: float) -> None:
    """The reduced form of `benchmarks/circuits.py coverage`."""
    random, n, shares, held = np.random.default_rng(0), 250, (0.4, 0.1, 0.1), np.zeros(3)
    rho = (ratio - 1) / (n - 1)
    for _ in range(300):
        counted = []
        for share in shares:
            p = np.full(2, share)
            if rho:
                p = random.beta(share * (1 / rho - 1), (1 - share) * (1 / rho - 1), 2)
            counted.append(Counted(tuple(int(h) for h in random.binomial(n, p)), (n, n)))
        over = pooled([between(one) for one in counted])
        first, second = (interval(one, over) for one in counted[:2])
        apart = difference(first, second)
        for i, (found, truth) in enumerate(
            zip((first, second, apart), (0.4, 0.1, 0.3), strict=True)
        ):
            held[i] += found.low <= truth <= found.high
    assert (held / 300 > 0.9).all()


def test_pooling_weighs_by_degrees_of_freedom() -> None:
    assert pooled([Dispersion(4.0, 1.0), Dispersion(1.0, 3.0)]) == Dispersion(1.75, 4.0)
    assert pooled([]) == COUNTING
    assert math.isinf(COUNTING.df)
