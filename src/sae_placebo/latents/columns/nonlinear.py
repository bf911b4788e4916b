"""Whether a small MLP on the current token and the bag before it predicts a subset of a domain."""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Float, Float32, Int64
from pydantic import Field

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import Spec, generator, numpy_generator
from sae_placebo.latents.base import Encoded, Folds
from sae_placebo.latents.columns.bags import token_vectors
from sae_placebo.latents.columns.domain_tokens import (
    Scene,
    auc_by_column,
    entries_of,
    judged_on,
    scenes_of,
)
from sae_placebo.latents.columns.domains import Domains
from sae_placebo.latents.columns.subsets import domain_of_each


class MLPSpec(Spec):
    """Settings of the MLP: it has one hidden layer of ReLUs and an output per latent; AdamW fits it."""

    hidden: int = Field(128, ge=1)
    steps: int = Field(400, ge=1)
    batch: int = Field(1024, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    most_latents: int = Field(64, ge=1)
    """How many latents are fitted at most, over all domains; where there are more, they are drawn."""
    precision: float = Field(0.8, gt=0, le=1)
    """Precision that a latent's domain should have, as `ClassThresholds.domain_precision`."""


def nonlinear_aurocs(
    reading: Encoded,
    folds: Folds,
    domains: Domains,
    latents: Int64[np.ndarray, " candidate"],
    embeddings: Float[np.ndarray, "vocabulary d_embed"] | None = None,
    seed: int = 0,
    spec: MLPSpec | None = None,
) -> Float[np.ndarray, " latent"]:
    """Return the AUC with which an MLP on token and bag predicts each given latent inside its domain.

    The tokens that are fitted on, those that are scored, and the bag are those of `subsets`, so that the
    value can be compared with `domain_auc`. Latents of one domain share the hidden layer. The value is NaN
    for latents that were not given or not drawn, and where too few active tokens are scored.

    Args:
        reading: The SAE and its tokens.
        folds: Which documents are fitted and scored on.
        domains: Recognizable contexts.
        latents: The latents that are predicted.
        embeddings: W_E; None for fixed random vectors.
        seed: It names the draws of the weights, of the batches and of the latents.
        spec: Settings.
    """
    settings = spec or MLPSpec()
    aucs = np.full(reading.d_sae, np.nan)
    if not domains.names or not len(latents):
        return aucs
    if len(latents) > settings.most_latents:
        draw = numpy_generator(seed, "latents for the MLP")
        latents = np.sort(draw.choice(latents, settings.most_latents, replace=False))
    chosen = domain_of_each(reading, domains, settings.precision)
    scenes = scenes_of(reading.tokens, folds, domains, np.unique(chosen[latents]), embeddings)
    vectors = token_vectors(len(reading.tokens.vocabulary), embeddings)
    vectors = vectors / np.maximum(vectors.std(0), 1e-9)
    for domain, scene in scenes.items():
        if min(len(part) for part in scene.tokens):
            inside = latents[chosen[latents] == domain]
            aucs[inside] = _fit(reading, scene, inside, vectors, seed, settings)
    return aucs


def _fit(
    reading: Encoded,
    scene: Scene,
    latents: Int64[np.ndarray, " candidate"],
    vectors: Float32[np.ndarray, "vocabulary feature"],
    seed: int,
    spec: MLPSpec,
) -> Float[np.ndarray, " candidate"]:
    """Return the AUC of an MLP that is fitted on the tokens of one scene for all latents at once."""
    ids = reading.tokens.ids
    x, held = (
        torch.from_numpy(np.hstack([vectors[ids[scene.tokens[part]]], scene.bags[part]]))
        for part in (0, 2)
    )
    y = torch.zeros(len(x), len(latents))
    token, owner = entries_of(reading, scene, latents, 0)
    y[torch.from_numpy(token), torch.from_numpy(owner)] = 1
    weights = _trained(x, y, generator(seed, "MLP on token and bag"), spec)
    hidden = torch.addmm(weights[1], held, weights[0]).relu_()
    read = torch.nn.functional.linear(hidden, weights[2], weights[3]).numpy()
    judged = judged_on(reading, scene, latents)
    positives = judged.positives
    return auc_by_column(
        read[judged.negatives], read[positives], judged.taken, positives[1], len(latents)
    )


def _trained(
    x: Float32[torch.Tensor, "token feature"],
    y: Float32[torch.Tensor, "token latent"],
    draw: torch.Generator,
    spec: MLPSpec,
) -> list[torch.Tensor]:
    """Return weights and biases of both layers after AdamW on the logistic loss, summed over latents.

    The gradient is written out, since for so small a layer autograd takes as long as the products. Weights
    are views of one vector, so that the optimizer takes one step for all.
    """
    # rows of the second layer are latents: products are slow with matrices of few columns
    shapes = [(x.shape[1], spec.hidden), (spec.hidden,), (y.shape[1], spec.hidden), (y.shape[1],)]
    flat, slope = torch.zeros(2, sum(math.prod(shape) for shape in shapes))
    first, first_bias, second, second_bias = weights = _views(flat, shapes)
    slopes = _views(slope, shapes)
    first.normal_(generator=draw).div_(x.shape[1] ** 0.5)
    second.copy_(torch.randn(spec.hidden, y.shape[1], generator=draw).t() / spec.hidden**0.5)
    flat.grad = slope
    optimizer = torch.optim.AdamW([flat], spec.learning_rate, weight_decay=spec.weight_decay)
    for _ in range(spec.steps):
        batch = torch.randint(len(x), (spec.batch,), generator=draw)
        inputs = x.index_select(0, batch)
        hidden = torch.addmm(first_bias, inputs, first).relu_()
        error = torch.nn.functional.linear(hidden, second, second_bias).sigmoid_()
        error.sub_(y.index_select(0, batch)).div_(spec.batch)
        back = error @ second
        torch.mm(error.t(), hidden, out=slopes[2])
        torch.sum(error, 0, out=slopes[3])
        back.mul_(hidden.sign_())
        torch.mm(inputs.t(), back, out=slopes[0])
        torch.sum(back, 0, out=slopes[1])
        optimizer.step()
    return weights


def _views(
    flat: Float32[torch.Tensor, " number"], shapes: list[tuple[int, ...]]
) -> list[torch.Tensor]:
    """Return consecutive parts of a vector as tensors of the given shapes."""
    ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
    parts = zip([0, *ends], ends, shapes, strict=False)
    return [flat[begin:end].view(shape) for begin, end, shape in parts]
