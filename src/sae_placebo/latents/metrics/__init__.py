"""What is measured about an SAE: functions from evidence to numbers with their nulls."""

from __future__ import annotations

from sae_placebo.data.labels.truth import TokenLabels

# importing a family registers its metrics; the order is that of the tables
from sae_placebo.latents.metrics import fidelity, sparsity, token_metrics
from sae_placebo.latents.metrics.base import METRICS, Evidence, Measured, Metric, measure
from sae_placebo.latents.metrics.coverage import COLUMNS as COVERAGE_COLUMNS
from sae_placebo.latents.metrics.coverage import coverage_table
from sae_placebo.latents.metrics.per_latent import latent_table
from sae_placebo.latents.metrics.tokens import TokenStatistics, token_statistics

__all__ = [
    "COVERAGE_COLUMNS",
    "METRICS",
    "Evidence",
    "Measured",
    "Metric",
    "TokenLabels",
    "TokenStatistics",
    "coverage_table",
    "fidelity",
    "latent_table",
    "measure",
    "sparsity",
    "token_metrics",
    "token_statistics",
]
