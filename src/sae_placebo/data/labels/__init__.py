"""Known structure: ground-truth labels of Python code, one set of booleans per token."""

from __future__ import annotations

from sae_placebo.data.labels.align import TokenLabels, label_tokens
from sae_placebo.data.labels.base import Labels
from sae_placebo.data.labels.catalogue import LABELS, NAMES, Label

__all__ = ["LABELS", "NAMES", "Label", "Labels", "TokenLabels", "label_tokens"]
