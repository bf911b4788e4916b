"""What the weights behind a hookpoint could read of a direction: capability, not use.

No data enters. A head may be able to read a direction that is never there when it attends, and an edge of
large weight may carry nothing. So this says where one may look, and not what the model does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from sae_placebo.causal.circuits.components import LayerParts, final_norm, layer_parts, mlp_matrices
from sae_placebo.causal.circuits.matrices import matrix
from sae_placebo.causal.circuits.norms import Norm
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.models.embeddings import output_weight
from sae_placebo.models.hookpoints import check_on_stream


@dataclass(frozen=True, eq=False)
class WeightCapability:
    """How much each reader's weights W would make of each direction d: capability, not use.

    Attributes:
        names: The readers, by layer L and head h: q.L.h, k.L.h, ov.L.h, mlp.L, and unembedding. In a
            mixture of experts, mlp is the router.
        gain: |W d| divided by its size for an isotropic direction, |W|_F / sqrt(d_model). W includes the
            gains of the norm before it, and takes the mean out where that norm does.
        above_random: How many standard deviations the gain is above that of random directions with the
            covariance of the activations.
        above_others: How many standard deviations the gain is above the mean over all directions.
    """

    names: tuple[str, ...]
    gain: Float64[np.ndarray, "direction reader"]
    above_random: Float64[np.ndarray, "direction reader"]
    above_others: Float64[np.ndarray, "direction reader"]


def weight_capability(
    subject: Subject, directions: Directions, seed: int, n_random: int = 1000
) -> WeightCapability:
    """Return how much the weights behind a hookpoint could read of each direction: capability, not use.

    Args:
        subject: The model, and the activations whose covariance the random directions have.
        directions: The directions, on the residual stream.
        seed: The seed of the random directions.
        n_random: How many random directions there are.

    Raises:
        ModelError: a layer behind the hookpoint is not understood, or the hookpoint is a module's input.

    Source: the matrices are those of Elhage et al. 2021, "A Mathematical Framework for Transformer
    Circuits". Differs: scores are norms of single directions, not of pairs of heads.
    """
    behind = subject.downstream
    check_on_stream(behind.hookpoint)
    parts = layer_parts(behind.model, behind.first) if behind.first < len(behind.layers) else []
    given = torch.from_numpy(directions.vectors).to(behind.device)
    random = _covariant(subject.activations.float().cpu(), n_random, seed).to(behind.device)
    names: list[str] = []
    gains: list[torch.Tensor] = []
    references: list[torch.Tensor] = []
    for name, maps in _maps(behind.model, parts):
        # maps is [map, d_out, d_model]: all heads of a layer at a time
        size = maps.square().sum((1, 2)).sqrt() / maps.shape[2] ** 0.5
        size = torch.where(size > 0, size, torch.nan)
        for table, vectors in ((gains, given), (references, random)):
            table.append(torch.stack([_lengths(vectors, w) for w in maps], 1) / size)
        names += [name] if len(maps) == 1 else [f"{name}.{h}" for h in range(len(maps))]
    gain = torch.cat(gains, 1).cpu().numpy().astype(np.float64)
    reference = torch.cat(references, 1).cpu().numpy().astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        above_random = (gain - reference.mean(0)) / reference.std(0)
        above_others = (gain - gain.mean(0)) / gain.std(0)
    return WeightCapability(tuple(names), gain, above_random, above_others)


def _lengths(
    vectors: Float[torch.Tensor, "vector d_model"], weight: Float[torch.Tensor, "d_out d_model"]
) -> Float[torch.Tensor, " vector"]:
    """Return |W v| for each vector v, by way of W'W where W is tall, as an unembedding is."""
    if len(weight) <= weight.shape[1]:
        short: torch.Tensor = (vectors @ weight.T).norm(dim=1)
        return short
    squares: torch.Tensor = ((vectors @ (weight.T @ weight)) * vectors).sum(1)
    return squares.clamp_min(0).sqrt()


def _covariant(x: torch.Tensor, n: int, seed: int) -> Float[torch.Tensor, "random d_in"]:
    """Return unit vectors along normal draws that have the covariance of the rows of x."""
    mix = torch.randn(n, len(x), generator=generator(seed, "weights", "covariant"))
    drawn = mix @ (x - x.mean(0))
    unit: torch.Tensor = drawn / drawn.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return unit


def _maps(
    model: torch.nn.Module, parts: list[LayerParts]
) -> list[tuple[str, Float[torch.Tensor, "map d_out d_model"]]]:
    """Return the maps by which each reader reads the stream, norm included, with the reader's name."""
    maps: list[tuple[str, torch.Tensor]] = []
    final = final_norm(model)
    entering = mlp_matrices(model, parts)
    for part in parts:
        attention, norm = part.attention, part.attention_norm
        value = attention.value.weight()[torch.from_numpy(attention.group)]
        ov = attention.output_weight() @ value
        for letter, weight in (
            ("q", attention.query.weight()), ("k", attention.key.weight()), ("ov", ov),
        ):  # fmt: skip
            maps.append((f"{letter}.{part.index}", _behind(norm, weight)))
        if entering[part.index]:
            stacked = torch.cat([matrix(module) for module in entering[part.index]])[None]
            maps.append((f"mlp.{part.index}", _behind(part.mlp_norm, stacked)))
    head = output_weight(model)
    if head is not None:
        maps.append(("unembedding", _behind(final, head.to(final.weight.device)[None])))
    return maps


def _behind(norm: Norm, weight: torch.Tensor) -> torch.Tensor:
    """Return W with the gains of the norm before it, and with the mean taken out where the norm does so."""
    return norm.core(weight * norm.weight.to(weight.device))
