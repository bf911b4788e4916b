"""Controls that are added to another control of the model, which their setting `of` names."""

from __future__ import annotations

from abc import ABC
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from sae_placebo.controls.model.base import Control, parse_control
from sae_placebo.models.specs import ModelSpec


def _parsed(value: Any) -> Any:
    if isinstance(value, Control):
        return value
    return parse_control({"control": value} if isinstance(value, str) else value)


Other = Annotated[SerializeAsAny[Control], BeforeValidator(_parsed)]
"""The control that a setting `of` gives: a name, a table with `control` and its settings, or a control."""


class Added(Control, ABC):
    """A control that does something more to what another control makes, which a kind names by default."""

    of: Other
    """The control of the model to which it is added."""

    def preserved(self) -> frozenset[str]:
        """Return what the other control preserves, without what this one destroys."""
        return self.of.preserved() - self.destroys

    def destroyed(self) -> frozenset[str]:
        """Return what the other control destroys, together with what this one does."""
        return self.of.destroyed() | self.destroys

    def identity(self, model: ModelSpec) -> Any:
        """Return what the other control depends on beside its settings; see the base class."""
        return self.of.identity(model)

    def check_layers(self, n_layers: int) -> None:
        """Refuse layers that the other control names and the model lacks; see the base class."""
        self.of.check_layers(n_layers)

    def check_source(self, model: ModelSpec) -> None:
        """Refuse a checkpoint that the other control names and the model lacks; see the base class."""
        self.of.check_source(model)

    def seen_at_hookpoints(self, tied: bool) -> Control:
        """Return the same, added to what hookpoints see of the other control; see the base class."""
        return self.model_copy(update={"of": self.of.seen_at_hookpoints(tied)})
