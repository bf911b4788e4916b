"""The test whether ablating something costs more than ablating its null directions.

The cost of a set of directions and those of its null directions are brought to one scale: the logarithm, less
the mean over its nulls, over their spread. With a dozen nulls a spread is known poorly, so it is drawn
towards the spreads of other sets. Then each null direction of each set is compared with the other nulls of
that set in the same way. All of these together are the null distribution, so it takes no formula for its
tail, and a p-value can be as small as all nulls together allow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Shaped

from sae_placebo.causal.use.null_directions import TIE
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.bootstrap import percentile_interval, resampled_counts
from sae_placebo.stats.moderation import moderated, variance_prior

ROUNDING = 1e-6
"""A cost below this share of a full swap is rounding, and counts as that much."""
_HALF = 0.5
"""The share of true nulls is read off p-values above this."""
_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class PooledTest:
    """The test of each set against its null directions; NaN where it has no firings.

    Attributes:
        p: The share of all nulls whose standardized cost is at least as large, counting one more.
        z: The set's standardized cost.
        n_nulls: With how many nulls, of all sets together, each is compared.
        spread: The typical spread of the logarithm of null costs.
    """

    p: Float64[np.ndarray, " asked"]
    z: Float64[np.ndarray, " asked"]
    n_nulls: int
    spread: float


def pooled_test(costs: Float64[np.ndarray, "asked cost"], unit: float) -> PooledTest:
    """Return how the cost of each set ranks among those of all null directions, each on its set's scale.

    Args:
        costs: The mean costs of each set: its own in the first column, those of its nulls in the others.
        unit: What a full swap costs.

    Source: moderated spreads: Smyth 2004; `stats.moderation`. Leave-one-out nulls pooled over sets are this
    package's.
    """
    known = np.isfinite(costs).all(1)
    logs = np.log(np.maximum(costs[known], ROUNDING * unit))
    own, nulls = logs[:, 0], logs[:, 1:]
    k = nulls.shape[1]
    center = nulls.mean(1)
    left = nulls - center[:, None]
    square = (left**2).sum(1)
    prior = variance_prior(square / (k - 1), float(k - 1))
    spread = np.sqrt(np.maximum(moderated(square / (k - 1), float(k - 1), prior)[0], TIE**2))
    z = (own - center) / (spread * np.sqrt(1 + 1 / k))
    # each null against the others: they lie around -left / (k - 1), as far as sums without it say
    apart = left * k / (k - 1)
    others = np.maximum(square[:, None] - left * apart, 0) / (k - 2)
    widths = np.sqrt(np.maximum(moderated(others, float(k - 2), prior)[0], TIE**2))
    pool = np.sort((apart / (widths * np.sqrt(1 + 1 / (k - 1)))).ravel())
    # what differs by rounding is tied, and ties count against
    beyond = len(pool) - np.searchsorted(pool, z - 2 * TIE / spread)
    p, scores = (np.full(len(costs), np.nan) for _ in range(2))
    p[known], scores[known] = (1 + beyond) / (1 + len(pool)), z
    return PooledTest(p, scores, len(pool), float(np.sqrt(prior.variance)))


def costlier_share(
    p: Float64[np.ndarray, " test"],
    weights: Float64[np.ndarray, " test"],
    clusters: Shaped[np.ndarray, " test"],
    seed: int,
) -> tuple[float, float, float]:
    """Return the share of sets that truly cost more than null directions: share, low, high.

    The bounds are a 95% interval. The share is 1 less that of true nulls, and not what any single test shows.
    It errs low, since what truly costs more can have a p-value above one half. All three are NaN where
    nothing was tested.

    Args:
        p: The p-value of each set against null directions; NaN for no test.
        weights: How many sets each stands for.
        clusters: Sets of one cluster are drawn together.
        seed: The seed of the bootstrap over clusters.
    """
    known = np.isfinite(p)
    if not known.any():
        return float("nan"), float("nan"), float("nan")
    _, at = np.unique(clusters[known], return_inverse=True)
    w = weights[known]
    total = np.bincount(at, w)
    above = np.bincount(at, w * (p[known] > _HALF))
    random = numpy_generator(seed, "share that costs more than nulls", len(total))
    times = resampled_counts(random, len(total), _RESAMPLES)

    shares = 1 - (times @ above) / (_HALF * np.maximum(times @ total, 1e-300))
    low, high = percentile_interval(np.clip(shares, 0, 1))
    return float(np.clip(1 - above.sum() / (_HALF * total.sum()), 0, 1)), low, high
