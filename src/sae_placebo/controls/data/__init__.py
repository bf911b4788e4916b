"""The data controls: importing this module registers them all."""

from __future__ import annotations

from sae_placebo.controls.data.base import (
    DATA_CONTROLS,
    DATA_INVARIANTS,
    ActivationControl,
    DataControl,
    parse_data,
)
from sae_placebo.controls.data.gaussian_activations import GaussianActivations
from sae_placebo.controls.data.markov import Markov
from sae_placebo.controls.data.shuffle_tokens import ShuffleTokens
from sae_placebo.controls.data.surrogate import Surrogate
from sae_placebo.controls.data.unigram import Unigram

__all__ = [
    "DATA_CONTROLS",
    "DATA_INVARIANTS",
    "ActivationControl",
    "DataControl",
    "GaussianActivations",
    "Markov",
    "ShuffleTokens",
    "Surrogate",
    "Unigram",
    "parse_data",
]
