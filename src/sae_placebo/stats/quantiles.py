"""How many standard errors an interval reaches to either side."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import overload

import numpy as np
from jaxtyping import Float, Float64, Real


def normal_quantile(level: float = 0.95) -> float:
    """Return how many standard errors a two-sided normal interval reaches to either side.

    It is 1.95996... for 95%.

    Args:
        level: Share of the normal distribution that lies inside.
    """
    return NormalDist().inv_cdf((1 + level) / 2)


@overload
def student_quantile(df: int | float, level: float = 0.95) -> float: ...


@overload
def student_quantile(
    df: Real[np.ndarray, "*any"], level: float = 0.95
) -> Float64[np.ndarray, "*any"]: ...


def student_quantile(
    df: int | float | Real[np.ndarray, "*any"], level: float = 0.95
) -> float | Float64[np.ndarray, "*any"]:
    """Return how many standard errors a two-sided interval of Student's t reaches to either side.

    Args:
        df: Degrees of freedom, above 0; NaN comes of others.
        level: Share of the distribution that lies inside.
    """
    from scipy.special import stdtrit

    found = stdtrit(df, (1 + level) / 2)
    return found if isinstance(found, np.ndarray) else float(found)


def mean_half_width(values: Float[np.ndarray, " value"]) -> float:
    """Return half the width of the normal 95% interval of a mean, in the unit of the values.

    It is NaN for fewer than two values, which have no spread.

    Args:
        values: Independent draws, none of them NaN.
    """
    n = len(values)
    if n < 2:
        return math.nan
    return normal_quantile() * float(values.std(ddof=1)) / math.sqrt(n)
