"""The control that puts the entries of each tensor in random order."""

from __future__ import annotations

import sys
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float32

from sae_placebo.controls.model.base import CONTROLS
from sae_placebo.controls.model.keeping import Keeping, no_spread
from sae_placebo.controls.model.tensors import Tensor
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator

_LOW = 0 if sys.byteorder == "little" else 1


@CONTROLS.add
class Permute(Keeping):
    """It puts each tensor's own entries in a random order: outliers and heavy tails stay, their places go.

    Compared with `redraw`, which keeps two moments, it shows whether the shape of a tensor's distribution
    is what matters. A tensor is permuted as a whole, so rows and columns lose their norms, too. What is
    in `keep` stays, and so do buffers.

    Every order of a tensor is equally likely. Draws are named by seed, model seed and tensor, not by
    arm or `keep`.

    Source: none that we know of for SAEs; a permutation null of the weights.
    """

    kind: Literal["permute"] = "permute"

    preserves: ClassVar[frozenset[str]] = Keeping.preserves | {
        "tensor_mean_and_variance",
        "tensor_marginals",
    }
    destroys: ClassVar[frozenset[str]] = Keeping.destroys | {"spectra"}

    def change(self, tensor: Tensor, seed: int, model_seed: int) -> str | None:
        """Permute one tensor; see the class."""
        return permute(tensor, seed, model_seed)


def permute(tensor: Tensor, seed: int, model_seed: int) -> str | None:
    """Put a tensor's entries in random order, in place, or return why that is not done: all are equal."""
    parameter = tensor.parameter
    flat = parameter.detach().reshape(-1)
    if bool((flat == flat[:1]).all()):
        return no_spread(parameter, 0.0)
    source = numpy_generator(seed, "permute", model_seed, tensor.name)
    if parameter.dtype == torch.float64:
        order = torch.from_numpy(source.permutation(flat.numel()))
        new = flat.cpu()[order]
    else:  # float32 holds every value of the narrower types
        new = torch.from_numpy(shuffled(flat.float().cpu().numpy(), source))
    parameter.copy_(new.reshape(parameter.shape))
    return None


def shuffled(
    values: Float32[np.ndarray, " entry"], source: np.random.Generator
) -> Float32[np.ndarray, " entry"]:
    """Return the values in a uniformly random order.

    Each value is put in a 64-bit word behind 32 random bits, and the words are sorted in place. That is
    several times faster than following a random permutation through memory. Entries whose random bits are
    equal, of which there are a few in a large tensor, are ordered by 64 fresh bits.
    """
    keys = source.integers(0, 2**64, size=values.size, dtype=np.uint64)
    words = keys.view(np.uint32).reshape(-1, 2)
    words[:, _LOW] = values.view(np.uint32)
    keys.sort()
    new = words[:, _LOW].copy()
    high = words[:, 1 - _LOW]
    same = np.flatnonzero(high[1:] == high[:-1])
    tied = np.union1d(same, same + 1)
    fresh = source.integers(0, 2**64, size=tied.size, dtype=np.uint64)
    new[tied] = new[tied[np.lexsort((fresh, high[tied]))]]
    return new.view(np.float32)
