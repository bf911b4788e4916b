"""Mean effects and ratios with bounds, for few values per direction, some of them far above the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64, Integer, Real

from sae_placebo.causal.use.base import grouped
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.bootstrap import resampled_counts

_RESAMPLES = 1999
LOW_LEVEL, HIGH_LEVEL = 0.95, 0.995
"""The nominal confidence of each bound alone. That of the upper bound is raised so that it holds in 95% of
cases where costs are as skewed as they are (`docs/concepts/use.md` has the measured rates)."""
_FEWEST = 4
"""A bound takes values from so many documents."""
_NO_BOUND = 20.0
"""An upper bound e to this power above the estimate is none."""


@dataclass(frozen=True, eq=False)
class Effects:
    """A mean or a ratio by direction, with one-sided bounds; NaN where there are too few values.

    Attributes:
        mean: The estimate.
        se: Its standard error, clustered by document.
        low: The lower bound, at confidence `LOW_LEVEL`.
        high: The upper bound, at nominal confidence `HIGH_LEVEL`.
        n: How many documents there are values from.
    """

    mean: Float64[np.ndarray, " direction"]
    se: Float64[np.ndarray, " direction"]
    low: Float64[np.ndarray, " direction"]
    high: Float64[np.ndarray, " direction"]
    n: Int64[np.ndarray, " direction"]

    def p_below(self, limit: float) -> Float64[np.ndarray, " direction"]:
        """Return the p-value of the hypothesis that the truth is below a limit, which is above 0.

        It is .05 where `low` is the limit: both come from Student's t of the logarithm. NaN where there is
        no bound.
        """
        from scipy.stats import t

        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.log(self.mean / limit) * self.mean / self.se
        p = t.sf(np.nan_to_num(z, nan=0.0), np.maximum(self.n - 1, 1))
        # values that are all equal have no error
        p = np.where(self.se == 0, np.where(self.mean < limit, 1.0, 0.0), p)
        return np.where(np.isfinite(self.low), p, np.nan)


def effects_of(
    values: Float[np.ndarray, " firing"],
    counts: Real[np.ndarray, " firing"],
    directions: Integer[np.ndarray, " firing"],
    documents: Integer[np.ndarray, " firing"],
    n_directions: int,
    seed: int,
) -> Effects:
    """Return each direction's sum of values over its sum of counts, with bounds clustered by document.

    With the draws of firings as counts, and draws times weight times cost as values, this is the mean cost
    per firing. With the costs of null directions as counts it is the ratio to them.

    Both bounds are of the logarithm, since the errors of a mean of skewed values are more alike there. The
    lower one is mean * exp(-t se / mean) with Student's t; the upper one takes t from the bootstrap instead,
    which resamples documents and computes t in each. A direction with values from fewer than four documents
    has no bounds, and one whose values are too few and too different no upper one. Where all documents
    agree, both are the estimate itself.

    Args:
        values: The numerator's value of each firing, not below 0.
        counts: The denominator's value of each firing.
        directions: The direction of each firing.
        documents: The document of each firing.
        n_directions: How many directions there are, with and without values.
        seed: The seed of the resamples.

    Source: the linearized error of a ratio of sums over clusters is that of survey sampling (Cochran 1977,
    section 6.3); bootstrap-t: Efron (1981), Hall (1988). Differs: a resample's standard error counts as
    at least a hundredth of that of the data.
    """
    from scipy.stats import t

    mean, se, low, high = (np.full(n_directions, np.nan) for _ in range(4))
    n = np.zeros(n_directions, dtype=np.int64)
    resamples: dict[int, Float64[np.ndarray, "resample document"]] = {}
    for part in grouped(directions):
        i = directions[part[0]]
        _, cluster = np.unique(documents[part], return_inverse=True)
        y = np.bincount(cluster, values[part])
        x = np.bincount(cluster, counts[part])
        n[i] = len(x)
        if not x.sum() > 0:
            continue
        mean[i] = y.sum() / x.sum()
        if n[i] < _FEWEST:
            continue
        se[i] = _error(y, x, mean[i])
        if not se[i] > 1e-9 * mean[i]:
            se[i], low[i], high[i] = 0.0, mean[i], mean[i]
            continue
        if n[i] not in resamples:
            random = numpy_generator(seed, "resampled documents of effects", int(n[i]))
            resamples[int(n[i])] = resampled_counts(random, int(n[i]), _RESAMPLES)
        step = se[i] / mean[i]
        low[i] = mean[i] * np.exp(-t.ppf(LOW_LEVEL, n[i] - 1) * step)
        drawn = _resampled_t(y, x, mean[i], se[i], resamples[int(n[i])])
        reach = -float(np.quantile(drawn, 1 - HIGH_LEVEL)) * step
        high[i] = mean[i] * np.exp(reach) if reach < _NO_BOUND else np.nan
    return Effects(mean, se, low, high, n)


def _error(
    y: Float64[np.ndarray, " document"], x: Float64[np.ndarray, " document"], ratio: float
) -> float:
    """Return the standard error of a ratio of sums over documents."""
    left = y - ratio * x
    return float(np.sqrt((left**2).sum() * len(x) / (len(x) - 1)) / x.sum())


def _resampled_t(
    y: Float64[np.ndarray, " document"],
    x: Float64[np.ndarray, " document"],
    ratio: float,
    error: float,
    times: Float64[np.ndarray, "resample document"],
) -> Float64[np.ndarray, " resample"]:
    """Return how far the logarithm of each resample's ratio is from that of the data, in its errors."""
    n, bottom = len(x), np.maximum(times @ x, 1e-300)
    drawn = times @ y / bottom
    square = times @ (y * y) - 2 * drawn * (times @ (x * y)) + drawn**2 * (times @ (x * x))
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.sqrt(np.maximum(square, 0) * n / (n - 1)) / bottom / drawn
        # a resample that draws (nearly) one value only would have an infinite t
        found = np.log(drawn / ratio) / np.maximum(step, 1e-2 * error / ratio)
    # a resample without any cost is as far below as can be
    return np.asarray(np.nan_to_num(found, nan=-1e6, neginf=-1e6))
