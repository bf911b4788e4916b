"""Shares of latents whose truth is planted: how often their intervals hold it, and how wide they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.calibration import TrialShare
from sae_placebo.stats.inference import ArmNumber, difference
from sae_placebo.stats.placebo_effects import placebo_against_placebo
from sae_placebo.stats.replicates import ReplicateKey, ReplicateTable
from sae_placebo.stats.spreads import Spreads

EXPECTED = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0)
"""Latents of a class that are expected in an SAE."""
ARMS = ("trained", "one", "two", "three")
MORE, MORE_ODDS = "more", 1.5
"""An arm in which every class has so many times the odds: the smallest effect of interest."""
_D_SAE, _DOCUMENTS = 1_024, 60
# the other classes of a trial, by which these are moderated
_OTHERS = np.exp(np.linspace(np.log(0.002), np.log(0.3), 10))
# overdispersions differ between classes as variances of so many degrees of freedom
_DF = 6


class ShareCoverage(NamedTuple):
    """How the intervals of a planted share did.

    Attributes:
        expected: Latents of the class expected in an SAE.
        control: How often a control's own interval holds its share.
        effect: How often that of trained minus control holds the difference of 0.
        placebo: How often the A/A interval leaves 0 out.
        power: How often the effect's interval leaves 0 out where the arm's odds are 1.5 times the control's,
            the smallest effect of interest.
        width: Median half-width of the effect's interval over the true standard deviation of the effect.
    """

    expected: float
    control: TrialShare
    effect: TrialShare
    placebo: TrialShare
    power: TrialShare
    width: float


def planted_shares(
    shape: tuple[int, int],
    overdispersion: float,
    trials: int,
    seed: int = 0,
    expected: Sequence[float] = EXPECTED,
) -> list[ShareCoverage]:
    """Return how intervals of shares do, by the expected count.

    A trial has one trained arm, another with larger shares, and three drawn ones. Counts are beta-binomial,
    of 1,024 latents, drawn anew for each SAE: all that varies is a re-draw and a seed together. Documents
    do not vary.

    Args:
        shape: Re-draws of each control, and SAE seeds.
        overdispersion: Mean correlation of latents of an SAE; 0 gives binomial counts.
        trials: Planted trials.
        seed: Seed of all draws.
        expected: Expected counts of the classes that are judged.
    """
    random = numpy_generator(seed, "planted shares", *shape, str(overdispersion))
    rates = np.concatenate([np.array(expected) / _D_SAE, _OTHERS])
    hits = np.zeros((4, len(expected)))
    ratios = np.zeros((trials, len(expected)))
    for trial in range(trials):
        correlations = overdispersion * _DF / random.chisquare(_DF, len(rates))
        spreads = Spreads(_table(random, rates, correlations, shape))
        for c, rate in enumerate(rates[: len(expected)]):
            cells = [ReplicateKey(arm, "here", "sae", f"share_{c}") for arm in ARMS[:2]]
            low, high = ArmNumber.of(spreads, cells[1]).bounds()
            hits[0, c] += low <= rate <= high
            low, high = difference(spreads, (cells[0], cells[1])).bounds()
            hits[1, c] += low <= 0 <= high
            of_one = rate * (1 - rate) / _D_SAE * (1 + (_D_SAE - 1) * correlations[c])
            true = (of_one / shape[1] * (1 + 1 / shape[0])) ** 0.5
            ratios[trial, c] = (high - low) / 2 / true
            aa = placebo_against_placebo(spreads, cells[1], 0.95)
            hits[2, c] += not aa["aa_low"] <= 0 <= aa["aa_high"]
            more = ReplicateKey(MORE, "here", "sae", f"share_{c}")
            low, high = difference(spreads, (more, cells[1])).bounds()
            hits[3, c] += not low <= 0 <= high
    found = []
    for c, count in enumerate(expected):
        control, effect, placebo, power = (TrialShare.of(int(kind[c]), trials) for kind in hits)
        width = float(np.median(ratios[:, c]))
        found.append(ShareCoverage(count, control, effect, placebo, power, width))
    return found


def _table(
    random: np.random.Generator,
    rates: Float[np.ndarray, " c"],
    correlations: Float[np.ndarray, " c"],
    shape: tuple[int, int],
) -> ReplicateTable:
    """Return the shares of every class in every arm; resamples of the documents change nothing."""
    table = ReplicateTable({"here": _DOCUMENTS}, {"here": _DOCUMENTS}, frozenset(ARMS[1:]))
    odds = rates / (1 - rates) * MORE_ODDS
    for arm in (*ARMS, MORE):
        grid = (1 if arm in ("trained", MORE) else shape[0], shape[1])
        own = odds / (1 + odds) if arm == MORE else rates
        for c, (rate, correlation) in enumerate(zip(own, correlations, strict=True)):
            share = np.full(grid, rate)
            if correlation > 0:
                size = 1 / correlation - 1
                share = random.beta(rate * size, (1 - rate) * size, grid)
            counts = random.binomial(_D_SAE, share)
            for m, s in np.ndindex(*grid):
                cell = ReplicateKey(arm, "here", "sae", f"share_{c}")
                table.add(cell, m, s, np.full(3, counts[m, s] / _D_SAE), counted=_D_SAE)
    return table
