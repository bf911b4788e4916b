"""Models whose truth is known, to test on them what says which structure a model uses."""

from __future__ import annotations

from sae_placebo.worlds.base import Swap, Truth, Variable, World, truth
from sae_placebo.worlds.dictionaries import LatentLabel, activations, label_latents, train_sae
from sae_placebo.worlds.factored import factored
from sae_placebo.worlds.grammar import PRESETS, FactoredSpec, Grammar
from sae_placebo.worlds.twins import twins

__all__ = [
    "PRESETS",
    "FactoredSpec",
    "Grammar",
    "LatentLabel",
    "Swap",
    "Truth",
    "Variable",
    "World",
    "activations",
    "factored",
    "label_latents",
    "train_sae",
    "truth",
    "twins",
]
