"""The control whose drawn blocks add as much as leaves the current token's share as in the trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from sae_placebo.controls.model.added import Added, Other
from sae_placebo.controls.model.base import CONTROLS, Control, Record, SampleText
from sae_placebo.controls.model.calibrating import (
    Calibration,
    n_blocks_before,
    set_gains,
    shared_hookpoints,
    stream_profile,
)
from sae_placebo.controls.model.gains import BlockGain, block_gains
from sae_placebo.controls.model.redraw import Redraw
from sae_placebo.controls.model.tensors import storage, tensors
from sae_placebo.core.errors import ModelError, NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.models.specs import ModelSpec

_SCALED = frozenset(
    {
        *("block_weights", "biases", "norms", "other_layers"),
        *("spectra", "tensor_marginals", "tensor_mean_and_variance"),
    }
)


@CONTROLS.add
class RedrawCalibrated(Added):
    """It draws the weights as another control does, and scales what each block adds to the stream.

    How much the current token explains of an activation decides how well a dictionary does on it, and drawn
    blocks dilute the token by another amount than trained ones. Here each block has one gain, sought from the
    front by bisection, so that the share of the residual stream's variance that lies between tokens
    (`models.components.between_component`) is that of the trained model on the same text. The gain multiplies
    what attention and MLP add to the stream, in the block's own weights: the last matrix of each with its
    bias, or the norm that stands between it and the stream. So what is made is an ordinary model. Blocks
    behind the last hookpoint of a model stay as they were drawn.

    Gains only dilute. Blocks on the way to a hookpoint are therefore calibrated to the least sequence that
    never rises, lies nowhere below the trained model's, and ends at the hookpoint's own share. A hookpoint
    that lies below that of a deeper one has a calibrated model of its own. What one module reads or adds
    (`z`, `attn_out`, `mlp_in`, `mlp_out`) is scaled by no gain of its own, so its share is sought by a common
    factor of the gains of all blocks before its own, in a model of its own. Where a block cannot reach its
    target, the nearest gain is taken and the search goes on. Where a hookpoint is missed by more than the
    tolerance, the recipe gives the reason, and no trial reads it.

    A block's gain is at most 64; a search ends within a tenth of the tolerance, or after 14 halvings. Targets
    and gains are measured on the first rows of the training text, outliers of the norm left out.

    Source: none known. The diagnosis that arms differ in it is ours; see docs/reference/controls.md.
    """

    kind: Literal["redraw_calibrated"] = "redraw_calibrated"
    of: Other = Redraw()
    """The control that draws the weights: a name, or a table with `control` and its settings."""
    tokens: int = Field(16_384, ge=256)
    """Training tokens that are read; 16,384 of Python leave an error of the share of about .005."""
    tolerance: float = Field(0.02, gt=0.0, lt=1.0)
    """How far the share at a hookpoint may be from the trained model's."""

    preserves: ClassVar[frozenset[str]] = frozenset({"shapes"})
    destroys: ClassVar[frozenset[str]] = _SCALED

    @field_validator("of")
    @classmethod
    def _draws_every_layer(cls, of: Control) -> Control:
        if of.text_tokens:
            raise SpecError(
                "blocks are calibrated twice; let `of` name a control that draws weights."
            )
        if not (of.draws and {"block_weights", "other_layers"} <= of.drawn.destroyed()):
            raise SpecError(
                f"{of.drawn.kind!r} does not draw the weights of every layer, so there is nothing to "
                "calibrate; let `of` name a control that does, such as redraw, init, permute or spectrum."
            )
        return of

    @property
    def drawn(self) -> Control:
        """Return the control that draws the weights."""
        return self.of.drawn

    @property
    def ablates_attention(self) -> bool:
        """Return whether attention writes nothing in the control that draws the weights."""
        return self.of.ablates_attention

    @property
    def is_fair(self) -> bool:
        """Return True: the current token explains as much as in the trained model."""
        return True

    @property
    def text_tokens(self) -> int:
        """Return how many tokens gains are measured on."""
        return self.tokens

    def shared_models(
        self, reference: torch.nn.Module, text: SampleText
    ) -> tuple[tuple[str, ...], ...]:
        """Return which hookpoints share a calibrated model; see the base class.

        Raises:
            ModelError: blocks cannot be run one by one, or the text has too few documents or tokens.
        """
        try:
            profile = stream_profile(reference, text, max(map(n_blocks_before, text.hookpoints)))
        except NotEstimable as error:
            raise _too_little(error) from error
        values = [component.value for component in profile]
        return shared_hookpoints(text.hookpoints, values, self.tolerance)

    def apply(
        self,
        model: torch.nn.Module,
        seed: int,
        model_seed: int,
        source: ModelSpec | None = None,
        text: SampleText | None = None,
    ) -> Record:
        """Measure the trained model, draw its weights, and scale what blocks add; see the base class.

        Raises:
            ModelError: what blocks add cannot be scaled, or the text has too few documents or tokens.
            SpecError: no text was given.
        """
        if text is None:
            raise SpecError(
                "control 'redraw_calibrated' is calibrated on text: give `text` to build."
            )
        before = {tensor.name: tensor.parameter.clone() for tensor in tensors(model)}
        try:
            sought = None
            if text.known is None:
                sought = Calibration.of(model, text, self.tolerance)
            record = self.of.apply(model, seed, model_seed, source)
            n_blocks = max(map(n_blocks_before, text.hookpoints))
            blocks = block_gains(model, n_blocks) if n_blocks else []
            found = dict(text.known or {}) if sought is None else sought.seek(model, blocks)
            set_gains(blocks, found["gains"])
        except NotEstimable as error:
            raise _too_little(error) from error
        _count_as_touched(record, model, blocks, before)
        record.calibration = found
        gains = ", ".join(f"{gain:.4g}" for gain in found["gains"]) or "no block is before"
        record.notes.append(f"what blocks add is scaled for {', '.join(text.hookpoints)}: {gains}")
        return record


def _count_as_touched(
    record: Record,
    model: torch.nn.Module,
    blocks: Sequence[BlockGain],
    before: Mapping[str, torch.Tensor],
) -> None:
    """Enter what the other control kept and a gain has changed as touched."""
    names = {storage(tensor.parameter): tensor.name for tensor in tensors(model)}
    for block in blocks:
        for parameter in block.parameters:
            name = names[storage(parameter)]
            if name in record.kept and not torch.equal(parameter, before[name]):
                del record.kept[name]
                record.touched.append(name)


def _too_little(error: NotEstimable) -> ModelError:
    return ModelError(
        f"what the current token explains cannot be estimated on the text that gains are sought on "
        f"({error}); raise text.train_tokens, or leave out the arms that calibrate."
    )
