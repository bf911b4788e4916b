"""Directions of no trained dictionary, asked about on the same model as an SAE's latents.

That a latent costs more than null directions, which are isotropic across the activation, says that the model
reads it more than a random direction. A model reads the subspace in which its activations vary more than
the rest of the space, so a direction that merely lies in it costs more as well, whether or not a
dictionary was trained. Two kinds of directions lie there and mean nothing:

- **covariance**: drawn from the activations' covariance, with the tokens and amounts of latents;
- **untrained**: drawn likewise, each firing on its own top tokens, as many as a latent fires on and as much:
  the token that projects the most has the latent's largest amount, and so on. This is a dictionary that
  nobody trained. Its own projections are no measure of amounts, since a direction takes all of its
  projection and a latent one of k shares: ablating them costs several times as much.

What an SAE adds is what its latents have beyond the untrained dictionary on the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator

PSEUDO, COVARIANCE, UNTRAINED = "pseudo", "covariance", "untrained"
CONTROLS = (UNTRAINED, COVARIANCE, PSEUDO)
"""The kinds of control directions; `pseudo` are isotropic (`base.pseudo_latents`)."""

_TOKENS_AT_ONCE = 1 << 15
_DIRECTIONS_AT_ONCE = 64


def covariance_directions(subject: Subject, like: Directions, seed: int, n: int) -> Directions:
    """Return directions of the activations' covariance with the firings and amounts of given directions.

    Args:
        subject: The model behind the hookpoint, and the tokens whose activations have the covariance.
        like: The directions whose amounts are taken over; each is taken over at most once.
        seed: The seed of the draw.
        n: How many are wanted. There are fewer where fewer directions are held.
    """
    random = numpy_generator(seed, "covariance directions")
    chosen = _chosen(random, like, n)
    vectors = _drawn(random, _moments(subject)[1], len(chosen))
    return Directions(vectors, like.by_direction[:, chosen].tocsr())


def untrained_directions(subject: Subject, like: Directions, seed: int, n: int) -> Directions:
    """Return an untrained dictionary: directions of the activations' covariance that fire on top tokens.

    Each fires on the tokens that project on it the most beyond the mean activation, as many as one of the
    given directions fires on, with that direction's amounts in the order of the projections. None fires below
    the mean.

    Args:
        subject: The model behind the hookpoint, and the tokens whose activations have the covariance.
        like: The directions whose numbers of firings, and amounts, are taken over; each at most once.
        seed: The seed of the draw.
        n: How many are wanted. There are fewer where fewer directions are held.
    """
    random = numpy_generator(seed, "untrained directions")
    held = like.by_direction
    amounts = [
        np.sort(held.data[held.indptr[i] : held.indptr[i + 1]])[::-1]
        for i in _chosen(random, like, n)
    ]
    mean, covariance = _moments(subject)
    vectors = _drawn(random, covariance, len(amounts))
    return Directions(vectors, _top_tokens(subject, mean, vectors, amounts))


def _chosen(random: Any, like: Directions, n: int) -> Int64[np.ndarray, " chosen"]:
    """Return some of the directions that tokens hold, at random, ascending."""
    held = np.flatnonzero(like.n_active)
    return np.sort(random.choice(held, min(n, len(held)), replace=False)).astype(np.int64)


def _moments(
    subject: Subject,
) -> tuple[Float64[np.ndarray, " d_in"], Float64[np.ndarray, "d_in d_in"]]:
    """Return the mean of the activations and their covariance; they are computed once and kept."""
    key = ("moments",)
    if key not in subject.kept:
        x = subject.activations
        mean = x.mean(0, dtype=torch.float64).cpu()
        products = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        for start in range(0, len(x), _TOKENS_AT_ONCE):
            centered = x[start : start + _TOKENS_AT_ONCE].cpu().double() - mean
            products += centered.T @ centered
        subject.kept[key] = mean.numpy(), (products / max(len(x), 1)).numpy()
    kept: tuple[Any, Any] = subject.kept[key]
    return kept


def _drawn(
    random: Any, covariance: Float64[np.ndarray, "d_in d_in"], n: int
) -> Float32[np.ndarray, "direction d_in"]:
    """Return unit vectors along draws from a normal distribution with this covariance."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    rows = random.standard_normal((n, len(values))) @ root.T
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def _top_tokens(
    subject: Subject,
    mean: Float64[np.ndarray, " d_in"],
    vectors: Float32[np.ndarray, "direction d_in"],
    amounts: Sequence[Float[np.ndarray, "_"]],
) -> Any:
    """Return, as scipy CSR [token, direction], amounts at the tokens that project beyond the mean the most.

    Args:
        subject: The tokens' activations.
        mean: Of these.
        vectors: The directions.
        amounts: Of each direction, the largest first; as many tokens are taken as there are amounts.
    """
    from scipy.sparse import csr_matrix

    x, center = subject.activations.float().cpu(), torch.from_numpy(mean.astype(np.float32))
    tokens, columns, held = [], [], []
    for start in range(0, len(vectors), _DIRECTIONS_AT_ONCE):
        some = torch.from_numpy(vectors[start : start + _DIRECTIONS_AT_ONCE]).T
        projected = x @ some - center @ some
        for column, largest in enumerate(amounts[start : start + _DIRECTIONS_AT_ONCE]):
            values, at = projected[:, column].topk(len(largest))
            above = (values > 0).numpy()
            tokens.append(at.numpy()[above])
            held.append(largest[above])
            columns.append(np.full(len(tokens[-1]), start + column))
    placed = (np.concatenate(tokens), np.concatenate(columns))
    return csr_matrix((np.concatenate(held), placed), shape=(len(x), len(vectors)))
