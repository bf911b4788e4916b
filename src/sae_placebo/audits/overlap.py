"""Overlap, which tells an L0 that is too low: cosines of decoder rows, and projections of activations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from sae_placebo.audits.base import Case, Finding
from sae_placebo.causal.use.base import Directions
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.bootstrap import percentile_interval, resampled_counts
from sae_placebo.stats.quantiles import mean_half_width

DRAWS = 3
"""Draws of matched rows that make up a null."""
_BLOCK = 1024
_PROJECTED = 2_048


def random_overlap(d_in: int) -> float:
    """Return the exact mean |cos| of two random directions in d_in dimensions.

    It is about sqrt(2 / (pi d_in)).
    """
    log = math.lgamma(d_in / 2) - math.lgamma((d_in + 1) / 2)
    return math.exp(log) / math.sqrt(math.pi)


def random_rows(n: int, d_in: int, random: np.random.Generator) -> Float32[np.ndarray, "row d_in"]:
    """Return n unit rows, drawn evenly from the sphere."""
    rows = random.standard_normal((n, d_in)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def matched_rows(
    rows: Float32[np.ndarray, "row d_in"], random: np.random.Generator
) -> Float32[np.ndarray, "row d_in"]:
    """Return Gaussian draws with the mean and covariance of the given rows, as many, at length 1."""
    center = rows.mean(0, dtype=np.float64)
    values, vectors = np.linalg.eigh(np.cov(rows.astype(np.float64), rowvar=False))
    draws = random.standard_normal(rows.shape) * np.sqrt(np.maximum(values, 0))
    matched = center + draws @ vectors.T
    unit = matched / np.linalg.norm(matched, axis=1, keepdims=True)
    return np.asarray(unit, dtype=np.float32)


def _mean_overlap(rows: Float32[np.ndarray, "row d_in"]) -> float:
    """Return the mean |cos| of two different unit rows."""
    tensor, total = torch.from_numpy(rows), 0.0
    for start in range(0, len(rows), _BLOCK):
        total += float((tensor[start : start + _BLOCK] @ tensor.t()).abs().sum())
    return (total - len(rows)) / (len(rows) * (len(rows) - 1))


def overlap(
    by_latent: Float64[np.ndarray, " latent"], directions: Directions, seed: int
) -> list[Finding]:
    """Return c_dec, the mean |cos| of two living latents, with isotropic and with matched rows as nulls.

    Args:
        by_latent: Mean |cos| of each latent to the other living ones.
        directions: The latents.
        seed: The seed that draws are named by.
    """
    living = np.flatnonzero(directions.n_active)
    means = by_latent[living]
    # each pair counts in two latents' means
    half = 2 * mean_half_width(means) if len(means) > 2 else math.nan
    value = float(means.mean())
    mean = (value, value - half, value + half, len(living))
    random = numpy_generator(seed, "audit", "geometry", "rows")
    drawn = [_mean_overlap(matched_rows(directions.vectors[living], random)) for _ in range(DRAWS)]
    isotropic = random_overlap(directions.vectors.shape[1])
    matched = (float(np.mean(drawn)), min(drawn), max(drawn))
    return [
        Finding("latent_geometry", "c_dec", *mean, isotropic, of="latents"),
        Finding("latent_geometry", "c_dec_matched", *mean, *matched, of="latents"),
    ]


def projection(case: Case, directions: Directions) -> list[Finding]:
    """Return s_n, relative to the size of activations, at several numbers n of latents per token."""
    n, m, d_in = case.n_tokens, len(directions), directions.vectors.shape[1]
    random = numpy_generator(case.seed, "audit", "geometry", "projections")
    tokens = np.sort(random.choice(n, min(n, _PROJECTED), replace=False))
    x = case.reading.activations[torch.from_numpy(tokens)].float().cpu() - case.b_dec
    x = x / x.square().sum(1).mean().sqrt().clamp_min(1e-30)
    rows = random_rows(m, d_in, random)
    l0 = max(1, round(directions.amounts.nnz / n))
    places = sorted({min(k, m // 2) for k in (l0, 2 * l0, 4 * l0, m // 2)} - {0})
    values = _ranked(x, directions.vectors, places, random)
    nulls = _ranked(x, rows, places, random)
    findings = []
    for place, value, null in zip(places, values, nulls, strict=True):
        real = float(value.mean()), *percentile_interval(value)
        drawn = float(null.mean()), *percentile_interval(null)
        findings.append(Finding("latent_geometry", "s_n", *real, len(tokens), *drawn, float(place)))
    return findings


def _ranked(
    x: Any, rows: Float32[np.ndarray, "row d_in"], places: list[int], random: np.random.Generator
) -> Float64[np.ndarray, "place replicate"]:
    """Return the projection of rank place * tokens among all projections, in resamples of the tokens.

    Tokens are resampled in 20 groups, so that few sorts are needed. The first of the replicates takes every
    token once.
    """
    projected = (x @ torch.from_numpy(rows).t()).numpy()
    groups = np.array_split(random.permutation(len(projected)), min(20, len(projected)))
    edges = np.quantile(projected[: _BLOCK // 4], np.linspace(0, 1, 4_001))
    low, high = float(projected.min()), float(projected.max())
    edges = np.unique(np.concatenate([[low], edges, np.linspace(low, high, 4_001)]))
    counts = np.stack([np.histogram(projected[g], edges)[0] for g in groups])
    weights = resampled_counts(random, len(groups), 200)
    total = np.concatenate([np.ones((1, len(groups))), weights]) @ counts
    above = np.cumsum(total[:, ::-1], axis=1)
    sizes = np.array([len(g) for g in groups])
    n_tokens = np.concatenate([[sizes.sum()], weights @ sizes])
    descending = edges[::-1]
    return np.array(
        [
            [
                descending[1 + np.searchsorted(row, place * n)]
                for row, n in zip(above, n_tokens, strict=True)
            ]
            for place in places
        ]
    )
