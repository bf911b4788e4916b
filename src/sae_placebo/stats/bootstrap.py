"""The bootstrap: units drawn with replacement, and the interval of what is computed from the draws."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64


def resampled_counts(
    random: np.random.Generator, n_units: int, n_resamples: int
) -> Float64[np.ndarray, "resample unit"]:
    """Return how often each unit, such as a document, is drawn in each resample.

    Every resample draws as many units as there are, with replacement, so each row sums to `n_units`. A sum
    over units under all resamples is then one matrix product. `resampled_units` draws by the same law, but
    other numbers.

    Args:
        random: The generator that the draws are taken from; it moves on by one call of `multinomial`.
        n_units: Units to draw from, at least one.
        n_resamples: Resamples.

    Source: Efron 1979 (Annals of Statistics 7:1).
    """
    chance = np.full(n_units, 1 / n_units)
    return random.multinomial(n_units, chance, size=n_resamples).astype(np.float64)


def resampled_units(
    random: np.random.Generator, n_units: int, n_resamples: int
) -> Int64[np.ndarray, "resample draw"]:
    """Return which unit each draw of each resample takes, as an index from 0.

    It serves statistics that are no function of weighted sums, such as a median. `resampled_counts` takes
    less memory where sums are enough.

    Args:
        random: The generator that the draws are taken from; it moves on by one call of `integers`.
        n_units: Units to draw from, at least one.
        n_resamples: Resamples.
    """
    return random.integers(0, n_units, size=(n_resamples, n_units))


def percentile_interval(
    replicates: Float[np.ndarray, " replicate"],
    leave_out_undefined: bool = False,
    method: Literal["linear", "nearest"] = "linear",
) -> tuple[float, float]:
    """Return the 2.5% and 97.5% quantiles of replicates: a 95% interval of what they replicate.

    Args:
        replicates: The statistic in each resample.
        leave_out_undefined: Whether replicates that are NaN or infinite are left out. If not, one NaN makes
            both bounds NaN.
        method: How a quantile between two replicates is read: on the line between them, or as the nearer
            one, which is needed where some are infinite.

    Returns:
        The lower and the upper bound; both NaN where there is no replicate.
    """
    if leave_out_undefined:
        replicates = replicates[np.isfinite(replicates)]
    if not len(replicates):
        return float("nan"), float("nan")
    low, high = np.quantile(replicates, [0.025, 0.975], method=method)
    return float(low), float(high)
