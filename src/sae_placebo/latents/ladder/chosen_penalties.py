"""Ridge readouts from sufficient statistics, and the weights with which predictors are added up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64

from sae_placebo.latents.ladder.inner_products import N_LOOKUPS
from sae_placebo.latents.ladder.predictors import FittedReadout
from sae_placebo.stats.fits import choose_ridge

_TINY = 1e-9
_FAINT = 1e-5


def readout(
    reading: FittedReadout,
    fitted: Float32[np.ndarray, "target feature"],
    left: Float32[np.ndarray, "target feature"],
    gram: Float64[np.ndarray, "feature feature"],
    penalties: Sequence[float],
) -> Float32[np.ndarray, "target part"]:
    """Return each target's ridge coefficients, with the penalty that explains most on the choosing tokens.

    With r what the rungs before left over and z a prediction, a penalty is better the larger (z'r)^2 / z'z
    is on the documents to choose on: what z, times the best factor, explains of r. Each target has a penalty
    of its own.

    Args:
        reading: The columns and their eigenvectors.
        fitted: X'y on the fitted tokens, all columns.
        left: X'r on the tokens to choose on, all columns.
        gram: X'X on the tokens to choose on, all columns.
        penalties: Penalties to choose from, in units of the mean eigenvalue.
    """
    columns, vectors = reading.columns, reading.vectors
    # in the basis of the eigenvectors a penalty is no more than a division
    y, r = fitted[:, columns] @ vectors, left[:, columns] @ vectors
    inner = (vectors.T @ gram[columns, columns] @ vectors).astype(np.float32)
    unit = max(float(reading.values.mean()), _TINY)

    def unexplained(
        weights: Float32[np.ndarray, "feature target"],
    ) -> Float64[np.ndarray, " target"]:
        b = weights.T
        zr = np.einsum("mi,mi->m", b, r).astype(np.float64)
        zz = np.einsum("mi,mi->m", b @ inner, b).astype(np.float64)
        gain: Float64[np.ndarray, " target"] = np.where(
            zz > 0, np.maximum(zr, 0) ** 2 / np.where(zz > 0, zz, 1), 0
        )
        return -gain

    chosen = choose_ridge(reading.values, y.T, penalties, unexplained, unit=unit)
    return np.asarray(chosen.weights.T @ vectors.T)


def weigh(
    gram: Float64[np.ndarray, "target piece piece"],
    mixes: Float64[np.ndarray, "mix piece"],
    events: Float64[np.ndarray, " target"],
) -> Float64[np.ndarray, "target piece"]:
    """Return the weight of each piece in the least squares prediction of piece 0 from mixes of others.

    The sum of squares of every mix is raised by 1 / events of itself, so that no predictor of a latent that
    fired a few times gets much weight. That of a lookup is also raised by 1e-5 of the target's, so that a
    lookup that is as small as the rounding of sums gets no weight.

    Source: stacking (Wolpert 1992; Breiman 1996), without their constraint to weights of at least 0.

    Args:
        gram: Inner products of the pieces, of which the target is piece 0.
        mixes: Each row is a sum of pieces that get one weight.
        events: About how many tokens each target is active at: the square of its sum of squares over its sum
            of fourth powers.
    """
    inner = mixes @ gram @ mixes.T
    right = (gram[:, 0] @ mixes.T)[..., None]
    n = mixes.shape[0]
    diagonal = np.maximum(np.einsum("mkk->mk", inner), 0)
    # pieces that are no lookups are in units of their own, or as large as their ridge penalty left them
    faint = _FAINT * mixes[:, :N_LOOKUPS].any(axis=1)
    raised = diagonal / np.maximum(events, 1)[:, None] + faint * gram[:, :1, 0]
    # all pieces of a target that is constant are 0
    raised[raised <= 0] = 1
    inner[:, np.arange(n), np.arange(n)] = diagonal + raised
    scale = np.sqrt(diagonal + raised)
    inner /= scale[:, :, None] * scale[:, None, :]
    solved = np.linalg.solve(inner, right / scale[..., None])[..., 0] / scale
    return np.asarray(solved @ mixes)
