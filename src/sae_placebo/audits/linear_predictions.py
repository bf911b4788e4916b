"""Linear predictions fitted on one half of the documents, with a penalty chosen inside that half."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.fits import choose_ridge, solve_ridge

PENALTIES = (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4)
"""Penalties that are tried, in mean squares of a feature."""
Moments = tuple[
    Float64[np.ndarray, " feature"],
    Float64[np.ndarray, " target"],
    Float64[np.ndarray, "feature feature"],
    Float64[np.ndarray, "feature target"],
]
"""Means of features and of targets, the features' covariance, and their covariance with the targets."""


@dataclass(frozen=True, eq=False)
class Ridge:
    """A linear prediction with an offset.

    Attributes:
        slope: The change of each target per unit of each feature.
        offset: The prediction where all features are 0.
    """

    slope: Float64[np.ndarray, "feature target"]
    offset: Float64[np.ndarray, " target"]

    def __call__(
        self, features: Float[np.ndarray, "token feature"]
    ) -> Float64[np.ndarray, "token target"]:
        """Return the predicted targets of each token."""
        return np.asarray(features @ self.slope + self.offset, dtype=np.float64)


def ridge(
    features: Float[np.ndarray, "token feature"],
    targets: Float[np.ndarray, "token target"],
    documents: Int64[np.ndarray, " token"],
    seed: int,
) -> Ridge:
    """Return the ridge prediction of targets from features.

    The penalty is the one whose squared error is lowest on a quarter of the documents when the others are
    fitted on. With it, the prediction is fitted again on all documents.

    Args:
        features: Features of each token.
        targets: Targets of each token, which share one penalty.
        documents: The document of each token.
        seed: The seed that the quarter of the documents is named by.

    Raises:
        NotEstimable: there are fewer than four documents, or fewer than five tokens for each feature.
    """
    n, d = features.shape
    present = numpy_generator(seed, "audit", "penalty").permutation(np.unique(documents))
    if n < 5 * d or len(present) < 4:
        raise NotEstimable(
            f"{n} tokens of {len(present)} documents are too few to predict from {d} "
            f"numbers: hold out {10 * d} tokens of 8 documents or more"
        )
    aside = np.isin(documents, present[: len(present) // 4])
    every, kept = _moments(features, targets), _moments(features[~aside], targets[~aside])
    x, y = features[aside].astype(np.float64), targets[aside].astype(np.float64)

    def left(slope: Float64[np.ndarray, "feature target"]) -> Float64[np.ndarray, ""]:
        # one number: all targets share a penalty
        return np.asarray(((y - _prediction(kept, slope)(x)) ** 2).sum())

    chosen = choose_ridge(kept[2], kept[3], PENALTIES, left, unit=_unit(kept))
    _, _, gram, cross = every
    slope = solve_ridge(gram, cross, float(chosen.penalties[0]), unit=_unit(every))
    return _prediction(every, slope)


def _moments(
    features: Float[np.ndarray, "token feature"], targets: Float[np.ndarray, "token target"]
) -> Moments:
    x, y = features.astype(np.float64), targets.astype(np.float64)
    middle, level = x.mean(0), y.mean(0)
    x = x - middle
    return middle, level, x.T @ x / len(x), x.T @ (y - level) / len(x)


def _unit(moments: Moments) -> float:
    """Return the mean square of a centered feature, which is the unit of penalties."""
    gram = moments[2]
    return max(float(np.trace(gram)) / len(gram), 1e-30)


def _prediction(moments: Moments, slope: Float64[np.ndarray, "feature target"]) -> Ridge:
    middle, level = moments[:2]
    return Ridge(slope, level - middle @ slope)
