"""Every tensor re-drawn from a Gaussian with its own mean and variance."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import field_validator

from sae_placebo.controls.base import (
    GROUPS,
    Control,
    Group,
    Record,
    Tensor,
    register,
    tensors,
    tie_notes,
)
from sae_placebo.errors import ModelError
from sae_placebo.lazy import torch
from sae_placebo.spec import generator

_CHUNK = 1 << 18


@register
class Redraw(Control):
    """Each parameter's entries replaced by Gaussian ones of the tensor's own mean and variance.

    What is not named in `keep` is re-drawn, normalization gains and biases included: the paper does
    not list its tensors, so the choice is made here and can be undone with `keep`. Buffers (rotary
    frequencies, causal masks) hold nothing learned and stay. A tensor of one entry or of no variance
    keeps its value, since that is what its mean and variance say; the recipe notes it.

    Draws are named by seed, model seed and tensor, not by arm or `keep`: two arms that differ in
    `keep` alone share the bits of every tensor that both re-draw, so their contrast is paired.

    A tied tensor is drawn once; keeping one of its roles keeps both, and the recipe says so.

    Source: Heap, Lawson, Farnik and Aitchison 2025 (arXiv 2501.17727), "re-randomised" incl. and
    excl. embeddings (`keep = ["embeddings", "unembedding"]`). Differs: which tensors is stated; the
    variance is the population one (divided by n).
    """

    kind: Literal["redraw"] = "redraw"
    keep: tuple[Group, ...] = ()
    """Groups of tensors left as trained: embeddings, unembedding, positions, norms, biases."""

    preserves: ClassVar[frozenset[str]] = frozenset({"shapes", "tensor_mean_and_variance"})
    destroys: ClassVar[frozenset[str]] = frozenset({"block_weights"})

    @field_validator("keep")
    @classmethod
    def _in_order(cls, keep: tuple[Group, ...]) -> tuple[Group, ...]:
        # a set in all but type: the same groups in another order are the same control
        return tuple(group for group in GROUPS if group in keep)

    def preserved(self) -> frozenset[str]:
        """Return the shapes and moments, and the groups that are kept."""
        return self.preserves | set(self.keep)

    def destroyed(self) -> frozenset[str]:
        """Return the block weights, and the groups that are not kept."""
        return self.destroys | (set(GROUPS) - set(self.keep))

    def apply(self, model: torch.nn.Module, seed: int, model_seed: int) -> Record:
        """Re-draw in place; see the class."""
        found = tensors(model)
        record = Record(notes=tie_notes(found))
        for tensor in found:
            kept = [group for group in tensor.groups if group in self.keep]
            if kept:
                record.kept[tensor.name] = kept[0]
                if len(tensor.groups) > len(kept):
                    names = " and ".join(tensor.groups)
                    record.notes.append(f"{tensor.name} is {names}: keeping one kept both")
                continue
            _redraw(tensor, record, seed, model_seed)
        return record


def _redraw(tensor: Tensor, record: Record, seed: int, model_seed: int) -> None:
    parameter = tensor.parameter
    mean, std = moments(parameter)
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise ModelError(
            f"{tensor.name} holds values that are not finite; it has no mean and variance to re-draw "
            "it with. Mend the model's weights."
        )
    if std == 0.0:
        reason = "one entry" if parameter.numel() == 1 else "no variance"
        record.kept[tensor.name] = reason
        record.notes.append(f"{tensor.name} has {reason}: it keeps its value")
        return
    # on the CPU in float32 whatever the model's device and dtype: the same seed, the same draw
    source = generator(seed, "redraw", model_seed, tensor.name)
    if parameter.device.type == "cpu" and parameter.dtype == torch.float32:
        parameter.normal_(mean, std, generator=source)
    else:
        drawn = torch.empty(parameter.shape, dtype=torch.float32)
        parameter.copy_(drawn.normal_(mean, std, generator=source))
    record.touched.append(tensor.name)


def moments(tensor: torch.Tensor) -> tuple[float, float]:
    """Return the mean and the population standard deviation over all entries.

    Summed in float64 by fixed chunks and rounded to float32, so that the number of threads, which
    changes the order of a sum, does not change the result's bits.
    """
    flat = tensor.detach().reshape(-1)
    # about the first entry: no cancellation, and exactly 0 where all entries are equal
    first = flat[:1].double()
    total, square = 0.0, 0.0
    for start in range(0, flat.numel(), _CHUNK):
        chunk = flat[start : start + _CHUNK].double().sub_(first)
        total += float(chunk.sum())
        square += float(chunk.dot(chunk))
    shift = total / flat.numel()
    variance = max(square / flat.numel() - shift * shift, 0.0)
    pair = torch.tensor([float(first) + shift, variance**0.5], dtype=torch.float64).float()
    return float(pair[0]), float(pair[1])
