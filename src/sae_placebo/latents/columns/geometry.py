"""Latents that follow from the shape of the cloud of activations, its norms and its main directions.

An SAE spends latents on the mean, the norm and the largest principal components of any cloud, also of one
that a model with random weights makes. Such latents say little about what a model computes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64

from sae_placebo.core.lazy import torch
from sae_placebo.latents.base import Columns, Encoded, Folds
from sae_placebo.latents.latent_blocks import (
    latent_blocks,
    leave_out,
    on_every_fold,
    token_groups,
)

N_COMPONENTS = 10
# principal components are computed from at most so many tokens, at even steps
_COMPONENT_TOKENS = 1 << 15
# side of the blocks in which latents are compared with latents
_PAIRS = 1024


def geometry(reading: Encoded, folds: Folds) -> Columns:
    """Return how closely each latent follows the norm, a principal component or an antipodal twin.

    Columns, all without a unit:
        norm_correlation: |corr(a, norm of x)| over all tokens, with a = 0 where the latent is silent; 0 to
            1. Its null is about sqrt(2 / (pi n_tokens)), so nearly 0. NaN where the latent never fires, or
            is equally active everywhere.
        pc_cosine: max |cos(decoder row, principal component)| over the 10 largest components of the
            centered held-out activations, which are computed from at most 32,768 tokens at even steps; 0
            to 1. Its null, the value of a random direction, is about 1.9 / sqrt(d_in). It is the same in
            every fold. NaN for a decoder row of zeros.
        antipodality: max over j of cos(enc_i, enc_j) cos(dec_i, dec_j), among living latents j for
            which both cosines are below 0; 0 where there is none; 0 to 1. Its null, the value among random
            directions with encoder = decoder, is about 2 ln(d_sae) / d_in. It is the same in every fold.
            NaN for dead latents.

    Source: antipodality, Sun et al. 2025 (arXiv 2506.15679), section 3. Differs: they take the largest
    product, whatever the signs, so that a duplicate scores as an antipode does; here both signs must
    be negative. The other two are definitions of this package.
    """
    sae = reading.sae
    alive = np.diff(reading.by_latent.indptr) > 0
    encoder = sae.params["W_enc"].detach().float().t()
    decoder = sae.params["W_dec"].detach().float()
    with torch.no_grad():
        cosines = _principal_cosines(decoder, reading.activations)
        twins = _antipodality(encoder, decoder, alive)
    return {
        "norm_correlation": _norm_correlation(reading, folds),
        "pc_cosine": on_every_fold(cosines, folds),
        "antipodality": on_every_fold(twins, folds),
    }


def _norm_correlation(reading: Encoded, folds: Folds) -> Float[np.ndarray, "latent fold"]:
    """Return the absolute correlation of each latent with the norm of the activations."""
    groups = token_groups(reading, folds)
    n_groups = folds.n_groups
    norms = torch.linalg.vector_norm(reading.activations.float(), dim=1).cpu().numpy()
    # the mean changes no correlation, and small numbers lose fewer digits
    norms = norms.astype(np.float64) - norms.mean(dtype=np.float64)
    n = leave_out(np.bincount(groups, minlength=n_groups).astype(np.float64))
    first = leave_out(np.bincount(groups, norms, minlength=n_groups))
    second = leave_out(np.bincount(groups, norms * norms, minlength=n_groups))
    correlation = np.full((reading.d_sae, 1 + n_groups), np.nan)
    for block in latent_blocks(reading):
        cells, a = groups[block.tokens], block.values.astype(np.float64)
        total = leave_out(block.sums(cells, n_groups, a))
        squares = leave_out(block.sums(cells, n_groups, a * a))
        products = leave_out(block.sums(cells, n_groups, a * norms[block.tokens]))
        count = leave_out(block.sums(cells, n_groups))
        with np.errstate(invalid="ignore", divide="ignore"):
            covariance = products - total * first / n
            spread = (squares - total**2 / n) * (second - first**2 / n)
            ratio = np.abs(covariance) / np.sqrt(spread)
        defined = (count > 0) & (spread > 1e-12 * squares * second)
        correlation[block.latents] = np.where(defined, np.minimum(ratio, 1), np.nan)
    return correlation


def principal_components(
    x: Float[torch.Tensor, "token d_in"], n: int = N_COMPONENTS
) -> Float[torch.Tensor, "d_in component"]:
    """Return the n largest principal components as unit columns, the largest one last.

    They are computed from at most 32,768 tokens, at even steps.
    """
    step = -(-len(x) // _COMPONENT_TOKENS)
    sample = x[::step].float()
    sample = sample - sample.mean(0)
    _, vectors = torch.linalg.eigh(sample.t() @ sample)
    largest: torch.Tensor = vectors[:, -n:]
    return largest


def _principal_cosines(
    decoder: Float[torch.Tensor, "d_sae d_in"], x: Float[torch.Tensor, "token d_in"]
) -> Float[np.ndarray, " latent"]:
    components = principal_components(x).to(decoder.device)
    length = torch.linalg.vector_norm(decoder, dim=1)
    largest = (decoder @ components).abs().amax(1) / length
    cosines: Float[np.ndarray, " latent"] = (
        torch.where(length > 0, largest, torch.nan).cpu().numpy()
    )
    return cosines.astype(np.float64)


def _antipodality(
    encoder: Float[torch.Tensor, "d_sae d_in"],
    decoder: Float[torch.Tensor, "d_sae d_in"],
    alive: Bool[np.ndarray, " latent"],
) -> Float[np.ndarray, " latent"]:
    living: Int64[np.ndarray, " living"] = np.flatnonzero(alive)
    at = torch.from_numpy(living).to(decoder.device)
    enc = torch.nn.functional.normalize(encoder[at], dim=1)
    dec = torch.nn.functional.normalize(decoder[at], dim=1)
    best = torch.zeros(len(living), device=decoder.device)
    # the product is symmetric, so that each pair of blocks is needed once only
    for i in range(0, len(living), _PAIRS):
        for j in range(i, len(living), _PAIRS):
            rows, columns = slice(i, i + _PAIRS), slice(j, j + _PAIRS)
            # clamping leaves a product only where both cosines are below zero
            product = (enc[rows] @ enc[columns].t()).clamp_(max=0)
            product.mul_((dec[rows] @ dec[columns].t()).clamp_(max=0))
            best[rows] = torch.maximum(best[rows], product.amax(1))
            best[columns] = torch.maximum(best[columns], product.amax(0))
    largest = np.full(len(alive), np.nan)
    largest[living] = best.clamp_(max=1).cpu().numpy()
    return largest
