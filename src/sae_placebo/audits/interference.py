"""Interference: energy of the reconstruction that lies between latents, since they are active together."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64, Int64

from sae_placebo.audits.base import Case, Finding, over_documents
from sae_placebo.causal.use.base import Directions
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator

N_PAIRS = 100
"""Pairs of latents that are looked at: those that are active together on the most tokens."""
_BLOCK = 1024


def interference(
    case: Case, directions: Directions
) -> tuple[list[Finding], Float64[np.ndarray, " latent"]]:
    """Return how much of the reconstruction's energy lies between latents, and each latent's part.

    The interference of two latents is d_i . d_j E[a_i a_j], with unit decoder rows d, and codes times decoder
    norms a. A latent's part is the sum of its interferences over E a_i^2, on at most `ridge_tokens` tokens;
    it is NaN where the latent is silent on all of them.

    Source: Costa and Tolooshams 2026; shares of energy and the null are ours.
    """
    amounts = directions.amounts
    n = amounts.shape[0]
    tokens = np.repeat(np.arange(n), np.diff(amounts.indptr))
    alone = np.bincount(tokens, amounts.data.astype(np.float64) ** 2, n)
    size = np.square(case.reconstruction.numpy() - case.b_dec.numpy()).sum(1, dtype=np.float64)
    value, low, high = over_documents(
        lambda s: 1 - s[0] / np.where(s[1] > 0, s[1], np.nan),
        np.stack([alone, size]),
        case.documents,
        case.seed,
    )
    # codes shuffled over tokens: E[a_i a_j] becomes E a_i E a_j, without a draw
    means = np.asarray(amounts.sum(0), dtype=np.float64).ravel() / n
    cross = float(np.square(means @ directions.vectors).sum() - np.square(means).sum())
    null = cross / (cross + alone.mean()) if alone.any() else math.nan
    share = Finding("latent_geometry", "interference_share", value, low, high, n, null)
    pairs, by_latent = _pairs(case, directions, means, float(size.mean()))
    return [share, pairs], by_latent


def _pairs(
    case: Case, directions: Directions, means: Float64[np.ndarray, " latent"], size: float
) -> tuple[Finding, Float64[np.ndarray, " latent"]]:
    """Return the share of the energy that the most co-active pairs have, and each latent's interference."""
    random = numpy_generator(case.seed, "audit", "geometry", "pairs")
    n, m = directions.amounts.shape
    kept = np.sort(random.choice(n, min(n, case.spec.ridge_tokens), replace=False))
    part = directions.amounts[kept].astype(np.float32)
    fires = part.copy()
    fires.data = np.ones_like(fires.data)
    together = (fires.T @ fires).tocoo()
    upper = together.row < together.col
    rows, columns, count = together.row[upper], together.col[upper], together.data[upper]
    by_latent = np.zeros(m)
    products = (part.T @ part).tocsr()
    vectors = torch.from_numpy(directions.vectors)
    for start in range(0, m, _BLOCK):
        block = products[start : start + _BLOCK].tocoo()
        cosines = (vectors[start : start + _BLOCK] @ vectors.t()).numpy()
        values = block.data.astype(np.float64) * cosines[block.row, block.col]
        values[block.row + start == block.col] = 0
        by_latent[start : start + _BLOCK] = np.bincount(block.row, values, len(cosines))
    energy = products.diagonal().astype(np.float64)
    by_latent = np.divide(by_latent, energy, out=np.full(m, np.nan), where=energy > 0)
    name = "interference_pairs"
    if len(rows) == 0:
        reason = "no two latents are active on one token"
        return Finding("latent_geometry", name, math.nan, of="pairs", reason=reason), by_latent
    best = np.lexsort((columns, rows, -count))[:N_PAIRS]
    i, j = rows[best].astype(np.int64), columns[best].astype(np.int64)
    value, low, high, null = _of_pairs(case, directions, (i, j), means, size)
    return Finding(
        "latent_geometry", name, value, low, high, len(best), null, of="pairs"
    ), by_latent


def _of_pairs(
    case: Case,
    directions: Directions,
    pairs: tuple[Int64[np.ndarray, " pair"], Int64[np.ndarray, " pair"]],
    means: Float64[np.ndarray, " latent"],
    size: float,
) -> tuple[float, float, float, float]:
    """Return the share of energy between the latents of these pairs, its bounds, and its null."""
    i, j = pairs
    cosines = np.einsum("pd,pd->p", directions.vectors[i], directions.vectors[j]).astype(np.float64)
    columns, place = np.unique(np.concatenate([i, j]), return_inverse=True)
    chosen = directions.by_direction[:, columns].tocsc()
    first, second = place[: len(i)], place[len(i) :]
    per_token = np.asarray(
        chosen[:, first].multiply(chosen[:, second]) @ (2 * cosines), dtype=np.float64
    ).ravel()
    value, low, high = over_documents(
        lambda s: s[0] / s[1],
        np.stack([per_token / size, np.ones(len(per_token))]),
        case.documents,
        case.seed,
    )
    null = float((2 * cosines * means[i] * means[j]).sum() / size)
    return value, low, high, null
