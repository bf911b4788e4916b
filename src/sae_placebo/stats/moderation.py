"""Variances of few draws, steadied by those of others like them (empirical Bayes).

Two seeds give a variance one degree of freedom: it is off by a factor of ten as often as not. Many metrics
of a trial are measured with the same two seeds, and each has such a variance. Where these are of one kind,
what they have in common is a prior, and each is drawn towards it by as much as they agree.

Source: Smyth 2004 (Statistical Applications in Genetics and Molecular Biology 3:3), the package limma. The
true variances are taken as `variance * df / chi2(df)`, so that the prior counts as `df` more draws.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

# a prior of so many degrees of freedom and one without spread give the same quantiles
_MOST_DF = 1e6
_LEAST_OF_MEDIAN = 1e-5


class VariancePrior(NamedTuple):
    """What variances of one kind have in common.

    Attributes:
        variance: The prior's variance, in the unit of the variances.
        df: Degrees of freedom that it counts for: inf where the variances differ no more than chance makes
            them, 0 where there are fewer than three, from which nothing is learned.
    """

    variance: float
    df: float


def variance_prior(
    variances: Float64[np.ndarray, " n"], df: Float64[np.ndarray, " n"] | float
) -> VariancePrior:
    """Return the prior of variances of one kind.

    The mean and the variance of their logarithms are matched. A variance of 0 is taken as 1e-5 of the
    median of those above 0, as in limma; one that is NaN, or has no degree of freedom, is left out.

    Args:
        variances: Sample variances, not below 0.
        df: Degrees of freedom of each.

    Source: Smyth 2004, section 6.2. Differs: the variance of a prior of infinite df is the mean of the
    variances, weighted by df, as in limma since version 3.
    """
    from scipy.special import digamma, polygamma

    each = np.broadcast_to(np.asarray(df, dtype=np.float64), variances.shape)
    known = np.isfinite(variances) & (each > 0)
    values, each = variances[known], each[known]
    if len(values) < 3 or not (values > 0).any():
        return VariancePrior(float(values.mean()) if len(values) else math.nan, 0.0)
    logs = np.log(np.maximum(values, _LEAST_OF_MEDIAN * np.median(values[values > 0])))
    logs += np.log(each / 2) - digamma(each / 2)
    excess = float(logs.var(ddof=1) - polygamma(1, each / 2).mean())
    prior = 2 * _trigamma_inverse(excess) if excess > 0 else math.inf
    if prior > _MOST_DF:
        return VariancePrior(float(np.average(values, weights=each)), math.inf)
    return VariancePrior(
        float(np.exp(logs.mean() + digamma(prior / 2) - math.log(prior / 2))), prior
    )


def moderated(
    variances: Float64[np.ndarray, "*any"],
    df: Float64[np.ndarray, "*any"] | float,
    prior: VariancePrior,
) -> tuple[Float64[np.ndarray, "*any"], Float64[np.ndarray, "*any"]]:
    """Return each variance drawn towards the prior, and its degrees of freedom with those of the prior.

    Args:
        variances: Sample variances.
        df: Degrees of freedom of each; 0 is allowed, and gives the prior.
        prior: What `variance_prior` returned; one of df 0 changes nothing.
    """
    each = np.broadcast_to(np.asarray(df, dtype=np.float64), variances.shape)
    if prior.df == 0:
        return variances.astype(np.float64), each.copy()
    if math.isinf(prior.df):
        return np.full(variances.shape, prior.variance), np.full(variances.shape, math.inf)
    total = each + prior.df
    own = np.where(each > 0, each * np.nan_to_num(variances), 0.0)
    return (prior.df * prior.variance + own) / total, total


def _trigamma_inverse(value: float) -> float:
    """Return x where the trigamma function is `value`, above 0, by Newton's steps on 1 / trigamma.

    Source: Smyth 2004, appendix.
    """
    from scipy.special import polygamma

    if value > 1e7:
        return float(1 / math.sqrt(value))
    if value < 1e-6:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
        if -step / x < 1e-8:
            break
    return x
