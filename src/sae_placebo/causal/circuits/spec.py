"""The settings by which readers and writers of latents are found."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from sae_placebo.causal.circuits.patching import PatchSpec
from sae_placebo.causal.circuits.readers import ReadersSpec
from sae_placebo.causal.circuits.writers import WriterSpec
from sae_placebo.core.spec import Spec, distinct


class CircuitSpec(Spec):
    """How the parts of a model that read and write latents are found."""

    readers: ReadersSpec = ReadersSpec()
    writers: WriterSpec = WriterSpec()
    patch: PatchSpec = PatchSpec()
    kept: int = Field(4, ge=1)
    """How many readers, and how many writers, are kept for each latent, the largest first."""
    arms: Annotated[tuple[str, ...], AfterValidator(distinct)] | None = None
    """The arms whose latents are asked whether they are tied to circuitry: one that is drawn in each of its
    re-draws, with the first SAE seed; any other with each SAE seed. Without a list these are the trained arm,
    the reference placebo, and a re-draw that keeps the embeddings where that one does not, or the other way
    round; none where `use` is asked of no arm. The hookpoints are those of `use`."""
    level: float = Field(0.05, gt=0, lt=1)
    """A latent is tied where the p-values of its writers and of its readers are both at most this."""
