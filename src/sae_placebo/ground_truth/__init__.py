"""Activations whose features are known: generators, what can be found in them, and how to score it."""

from __future__ import annotations

from sae_placebo.ground_truth import (  # isort: skip
    bottleneck as bottleneck,
    composed_sets as composed_sets,
    compositional_shift as compositional_shift,
    dark_matter as dark_matter,
    hedging as hedging,
    heterogeneous as heterogeneous,
    high_expansion as high_expansion,
    multidimensional as multidimensional,
    parent_child as parent_child,
    solvable_pair as solvable_pair,
    superposition as superposition,
    synth_bench as synth_bench,
    tree as tree,
    wrong_l0 as wrong_l0,
)
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
