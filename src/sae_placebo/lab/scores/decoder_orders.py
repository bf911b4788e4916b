"""How many features a decoder row is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sae_placebo.core.lazy import torch
from sae_placebo.lab.generators.base import Sample

Groups = tuple[tuple[int, ...], ...]

_MOST_FEATURES = 8
_CHUNK_NUMBERS = 1 << 23
_ALWAYS_ON = 0.95


@dataclass(frozen=True, eq=False)
class Orders:
    """How rows are made of features, as non-negative sums of these.

    Attributes:
        order: Participation ratio of the squared coefficients, (sum c^2)^2 / sum c^4, 1 or more; NaN where
            all coefficients are zero.
        unexplained: Squared length of what the sum leaves of a unit row.
        top_cosine: Largest absolute cosine to a feature.
    """

    order: Float[np.ndarray, " row"]
    unexplained: Float[np.ndarray, " row"]
    top_cosine: Float[np.ndarray, " row"]


def orders(
    rows: Float[np.ndarray, "row d_in"],
    features: Float[np.ndarray, "feature d_in"],
    groups: Groups = (),
) -> Orders:
    """Return how each row is made of its 8 nearest features, by non-negative least squares.

    Rows are turned so that their largest absolute cosine is positive, since the sign of a latent's codes is
    up to its encoder. A group counts as one feature, in the direction of the row's part within it.

    Args:
        rows: Unit rows; a row of zeros has order NaN.
        features: Unit rows.
        groups: Groups of orthonormal features, each of which spans one feature of several dimensions.
    """
    from scipy.optimize import nnls

    grouped = {feature for group in groups for feature in group}
    single = np.array([i for i in range(len(features)) if i not in grouped], dtype=np.int64)
    spans = [features[list(group)] for group in groups]
    order = np.full(len(rows), np.nan)
    unexplained, top = np.ones(len(rows)), np.zeros(len(rows))
    n_columns = len(single) + len(spans)
    kept = min(_MOST_FEATURES, n_columns)
    size = max(1, _CHUNK_NUMBERS // max(n_columns, 1))
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        within = [part @ span.T for span in spans]
        lengths = [np.linalg.norm(coordinates, axis=1)[:, None] for coordinates in within]
        cosines = np.concatenate([part @ features[single].T, *lengths], axis=1)
        at = np.abs(cosines).argmax(axis=1)
        largest = cosines[np.arange(len(part)), at]
        top[first : first + size] = np.abs(largest)
        sign = np.where(largest < 0, -1.0, 1.0)
        # a span has no opposite direction
        cosines[:, : len(single)] *= sign[:, None]
        nearest = np.argpartition(-cosines, kept - 1, axis=1)[:, :kept]
        for i in range(len(part)):
            atoms = np.stack(
                [
                    features[single[column]]
                    if column < len(single)
                    else sign[i]
                    * _along(spans[column - len(single)], within[column - len(single)][i])
                    for column in nearest[i]
                ]
            )
            c, left = nnls(atoms.T, sign[i] * part[i])
            unexplained[first + i] = left**2
            squares = c**2
            if squares.sum() > 0:
                order[first + i] = squares.sum() ** 2 / (squares**2).sum()
    return Orders(order, unexplained, top)


def dictionaries(
    draw: Sample, b_dec: Float[torch.Tensor, " d_in"]
) -> dict[str, tuple[Float[np.ndarray, "_ d_in"], Groups]]:
    """Return the dictionaries that give the draw's activations, by name, with their groups.

    `truth` comes first, then the truth's alternatives. `centered` comes last, where the mean of a group of
    which one feature is always active is held by `b_dec` in part: it has the features less that part.
    """
    truth = draw.truth
    features = truth.dictionary.double().numpy()
    known: dict[str, tuple[Float[np.ndarray, "_ d_in"], Groups]] = {
        "truth": (features, truth.subspaces)
    }
    for name, directions in truth.alternatives.items():
        known[name] = (directions.double().numpy(), ())
    centered = _centered(draw, features, b_dec.detach().double().numpy())
    if centered is not None:
        known["centered"] = (centered, truth.subspaces)
    return known


def _centered(
    draw: Sample, features: Float[np.ndarray, "feature d_in"], b_dec: Float[np.ndarray, " d_in"]
) -> Float[np.ndarray, "feature d_in"] | None:
    """Return unit features less what `b_dec` holds of their group's mean, or None if it holds nothing."""
    n_tokens = draw.codes.n_tokens
    always = [
        list(group)
        for group in draw.truth.exclusive
        if float(draw.truth.rates[list(group)].sum()) > _ALWAYS_ON
    ]
    if not always:
        return None
    latents = draw.codes.latents.numpy()
    sums = np.bincount(latents, draw.codes.values.double().numpy(), minlength=len(features))
    active = np.maximum(np.bincount(latents, minlength=len(features)), 1)
    means = np.stack([(sums[group] / n_tokens) @ features[group] for group in always])
    held = np.clip(np.linalg.lstsq(means.T, b_dec, rcond=None)[0], 0, 1)
    if held.max() < 1e-6:
        return None
    moved = features * (sums / active)[:, None]
    for group, share, mean in zip(always, held, means, strict=True):
        moved[group] -= share * mean
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    unit: Float[np.ndarray, "feature d_in"] = moved / np.maximum(lengths, 1e-12)
    return unit


def _along(
    span: Float[np.ndarray, "dimension d_in"], within: Float[np.ndarray, " dimension"]
) -> Float[np.ndarray, " d_in"]:
    """Return the direction in a span that has these coordinates, at length 1."""
    direction: Float[np.ndarray, " d_in"] = (
        within @ span / max(float(np.linalg.norm(within)), 1e-12)
    )
    return direction
