"""How well a score ranks what is there above what is not."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Real


def auroc(
    scores: Real[np.ndarray, " unit"],
    positive: Bool[np.ndarray, " unit"],
    weights: Real[np.ndarray, "unit *replicate"] | None = None,
) -> Float64[np.ndarray, "*replicate"]:
    """Return the area under the ROC curve: how often a positive unit scores above a negative one.

    It is a share of all pairs of one positive and one negative unit; a tie counts half. 1 is a perfect
    ranking and .5 is what a score without information has. It is NaN where a class has no unit, or no
    weight, and where a score is NaN.

    Sums of pairs are exact where weights are whole numbers, so a value is then rounded once only.

    Args:
        scores: Higher where a unit is more likely positive; infinite ones are allowed.
        positive: Which units are positive.
        weights: How often each unit counts, such as in each bootstrap replicate; None: once.

    Returns:
        One area per replicate; an array without axes where the weights have none, or are not given.

    Source: Hanley and McNeil 1982 (Radiology 143:29): the area is the Mann-Whitney statistic per pair.
    """
    high, low = scores[positive], scores[~positive]
    if weights is None:
        low.sort()
        # a NaN is sorted to the end
        if not len(high) or not len(low) or np.isnan(low[-1]) or np.isnan(high).any():
            return np.array(np.nan)
        twice = low.searchsorted(high, "left") + low.searchsorted(high, "right")
        return np.array(twice.sum() / (2 * len(high) * len(low)))
    if np.isnan(scores).any():
        return np.full(weights.shape[1:], np.nan)
    counts = weights.astype(np.float64)
    order = low.argsort(kind="stable")
    low, of_low, of_high = low[order], counts[~positive][order], counts[positive]
    # entry i is the weight of the i lowest negatives
    lowest = np.concatenate([np.zeros((1, *counts.shape[1:])), np.cumsum(of_low, axis=0)])
    below = lowest[low.searchsorted(high, "left")] + lowest[low.searchsorted(high, "right")]
    twice_pairs = 2 * of_high.sum(0) * lowest[-1]
    known = twice_pairs > 0
    found = np.full(counts.shape[1:], np.nan)
    np.divide((of_high * below).sum(0), twice_pairs, out=found, where=known)
    return found
