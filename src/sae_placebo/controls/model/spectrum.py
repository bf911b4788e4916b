"""The control that keeps each matrix's singular values and puts them between random orthogonal bases."""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float

from sae_placebo.controls.model.base import CONTROLS
from sae_placebo.controls.model.keeping import Keeping
from sae_placebo.controls.model.permute import permute
from sae_placebo.controls.model.tensors import Tensor
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator


@CONTROLS.add
class Spectrum(Keeping):
    """It keeps singular values and draws singular vectors uniformly (Haar).

    So how strongly a matrix maps stays, but not which directions it maps. This closes a loophole of `redraw`:
    a Gaussian matrix has another spectrum than a trained one, so its block also stretches and loses
    directions in another way. Norms of rows and columns are not kept.

    A tensor of two axes is one matrix, as it is stored: fused query, key and value are one. Tensors of three
    axes and more (experts, depthwise convolutions) are stacks of matrices in their last two axes. Gains,
    biases and other tensors of one axis, which have no singular vectors, are permuted: the norm stays as
    well, and a gain does not change its sign. What is in `keep` stays, and so do buffers.

    It costs a few QR decompositions per matrix; see the table of costs.

    Source: none that we know of for SAEs; a null of the weights that is matched in spectrum.
    """

    kind: Literal["spectrum"] = "spectrum"

    preserves: ClassVar[frozenset[str]] = Keeping.preserves | {"spectra"}
    destroys: ClassVar[frozenset[str]] = Keeping.destroys | {
        "tensor_mean_and_variance",
        "tensor_marginals",
    }

    def change(self, tensor: Tensor, seed: int, model_seed: int) -> str | None:
        """Turn one tensor at random; see the class."""
        parameter = tensor.parameter
        if parameter.ndim < 2:
            return permute(tensor, seed, model_seed)
        if not bool(parameter.isfinite().all()):
            raise ModelError(
                f"{tensor.name} holds values that are not finite; it has no singular values. Mend the "
                "model's weights."
            )
        if not bool(parameter.any()):
            return "no variance"
        source = generator(seed, "spectrum", model_seed, tensor.name)
        stack = parameter.detach().reshape(-1, *parameter.shape[-2:]).float().cpu()
        turned = torch.stack([turn(matrix, source) for matrix in stack])
        parameter.copy_(turned.reshape(parameter.shape))
        return None


def turn(
    matrix: Float[torch.Tensor, "row column"], source: torch.Generator
) -> Float[torch.Tensor, "row column"]:
    """Return a matrix with the same singular values and uniform singular vectors on both sides.

    With W = Q R, where Q is thin, it is A R B, where A is a uniform frame of as many columns as W has and B
    is a uniform orthogonal matrix. R has the singular values of W, and a uniform frame times any orthogonal
    matrix is a uniform frame, so that no singular vectors need be computed.
    """
    rows, columns = matrix.shape
    if rows < columns:
        return turn(matrix.T, source).T
    core = matrix if rows == columns else torch.linalg.qr(matrix, mode="r").R
    right = frame(columns, columns, source)
    return frame(rows, columns, source) @ (core @ right)


def frame(rows: int, columns: int, source: torch.Generator) -> Float[torch.Tensor, "row column"]:
    """Return orthonormal columns, drawn uniformly (Haar) from all such frames.

    Args:
        rows: Length of a column.
        columns: How many there are, at most as many as rows.
        source: The generator that they are drawn from.

    Source: Mezzadri 2007 (arXiv math-ph/0609050): the Q of a Gaussian matrix, with each column's sign such
    that R has a positive diagonal. Without these signs it is not uniform.
    """
    q: torch.Tensor
    q, r = torch.linalg.qr(torch.empty(rows, columns).normal_(generator=source))
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0)
    q *= signs
    return q
