"""Shares of latents that are counted in several SAEs, whose SAEs differ by more than counting makes them.

Latents of one SAE are not independent draws: another seed or another re-draw moves them together. The
variance between SAEs over that of counting is the **over-dispersion**. Two SAEs give it one degree of
freedom, so all shares of a kind in a trial share theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sae_placebo.core.errors import NotEstimable
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


def pooled(every: Sequence[Dispersion]) -> Dispersion:
    """Return the over-dispersion that shares of one kind have together; counting's where none is known.

    Two or three SAEs say next to nothing of their own share's, and several shares together say enough.
    """
    known = [one for one in every if one.df > 0]
    df = sum(one.df for one in known)
    return Dispersion(sum(one.df * one.ratio for one in known) / df, df) if known else COUNTING


def interval(counted: Counted, over: Dispersion, level: float = 0.95) -> Bounded:
    """Return a share with the score interval of as many independent latents as its own count for.

    The variance is never below that of counting, and the reach is Student's with the degrees of freedom of
    the over-dispersion.

    Raises:
        NotEstimable: no latent was judged.
    """
    n = sum(counted.n)
    if not n:
        raise NotEstimable("no latent was judged")
    ratio = max(over.ratio, 1.0)
    reach = normal_quantile(level) if math.isinf(over.df) else student_quantile(over.df, level)
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
