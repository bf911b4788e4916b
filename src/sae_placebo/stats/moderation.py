"""Variances of few draws, steadied by those of others like them (empirical Bayes).

Two seeds give a variance one degree of freedom: it is off by a factor of ten as often as not. Many metrics
of a trial are measured with the same two seeds, and each has such a variance. Where these are of one kind,
what they have in common is a prior, and each is drawn towards it by as much as they agree.

Source: Smyth 2004 (Statistical Applications in Genetics and Molecular Biology 3:3), the package limma. The
true variances are taken as `variance * df / chi2(df)`, so that the prior counts as `df` more draws.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float64

# a prior of so many degrees of freedom and one without spread give the same quantiles
_MOST_DF = 1e6
_LEAST_OF_MEDIAN = 1e-5
# fewer logarithms than this say too little of how much variances differ
_LEAST_FREE = 8
# standard errors by which the variances are taken to differ more than they seem to: with few of them,
# intervals would else hold the truth 90% of the time and not 95
_CAUTION = 0.5
Kind = TypeVar("Kind", bound=Hashable)


class VariancePrior(NamedTuple):
    """What variances of one kind have in common.

    Attributes:
        variance: The prior's variance, in the unit of the variances.
        df: Degrees of freedom that it counts for: inf where the variances differ no more than chance makes
            them, 0 where there are too few (less than nine), from which nothing is learned.
    """

    variance: float
    df: float


def variance_prior(
    variances: Float64[np.ndarray, " n"], df: Float64[np.ndarray, " n"] | float
) -> VariancePrior:
    """Return the prior of variances of one kind: `variance_priors` of one group."""
    return variance_priors({"": (variances, df)})[""]


def variance_priors(
    groups: Mapping[Kind, tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"] | float]],
) -> dict[Kind, VariancePrior]:
    """Return a prior for each group of variances; their degrees of freedom are taken as the same.

    The mean and the variance of the logarithms are matched: the mean in each group, the variance in all
    of them together, since it takes many variances to say how much they differ. A variance of 0 is taken as
    1e-5 of its group's median of those above 0, as in limma; one that is NaN, or has no degree of
    freedom, is left out.

    Args:
        groups: Sample variances, not below 0, and the degrees of freedom of each.

    Source: Smyth 2004, section 6.2. Differs: several groups share the prior's df; the variance of the
    logarithms is taken half a standard error larger than it is, which is cautious where there are few; the
    variance of a prior of infinite df is the mean of the variances, weighted by df, as in limma now.
    """
    from scipy.special import digamma, polygamma

    squares, chance, noise, free = 0.0, 0.0, 0.0, 0
    known: dict[Kind, _Logs] = {}
    for kind, (variances, df) in groups.items():
        each = np.broadcast_to(np.asarray(df, dtype=np.float64), variances.shape)
        usable = np.isfinite(variances) & (each > 0)
        values, each = variances[usable], each[usable]
        if not (values > 0).any():
            continue
        logs = np.log(np.maximum(values, _LEAST_OF_MEDIAN * np.median(values[values > 0])))
        logs += np.log(each / 2) - digamma(each / 2)
        known[kind] = _Logs(values, each, float(logs.mean()))
        squares += float(((logs - logs.mean()) ** 2).sum())
        spread = polygamma(1, each / 2)
        chance += (len(logs) - 1) * float(spread.mean())
        noise += (len(logs) - 1) * float((polygamma(3, each / 2) + 2 * spread**2).mean())
        free += len(logs) - 1
    found: dict[Kind, VariancePrior] = {}
    for kind in groups:
        if free < _LEAST_FREE or kind not in known:
            values = known[kind].values if kind in known else np.empty(0)
            found[kind] = VariancePrior(float(values.mean()) if len(values) else math.nan, 0.0)
            continue
        excess = (squares - chance + _CAUTION * noise**0.5) / free
        one = known[kind]
        prior = 2 * _trigamma_inverse(excess) if excess > 0 else math.inf
        if prior > _MOST_DF:
            variance = float(np.average(one.values, weights=one.df))
            found[kind] = VariancePrior(variance, math.inf)
        else:
            variance = math.exp(one.mean + float(digamma(prior / 2)) - math.log(prior / 2))
            found[kind] = VariancePrior(variance, prior)
    return found


class _Logs(NamedTuple):
    """The variances of one group, their degrees of freedom, and the mean of their logarithms, corrected."""

    values: Float64[np.ndarray, " n"]
    df: Float64[np.ndarray, " n"]
    mean: float


def moderated(
    variances: Float64[np.ndarray, "*any"],
    df: Float64[np.ndarray, "*any"] | float | int,
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
        shape = variances.shape
        return np.full(shape, prior.variance), np.full(shape, math.inf)
    total = each + prior.df
    own = np.where(each > 0, each * np.nan_to_num(variances), 0.0)
    return np.asarray((prior.df * prior.variance + own) / total), np.asarray(total)


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
