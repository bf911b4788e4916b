"""The laboratory, where the truth is known: generators of activations, worlds, spikes, and their scores."""

from __future__ import annotations

from sae_placebo.lab.generators import (  # isort: skip
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
from sae_placebo.lab.generators.base import (
    GENERATORS,
    GeneratorSpec,
    GeneratorTruth,
    Sample,
    Scaling,
)
from sae_placebo.lab.generators.superposition import SuperpositionSpec
from sae_placebo.lab.scores.ceilings import Ceilings, ceilings, from_truth
from sae_placebo.lab.scores.recovery import (
    Recovery,
    RecoveryNull,
    Support,
    expected_share,
    recovery,
    recovery_null,
    support,
)

__all__ = [
    "GENERATORS",
    "Ceilings",
    "GeneratorSpec",
    "GeneratorTruth",
    "Recovery",
    "RecoveryNull",
    "Sample",
    "Scaling",
    "SuperpositionSpec",
    "Support",
    "ceilings",
    "expected_share",
    "from_truth",
    "recovery",
    "recovery_null",
    "support",
]
