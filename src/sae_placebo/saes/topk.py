"""TopK with AuxK: each token keeps its k largest pre-activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.saes import auxiliary, stepping
from sae_placebo.saes.base import SAES, Context, Evaluation, SAESpec
from sae_placebo.saes.kernels import Workspace, largest
from sae_placebo.saes.selection import Selection


@SAES.add
class TopKSpec(SAESpec):
    """Keep the k largest pre-activations of each token; dead latents learn from what is left over.

    `z = (x - b_dec) W_enc + b_enc`; the k largest of z, where above zero, are the codes. With the
    error `e = x - x_hat` (a constant where it is a target), tokens t of T:

        loss = sum_t |e_t|^2 / (T d_in)
               + aux_coefficient * sum_t |e_t - e_hat_t|^2 / sum_t |e_t|^2

    where `e_hat` is decoded, without `b_dec`, from the `k_aux` largest pre-activations of dead
    latents, where above zero. The first term is the share of energy missed, for activations scaled
    to a mean squared norm of `d_in`; the second is the same share for the target e.

    Source: Gao et al., "Scaling and evaluating sparse autoencoders", arXiv 2406.04093, sections
    2.3 and 2.4, appendices A.2 and B.1; the second term is in `auxiliary`. Differs: both terms are
    divided by energies, not by batch variances (activations arrive centered), so that a batch of one
    token has a loss.
    """

    kind: Literal["topk"] = "topk"
    k: int = Field(32, ge=1)
    """Latents active per token, at most."""
    aux_coefficient: float = Field(1 / 32, ge=0)
    """Weight of the dead latents' term; 0 switches it off."""
    k_aux: int | None = Field(None, ge=1)
    """Dead latents used per token; None is half of `d_in`. Capped by the number of dead latents."""

    @model_validator(mode="after")
    def _k_fits(self) -> TopKSpec:
        if self.k > self.d_sae:
            raise ValueError(
                f"k is {self.k} but d_sae is {self.d_sae}: a token cannot keep more latents than "
                "there are; lower k or raise d_sae"
            )
        return self

    def first_share(self) -> float:
        """Return the share of latents active at the start."""
        return self.k / self.d_sae

    def selection(self, params: Mapping[str, torch.Tensor], context: Context | None) -> Selection:
        """Return the choice of each token's k largest."""
        return Selection("row", self.k)

    def l0_target(self) -> float:
        """Return k."""
        return float(self.k)

    def auxiliary(self, d_in: int) -> tuple[float, int]:
        """Return the weight of the dead latents' term and how many it uses per token."""
        return self.aux_coefficient, self.k_aux or max(1, d_in // 2)

    def evaluate(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
    ) -> Evaluation:
        """Return the objective in dense arithmetic, differentiable by autograd."""
        z = torch.addmm(params["b_enc"], x - params["b_dec"], params["W_enc"])
        kept = largest(z.detach(), self.k)
        codes = torch.zeros_like(z).scatter(1, kept, z.gather(1, kept).relu())
        error = x - (codes @ params["W_dec"] + params["b_dec"])
        energy = error.square().sum()
        aux = auxiliary.plain(z, params["W_dec"], error, context.dead, *self.auxiliary(x.shape[1]))
        active = codes > 0
        return Evaluation(energy / x.numel() + aux, energy, active.any(dim=0), active.sum())

    def gradients(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
        workspace: Workspace,
    ) -> Evaluation:
        """Return the objective and its gradients, derived by hand at active sites only."""
        return stepping.gradients(self, params, x, context, workspace)
