"""ReLU with a penalty on the sum of codes (L1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sae_placebo.core.lazy import torch
from sae_placebo.saes.base import SAES, Context, SiteGradients
from sae_placebo.saes.penalized import PenalizedSpec
from sae_placebo.saes.selection import Selection


@SAES.add
class ReLUSpec(PenalizedSpec):
    """Codes are the positive pre-activations; their sum is penalized.

    `z = (x - b_dec) W_enc + b_enc`, `f = max(z, 0)`; tokens t of T, latents j:

        loss = sum_t (|x_t - x_hat_t|^2 + coefficient * u * sum_j f_tj) / (T d_in)

    `scaling` says what a published coefficient multiplied, relative to the squared error; it changes
    the unit u of `coefficient` and nothing else. A steered coefficient is always that of `sum`.

    - `sum`: |e|^2 + coefficient * sum_j f_j, so u = 1. Source: Anthropic, "Circuits Updates -
      April 2024" (activations scaled to mean norm sqrt(d_in), coefficient 5).
    - `mean`: |e|^2 / d_in + coefficient * sum_j f_j, so u = d_in. The mean square error of most early
      code (SAELens before version 4 among them).
    - `mean_both`: |e|^2 / d_in + coefficient * sum_j f_j / d_sae, so u = d_in / d_sae.

    Differs: Anthropic leaves decoder rows free and writes `|d_j|` beside each code; here rows have unit
    norm. No latent is revived.
    """

    kind: Literal["relu"] = "relu"
    scaling: Literal["sum", "mean", "mean_both"] = "sum"
    """What `coefficient` multiplies; see the class."""

    def first_share(self) -> float:
        """Return the share of latents active at the start."""
        return self.active_at_start

    def selection(self, params: Mapping[str, torch.Tensor], context: Context | None) -> Selection:
        """Return the choice of all above zero."""
        return Selection("above")

    def weight(self, params: Mapping[str, torch.Tensor], context: Context, n_tokens: int) -> float:
        """Return what the sum of codes is multiplied with in the loss of a batch."""
        plain = super().weight(params, context, n_tokens)
        if self.scaling == "sum" or self.coefficient is None:
            return plain
        unit = len(params["b_dec"])
        return plain * unit / (self.d_sae if self.scaling == "mean_both" else 1)

    def at_sites(
        self,
        params: Mapping[str, torch.Tensor],
        latents: Any,
        z: torch.Tensor,
        to_codes: torch.Tensor,
        context: Context,
        n_tokens: int,
    ) -> SiteGradients:
        """Return the derivatives where z is above zero: the error's, and a constant."""
        weight = self.weight(params, context, n_tokens)
        return SiteGradients((to_codes + weight) * (z > 0), weight * z.clamp_min(0.0).sum())
