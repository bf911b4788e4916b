"""The control that re-draws the last layers, or one layer, which gives a dose-response curve."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from sae_placebo.controls.model.base import (
    CONTROLS,
    INVARIANTS,
    Control,
    Record,
    SampleText,
    change_all,
)
from sae_placebo.controls.model.redraw import redraw
from sae_placebo.controls.model.tensors import storage, tensors, tie_notes
from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.models.loading import decoder_layers
from sae_placebo.models.specs import ModelSpec

_DESTROYS = frozenset({"block_weights", "norms", "biases", "spectra", "tensor_marginals"})


@CONTROLS.add
class Cascade(Control):
    """It re-draws all tensors of the last L decoder layers, or of one layer, as `redraw` does.

    `last = L` is the cascade, from the output side down. The dose is L, and what a hookpoint shows before the
    first re-drawn layer is the trained model's own. `only = i` re-draws layer i alone. What lies outside of
    the layers stays: token and position embeddings, output head, final norm, and an embedding's norm or
    projection where there is one.

    The bits are those of `redraw`, so a longer cascade includes a shorter one. With every layer it is
    `redraw` with embeddings, unembedding and positions kept, except for the other tensors outside of the
    layers, such as the final norm, which `redraw` re-draws and this control does not.

    Source: cascading and independent randomization of Adebayo et al. 2018 (arXiv 1810.03292).
    Differs: theirs re-initializes; this keeps each tensor's mean and variance.
    """

    kind: Literal["cascade"] = "cascade"
    last: Annotated[int, Field(ge=1)] | None = None
    """How many of the last layers are re-drawn."""
    only: Annotated[int, Field(ge=0)] | None = None
    """The one layer that is re-drawn, counted from 0."""

    preserves: ClassVar[frozenset[str]] = frozenset(INVARIANTS) - _DESTROYS
    destroys: ClassVar[frozenset[str]] = _DESTROYS

    @model_validator(mode="after")
    def _one_of_them(self) -> Cascade:
        if (self.last is None) == (self.only is None):
            found = "both were" if self.last is not None else "neither was"
            raise SpecError(
                f"{found} given: name last = 2 (the last two layers) or only = 1 (layer 1)."
            )
        return self

    def check_layers(self, n_layers: int) -> None:
        """Refuse layers that a model of `n_layers` lacks; see the base class."""
        if self.last is not None and self.last > n_layers:
            raise SpecError(
                f"control 'cascade': last = {self.last}, and the model has {n_layers} layers; "
                f"give 1 to {n_layers}."
            )
        if self.only is not None and self.only >= n_layers:
            raise SpecError(
                f"control 'cascade': only = {self.only}, and the model has {n_layers} layers; "
                f"give 0 to {n_layers - 1}."
            )

    def layers(self, n_layers: int) -> range:
        """Return which layers of a model of `n_layers` are re-drawn.

        Raises:
            SpecError: the model has no such layers.
        """
        self.check_layers(n_layers)
        if self.only is not None:
            return range(self.only, self.only + 1)
        return range(n_layers - (self.last or 0), n_layers)

    def apply(
        self,
        model: torch.nn.Module,
        seed: int,
        model_seed: int,
        source: ModelSpec | None = None,
        text: SampleText | None = None,
    ) -> Record:
        """Re-draw the layers in place; see the base class."""
        layers = decoder_layers(model)
        chosen = self.layers(len(layers))
        inside = {storage(p) for i in chosen for p in layers[i].parameters()}
        found = tensors(model)
        record = Record(notes=tie_notes(found))
        span = str(chosen[0]) if len(chosen) == 1 else f"{chosen[0]} to {chosen[-1]}"
        plural = "layer" if len(chosen) == 1 else "layers"
        free = []
        for tensor in found:
            if storage(tensor.parameter) in inside:
                free.append(tensor)
            else:
                record.kept[tensor.name] = f"outside of {plural} {span}"
        change_all(free, record, lambda tensor: redraw(tensor, seed, model_seed))
        return record
