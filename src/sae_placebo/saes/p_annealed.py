"""ReLU with a penalty on powers of codes, from L1 towards L0 in the course of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.saes.base import PARAMETERS, SAE, SAES, Context, SiteGradients
from sae_placebo.saes.penalized import PenalizedSpec
from sae_placebo.saes.selection import Selection

SOFTENING = 0.01
"""Codes are small beside 1 only far below this; it bounds the slope of f^p at zero."""


@SAES.add
class PAnnealedSpec(PenalizedSpec):
    """Codes are the positive pre-activations; their powers are penalized.

    `z = (x - b_dec) W_enc + b_enc`, `f = max(z, 0)`; tokens t of T, latents j:

        loss = sum_t (|x_t - x_hat_t|^2 + coefficient * s * sum_j power(f_tj)) / (T d_in)
        power(f) = (f + 0.01)^p - 0.01^p

    p falls from 1 to `p_end`, linearly, between two shares of the training. Whenever p changes, s is
    multiplied by the ratio of the old sum of powers to the new one, so that the penalty is continuous.
    p and s are the tensors `exponent` and `penalty_scale`, which no gradient reaches; both start at 1.

    Source: Karvonen et al., "Measuring progress in dictionary learning for language model
    interpretability with board game models", arXiv 2408.00113, section 4; the rule for s is that of
    the trainer `p_anneal` of dictionary_learning (`sparsity_function="Lp^p"`). Differs: 0.01 is added
    to codes, without which the slope at zero is infinite; p changes a little every step, not ten times,
    and the ratio is the batch's own, not the mean over ten batches; the error is squared, not a norm.
    """

    kind: Literal["p_annealed"] = "p_annealed"
    p_end: float = Field(0.2, gt=0, le=1)
    """The exponent at the end."""
    anneal_from: float = Field(0.2, ge=0, le=1)
    """Share of the training at which p begins to fall."""
    anneal_to: float = Field(0.7, ge=0, le=1)
    """Share of the training at which p arrives at `p_end`."""

    parameters: ClassVar[tuple[str, ...]] = (*PARAMETERS, "exponent", "penalty_scale")
    buffers: ClassVar[frozenset[str]] = frozenset({"exponent", "penalty_scale"})

    @model_validator(mode="after")
    def _annealing_has_a_length(self) -> PAnnealedSpec:
        if not self.anneal_from < self.anneal_to:
            raise ValueError(
                f"anneal_from is {self.anneal_from} and anneal_to {self.anneal_to}: the exponent "
                "falls from the first to the second, so the second must be larger"
            )
        return self

    def create(self, d_in: int, seed: int) -> SAE:
        """Return an untrained SAE, with an exponent of 1."""
        sae = super().create(d_in, seed)
        return SAE(
            self, {**sae.params, "exponent": torch.ones(()), "penalty_scale": torch.ones(())}
        )

    def first_share(self) -> float:
        """Return the share of latents active at the start."""
        return self.active_at_start

    def selection(self, params: Mapping[str, torch.Tensor], context: Context | None) -> Selection:
        """Return the choice of all above zero."""
        return Selection("above")

    def dense(
        self,
        params: Mapping[str, torch.Tensor],
        z: Float[torch.Tensor, "token d_sae"],
        context: Context,
    ) -> tuple[Float[torch.Tensor, "token d_sae"], torch.Tensor]:
        """Return the codes and the weighted sum of their powers."""
        codes = z.relu()
        weight = self.weight(params, context, len(z)) * params["penalty_scale"]
        return codes, weight * _powers(codes, params["exponent"])

    def at_sites(
        self,
        params: Mapping[str, torch.Tensor],
        latents: Any,
        z: torch.Tensor,
        to_codes: torch.Tensor,
        context: Context,
        n_tokens: int,
    ) -> SiteGradients:
        """Return the derivatives where z is above zero: the error's, and that of the power."""
        p = params["exponent"]
        weight = self.weight(params, context, n_tokens) * params["penalty_scale"]
        codes = z.clamp_min(0.0)
        slope = (codes + SOFTENING).pow_(p - 1).mul_(weight * p)
        return SiteGradients((to_codes + slope) * (z > 0), weight * _powers(codes, p))

    def next_buffers(
        self, params: Mapping[str, torch.Tensor], values: torch.Tensor, context: Context
    ) -> dict[str, torch.Tensor]:
        """Return the next step's exponent, and the scale that makes this batch's penalty the same."""
        p, scale = params["exponent"], params["penalty_scale"]
        done = (context.share - self.anneal_from) / (self.anneal_to - self.anneal_from)
        following = torch.full_like(p, 1 + (self.p_end - 1) * min(1.0, max(0.0, done)))
        now, then = _powers(values, p), _powers(values, following)
        return {
            "exponent": following,
            "penalty_scale": torch.where(then > 0, scale * now / then, scale),
        }


def _powers(codes: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return the sum of the codes' softened powers."""
    return ((codes + SOFTENING).pow(p) - torch.full_like(p, SOFTENING).pow(p)).sum()
