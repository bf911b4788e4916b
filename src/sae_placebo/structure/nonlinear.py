"""Whether a small MLP on the current token and the bag before it predicts a subset of a domain."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int64
from pydantic import Field

from sae_placebo.lazy import torch
from sae_placebo.spec import Spec, generator, numpy_generator
from sae_placebo.structure.base import Folds, Reading
from sae_placebo.structure.domains import Domains
from sae_placebo.structure.subsets import (
    Scene,
    auc_by_column,
    domain_of_each,
    entries_of,
    scenes_of,
    token_vectors,
)


class MLPSpec(Spec):
    """The MLP: one hidden layer of ReLUs, an output per latent, fitted by Adam."""

    hidden: int = Field(128, ge=1)
    steps: int = Field(400, ge=1)
    batch: int = Field(1024, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    most_latents: int = Field(64, ge=1)
    """Latents fitted at most, over all domains; drawn by a named seed where there are more."""
    precision: float = Field(0.8, gt=0, le=1)
    """Of a latent in its domain: as `ClassThresholds.domain_precision`."""


def nonlinear_auc(
    reading: Reading,
    folds: Folds,
    domains: Domains,
    latents: Int64[np.ndarray, " candidate"],
    embeddings: Float[np.ndarray, "vocabulary d_embed"] | None = None,
    seed: int = 0,
    spec: MLPSpec | None = None,
) -> Float[np.ndarray, " latent"]:
    """Return the AUC, inside its domain, of an MLP on (token, bag) for each of the latents given.

    The tokens, the documents they serve and the bag are those of `subsets`, so that the value can stand
    beside `domain_auc`. Latents of one domain share the hidden layer. NaN for latents not asked about,
    or not drawn, and where too few active tokens are scored.

    Args:
        reading: The SAE and its tokens.
        folds: Which documents are fitted and scored on.
        domains: Contexts.
        latents: Those of which it is asked.
        embeddings: W_E; fixed random vectors where there is none.
        seed: Of weights, batches and the choice of latents.
        spec: Settings.
    """
    settings = spec or MLPSpec()
    found = np.full(reading.d_sae, np.nan)
    if not domains.names or not len(latents):
        return found
    if len(latents) > settings.most_latents:
        draw = numpy_generator(seed, "latents for the MLP")
        latents = np.sort(draw.choice(latents, settings.most_latents, replace=False))
    chosen = domain_of_each(reading, domains, settings.precision)
    scenes = scenes_of(reading.tokens, folds, domains, np.unique(chosen[latents]), embeddings)
    vectors = token_vectors(len(reading.tokens.vocabulary), embeddings)
    vectors = vectors / np.maximum(vectors.std(0), 1e-9)
    for domain, scene in scenes.items():
        if min(len(part) for part in scene.tokens):
            some = latents[chosen[latents] == domain]
            found[some] = _fit(reading, scene, some, vectors, seed, settings)
    return found


def _fit(
    reading: Reading,
    scene: Scene,
    latents: Int64[np.ndarray, " candidate"],
    vectors: Float32[np.ndarray, "vocabulary feature"],
    seed: int,
    spec: MLPSpec,
) -> Float[np.ndarray, " candidate"]:
    ids = reading.tokens.ids
    x, held = (
        torch.from_numpy(np.hstack([vectors[ids[scene.tokens[part]]], scene.bags[part]]))
        for part in (0, 2)
    )
    y = torch.zeros(len(x), len(latents))
    token, owner = entries_of(reading, scene, latents, 0)
    y[torch.from_numpy(token), torch.from_numpy(owner)] = 1
    draw = generator(seed, "MLP on token and bag")
    first = torch.randn(x.shape[1], spec.hidden, generator=draw) / x.shape[1] ** 0.5
    second = torch.randn(spec.hidden, len(latents), generator=draw) / spec.hidden**0.5
    weights = [first, torch.zeros(spec.hidden), second, torch.zeros(len(latents))]
    for one in weights:
        one.requires_grad_(True)
    adam = torch.optim.AdamW(weights, lr=spec.learning_rate, weight_decay=spec.weight_decay)

    def scores(inputs: Float[torch.Tensor, "some feature"]) -> Float[torch.Tensor, "some latent"]:
        found: torch.Tensor = torch.relu(inputs @ weights[0] + weights[1]) @ weights[2] + weights[3]
        return found

    for _ in range(spec.steps):
        batch = torch.randint(len(x), (spec.batch,), generator=draw)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores(x[batch]), y[batch])
        adam.zero_grad()
        # summed over latents, so that a step does not depend on how many share the layer
        total = loss * len(latents)
        total.backward()  # type: ignore[no-untyped-call]
        adam.step()
    with torch.no_grad():
        read = scores(held).numpy()
    active = entries_of(reading, scene, latents, 2)
    return auc_by_column(read, read[active], active, active[1], len(latents))
