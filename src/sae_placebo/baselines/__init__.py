"""Existing methods that SAEs are compared with: sparse codes, bits per token, probes, marginal structure."""

from __future__ import annotations

from sae_placebo.baselines import centroids as centroids
from sae_placebo.baselines import independent_components as independent_components
from sae_placebo.baselines import model_directions as model_directions
from sae_placebo.baselines import nonnegative_parts as nonnegative_parts
from sae_placebo.baselines import principal_components as principal_components
from sae_placebo.baselines import random_directions as random_directions
from sae_placebo.baselines.base import BASELINES, Baseline, BaselinesSpec, Dictionary, Material
from sae_placebo.baselines.compare import COLUMNS, BaselinesResult, Coded, compare_baselines
from sae_placebo.baselines.marginal import (
    DocumentBits,
    best_simpler,
    bits_saved,
    marginal_structure,
)

__all__ = [
    "BASELINES",
    "COLUMNS",
    "Baseline",
    "BaselinesResult",
    "BaselinesSpec",
    "Coded",
    "Dictionary",
    "DocumentBits",
    "Material",
    "best_simpler",
    "bits_saved",
    "compare_baselines",
    "marginal_structure",
]
