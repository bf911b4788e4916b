"""ReLU with L1 whose encoder is its decoder: one matrix, read twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from jaxtyping import Float

from sae_placebo.core.lazy import torch
from sae_placebo.saes import stepping
from sae_placebo.saes.base import SAES, Context, Evaluation
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.penalized import PenalizedSpec
from sae_placebo.saes.relu import ReLUSpec
from sae_placebo.saes.selection import Selection


@SAES.add
class TiedSpec(PenalizedSpec):
    """A latent looks for the very direction that it writes.

    With one matrix W of unit rows, `z = (x - b_dec) W^T + b_enc`, `f = max(z, 0)`,
    `x_hat = f W + b_dec`; tokens t of T, latents j:

        loss = sum_t (|x_t - x_hat_t|^2 + coefficient * sum_j f_tj) / (T d_in)

    W is stored twice, as `W_dec` and transposed as `W_enc`, so that a tied SAE is read, folded and
    exported as any other. After every step `W_enc` is a copy of `W_dec`, to the last bit. The objective
    is written in the mean of the two, `W = (W_dec + W_enc^T) / 2`, so that the derivative by W is the sum of
    what the encoder and the decoder contribute, and each of the two tensors is given one half of it.
    Adam's step does not depend on a factor of its gradient.

    Rows have unit norm, in the encoder too: a latent cannot scale its code up, so that shrinkage by the
    penalty is coefficient / 2, and the start has no scale (`first_share`).

    Freezing `W_dec` holds both; freezing `W_enc` alone holds neither, since it follows `W_dec`.

    The step is ReLU's in `stepping`; there is none in compiled loops, which step the matrices apart.

    Source: Cunningham et al., "Sparse autoencoders find highly interpretable features in language
    models", arXiv 2309.08600, section 2: tied weights, rows of unit norm, L1. Differs: the decoder has a
    bias, which is also taken from the input; there is none there.
    """

    kind: Literal["tied"] = "tied"

    ties_encoder: ClassVar[bool] = True

    def selection(
        self, params: Mapping[str, torch.Tensor], context: Context | None
    ) -> Selection | None:
        """Return the choice of all above zero, in use.

        In training it is None, so that no loop steps a matrix alone.
        """
        return Selection("above") if context is None else None

    def evaluate(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
    ) -> Evaluation:
        """Return the objective of the one matrix, differentiable by autograd."""
        return super().evaluate(_tied(params), x, context)

    def gradients(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
        workspace: Workspace,
    ) -> Evaluation:
        """Return the objective and its gradients, those of the two matrices being halves of one sum."""
        untied = ReLUSpec(d_sae=self.d_sae, coefficient=0.0)  # the weight is the context's
        found = stepping.gradients(untied, _tied(params), x, context, workspace)
        assert found.gradients is not None
        half = (found.gradients["W_dec"] + found.gradients["W_enc"].t()) / 2
        # two tensors: what is done to the one in place is not done to the other
        both = {"W_enc": half.clone().t(), "W_dec": half}
        return replace(found, gradients={**found.gradients, **both})

    def constrain(self, params: Mapping[str, torch.Tensor]) -> None:
        """Make the encoder a copy of the decoder; `params["W_enc"]` lies latent by latent here."""
        params["W_enc"].copy_(params["W_dec"])


def _tied(params: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with the mean of both matrices in the place of each: itself where tied."""
    rows = (params["W_dec"] + params["W_enc"].t()) / 2
    return {**params, "W_dec": rows, "W_enc": rows.t()}
