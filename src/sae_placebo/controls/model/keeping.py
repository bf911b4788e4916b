"""Controls that change every tensor except for the groups that their settings name."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from pydantic import field_validator

from sae_placebo.controls.model.base import GROUPS, Control, Group, Record, SampleText, change_all
from sae_placebo.controls.model.tensors import Tensor, tensors, tie_notes
from sae_placebo.core.lazy import torch
from sae_placebo.models.specs import ModelSpec

_OF_EMBEDDINGS = frozenset({"embedding_row_norms", "lexical_geometry"})


class Keeping(Control):
    """A control that changes every tensor except for those of the groups in `keep`.

    A tensor that is tied is changed once. Keeping one of its roles keeps both, and the recipe says so.
    A tensor of one entry or of no variance keeps its value, and the recipe says that, too.
    """

    keep: tuple[Group, ...] = ()
    """Groups of tensors that stay as trained: embeddings, unembedding, positions, norms, biases."""

    @field_validator("keep")
    @classmethod
    def _in_order(cls, keep: tuple[Group, ...]) -> tuple[Group, ...]:
        # a set in all but type: the same groups in another order are the same control
        return tuple(group for group in GROUPS if group in keep)

    preserves: ClassVar[frozenset[str]] = frozenset({"shapes", "token_identity"})
    destroys: ClassVar[frozenset[str]] = frozenset({"block_weights", "other_layers"})

    def preserved(self) -> frozenset[str]:
        """Return what every control of this kind preserves, together with the groups that are kept."""
        implied = _OF_EMBEDDINGS if "embeddings" in self.keep else frozenset()
        return self.preserves | set(self.keep) | implied

    def destroyed(self) -> frozenset[str]:
        """Return what every control of this kind destroys, together with the groups that are not kept."""
        return (self.destroys | set(GROUPS) | _OF_EMBEDDINGS) - self.preserved()

    def seen_at_hookpoints(self, tied: bool) -> Control:
        """Return the control without `unembedding` in `keep`, where that changes no activation.

        It changes none in a model whose output head is not tied, and none where the embedding is kept anyway.
        """
        if tied and "embeddings" not in self.keep:
            return self
        return self.model_copy(update={"keep": tuple(g for g in self.keep if g != "unembedding")})

    def apply(
        self,
        model: torch.nn.Module,
        seed: int,
        model_seed: int,
        source: ModelSpec | None = None,
        text: SampleText | None = None,
    ) -> Record:
        """Change every tensor that is not kept, in place; see the base class."""
        found = tensors(model)
        record = Record(notes=tie_notes(found))
        free = []
        for tensor in found:
            kept = [group for group in tensor.groups if group in self.keep]
            if kept:
                record.kept[tensor.name] = kept[0]
                if len(tensor.groups) > len(kept):
                    names = " and ".join(tensor.groups)
                    record.notes.append(f"{tensor.name} is {names}: keeping one kept both")
            else:
                free.append(tensor)
        change_all(free, record, lambda tensor: self.change(tensor, seed, model_seed))
        return record

    @abstractmethod
    def change(self, tensor: Tensor, seed: int, model_seed: int) -> str | None:
        """Change one tensor in place, or return why it keeps its value."""


def no_spread(parameter: torch.Tensor, std: float) -> str | None:
    """Return why a tensor cannot be re-drawn or shuffled to another one; None where it can.

    Args:
        parameter: The tensor.
        std: Its standard deviation.
    """
    if std != 0.0:
        return None
    return "one entry" if parameter.numel() == 1 else "no variance"
