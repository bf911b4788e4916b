"""A share of things that are counted has a score interval."""

from __future__ import annotations

import math

from sae_placebo.core.errors import NotEstimable
from sae_placebo.stats.quantiles import normal_quantile


def wilson(hits: int | float, n: int | float, level: float = 0.95) -> tuple[float, float]:
    """Return the score interval of a share of `hits` among `n` independent draws.

    It stays within 0 and 1 and has a width where no or every draw is a hit.

    Draws that count unequally enter by their effective number, which need not be whole.

    Raises:
        NotEstimable: there is nothing to take a share of.

    Source: Wilson (1927).
    """
    if n < 1:
        raise NotEstimable("there is none, so no share of them")
    return score_interval(hits, n, normal_quantile(level))


def score_interval(hits: int | float, n: int | float, reach: float) -> tuple[float, float]:
    """Return the score interval that reaches so many standard errors to either side.

    Source: Wilson (1927).
    """
    share, square = hits / n, reach * reach
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = reach / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    # exactly so at the ends, where rounding would leave a little
    return (middle - half if hits else 0.0), (middle + half if hits < n else 1.0)
