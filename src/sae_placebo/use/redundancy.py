"""What single ablation cannot see: random masks, joint removal, and the worst masks."""

from sae_placebo.use.joint import JointCurve, JointSpec, joint_removal
from sae_placebo.use.masks import MaskedUse, MaskSpec, random_masks
from sae_placebo.use.removal import discovery_documents
from sae_placebo.use.worst import WorstCase, WorstSpec, worst_case

__all__ = [
    "JointCurve",
    "JointSpec",
    "MaskSpec",
    "MaskedUse",
    "WorstCase",
    "WorstSpec",
    "discovery_documents",
    "joint_removal",
    "random_masks",
    "worst_case",
]
