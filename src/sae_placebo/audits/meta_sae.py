"""A meta-SAE, trained on decoder rows: whether latents share parts, more than any such cloud of rows does."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32, Float64

from sae_placebo.audits.base import AUDITS, Audit, Audited, Case, Finding, Quantity
from sae_placebo.audits.overlap import matched_rows
from sae_placebo.causal.use.base import latent_directions
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.core.spec import generator, numpy_generator
from sae_placebo.stats.bootstrap import percentile_interval, resampled_counts

WIDTH_RATIO = 21
"""Decoder rows for each meta-latent."""
K = 4
"""Meta-latents that are active for a row."""
_BATCH = 256
_LEARNING_RATE = 1e-3
_FEWEST = 16
"""The fewest meta-latents of which `K` are a small part."""


def meta_explained(
    rows: Float32[np.ndarray, "row d_in"], steps: int, seed: int, advance: Advance = unheard
) -> Float64[np.ndarray, "row two"]:
    """Return each row's squared error under an SAE of these rows, and its squared distance from the mean.

    A TopK SAE with one meta-latent for every `WIDTH_RATIO` rows, `K` of them active for each row, is trained
    on the rows, which are made unit and centered first. The share of variance that it explains is 1 less the
    sum of the first column over the sum of the second. It is scored on the rows that it was trained on, as
    published figures are.

    Args:
        rows: Decoder rows of any length.
        steps: Training steps, each on 256 rows.
        seed: The seed that the initial weights and the batches are named by.
        advance: Called with 1 after each step.

    Raises:
        NotEstimable: there are fewer than `_FEWEST` times `WIDTH_RATIO` rows.
    """
    width = len(rows) // WIDTH_RATIO
    if width < _FEWEST:
        raise NotEstimable(
            f"{len(rows)} decoder rows are too few for an SAE of them with one latent per "
            f"{WIDTH_RATIO}: "
            f"{_FEWEST * WIDTH_RATIO} or more are needed"
        )
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    x = torch.from_numpy((unit - unit.mean(0)).astype(np.float32))
    x = x * (x.shape[1] / x.square().sum(1).mean()).sqrt()
    with torch.enable_grad():
        encoder, bias, decoder = _trained(x, width, steps, seed, advance)
    codes, chosen = _coded(x, encoder, bias)
    error = x - _decoded(codes, chosen, decoder)
    both = torch.stack([error.square().sum(1), x.square().sum(1)], dim=1)
    return both.double().numpy()


def _coded(
    x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the codes [row, K] of the chosen meta-latents, and which these are."""
    values, chosen = torch.addmm(bias, x, encoder).topk(K, dim=1)
    return values.relu(), chosen


