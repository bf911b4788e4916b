"""The control in which attention writes nothing: no token learns of another, and MLPs stay as they are."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator

from sae_placebo.controls.model.added import Added, Other
from sae_placebo.controls.model.attention_outputs import silence_attention
from sae_placebo.controls.model.base import CONTROLS, Control, Record, SampleText
from sae_placebo.controls.model.tensors import storage, tensors
from sae_placebo.controls.model.trained import Trained
from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.models.specs import ModelSpec

_OUTPUTS = frozenset(
    {
        *("block_weights", "biases", "other_layers"),
        *("spectra", "tensor_marginals", "tensor_mean_and_variance"),
    }
)


@CONTROLS.add
class AblateAttention(Added):
    """It has the attention of every layer write zero to the residual stream, on top of another control.

    `of` is the control of the model on which it is made, the trained model unless given. So an arm and the
    arm that its `of` names differ in attention alone, draw for draw. The output projection of every
    attention is set to zero, its bias included, and so is the bias of a norm between that and the stream.
    What is made is an ordinary model of the same architecture, with queries, keys and values that nothing
    reads. MLPs, norms and embeddings are those of the other control.

    It is checked on a few tokens that each attention then returns exactly zero, and that no position depends
    on another. A model that fails this, such as a state-space model, is refused.
    """

    kind: Literal["ablate_attention"] = "ablate_attention"
    of: Other = Trained()
    """The control of the model to which it is added: a name, or a table with `control` and its settings."""

    preserves: ClassVar[frozenset[str]] = frozenset({"shapes"})
    destroys: ClassVar[frozenset[str]] = _OUTPUTS

    @field_validator("of")
    @classmethod
    def _added_once(cls, of: Control) -> Control:
        if of.ablates_attention:
            raise SpecError("attention is ablated twice; let `of` name another control.")
        return of

    @property
    def draws(self) -> bool:
        """Return whether the control to which it is added draws; nothing is drawn for the ablation."""
        return self.of.draws

    @property
    def drawn(self) -> Control:
        """Return the control to which it is added."""
        return self.of

    @property
    def ablates_attention(self) -> bool:
        """Return True."""
        return True

    @property
    def text_tokens(self) -> int:
        """Return how many tokens the control to which it is added is measured on."""
        return self.of.text_tokens

    def shared_models(
        self, reference: torch.nn.Module, text: SampleText
    ) -> tuple[tuple[str, ...], ...]:
        """Return the groups of the control to which it is added; see the base class."""
        return self.of.shared_models(reference, text)

    def apply(
        self,
        model: torch.nn.Module,
        seed: int,
        model_seed: int,
        source: ModelSpec | None = None,
        text: SampleText | None = None,
    ) -> Record:
        """Apply the other control, then set attention's outputs to zero; see the base class.

        Raises:
            ModelError: a layer has no attention, or positions depend on one another without it.
        """
        found = tensors(model)
        zero = {tensor.name for tensor in found if not bool(tensor.parameter.any())}
        record = self.of.apply(model, seed, model_seed, source, text)
        names = {storage(tensor.parameter): tensor.name for tensor in tensors(model)}
        silenced = [names[storage(parameter)] for parameter in silence_attention(model)]
        for name in silenced:
            record.kept.pop(name, None)
            if name in record.touched:
                record.touched.remove(name)
            if name in zero:
                record.kept[name] = "zero already"
            else:
                record.touched.append(name)
        record.notes.append(f"attention writes nothing: {', '.join(silenced)} are zero")
        return record
