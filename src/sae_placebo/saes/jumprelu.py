"""JumpReLU: codes are pre-activations above a threshold that each latent learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.saes.base import PARAMETERS, SAE, SAES, Context, SiteGradients, first_scale
from sae_placebo.saes.penalized import APPROACH, PenalizedSpec
from sae_placebo.saes.selection import Selection

FIRST_ACTIVE = 2.0
"""Latents active on a token at the start, in units of `l0`. With 4,096 latents a threshold moves by at most
0.25 in 100 steps. There (real activations, d_in 256, l0 32), held-out L0 and explained variance: 1.5 27 and
0.793, 2 29 and 0.799, 2.5 35 and 0.810, 5 65 and 0.853 (all with 1 in place of `MIDDLE`)."""
FIRST_SHARE = 1 / 64
"""Share active at the start where `l0` is not given."""
LEAST_THRESHOLD = 1e-3
"""Thresholds are kept at or above this."""
STEEPNESS = 25
"""Power of L0 / target in the steered coefficient."""
CUT = (5.0, 1.5)
"""How far the steered coefficient's logarithm may lie below and above its middle. Adam remembers large
gradients for long (`beta2`): after one strong push thresholds hardly move."""
MIDDLE = 0.3
"""The steered coefficient where L0 is on target."""
RESTORING = 15
"""Coefficient of the quadratic penalty per unit of `l0`, where none is given."""
_MOST_ACTIVE = 0.4
_FLOOR = 1e-3


@SAES.add
class JumpReLUSpec(PenalizedSpec):
    """Codes are pre-activations above a threshold.

    `z = (x - b_dec) W_enc + b_enc`, `f = z 1[z > threshold]`; tokens t of T, latents j:

        loss = sum_t (|x_t - x_hat_t|^2 + coefficient * penalty_t) / (T d_in)

    - `loss = "l0"`: penalty = number of codes above zero.
    - `loss = "tanh"`: penalty = sum_j tanh(`tanh_scale` f_j), and beside it, with the weight
      `pre_act_coefficient`, sum_j max(threshold_j - z_j, 0): latents that stay silent are pulled up.
    - `loss = "quadratic"`: penalty = (number of codes above zero / `l0` - 1)^2, token by token.

    A step has no derivative by z, and by the threshold that of a box of width `bandwidth`: with
    K = 1 / bandwidth where |z - threshold| < bandwidth / 2, else 0,

        d f / d z = 1[z > threshold]    d f / d threshold = -threshold K    d 1[f > 0] / d threshold = -K

    Thresholds move by the step size at most, whatever the coefficient, so it is steered in another way
    than elsewhere: `coefficient = 0.3 (L0 / target)^25`, the power cut to [exp(-5), exp(1.5)]. The penalty
    is then strong above the target and nearly absent below it. For `quadratic`, which restores `l0`
    itself, it is fixed; where it is not given it rises to 15 `l0` in the first 20% of the training.

    Training starts with 2 `l0` latents active on a token (a 64th of all where `l0` is not given): `W_enc`
    at the scale that explains most with so many (`first_scale`), thresholds at the quantile. Activations
    have mean squared norm d_in, and with Adam a threshold moves by no more than the sum of the step sizes:
    it could not follow from near zero.

    Source: Rajamanoharan et al., "Jumping ahead: improving reconstruction fidelity with JumpReLU sparse
    autoencoders", arXiv 2407.14435, section 3 (l0) and appendix (quadratic); Anthropic, "Circuits
    Updates - January 2025" (tanh). Differs: `threshold` itself is trained and kept above zero, not its
    logarithm, and starts at the quantile (in the paper at 0.001); `bandwidth` is made for short runs (the
    paper's 0.001 is for activations of unit mean squared norm, here 0.001 sqrt(d_in); Anthropic's is 2);
    pre-activations are not cut at zero before the kernel; Anthropic's weight is in `pre_act_coefficient`,
    and its coefficient rises all through the training.
    """

    kind: Literal["jumprelu"] = "jumprelu"
    loss: Literal["l0", "tanh", "quadratic"] = "l0"
    """The penalty; see the class."""
    bandwidth: float = Field(0.5, gt=0)
    """Width of the box that stands for the derivative of a step."""
    tanh_scale: float = Field(4.0, gt=0)
    """For `tanh`: how steeply the penalty of a code rises."""
    pre_act_coefficient: float = Field(3e-6, ge=0)
    """For `tanh`: weight of the term that pulls silent latents up."""

    parameters: ClassVar[tuple[str, ...]] = (*PARAMETERS, "threshold")
    in_activation_units: ClassVar[frozenset[str]] = frozenset({"b_enc", "threshold"})
    steered_from: ClassVar[float] = 1.0
    penalty_power: ClassVar[float] = 0.0

    @model_validator(mode="after")
    def _strength_is_given_once(self) -> JumpReLUSpec:
        if self.loss != "quadratic":
            super()._strength_is_given_once()  # type: ignore[operator]
        elif self.l0 is None:
            raise ValueError(
                'the loss "quadratic" pulls the number of active latents to l0, and l0 is not given: '
                "give l0; coefficient, the strength of the pull, may be given too"
            )
        return self

    def first_share(self) -> float:
        """Return the share of latents active at the start: twice what `l0` asks for."""
        share = FIRST_SHARE if self.l0 is None else FIRST_ACTIVE * self.l0 / self.d_sae
        return min(share, _MOST_ACTIVE)

    def first_threshold(self, d_in: int) -> float:
        """Return the threshold above which that share of pre-activations lies, at random directions."""
        share = self.first_share()
        quantile = NormalDist().inv_cdf(1 - share)
        return max(quantile * first_scale(d_in, self.d_sae, share), LEAST_THRESHOLD)

    def create(self, d_in: int, seed: int) -> SAE:
        """Return an untrained SAE, with equal thresholds."""
        sae = super().create(d_in, seed)
        threshold = torch.full((self.d_sae,), self.first_threshold(d_in))
        return SAE(self, {**sae.params, "threshold": threshold})

    def selection(
        self, params: Mapping[str, torch.Tensor], context: Context | None
    ) -> Selection | None:
        """Return the choice of all above the threshold in use; in training, with half a box below it.

        The losses `tanh` and `quadratic` have no sparse step: the one reaches every latent, the other
        weighs a site by its token's count.
        """
        if context is None:
            return Selection("above", threshold=params["threshold"])
        if self.loss != "l0":
            return None
        return Selection("above", threshold=params["threshold"] - self.bandwidth / 2)

    def codes_at(
        self, params: Mapping[str, torch.Tensor], latents: Any, z: torch.Tensor
    ) -> torch.Tensor:
        """Return z where it is above the threshold."""
        return z * (z > params["threshold"][latents])

    def _box(self, z: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        """Return K of the class."""
        half = self.bandwidth / 2
        inside = (z > threshold - half) & (z < threshold + half)
        return inside.to(z.dtype) / self.bandwidth

    def at_sites(
        self,
        params: Mapping[str, torch.Tensor],
        latents: Any,
        z: torch.Tensor,
        to_codes: torch.Tensor,
        context: Context,
        n_tokens: int,
    ) -> SiteGradients:
        """Return the derivatives of the loss `l0`, by z and by the threshold."""
        threshold = params["threshold"][latents]
        weight = self.weight(params, context, n_tokens)
        above = z > threshold
        box = self._box(z, threshold)
        to_threshold = (threshold * to_codes + weight).mul_(box).neg_()
        return SiteGradients(
            to_codes * above, weight * above.to(z.dtype).sum(), {"threshold": to_threshold}
        )

    def dense(
        self,
        params: Mapping[str, torch.Tensor],
        z: Float[torch.Tensor, "token d_sae"],
        context: Context,
    ) -> tuple[Float[torch.Tensor, "token d_sae"], torch.Tensor]:
        """Return the codes and the weighted penalty, with the derivatives that the class gives."""
        threshold, weight = params["threshold"], self.weight(params, context, len(z))
        above = (z > threshold).to(z.dtype)
        box = self._box(z.detach(), threshold.detach())
        zero = threshold - threshold.detach()  # its value is 0, its derivative 1
        codes = z * above - (threshold.detach() * box) * zero
        if self.loss == "tanh":
            pulled = (
                self.pre_act_coefficient
                / (len(z) * len(params["b_dec"]))
                * (threshold - z).relu().sum()
            )
            return codes, weight * (self.tanh_scale * codes).tanh().sum() + pulled
        counts = (above - box * zero).sum(dim=1)
        if self.loss == "l0":
            return codes, weight * counts.sum()
        assert self.l0 is not None
        return codes, weight * (counts / self.l0 - 1).square().sum()

    def first_coefficient(self) -> float:
        """Return the weight of the penalty at the start."""
        if self.coefficient is None and self.loss == "quadratic":
            return 0.0
        return super().first_coefficient()

    def steer(self, coefficient: float, l0: float, share: float) -> float:
        """Return the next step's weight of the penalty; see the class."""
        if self.coefficient is not None or self.l0 is None:
            return super().steer(coefficient, l0, share)
        if self.loss == "quadratic":
            return RESTORING * self.l0 * min(1.0, share / APPROACH) ** 2
        steps = STEEPNESS * math.log(max(l0, _FLOOR) / self.target(share))
        return MIDDLE * math.exp(max(-CUT[0], min(CUT[1], steps)))

    def constrain(self, params: Mapping[str, torch.Tensor]) -> None:
        """Keep thresholds above zero."""
        params["threshold"].clamp_(min=LEAST_THRESHOLD)
