"""Sparse autoencoders: what they share, and one file per architecture."""

from __future__ import annotations

from sae_placebo.saes import batchtopk as batchtopk
from sae_placebo.saes import gated as gated
from sae_placebo.saes import jumprelu as jumprelu
from sae_placebo.saes import matryoshka as matryoshka
from sae_placebo.saes import p_annealed as p_annealed
from sae_placebo.saes import relu as relu
from sae_placebo.saes import tied as tied
from sae_placebo.saes import topk as topk
from sae_placebo.saes.base import PARAMETERS, SAE, SAES, Context, Evaluation, SAESpec, parse_sae
from sae_placebo.saes.batchtopk import BatchTopKSpec
from sae_placebo.saes.codes import Codes
from sae_placebo.saes.gated import GatedSpec
from sae_placebo.saes.jumprelu import JumpReLUSpec
from sae_placebo.saes.matryoshka import MatryoshkaSpec
from sae_placebo.saes.p_annealed import PAnnealedSpec
from sae_placebo.saes.penalized import PenalizedSpec
from sae_placebo.saes.relu import ReLUSpec
from sae_placebo.saes.tied import TiedSpec
from sae_placebo.saes.topk import TopKSpec

__all__ = [
    "PARAMETERS",
    "SAE",
    "SAES",
    "BatchTopKSpec",
    "Codes",
    "Context",
    "Evaluation",
    "GatedSpec",
    "JumpReLUSpec",
    "MatryoshkaSpec",
    "PAnnealedSpec",
    "PenalizedSpec",
    "ReLUSpec",
    "SAESpec",
    "TiedSpec",
    "TopKSpec",
    "parse_sae",
]
