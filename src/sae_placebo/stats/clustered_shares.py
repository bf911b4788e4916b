"""Shares of latents that are counted in several SAEs, whose SAEs differ by more than counting makes them.

Latents of one SAE are not independent draws: another seed or another re-draw moves them together. The
variance between SAEs over that of counting is the **over-dispersion**. Two SAEs give it one degree of
freedom, so it is drawn towards that of the other shares of the trial (`moderation`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_placebo.core.errors import NotEstimable
from sae_placebo.stats.moderation import moderated, variance_prior
from sae_placebo.stats.proportions import score_interval
from sae_placebo.stats.quantiles import normal_quantile, student_quantile


class Counted(NamedTuple):
    """How many latents of each SAE have a property, and how many were judged."""

    hits: tuple[int, ...]
    n: tuple[int, ...]

    @property
    def share(self) -> float:
        """Return the share over all SAEs, each counting by its latents."""
        return sum(self.hits) / sum(self.n)


class Dispersion(NamedTuple):
    """The variance between SAEs over that of counting, and the degrees of freedom that it rests on."""

    ratio: float
    df: float


class Bounded(NamedTuple):
    """A share or a difference of two, with its interval."""

    value: float
    low: float
    high: float


COUNTING = Dispersion(1.0, math.inf)
"""What latents that are drawn independently have."""


def between(counted: Counted) -> Dispersion:
    """Return the over-dispersion of one share by its own SAEs; with one SAE it has no degree of freedom.

    Shares are taken on the scale on which counting has one variance, the arcsine of the root
    (Anscombe 1948, Biometrika 35:246).
    """
    hits, n = (np.array(x, dtype=np.float64) for x in counted)
    hits, n = hits[n > 0], n[n > 0]
    if len(n) < 2:
        return Dispersion(math.nan, 0.0)
    angles = np.arcsin(np.sqrt((hits + 3 / 8) / (n + 3 / 4)))
    of_counting = float((1 / (4 * n + 2)).mean())
    return Dispersion(float(angles.var(ddof=1)) / of_counting, len(n) - 1.0)


def steadied(own: Dispersion, others: Sequence[Dispersion]) -> Dispersion:
    """Return a share's over-dispersion, drawn towards those of others; counting's where nothing is known.

    Args:
        own: That of the share itself; without a degree of freedom the others' alone is returned.
        others: Those of shares of the same kind, its own among them where it may count.
    """
    known = [one for one in others if one.df > 0]
    ratios, df = (np.array([one[i] for one in known]) for i in (0, 1))
    prior = variance_prior(ratios, df)
    if prior.df == 0:  # too few to learn how much they differ: they are pooled
        if own.df > 0:
            return own
        return Dispersion(float(np.average(ratios, weights=df)), df.sum()) if known else COUNTING
    ratio, total = moderated(np.array([own.ratio]), np.array([own.df]), prior)
    return Dispersion(float(ratio[0]), float(total[0]))


def interval(counted: Counted, over: Dispersion, level: float = 0.95) -> Bounded:
    """Return a share with the score interval of as many independent latents as its own count for.

    The variance is never below that of counting. What is beyond it has the degrees of freedom of the
    over-dispersion; counting has none to lose, so the sum has more (Satterthwaite 1946).

    Raises:
        NotEstimable: no latent was judged.
    """
    n = sum(counted.n)
    if not n:
        raise NotEstimable("no latent was judged")
    ratio = max(over.ratio, 1.0)
    df = over.df * (ratio / (ratio - 1)) ** 2 if ratio > 1 else math.inf
    reach = normal_quantile(level) if math.isinf(df) else student_quantile(df, level)
    return Bounded(counted.share, *score_interval(sum(counted.hits) / ratio, n / ratio, reach))


def difference(first: Bounded, second: Bounded) -> Bounded:
    """Return the difference of two shares of separate SAEs, with an interval that stays within -1 and 1.

    Source: MOVER, the limits of both shares recovered as variances (Zou and Donner 2008, Statistics in
    Medicine 27:1693).
    """
    value = first.value - second.value
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    return Bounded(value, value - down, value + up)
