"""Where an SAE misleads. Each audit is one file, which asks one question and gives its null."""

from __future__ import annotations

# importing an audit registers it; the order is that in which audits are made and shown
from sae_placebo.audits import (  # isort: skip
    pushes as pushes,
    along as along,
    split as split,
    flags as flags,
    shrinkage as shrinkage,
    geometry as geometry,
    meta as meta,
    families as families,
    information as information,
    hedging as hedging,
)
from sae_placebo.audits.base import AUDITS

__all__ = ["AUDITS"]
