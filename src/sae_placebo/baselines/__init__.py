"""Existing methods that SAEs are compared with: sparse codes, bits per token, probes, marginal structure."""

from __future__ import annotations

from sae_placebo.baselines import centroids as centroids
from sae_placebo.baselines import drawn as drawn
from sae_placebo.baselines import given as given
from sae_placebo.baselines import independent as independent
from sae_placebo.baselines import nonnegative as nonnegative
from sae_placebo.baselines import principal as principal
from sae_placebo.baselines.base import METHODS, Dictionary, Material, Method, MethodsSpec
from sae_placebo.baselines.compare import COLUMNS, Coded, MethodsResult, compare_methods
from sae_placebo.baselines.marginal import (
    DocumentBits,
    best_simpler,
    bits_saved,
    marginal_structure,
)

__all__ = [
    "COLUMNS",
    "METHODS",
    "Coded",
    "Dictionary",
    "DocumentBits",
    "Material",
    "Method",
    "MethodsResult",
    "MethodsSpec",
    "best_simpler",
    "bits_saved",
    "compare_methods",
    "marginal_structure",
]
