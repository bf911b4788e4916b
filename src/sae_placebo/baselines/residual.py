"""What a sparse code leaves of activations: its principal components, rounded to whole steps of one size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float32, Int64

_ROUND_UP = 0.38
"""Added to a component's size in steps before it is rounded down; .5 would be plain rounding. With less,
fewer small components cost bits: on Gaussians, .36 to .4 is shortest at shares left of .05 to .3."""


def squared(x: Float[np.ndarray, "token d_in"]) -> Float[np.ndarray, " token"]:
    """Return the squared length of each row."""
    return np.asarray(np.einsum("td,td->t", x, x, dtype=np.float64))


def covariance(x: Float32[np.ndarray, "token d_in"]) -> Float32[np.ndarray, "d_in d_in"]:
    """Return the covariance of rows whose mean is 0."""
    return np.asarray((x.T @ x) / np.float32(len(x)))


def principal(
    learn: Float32[np.ndarray, "token d_in"],
) -> Callable[[Float32[np.ndarray, "other d_in"]], Float32[np.ndarray, "other component"]]:
    """Return the function that turns what is left of tokens into the principal components of these tokens."""
    mean = learn.mean(axis=0)
    _, basis = np.linalg.eigh(covariance(learn - mean))
    return lambda left: np.asarray((left - mean) @ basis)


def water_level(variances: Float[np.ndarray, " component"], total: float) -> float:
    """Return the variance that reverse water-filling leaves of each component that has more.

    Args:
        variances: The variance of each component.
        total: The squared error that is allowed, summed over components.

    Source: reverse water-filling (Cover and Thomas, section 10.3.3).
    """
    ascending = np.sort(np.maximum(variances, 0)).astype(np.float64)
    if ascending.sum() <= total:
        return float(ascending[-1])
    # with the level between two variances, the smaller ones are dropped whole
    below = np.concatenate([[0], np.cumsum(ascending)[:-1]])
    levels = (total - below) / np.arange(len(ascending), 0, -1)
    return float(levels[int(np.argmax(levels <= ascending))])


def water_filling(variances: Float[np.ndarray, " component"], total: float) -> float:
    """Return the bits that independent Gaussian components need for a summed squared error of `total`."""
    level = water_level(variances, total)
    return float(0.5 * np.log2(np.maximum(np.asarray(variances) / level, 1)).sum())


def step_for(left: Float32[np.ndarray, "token component"], error: float) -> float:
    """Return the step whose rounding leaves the squared error `error`, to about one part in ten thousand.

    Where even rounding everything to 0 leaves less, it is a step that does so.
    """
    from scipy.optimize import brentq

    sizes = np.abs(left)
    largest = 4 * float(sizes.max(initial=1e-12)) + 1e-12
    if error <= 0 or float(squared(left).sum()) <= error:
        return largest

    def missed(log_step: float) -> float:
        step = np.float32(np.exp(log_step))
        rest = sizes * (1 / step)
        rest -= np.floor(rest + np.float32(_ROUND_UP))
        rest *= step
        return float(np.log(np.vdot(rest, rest) / error))

    # near the step that plain rounding of every component would have, widened until it is between
    low = high = np.log(min(np.sqrt(12 * error / left.size), largest))
    while missed(low) > 0:
        low -= 0.5
    while missed(high) < 0:
        high += 0.5
    return float(np.exp(brentq(missed, low, high, xtol=5e-5)))


def rounded(
    left: Float32[np.ndarray, "token component"], width: float
) -> Int64[np.ndarray, "token component"]:
    """Return the components in whole steps of this width, by the rule of `_ROUND_UP`; signs are kept."""
    steps = left / np.float32(width)
    whole = np.copysign(np.floor(np.abs(steps) + np.float32(_ROUND_UP)), steps)
    return np.asarray(whole).astype(np.int64)
