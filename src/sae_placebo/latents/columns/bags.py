"""Decayed bags of the tokens before each token, which stand for a context without its order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.core.spec import numpy_generator
from sae_placebo.latents.base import TokenTable

DECAYS = (0.8, 0.97)
_WIDTH = 48


def decayed_bags(
    tokens: TokenTable,
    needed: Int64[np.ndarray, " needed"],
    embeddings: Float[np.ndarray, "vocabulary d_embed"] | None = None,
) -> Float32[np.ndarray, "needed feature"]:
    """Return exponentially decayed sums (.8 and .97 per token) over the tokens before, in their row.

    What is summed is the vector of each token id that `token_vectors` returns.

    Args:
        tokens: The tokens that were read.
        needed: Indices of the tokens for which sums are returned, ascending.
        embeddings: Row of each token id, such as the trained model's W_E; None for random rows.
    """
    vectors = token_vectors(len(tokens.vocabulary), embeddings)
    rows, positions = tokens.places[needed, 0], tokens.places[needed, 1]
    used, row_of = np.unique(rows, return_inverse=True)
    ids = tokens.rows.token_ids[used]
    width = vectors.shape[1]
    state = np.zeros((len(used), len(DECAYS), width), dtype=np.float32)
    bags = np.empty((len(needed), len(DECAYS), width), dtype=np.float32)
    decays = np.array(DECAYS, dtype=np.float32)[:, None]
    by_position = np.argsort(positions, kind="stable")
    bounds = np.searchsorted(positions[by_position], np.arange(ids.shape[1] + 1))
    for position in range(ids.shape[1]):
        at = by_position[bounds[position] : bounds[position + 1]]
        bags[at] = state[row_of[at]]
        state = decays * (state + vectors[ids[:, position]][:, None])
    return bags.reshape(len(needed), len(DECAYS) * width)


def token_vectors(
    n: int, embeddings: Float[np.ndarray, "vocabulary d_embed"] | None
) -> Float32[np.ndarray, "vocabulary feature"]:
    """Return 48 numbers for each token id.

    They are the leading principal components of its embedding or, without embeddings, fixed random numbers.

    Args:
        n: Number of token ids.
        embeddings: Row of each token id.
    """
    if embeddings is None:
        draw = numpy_generator(0, "random vector of each token id")
        return draw.standard_normal((n, _WIDTH)).astype(np.float32)
    rows = embeddings.astype(np.float64)
    rows = rows - rows.mean(0)
    leading = np.linalg.eigh(rows.T @ rows)[1][:, -_WIDTH:]
    return np.asarray(rows @ leading, dtype=np.float32)


def standardized(
    parts: Sequence[Float[np.ndarray, "_ feature"]],
) -> list[Float[np.ndarray, "_ feature"]]:
    """Return features with mean 0 and standard deviation 1 on the first part; constant ones become 0."""
    fitted = parts[0]
    if not len(fitted):
        return list(parts)
    center, scale = fitted.mean(0), fitted.std(0)
    scale[~(scale > 0)] = 1
    return [(part - center) / scale for part in parts]
