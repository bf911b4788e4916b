"""Settings of what is asked about circuits."""

from __future__ import annotations

from pydantic import Field

from sae_placebo.causal.circuits.patching import PatchSpec
from sae_placebo.causal.circuits.readers import ReadersSpec
from sae_placebo.causal.circuits.writers import WriterSpec
from sae_placebo.core.spec import Spec


class CircuitSpec(Spec):
    """Which readers and writers of latents are looked for, and on what."""

    readers: ReadersSpec = ReadersSpec()
    writers: WriterSpec = WriterSpec()
    patch: PatchSpec = PatchSpec()
    kept: int = Field(4, ge=1)
    """Readers and writers that are kept of each latent, largest first."""
