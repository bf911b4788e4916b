"""Formats of other libraries, read and written: one file a format; `read_sae` reads them all."""

from __future__ import annotations

from sae_placebo.saes.formats import dictionary_learning as dictionary_learning
from sae_placebo.saes.formats import gemma_scope as gemma_scope
from sae_placebo.saes.formats import saelens as saelens
from sae_placebo.saes.formats import saelens_reader as saelens_reader
from sae_placebo.saes.formats import sparsify as sparsify
from sae_placebo.saes.formats.base import FORMATS, Format
from sae_placebo.saes.formats.given import Given, expected_average_factor
from sae_placebo.saes.formats.reading import read_sae
from sae_placebo.saes.formats.sites import Site, hookpoint_of

__all__ = [
    "FORMATS",
    "Format",
    "Given",
    "Site",
    "expected_average_factor",
    "hookpoint_of",
    "read_sae",
]
