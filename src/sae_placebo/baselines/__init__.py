"""Existing methods that SAEs are compared with: sparse codes, bits per token, probes, marginal structure."""

from __future__ import annotations

# importing a baseline registers it; the order is that of the tables
from sae_placebo.baselines import (  # isort: skip
    centroids as centroids,
    random_directions as random_directions,
    model_directions as model_directions,
    independent_components as independent_components,
    nonnegative_parts as nonnegative_parts,
    principal_components as principal_components,
    token_table as token_table,
)
from sae_placebo.baselines.base import BASELINES, Baseline, BaselinesSpec, Dictionary, Material
from sae_placebo.baselines.compare import COLUMNS, BaselinesResult, Coded, compare_baselines
from sae_placebo.baselines.document_bits import DocumentBits
from sae_placebo.baselines.given import Given
from sae_placebo.baselines.marginal import Choice, Gain, Marginal
from sae_placebo.baselines.sampling import FitText

__all__ = [
    "BASELINES",
    "COLUMNS",
    "Baseline",
    "BaselinesResult",
    "BaselinesSpec",
    "Choice",
    "Coded",
    "Dictionary",
    "DocumentBits",
    "FitText",
    "Gain",
    "Given",
    "Marginal",
    "Material",
    "compare_baselines",
]
