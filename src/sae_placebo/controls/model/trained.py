"""The control that changes nothing: the trial's treated arm."""

from __future__ import annotations

from typing import ClassVar, Literal

from sae_placebo.controls.model.base import CONTROLS, INVARIANTS, Control, Record, SampleText
from sae_placebo.controls.model.tensors import tensors, tie_notes
from sae_placebo.core.lazy import torch
from sae_placebo.models.specs import ModelSpec


@CONTROLS.add
class Trained(Control):
    """It leaves the reference model as it is; both seeds are without effect."""

    kind: Literal["trained"] = "trained"

    preserves: ClassVar[frozenset[str]] = frozenset(INVARIANTS)
    destroys: ClassVar[frozenset[str]] = frozenset()

    @property
    def draws(self) -> bool:
        """Return False: there is one such model."""
        return False

    def apply(
        self,
        model: torch.nn.Module,
        seed: int,
        model_seed: int,
        source: ModelSpec | None = None,
        text: SampleText | None = None,
    ) -> Record:
        """Change nothing, and record every tensor as trained."""
        found = tensors(model)
        return Record(kept={t.name: "trained" for t in found}, notes=tie_notes(found))