def _decoded(codes: torch.Tensor, chosen: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
    """Return the reconstructions [row, d_in]."""
    return torch.nn.functional.embedding_bag(chosen, decoder, per_sample_weights=codes, mode="sum")


def _trained(
    x: Float32[torch.Tensor, "row d_in"], width: int, steps: int, seed: int, advance: Advance
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return encoder, bias and unit decoder rows of a TopK SAE that was trained on centered rows.

    It is trained by Adam at a rate of 1e-3, which falls to 0 over the last fifth of the steps. With so few
    latents no auxiliary loss is needed against dead ones, and a plain step is far cheaper than one that is
    made for wide SAEs.
    """
    random = generator(seed, "audit", "meta", "start")
    rows = torch.nn.functional.normalize(torch.randn(width, x.shape[1], generator=random), dim=1)
    tensors = [rows.t().clone() * 0.5, torch.zeros(width), rows.clone()]
    for tensor in tensors:
        tensor.requires_grad_()
    encoder, bias, decoder = tensors
    adam = torch.optim.Adam(tensors, lr=_LEARNING_RATE, fused=True)
    batch, place = min(_BATCH, len(x)), 0
    order = torch.randperm(len(x), generator=random)
    for step in range(steps):
        if place + batch > len(x):
            order, place = torch.randperm(len(x), generator=random), 0
        part = x[order[place : place + batch]]
        place += batch
        codes, chosen = _coded(part, encoder, bias)
        loss = (part - _decoded(codes, chosen, decoder)).square().sum() / part.numel()
        adam.zero_grad()
        torch.autograd.backward([loss])
        adam.param_groups[0]["lr"] = _LEARNING_RATE * min(1.0, 5 * (steps - step) / steps)
        adam.step()
        with torch.no_grad():
            decoder.div_(decoder.norm(dim=1, keepdim=True).clamp_min(1e-12))
        advance(1)
    return encoder.detach(), bias.detach(), decoder.detach()


def _share(parts: Float64[np.ndarray, "row two"]) -> float:
    """Return the share of variance explained, from what `meta_explained` returns."""
    return float(1 - parts[:, 0].sum() / parts[:, 1].sum())


def run(case: Case) -> Audited:
    """Return what an SAE of the living latents' decoder rows explains, with two random clouds as nulls.

    Raises:
        NotEstimable: too few latents are active on held-out tokens.
    """
    directions = latent_directions(case.reading)
    living = np.flatnonzero(directions.n_active)
    rows, seed, steps = directions.vectors[living], case.seed, case.spec.meta_steps
    with case.track("audit meta_sae", 3 * steps, "steps") as advance:
        real = meta_explained(rows, steps, seed, advance)
        random = numpy_generator(seed, "audit", "meta", "rows")
        matched = _share(meta_explained(matched_rows(rows, random), steps, seed, advance))
        isotropic = random.standard_normal(rows.shape).astype(np.float32)
        loose = _share(meta_explained(isotropic, steps, seed, advance))
    draws = resampled_counts(random, len(real), 1_000) @ real
    value, (low, high) = _share(real), percentile_interval(1 - draws[:, 0] / draws[:, 1])
    n, room = len(real), 1 - matched
    excess = (value - matched) / room, (low - matched) / room, (high - matched) / room
    by_latent = np.full(len(directions), math.nan)
    by_latent[living] = 1 - real[:, 0] / np.maximum(real[:, 1], 1e-30)
    findings = [
        Finding("meta_sae", "fve", value, low, high, n, matched, of="latents"),
        Finding("meta_sae", "fve_isotropic", value, low, high, n, loose, of="latents"),
        Finding("meta_sae", "excess", *excess, n, 0.0, of="latents"),
    ]
    return Audited(findings, {"meta_explained": by_latent})


_FVE = (
    f"share of the variance of living latents' unit decoder rows, less their mean, that a TopK "
    f"SAE of these rows "
    f"explains on the rows themselves: one meta-latent per {WIDTH_RATIO} rows, {K} per row"
)
AUDITS.add(
    Audit(
        name="meta_sae",
        title="Latents made of latents",
        question="Do decoder rows share parts, more than any cloud of rows of this shape does?",
        source="Leask et al. 2025 (ICLR), there BatchTopK and 2,000 epochs. Deviations: TopK, "
        "fewer steps, and both "
        "nulls, of which none was published. Intervals are over rows, given the trained meta-SAE.",
        quantities=(
            Quantity(
                "fve",
                "share",
                "neither",
                "the same for random unit rows with the mean and covariance of the decoder rows",
                _FVE,
                "Call latents compositions of others only as far as this exceeds its null.",
            ),
            Quantity(
                "fve_isotropic",
                "share",
                "neither",
                "the same for random directions: too low a null wherever rows share a subspace",
                _FVE,
                "If only this null is exceeded, the rows lie in few directions and nothing more "
                "is shown.",
            ),
            Quantity(
                "excess",
                "share",
                "neither",
                "0",
                "(fve - matched null) / (1 - matched null)",
                "Where it is clearly above 0, read a latent together with the meta-latents that "
                "make it up.",
            ),
        ),
        run=run,
    ),
)
