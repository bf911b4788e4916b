"""Worlds are models whose truth is known; measures of what a model uses are tested on them."""

from __future__ import annotations

from sae_placebo.lab.worlds.base import Swap, Variable, World, WorldTruth, truth
from sae_placebo.lab.worlds.baselines import BASELINES, Baselines, baselines
from sae_placebo.lab.worlds.compiled import CompiledWorld, compiled, reads, writes
from sae_placebo.lab.worlds.dictionaries import LatentLabel, activations, label_latents, train_sae
from sae_placebo.lab.worlds.factored import factored
from sae_placebo.lab.worlds.grammar import PRESETS, FactoredSpec, Grammar
from sae_placebo.lab.worlds.programs import PROGRAMS
from sae_placebo.lab.worlds.resampling import CompiledTruth, variable_truth
from sae_placebo.lab.worlds.scoring import (
    STATISTICS,
    SiteTruth,
    WorldScore,
    score_world,
    site_truths,
)
from sae_placebo.lab.worlds.statistic_scores import score_statistics
from sae_placebo.lab.worlds.twins import twins
from sae_placebo.lab.worlds.units import world_subject
from sae_placebo.lab.worlds.user_statistics import UserStatistic, find_statistic

__all__ = [
    "BASELINES",
    "PRESETS",
    "PROGRAMS",
    "STATISTICS",
    "Baselines",
    "CompiledTruth",
    "CompiledWorld",
    "FactoredSpec",
    "Grammar",
    "LatentLabel",
    "SiteTruth",
    "Swap",
    "UserStatistic",
    "Variable",
    "World",
    "WorldScore",
    "WorldTruth",
    "activations",
    "baselines",
    "compiled",
    "factored",
    "find_statistic",
    "label_latents",
    "reads",
    "score_statistics",
    "score_world",
    "site_truths",
    "train_sae",
    "truth",
    "twins",
    "variable_truth",
    "world_subject",
    "writes",
]
