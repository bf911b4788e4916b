"""Norms as formulas: y = w (x - mean) / spread + b, with or without the mean, found by running the module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator

_AGREE = 1e-3
"""Outputs of a module and of its formula agree if they differ by about this share of the outputs' size."""
_LARGE = 1e3
"""Inputs of this size make the norm's epsilon negligible."""


@dataclass(frozen=True, eq=False)
class Norm:
    """The norm between the residual stream and a reader: a LayerNorm, an RMSNorm, or none.

    Attributes:
        module: The module; None where there is none.
        weight: w, the gain of each entry.
        bias: b, which is added to each entry.
        centered: Whether the mean over entries is subtracted first.
        scales: Whether the module divides by a spread; false for the identity.
    """

    module: torch.nn.Module | None
    weight: Float[torch.Tensor, " d_model"]
    bias: Float[torch.Tensor, " d_model"]
    centered: bool
    scales: bool

    def core(
        self, x: Float[torch.Tensor, "*token d_model"]
    ) -> Float[torch.Tensor, "*token d_model"]:
        """Return x, less its mean over entries where the norm subtracts that."""
        if not self.centered:
            return x
        centered: torch.Tensor = x - x.mean(-1, keepdim=True)
        return centered

    def spread(self, x: Float[torch.Tensor, "*token d_model"]) -> Float[torch.Tensor, "*token 1"]:
        """Return what the module divides x by at each token, its epsilon included.

        It is found from the module's output y, as |c|^2 / (c . (y - b)) with c = w (x - mean).
        """
        if not self.scales or self.module is None:
            return torch.ones_like(x[..., :1])
        core = self.core(x) * self.weight
        # `forward` passes by the module's hooks: one of them may be what calls this (Gemma's norms are what
        # its attention adds)
        out = self.module.forward(x).float() - self.bias
        spread: torch.Tensor = core.square().sum(-1, keepdim=True) / (core * out).sum(
            -1, keepdim=True
        )
        return spread

    def pulled(
        self,
        gradient: Float[torch.Tensor, "*#token d_model"],
        x: Float[torch.Tensor, "*#token d_model"],
    ) -> Float[torch.Tensor, "*#token d_model"]:
        """Return the gradient at the norm's input x, given one at its output."""
        pulled = self.core(gradient * self.weight)
        if not self.scales:
            return pulled
        spread = self.spread(x)
        unit = self.core(x) / spread
        along = (pulled * unit).sum(-1, keepdim=True) / x.shape[-1]
        return (pulled - unit * along) / spread


def read_norm(module: torch.nn.Module | None, width: int) -> Norm:
    """Return the formula of a norm, found from the module's outputs and checked on them.

    Args:
        module: The module; None for no norm.
        width: The width of the residual stream.

    Raises:
        ModelError: the module is neither the identity, a LayerNorm nor an RMSNorm.
    """
    if module is None or isinstance(module, torch.nn.Identity):
        device: Any = None
        return Norm(module, torch.ones(width, device=device), torch.zeros(width), False, False)
    anchor = next(module.parameters(), torch.zeros(1))
    signs = torch.ones(width, device=anchor.device)
    signs[1::2] = -1
    if width % 2 and width > 1:  # so that these, too, have a mean of 0 and a mean square of 1
        signs[-3:] = torch.tensor([1.0, 1.0, -2.0])
        signs /= signs.square().mean().sqrt()
    x = torch.randn(3, width, generator=generator(0, "norm")).to(anchor.device)
    with torch.no_grad():
        up, down = (_apply(module, sign * _LARGE * signs) for sign in (1, -1))
        shifted = _apply(module, x + 1) - _apply(module, x)
        centered = width > 1 and bool(shifted.abs().max() < _AGREE * (1 + up.abs().max()))
        norm = Norm(module, (up - down) / 2 / signs, (up + down) / 2, centered, True)
        core = norm.core(x)
        expected = norm.weight * core / core.square().mean(-1, keepdim=True).sqrt() + norm.bias
        apart = (_apply(module, x) - expected).abs().max()
    if float(apart) > 10 * _AGREE * float(1 + up.abs().max()):
        raise ModelError(
            f"{type(module).__name__} is neither a LayerNorm nor an RMSNorm : "
            f"outputs differ by {float(apart):.3g} from theirs. Readers need one of these, or "
            "no norm."
        )
    return norm


def _apply(module: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return a module's output for x, past its hooks and in its own precision, as float32."""
    dtype = next((p.dtype for p in module.parameters()), x.dtype)
    output: torch.Tensor = module.forward(x.to(dtype)).float()
    return output
