"""Controls: what is done to the reference model in each arm. One file per kind."""

from __future__ import annotations

from sae_placebo.controls.base import (
    CONTROLS,
    GROUPS,
    INVARIANTS,
    Control,
    Recipe,
    Record,
    build,
    parse_control,
    weight_hash,
)
from sae_placebo.controls.redraw import Redraw
from sae_placebo.controls.trained import Trained

__all__ = [
    "CONTROLS",
    "GROUPS",
    "INVARIANTS",
    "Control",
    "Recipe",
    "Record",
    "Redraw",
    "Trained",
    "build",
    "parse_control",
    "weight_hash",
]
