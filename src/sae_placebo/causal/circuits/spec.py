"""The settings by which readers and writers of latents are found."""

from __future__ import annotations

from pydantic import Field

from sae_placebo.causal.circuits.patching import PatchSpec
from sae_placebo.causal.circuits.readers import ReadersSpec
from sae_placebo.causal.circuits.writers import WriterSpec
from sae_placebo.core.spec import Spec


class CircuitSpec(Spec):
    """How the parts of a model that read and write latents are found."""

    readers: ReadersSpec = ReadersSpec()
    writers: WriterSpec = WriterSpec()
    patch: PatchSpec = PatchSpec()
    kept: int = Field(4, ge=1)
    """How many readers, and how many writers, are kept for each latent, the largest first."""
