"""Architectures with a sparsity penalty share its weight, fixed or steered to a target L0.

Their objective is, tokens t of T, with the error `e = x - x_hat`,

    loss = sum_t (|e_t|^2 + coefficient * penalty_t) / (T d_in)

Activations arrive scaled to a mean squared norm of `d_in`, so the first term is the share of energy
missed, and one coefficient means the same at every width. Decoder rows have unit norm, so the factor
`|d_j|` that papers write beside a code is 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from jaxtyping import Float
from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.saes import stepping
from sae_placebo.saes.base import Context, Evaluation, SAESpec
from sae_placebo.saes.kernels import Workspace

GAIN = 0.05
"""Change of the coefficient's logarithm per step and per unit of log(L0 / target), in the first half.
Twice as much overshoots after a dense start and kills a tenth of the latents and more."""
LATE_GAIN = 0.1
"""The same in the second half, when codes are sparse and the step size falls."""
LARGEST = 1.0
"""The log ratio is cut here, so that a dense start does not wind the coefficient up."""
APPROACH = 0.2
"""Share of the training over which the target falls from what is active at the start to `l0`."""
_FLOOR = 1e-3


class PenalizedSpec(SAESpec):
    """Settings that say how strong the penalty is: exactly one of `l0` and `coefficient`.

    With `l0` the coefficient is steered. After each step

        coefficient *= exp(0.05 * log(L0 / target)),  the logarithm cut to [-1, 1]

    with 0.1 in place of 0.05 in the second half of the training; L0 is the batch's mean number of active
    latents. Over the first 20% of the training the target falls geometrically from what is active at the
    start to `l0`, and the coefficient does not fall below its start.
    """

    l0: float | None = Field(None, gt=0)
    """Mean number of active latents per token to arrive at; the coefficient is steered there."""
    coefficient: float | None = Field(None, ge=0)
    """Weight of the penalty, if it is fixed."""
    warmup_share: float = Field(0.05, ge=0, le=1)
    """Share of the training over which a fixed coefficient rises from zero, linearly."""

    steered_from: ClassVar[float] = 0.5
    """The coefficient at the start, if it is steered."""
    penalty_power: ClassVar[float] = 1.0
    """The power of activations with which the penalty grows."""
    active_at_start: ClassVar[float] = 0.5
    """Share of the latents that is active on a token before training."""

    @model_validator(mode="after")
    def _strength_is_given_once(self) -> PenalizedSpec:
        if (self.l0 is None) == (self.coefficient is None):
            found = "neither" if self.l0 is None else "both"
            raise ValueError(
                f"{found} of l0 and coefficient given: give l0, the number of active latents per "
                "token to arrive at, or coefficient, a fixed weight of the penalty"
            )
        return self

    @model_validator(mode="after")
    def _l0_fits(self) -> PenalizedSpec:
        if self.l0 is not None and self.l0 > self.d_sae / 2:
            raise ValueError(
                f"l0 is {self.l0:g} but d_sae is {self.d_sae}: training starts with at most half of "
                "the latents active and a penalty makes them fewer; lower l0 or raise d_sae"
            )
        return self

    def l0_target(self) -> float | None:
        """Return `l0`; None where the coefficient is fixed."""
        return self.l0

    def first_coefficient(self) -> float:
        """Return the weight of the penalty at the start."""
        if self.coefficient is None:
            return self.steered_from
        return 0.0 if self.warmup_share else self.coefficient

    def steer(self, coefficient: float, l0: float, share: float) -> float:
        """Return the next step's weight of the penalty; see the class."""
        if self.coefficient is not None:
            return self.coefficient * min(
                1.0, share / self.warmup_share if self.warmup_share else 1
            )
        wrong = math.log(max(l0, _FLOOR) / self.target(share))
        gain = GAIN if share < 0.5 else LATE_GAIN
        steered = coefficient * math.exp(gain * max(-LARGEST, min(LARGEST, wrong)))
        return max(steered, self.steered_from) if share < APPROACH else steered

    def target(self, share: float) -> float:
        """Return the L0 to have when this share of the training lies behind."""
        assert self.l0 is not None
        left = max(0.0, 1 - share / APPROACH)
        first = self.d_sae * (self.first_share() or self.active_at_start)
        return self.l0 * math.pow(first / self.l0, left)

    def weight(self, params: Mapping[str, torch.Tensor], context: Context, n_tokens: int) -> float:
        """Return what one token's penalty is multiplied with in the loss of a batch."""
        return context.coefficient / (n_tokens * len(params["b_dec"]))

    def dense(
        self,
        params: Mapping[str, torch.Tensor],
        z: Float[torch.Tensor, "token d_sae"],
        context: Context,
    ) -> tuple[Float[torch.Tensor, "token d_sae"], torch.Tensor]:
        """Return the codes, and the penalty in units of the loss, differentiable by autograd.

        Without another rule: pre-activations above zero, and their weighted sum (L1).
        """
        codes = z.relu()
        return codes, self.weight(params, context, len(z)) * codes.sum()

    def evaluate(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
    ) -> Evaluation:
        """Return the objective in dense arithmetic, differentiable by autograd."""
        z = torch.addmm(params["b_enc"], x - params["b_dec"], params["W_enc"])
        codes, penalty = self.dense(params, z, context)
        energy = (x - (codes @ params["W_dec"] + params["b_dec"])).square().sum()
        loss = energy / x.numel() + penalty
        active = codes.detach() > 0
        values = codes.detach()[active]
        buffers = self.next_buffers(params, values, context)
        return Evaluation(loss, energy, active.any(dim=0), active.sum(), buffers=buffers)

    def gradients(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
        workspace: Workspace,
    ) -> Evaluation:
        """Return the objective and its gradients, derived by hand at active sites only."""
        return stepping.gradients(self, params, x, context, workspace)
