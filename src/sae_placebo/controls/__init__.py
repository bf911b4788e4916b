"""Controls: what is done to the reference model in each arm. Each kind of control has a file of its own."""

from __future__ import annotations

from sae_placebo.controls.model.ablate_attention import AblateAttention
from sae_placebo.controls.model.base import (
    CONTROLS,
    GROUPS,
    INVARIANTS,
    Control,
    Recipe,
    Record,
    SampleText,
    build,
    parse_control,
)
from sae_placebo.controls.model.cascade import Cascade
from sae_placebo.controls.model.init import Init
from sae_placebo.controls.model.noise_embeddings import NoiseEmbeddings
from sae_placebo.controls.model.permute import Permute
from sae_placebo.controls.model.redraw import Redraw
from sae_placebo.controls.model.redraw_calibrated import RedrawCalibrated
from sae_placebo.controls.model.redraw_embeddings import RedrawEmbeddings
from sae_placebo.controls.model.revision import Revision
from sae_placebo.controls.model.spectrum import Spectrum
from sae_placebo.controls.model.tensors import weight_hash
from sae_placebo.controls.model.trained import Trained

__all__ = [
    "CONTROLS",
    "GROUPS",
    "INVARIANTS",
    "AblateAttention",
    "Cascade",
    "Control",
    "Init",
    "NoiseEmbeddings",
    "Permute",
    "Recipe",
    "Record",
    "Redraw",
    "RedrawCalibrated",
    "RedrawEmbeddings",
    "Revision",
    "SampleText",
    "Spectrum",
    "Trained",
    "build",
    "parse_control",
    "weight_hash",
]
