"""SAEs are trained on a world's activations, and their latents are labeled by what they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab import Scaling
from sae_placebo.lab.worlds.base import World
from sae_placebo.models.loading import Reader
from sae_placebo.saes import SAE, SAESpec, TopKSpec
from sae_placebo.saes.training import Fit, TrainingSpec, train

_ROWS_AT_ONCE = 64


def activations(
    world: World, hookpoint: str, rows: Int64[np.ndarray, "row pos"]
) -> Float[torch.Tensor, "row pos d_in"]:
    """Return the activations of a world's model at a hookpoint, for rows of token ids."""
    reader = Reader(world.model, [hookpoint])
    name = reader.names[0]
    ids = torch.from_numpy(rows)
    parts = [reader.read(chunk)[name].clone() for chunk in torch.split(ids, _ROWS_AT_ONCE)]
    return torch.cat(parts)


def train_sae(
    world: World,
    hookpoint: str,
    seed: int,
    spec: SAESpec | None = None,
    training: TrainingSpec | None = None,
    epochs: int = 4,
) -> SAE:
    """Train an SAE on a world's training rows, and return it in the model's units.

    Args:
        world: The model and its training rows.
        hookpoint: Name of the hookpoint whose activations are read.
        seed: Seed of the initial weights and of the order of tokens.
        spec: Settings of the SAE; None takes TopK with 256 latents, 8 of them active.
        training: How the SAE is trained; None takes the package's defaults with batches of 512.
        epochs: Number of passes over the training rows.
    """
    x = activations(world, hookpoint, world.train_rows).flatten(0, 1)
    scaling = Scaling.of(x)
    x = scaling.apply(x)
    spec = spec or TopKSpec(d_sae=256, k=8)
    training = training or TrainingSpec(batch_tokens=512)
    fit = Fit(spec.create(x.shape[1], seed), training, epochs * len(x), copied=False)
    random = generator(seed, "world", "sae", hookpoint)
    size = training.batch_tokens

    def batches() -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        for _ in range(epochs):
            order = torch.randperm(len(x), generator=random)
            for start in range(0, len(x), size):
                batch = x[order[start : start + size]]
                yield len(batch), {hookpoint: batch}

    train(batches(), {hookpoint: [fit]}, lambda _: None)
    return fit.sae().fold(scaling.mean, scaling.factor)


@dataclass(frozen=True)
class LatentLabel:
    """What a latent stands for: a value of a variable, or nothing.

    Attributes:
        variable: Name of the variable; None where the latent stands for nothing.
        value: Value of the variable; None where the latent stands for nothing.
        correlation: Largest correlation of the latent's code with a value's occurrence; NaN where the latent
            never fires.
    """

    variable: str | None
    value: int | None
    correlation: float

    @property
    def name(self) -> str:
        """The label in words, such as `a=3` or `none`."""
        return "none" if self.variable is None else f"{self.variable}={self.value}"


def label_latents(
    world: World,
    codes: Any,
    places: Int64[np.ndarray, "place two"] | None = None,
    threshold: float = 0.5,
    variables: Sequence[str] | None = None,
) -> tuple[LatentLabel, ...]:
    """Return what each latent stands for: the value of a variable with which its code correlates most.

    The correlation is signed: codes are at least 0, and a latent stands for what it fires on. For a variable
    that matters at some tokens only, the value at these tokens is tried as well as the value at any token;
    both have the same label.

    Args:
        world: The model and its variables.
        codes: Codes of held-out tokens, as scipy CSR [token, latent].
        places: Row and position of each token; None means all held-out tokens, row after row.
        threshold: A latent whose largest correlation is below this stands for nothing.
        variables: Names of the variables that are tried; None tries all.
    """
    names = [v.name for v in world.variables] if variables is None else list(variables)
    if places is None:
        places = np.argwhere(np.ones(world.rows.shape, dtype=bool))
    keys: list[tuple[str, int]] = []
    columns: list[np.ndarray] = []
    for variable in (world.variable(name) for name in names):
        row, position = places[:, 0], places[:, 1]
        values = variable.values[row, position]
        masks = [np.ones(len(values), dtype=bool)]
        if variable.active is not None:
            masks.append(variable.active[row, position])
        for value in range(variable.n_values):
            keys += [(variable.name, value)] * len(masks)
            columns += [(values == value) & mask for mask in masks]
    correlations = _correlations(codes, np.stack(columns, axis=1).astype(np.float64))
    labels = []
    for best, high in zip(correlations.argmax(axis=1), correlations.max(axis=1), strict=True):
        label: tuple[str | None, int | None] = keys[best] if high >= threshold else (None, None)
        labels.append(LatentLabel(*label, float(high) if np.isfinite(high) else np.nan))
    return tuple(labels)


def _correlations(
    codes: Any, indicators: Float[np.ndarray, "token key"]
) -> Float[np.ndarray, "latent key"]:
    """Return the correlation of each latent with each indicator; -inf where one does not vary."""
    n = codes.shape[0]
    codes = codes.astype(np.float64)
    mean, share = np.asarray(codes.mean(axis=0)).ravel(), indicators.mean(axis=0)
    spread = np.asarray(codes.multiply(codes).mean(axis=0)).ravel() - mean**2
    joint = np.asarray(codes.T @ indicators) / n - np.outer(mean, share)
    scale = np.sqrt(np.outer(spread.clip(0), share * (1 - share)))
    return np.where(scale > 0, joint / np.where(scale > 0, scale, 1.0), -np.inf)
