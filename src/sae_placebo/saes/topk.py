"""TopK with AuxK: each token keeps its k largest pre-activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator

from sae_placebo.lazy import torch
from sae_placebo.saes.base import SAES, Codes, Evaluation, SAESpec
from sae_placebo.saes.kernels import (
    CHUNK_TOKENS,
    Workspace,
    by_latent,
    largest,
    site_products,
)

_FLOOR = 1e-12


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
    2.3 and 2.4, appendices A.2 and B.1. Differs: both terms are divided by energies, not by batch
    variances (activations arrive centered), so that a batch of one token has a loss.
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

    def encode(
        self, params: Mapping[str, torch.Tensor], x: Float[torch.Tensor, "token d_in"]
    ) -> Codes:
        """Return the codes of `x`, a chunk of tokens at a time."""
        latents, values = _slots(params, x - params["b_dec"], self.k, Workspace())
        return Codes.from_slots(latents, values, self.d_sae)

    def evaluate(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        dead: Bool[torch.Tensor, "d_sae"],
    ) -> Evaluation:
        """Return the objective in dense arithmetic, differentiable by autograd."""
        z = torch.addmm(params["b_enc"], x - params["b_dec"], params["W_enc"])
        kept = largest(z.detach(), self.k)
        values = z.gather(1, kept).relu()
        codes = torch.zeros_like(z).scatter(1, kept, values)
        error = x - (codes @ params["W_dec"] + params["b_dec"])
        energy = error.square().sum()
        loss = energy / x.numel()
        chosen = self._aux_latents(dead)
        if len(chosen):
            target = error.detach()
            left = z[:, chosen].relu()
            if len(chosen) > (most := self._k_aux(x.shape[1])):
                top = largest(z.detach()[:, chosen], most)
                left = torch.zeros_like(left).scatter(1, top, left.gather(1, top))
            missed = (left @ params["W_dec"][chosen] - target).square().sum()
            loss = loss + self.aux_coefficient * missed / energy.detach().clamp_min(_FLOOR)
        return Evaluation(loss, energy, (codes > 0).any(dim=0))

    def gradients(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        dead: Bool[torch.Tensor, "d_sae"],
        workspace: Workspace,
    ) -> Evaluation:
        """Return the objective and its gradients, derived by hand at active sites only."""
        with torch.no_grad():
            inputs = torch.sub(x, params["b_dec"], out=workspace.buffer("inputs", x.shape, x))
            latents, values = _slots(params, inputs, self.k, workspace)
            # inputs are x - b_dec, and x_hat - x = codes W_dec - (x - b_dec)
            error, products = site_products(latents, values, params["W_dec"], inputs)
            energy = error.square().sum()
            active = values > 0
            scale = 2 / x.numel()
            at_sites = products.mul_(scale).mul_(active)
            sites = by_latent(latents, active, self.d_sae)
            b_enc = sites.totals(at_sites)
            found = {
                "W_enc": sites.sums(inputs, at_sites),
                "b_enc": b_enc,
                "W_dec": sites.sums(error, values * scale),
                "b_dec": error.sum(dim=0).mul_(scale).sub_(params["W_enc"] @ b_enc),
            }
            loss = energy / x.numel()
            chosen = self._aux_latents(dead)
            if len(chosen):
                loss = loss + self._add_auxiliary(params, inputs, error, chosen, found)
            found["W_enc"] = found["W_enc"].t()
            return Evaluation(loss, energy, sites.fired(), found)

    def _k_aux(self, d_in: int) -> int:
        return self.k_aux or max(1, d_in // 2)

    def _aux_latents(self, dead: Bool[torch.Tensor, "d_sae"]) -> Int64[torch.Tensor, "chosen"]:
        chosen = dead.nonzero()[:, 0]
        return chosen if self.aux_coefficient > 0 else chosen[:0]

    def _add_auxiliary(
        self,
        params: Mapping[str, torch.Tensor],
        inputs: Float[torch.Tensor, "token d_in"],
        error: Float[torch.Tensor, "token d_in"],
        chosen: Int64[torch.Tensor, "chosen"],
        found: dict[str, torch.Tensor],
    ) -> Float[torch.Tensor, ""]:
        """Add the dead latents' gradients to `found` and return their term of the loss.

        `k_aux` is of the order of the number of dead latents, so this works densely on them alone.
        `error` is `x_hat - x`; `found["W_enc"]` is latent by latent here.
        """
        encoder = params["W_enc"].t()[chosen]
        decoder = params["W_dec"][chosen]
        biases = params["b_enc"][chosen]
        to_encoder, to_decoder = torch.zeros_like(encoder), torch.zeros_like(decoder)
        to_biases = torch.zeros_like(biases)
        missed = torch.zeros_like(error[0, 0])
        most = self._k_aux(inputs.shape[1])
        for start in range(0, len(inputs), CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            tokens, wrong = inputs[rows], error[rows]
            left = torch.addmm(biases, tokens, encoder.t())
            if len(chosen) > most:
                top = largest(left, most)
                left = torch.zeros_like(left).scatter_(1, top, left.gather(1, top))
            left = left.relu_()
            away = torch.addmm(wrong, left, decoder)
            missed += away.square().sum()
            to_decoder.addmm_(left.t(), away)
            back = (away @ decoder.t()).mul_(left > 0)
            to_encoder.addmm_(back.t(), tokens)
            to_biases += back.sum(dim=0)
        share = self.aux_coefficient / error.square().sum().clamp_min(_FLOOR)
        found["W_enc"].index_add_(0, chosen, to_encoder.mul_(2 * share))
        found["W_dec"].index_add_(0, chosen, to_decoder.mul_(2 * share))
        found["b_enc"].index_add_(0, chosen, to_biases.mul_(2 * share))
        found["b_dec"] -= to_biases @ encoder
        return share * missed


def _slots(
    params: Mapping[str, torch.Tensor],
    inputs: Float[torch.Tensor, "token d_in"],
    k: int,
    workspace: Workspace,
) -> tuple[Int64[torch.Tensor, "token k"], Float[torch.Tensor, "token k"]]:
    """Return each token's k latents and their values, at zero where they would be below."""
    weights, bias = params["W_enc"], params["b_enc"]
    latents = workspace.buffer("latents", (len(inputs), k), inputs, torch.int64)
    values = workspace.buffer("values", (len(inputs), k), inputs)
    for start in range(0, len(inputs), CHUNK_TOKENS):
        rows = slice(start, min(start + CHUNK_TOKENS, len(inputs)))
        kept = workspace.buffer("z", (rows.stop - start, len(bias)), inputs)
        z = torch.addmm(bias, inputs[rows], weights, out=kept)
        latents[rows] = largest(z, k)
        torch.gather(z, 1, latents[rows], out=values[rows])
    return latents, values.relu_()


SAES.add("topk", TopKSpec)
