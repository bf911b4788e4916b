"""An SAE that was trained elsewhere: what its file holds, and how raw activations are brought to it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.saes.base import SAE
from sae_placebo.saes.codes import Codes
from sae_placebo.saes.formats import folding
from sae_placebo.saes.formats.sites import Site

Normalization = Literal["none", "layer_norm", "constant_norm_rescale", "missing_factor"]
"""What is done to activations before the SAE, where it is not written into its tensors.

`layer_norm` and `constant_norm_rescale` are done token by token, and cannot be. `missing_factor`: all
activations are multiplied by one number, which the file lacks; once known, it is written into the tensors.
"""
_EPSILON = 1e-5
"""Added to the deviation of an activation before it is divided by it, and not when that is undone."""


@dataclass(frozen=True)
class Given:
    """An SAE that was trained elsewhere, as read from its file.

    All that can be written into the tensors exactly is in `sae`. What remains is `normalization`; use
    `encode` and `decode` of this class, which do it, and not those of `sae`. Codes are those that the
    library which trained the SAE computes; decoder rows may have any norm.

    Attributes:
        sae: The SAE, in float32.
        format: The format's name: `saelens`, `sparsify`, `dictionary_learning`, `gemma_scope`.
        site: Where its activations come from.
        normalization: What is done to activations before the SAE.
        heads: Whether activations may come as [token, head, d_head], as at `hook_z`; they are flattened.
        notes: What was changed or assumed in reading, one sentence each.
        warnings: What may be wrong with the numbers, one sentence each.
    """

    sae: SAE
    format: str
    site: Site = field(default_factory=Site)
    normalization: Normalization = "none"
    heads: bool = False
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def d_in(self) -> int:
        """Return the width of the activations."""
        return self.sae.d_in

    @property
    def d_sae(self) -> int:
        """Return the number of latents."""
        return self.sae.d_sae

    def encode(self, x: Float[torch.Tensor, "token ..."]) -> Codes:
        """Return the sparse codes of raw activations.

        Args:
            x: [token, d_in], or [token, head, d_head] where `heads` is set.

        Raises:
            NotEstimable: the file lacks what activations are multiplied by; see `with_factor` and
                `estimated`.
            SpecError: `x` is of another shape.
        """
        flat = self._flat(x)
        if self.normalization == "none":
            return self.sae.encode(flat)
        shift, scale, _ = self._per_token(flat)
        return self.sae.encode((flat - shift) * scale)

    def decode(
        self, codes: Codes, x: Float[torch.Tensor, "token ..."] | None = None
    ) -> Float[torch.Tensor, "token ..."]:
        """Return the reconstruction of raw activations, in the shape of `x`, else [token, d_in].

        Args:
            codes: What `encode` returned.
            x: The activations that were encoded; needed where they are normalized token by token.

        Raises:
            SpecError: `x` is needed and missing, or of another shape.
        """
        decoded = self.sae.decode(codes)
        if self.normalization != "none":
            if x is None:
                raise SpecError(
                    f"the SAE reads activations normalized token by token ({self.normalization}), so "
                    "decoding needs the activations too: decode(codes, x)"
                )
            shift, _, back = self._per_token(self._flat(x))
            decoded = decoded * back + shift
        return decoded if x is None else decoded.reshape(x.shape)

    def with_factor(self, factor: float) -> Given:
        """Return the same SAE with the factor that activations are multiplied by, where its file lacks it.

        It is sqrt(d_in) over the mean norm of an activation (SAELens, `expected_average_only_in`).

        Raises:
            SpecError: no factor is missing, or `factor` is not a number above zero.
        """
        if self.normalization != "missing_factor":
            raise SpecError("this SAE lacks no factor")
        if not (factor > 0 and math.isfinite(factor)):
            raise SpecError(f"the factor is a number above zero, not {factor}")
        params = {name: tensor.clone() for name, tensor in self.sae.params.items()}
        folding.fold_factor(params, factor)
        note = f"Activations are multiplied by {factor:.6g}, which the file lacks."
        sae = SAE(self.sae.spec, params)
        return replace(self, sae=sae, normalization="none", notes=(*self.notes, note))

    def estimated(self, x: Float[torch.Tensor, "token ..."]) -> Given:
        """Return the same SAE with its missing factor estimated from activations, as SAELens estimates it.

        Args:
            x: Activations of the site, as in `encode`; those that training would have read.

        Raises:
            NotEstimable: there are no activations, or all are zero.
            SpecError: no factor is missing.
        """
        return self.with_factor(expected_average_factor(self._flat(x)))

    def _flat(self, x: torch.Tensor) -> torch.Tensor:
        if self.heads and x.ndim == 3:
            x = x.flatten(1)
        if x.ndim != 2 or x.shape[1] != self.d_in:
            allowed = f"[token, {self.d_in}]" + (" or [token, head, d_head]" * self.heads)
            raise SpecError(f"the SAE reads activations of shape {allowed}, not {list(x.shape)}")
        return x.to(self.sae.params["b_dec"])  # its type and its device

    def _per_token(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what is taken from each token, what the rest is multiplied by, and what undoes that."""
        if self.normalization == "constant_norm_rescale":
            scale = math.sqrt(self.d_in) / torch.linalg.vector_norm(x, dim=1, keepdim=True)
            return torch.zeros_like(scale), scale, 1 / scale
        if self.normalization == "layer_norm":
            mean = x.mean(dim=1, keepdim=True)
            deviation = (x - mean).std(dim=1, keepdim=True)
            return mean, 1 / (deviation + _EPSILON), deviation
        raise NotEstimable(
            "the SAE was trained on activations multiplied by a number that its file lacks: give it "
            "(with_factor), or have it estimated from activations (estimated)"
        )


def expected_average_factor(x: Float[torch.Tensor, "token d_in"]) -> float:
    """Return sqrt(d_in) over the mean norm of the activations, which SAELens multiplies them by.

    Source: SAELens 6.54.12, `training/activation_scaler.py`, `estimate_scaling_factor`.

    Raises:
        NotEstimable: there are no activations, or all are zero.
    """
    if len(x) == 0:
        raise NotEstimable("the factor of activations needs activations, and there are none")
    mean = float(torch.linalg.vector_norm(x.float(), dim=1).double().mean())
    if not (mean > 0 and math.isfinite(mean)):
        raise NotEstimable(f"the mean norm of the activations is {mean}, and gives no factor")
    return math.sqrt(x.shape[1]) / mean
