"""BatchTopK: a batch keeps its largest pre-activations, however they fall on its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.saes import auxiliary, stepping
from sae_placebo.saes.base import PARAMETERS, SAE, SAES, Context, Evaluation, SAESpec
from sae_placebo.saes.kernels import Workspace, largest
from sae_placebo.saes.selection import Selection

_GUESS = 0.85
"""Share of the threshold above which a batch's largest are looked for first."""


class BatchSpec(SAESpec):
    """Settings that architectures share which choose their sites over a whole batch."""

    parameters: ClassVar[tuple[str, ...]] = (*PARAMETERS, "threshold")
    buffers: ClassVar[frozenset[str]] = frozenset({"threshold"})
    in_activation_units: ClassVar[frozenset[str]] = frozenset({"b_enc", "threshold"})

    k: float = Field(32.0, gt=0)
    """Latents active per token, on average over a batch; may be a fraction."""
    aux_coefficient: float = Field(1 / 32, ge=0)
    """Weight of the dead latents' term; 0 switches it off."""
    k_aux: int | None = Field(None, ge=1)
    """Dead latents used per token; None is half of `d_in`. Capped by the number of dead latents."""
    threshold_rate: float = Field(0.05, gt=0, le=1)
    """Weight of the newest batch in the running mean that is the threshold in use; made for runs of
    hundreds of steps. For tens of thousands, 0.01 and less is usual."""

    @model_validator(mode="after")
    def _k_fits(self) -> BatchSpec:
        if self.k > self.d_sae:
            raise ValueError(
                f"k is {self.k:g} but d_sae is {self.d_sae}: tokens cannot keep more latents than "
                "there are; lower k or raise d_sae"
            )
        return self

    def first_share(self) -> float:
        """Return the share of latents active at the start."""
        return self.k / self.d_sae

    def create(self, d_in: int, seed: int) -> SAE:
        """Return an untrained SAE; its threshold is 0, above which lie all positive codes."""
        params = super().create(d_in, seed).params
        return SAE(self, {**params, "threshold": torch.zeros(())})

    def selection(
        self, params: Mapping[str, torch.Tensor], context: Context | None
    ) -> Selection | None:
        """Return the choice of the batch's largest in training, and of all above the threshold in use."""
        if context is None:
            return Selection("above", threshold=params["threshold"].clamp_min(0.0))
        return self.of_batch(params)

    def of_batch(self, params: Mapping[str, torch.Tensor]) -> Selection:
        """Return the choice of the batch's largest, which are looked for near the threshold first."""
        return Selection("batch", self.k, params["threshold"].clamp_min(0.0) * _GUESS)

    def l0_target(self) -> float:
        """Return k."""
        return float(self.k)

    def auxiliary(self, d_in: int) -> tuple[float, int]:
        """Return the weight of the dead latents' term and how many it uses per token."""
        return self.aux_coefficient, self.k_aux or max(1, d_in // 2)

    def next_buffers(
        self, params: Mapping[str, torch.Tensor], values: torch.Tensor, context: Context
    ) -> dict[str, torch.Tensor]:
        """Return the threshold, moved towards the smallest positive code of the batch."""
        before = params["threshold"]
        if len(values) == 0:
            return {"threshold": before.clone()}
        least = values.detach().min().to(before)
        moved = before + self.threshold_rate * (least - before)
        return {"threshold": torch.where(before > 0, moved, least)}

    def dense_codes(
        self, params: Mapping[str, torch.Tensor], x: Float[torch.Tensor, "token d_in"]
    ) -> tuple[Float[torch.Tensor, "token d_sae"], Float[torch.Tensor, "token d_sae"]]:
        """Return pre-activations and codes in dense arithmetic, differentiable by autograd."""
        z = torch.addmm(params["b_enc"], x - params["b_dec"], params["W_enc"])
        flat = z.reshape(1, -1)
        kept = largest(flat.detach(), Selection("batch", self.k).target(*z.shape))
        codes = torch.zeros_like(flat).scatter(1, kept, flat.gather(1, kept).relu())
        return z, codes.reshape(z.shape)


@SAES.add
class BatchTopKSpec(BatchSpec):
    """Keep the k T largest pre-activations of a batch of T tokens; dead latents as in TopK.

    `z = (x - b_dec) W_enc + b_enc`. In training the codes are the `round(k T)` largest z of the batch,
    where above zero: a token may have more than k, or none. In use, where a token's codes must not
    depend on its neighbors, they are the z strictly above `threshold`, a running mean over training
    batches of the smallest positive code. The loss is that of `TopKSpec`.

    The running mean starts at the first batch's value and moves by `threshold_rate` of the difference
    per batch (0.05: a memory of 20 batches), so that it follows the codes as they grow. A batch
    without positive codes leaves it alone. While it is 0, before the first step, all positive z are
    codes. L0 in use is near k, not k: what it is on held-out tokens is measured and recorded.

    Source: Bussmann, Leask and Nanda, "BatchTopK sparse autoencoders", arXiv 2412.06410, section 3
    (selection; threshold as the mean of the smallest positive code); a running mean, as
    in SAELens (rate 0.01, from 0) and dictionary_learning (rate 0.001, from a first batch, as here).
    AuxK as in `TopKSpec`. Differs: the rate; see `TopKSpec` on the loss.
    """

    kind: Literal["batchtopk"] = "batchtopk"

    def evaluate(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
    ) -> Evaluation:
        """Return the objective in dense arithmetic, differentiable by autograd."""
        z, codes = self.dense_codes(params, x)
        error = x - (codes @ params["W_dec"] + params["b_dec"])
        energy = error.square().sum()
        aux = auxiliary.plain(z, params["W_dec"], error, context.dead, *self.auxiliary(x.shape[1]))
        active = codes > 0
        buffers = self.next_buffers(params, codes[active], context)
        loss = energy / x.numel() + aux
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
