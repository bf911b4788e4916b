"""Sparse autoencoders: what they share, and one file per architecture."""

from __future__ import annotations

from sae_placebo.saes import topk as topk
from sae_placebo.saes.base import PARAMETERS, SAE, SAES, Context, Evaluation, SAESpec, parse_sae
from sae_placebo.saes.codes import Codes
from sae_placebo.saes.topk import TopKSpec

__all__ = [
    "PARAMETERS",
    "SAE",
    "SAES",
    "Codes",
    "Context",
    "Evaluation",
    "SAESpec",
    "TopKSpec",
    "parse_sae",
]
