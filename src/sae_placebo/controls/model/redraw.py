"""The control that re-draws every tensor from a Gaussian with the tensor's own mean and variance."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from sae_placebo.controls.model.base import CONTROLS
from sae_placebo.controls.model.keeping import Keeping, no_spread
from sae_placebo.controls.model.tensors import Tensor
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator

_CHUNK = 1 << 18


@CONTROLS.add
class Redraw(Keeping):
    """It replaces each parameter's entries by Gaussian ones with the tensor's own mean and variance.

    What is not named in `keep` is re-drawn, normalization gains and biases included. The paper does not list
    its tensors, so the choice is made in this package and can be undone with `keep`. Buffers (rotary
    frequencies, causal masks) hold nothing learned and stay. A tensor of one entry or of no variance keeps
    its value, since that is what its mean and variance say, and the recipe notes it.

    Draws are named by seed, model seed and tensor, not by arm or `keep`. So two arms that differ in `keep`
    alone share the bits of every tensor that both re-draw, and their contrast is paired.

    Source: Heap, Lawson, Farnik and Aitchison 2025 (arXiv 2501.17727), "re-randomised" incl. and
    excl. embeddings (`keep = ["embeddings", "unembedding"]`). Differs: it is stated which tensors are
    re-drawn; the variance is the population one (divided by n).
    """

    kind: Literal["redraw"] = "redraw"

    preserves: ClassVar[frozenset[str]] = Keeping.preserves | {"tensor_mean_and_variance"}
    destroys: ClassVar[frozenset[str]] = Keeping.destroys | {"tensor_marginals", "spectra"}

    def change(self, tensor: Tensor, seed: int, model_seed: int) -> str | None:
        """Re-draw one tensor; see the class."""
        return redraw(tensor, seed, model_seed)


def redraw(tensor: Tensor, seed: int, model_seed: int) -> str | None:
    """Re-draw a tensor in place from a Gaussian with its own mean and variance.

    Returns:
        None, or why the tensor keeps its value: it has one entry or no variance.

    Raises:
        ModelError: the tensor holds values that are not finite.
    """
    parameter = tensor.parameter
    mean, std = moments(parameter)
    if not (math.isfinite(mean) and math.isfinite(std)):
        raise ModelError(
            f"{tensor.name} holds values that are not finite; it has no mean and variance to re-draw "
            "it with. Mend the model's weights."
        )
    reason = no_spread(parameter, std)
    if reason is None:
        draw(parameter, tensor.name, mean, std, seed, model_seed)
    return reason


def draw(
    out: torch.Tensor, name: str, mean: float, std: float, seed: int, model_seed: int
) -> torch.Tensor:
    """Fill `out` with the Gaussian bits that every control draws for the tensor called `name`; return it.

    The draw has the same name in all kinds of control. So arms that draw the same tensor share its bits up to
    mean and scale, and contrasts between them are paired.
    """
    # on the CPU in float32 whatever the model's device and dtype: the same seed, the same draw
    source = generator(seed, "redraw", model_seed, name)
    if out.device.type == "cpu" and out.dtype == torch.float32:
        return out.normal_(mean, std, generator=source)
    drawn = torch.empty(out.shape, dtype=torch.float32)
    return out.copy_(drawn.normal_(mean, std, generator=source))


def moments(tensor: torch.Tensor) -> tuple[float, float]:
    """Return the mean and the population standard deviation over all entries.

    They are summed in float64 by fixed chunks and rounded to float32, so that the number of threads, which
    changes the order of a sum, does not change the result's bits.
    """
    flat = tensor.detach().reshape(-1)
    # about the first entry: no cancellation, and exactly 0 where all entries are equal
    first = flat[:1].double()
    total, square = 0.0, 0.0
    buffer = torch.empty(min(_CHUNK, flat.numel()), dtype=torch.float64, device=flat.device)
    for start in range(0, flat.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        chunk = buffer[: part.numel()].copy_(part).sub_(first)
        total += float(chunk.sum())
        square += float(chunk.dot(chunk))
    shift = total / flat.numel()
    variance = max(square / flat.numel() - shift * shift, 0.0)
    pair = torch.tensor([float(first) + shift, variance**0.5], dtype=torch.float64).float()
    return float(pair[0]), float(pair[1])
