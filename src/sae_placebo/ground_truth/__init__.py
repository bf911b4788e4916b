"""Activations whose features are known: generators, what can be found in them, and how to score it."""

from __future__ import annotations

from sae_placebo.ground_truth import superposition as superposition
from sae_placebo.ground_truth.base import GENERATORS, Draw, GeneratorSpec, Scaling, Truth
from sae_placebo.ground_truth.ceilings import Ceilings, ceilings, from_truth
from sae_placebo.ground_truth.recovery import (
    Recovery,
    RecoveryNull,
    Support,
    expected_share,
    recovery,
    recovery_null,
    support,
)
from sae_placebo.ground_truth.superposition import SuperpositionSpec

__all__ = [
    "GENERATORS",
    "Ceilings",
    "Draw",
    "GeneratorSpec",
    "Recovery",
    "RecoveryNull",
    "Scaling",
    "SuperpositionSpec",
    "Support",
    "Truth",
    "ceilings",
    "expected_share",
    "from_truth",
    "recovery",
    "recovery_null",
    "support",
]
