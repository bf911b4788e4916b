"""What other libraries compute around an SAE, written into its tensors: exact, and in place.

`params` are tensors under our names (`saes.base`), in memory of their own, of an SAE whose codes follow from
`z = (x - b_dec) W_enc + b_enc`. Sums that are taken once are taken in float64.
"""

from __future__ import annotations

from jaxtyping import Float

from sae_placebo.core.lazy import torch

_ROWS = 1024
"""Rows of a matrix that are handled at a time."""


def subtract_b_dec(params: dict[str, torch.Tensor]) -> None:
    """Make an SAE that reads x itself read x - b_dec: `b_enc += b_dec W_enc`.

    A gated SAE reads x twice; the bias of its magnitudes grows by the same times exp(r_mag).
    """
    shift = product(params["b_dec"], params["W_enc"])
    params["b_enc"].copy_(params["b_enc"].double() + shift)
    if "b_mag" in params:
        grown = params["b_mag"].double() + shift * params["r_mag"].double().exp()
        params["b_mag"].copy_(grown)


def fold_decoder_norms(params: dict[str, torch.Tensor]) -> None:
    """Multiply codes by the norms of the decoder's rows before they are chosen, and divide when decoding.

    SAELens calls it `rescale_acts_by_decoder_norm`. Thresholds are compared with the multiplied codes and
    stay as they are. A row of zeros stays: its norm counts as 1e-8, as there.
    """
    norms = torch.linalg.vector_norm(params["W_dec"], dim=1).clamp_min(1e-8)
    params["W_enc"].mul_(norms)
    params["b_enc"].mul_(norms)
    params["W_dec"].div_(norms[:, None])


def fold_factor(params: dict[str, torch.Tensor], factor: float) -> None:
    """Make an SAE of `factor * x` one of x; its codes stay those of `factor * x`."""
    params["W_enc"].mul_(factor)
    params["W_dec"].div_(factor)
    params["b_dec"].div_(factor)


def fold_whitening(
    params: dict[str, torch.Tensor],
    mean: Float[torch.Tensor, "d_in"],
    matrix: Float[torch.Tensor, "d_in d_in"],
    inverse: Float[torch.Tensor, "d_in d_in"],
) -> None:
    """Make an SAE of `(x - mean) matrix` one of x; `inverse` is the inverse of `matrix`."""
    back = inverse.double()
    _multiply(params["W_enc"].t(), matrix.double().t())
    _multiply(params["W_dec"], back)
    params["b_dec"].copy_(params["b_dec"].double() @ back + mean.double())


def scale_biases(params: dict[str, torch.Tensor], factor: float) -> None:
    """Make an SAE of `x / factor` one of x, whose codes are `factor` times as large.

    Biases and thresholds grow; the matrices stay. It is what dictionary_learning does to an SAE at the end of
    its training.
    """
    for name in ("b_enc", "b_dec", "b_mag", "threshold"):
        if name in params:
            params[name].mul_(factor)


def product(
    vector: Float[torch.Tensor, "d_in"], matrix: Float[torch.Tensor, "d_in d_sae"]
) -> Float[torch.Tensor, "d_sae"]:
    """Return `vector matrix` in float64, which never holds more than a part of the matrix so."""
    rows, factor = matrix.t(), vector.double()
    out = torch.empty(len(rows), dtype=torch.float64)
    # one buffer for all parts: between freed ones small results would settle, and the heap would grow
    buffer = torch.empty((_ROWS, len(factor)), dtype=torch.float64)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        wide = buffer[: len(part)].copy_(part)
        torch.mv(wide, factor, out=out[start : start + len(part)])
    return out


def _multiply(
    rows: Float[torch.Tensor, "row d_in"], matrix: Float[torch.Tensor, "d_in d_in"]
) -> None:
    """Replace `rows` by `rows matrix`, a part at a time in float64."""
    buffers = torch.empty((2, _ROWS, len(matrix)), dtype=torch.float64)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        wide, found = buffers[:, : len(part)]
        part.copy_(torch.mm(wide.copy_(part), matrix, out=found))
