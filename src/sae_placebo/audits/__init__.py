"""Where an SAE misleads. Each audit is one file, which asks one question and gives its null."""

from __future__ import annotations

# importing an audit registers it; the order is that in which audits are made and shown
from sae_placebo.audits import (  # isort: skip
    random_pushes as random_pushes,
    interpolation as interpolation,
    error_parts as error_parts,
    untrusted_tokens as untrusted_tokens,
    shrinkage as shrinkage,
    latent_geometry as latent_geometry,
    meta_sae as meta_sae,
    label_families as label_families,
    label_information as label_information,
    hedging as hedging,
)
from sae_placebo.audits.base import AUDITS

__all__ = ["AUDITS"]
