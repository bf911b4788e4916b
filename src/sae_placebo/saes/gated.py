"""Gated: which latents are active, and how strongly, are read by two affine maps with tied weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from jaxtyping import Float

from sae_placebo.core.lazy import torch
from sae_placebo.saes import stepping
from sae_placebo.saes.base import PARAMETERS, SAE, SAES, Context, Evaluation
from sae_placebo.saes.kernels import Workspace, by_latent, site_products
from sae_placebo.saes.penalized import PenalizedSpec
from sae_placebo.saes.selection import Selection, Sites, select

_EVERYWHERE = Selection("above")


@SAES.add
class GatedSpec(PenalizedSpec):
    """A gate says which latents are active; a rescaled copy of it says how strongly.

    With `u = (x - b_dec) W_enc`, the gate is `pi = u + b_enc`, the magnitude
    `m = u exp(r_mag) + b_mag`, and the codes are `f = 1[pi > 0] max(m, 0)`; tokens t of T, latents j:

        loss = sum_t (|x_t - x_hat_t|^2 + coefficient * sum_j max(pi_tj, 0)
                      + |x_t - x_frozen_t|^2) / (T d_in)

    where `x_frozen` is decoded from `max(pi, 0)` with `W_dec` and `b_dec` as constants: what teaches the
    gate, since no gradient passes through the step 1[pi > 0].

    Source: Rajamanoharan et al., "Improving dictionary learning with gated sparse autoencoders", arXiv
    2404.16014, section 3 and appendix G. Differs: the division by `d_in`; `b_enc` is the paper's b_gate;
    no latent is re-drawn; Adam's first moment is kept as for all architectures.
    """

    kind: Literal["gated"] = "gated"

    parameters: ClassVar[tuple[str, ...]] = (*PARAMETERS, "b_mag", "r_mag")
    in_activation_units: ClassVar[frozenset[str]] = frozenset({"b_enc", "b_mag"})

    def create(self, d_in: int, seed: int) -> SAE:
        """Return an untrained SAE, whose gate and magnitude agree."""
        sae = super().create(d_in, seed)
        new = {name: torch.zeros(self.d_sae) for name in ("b_mag", "r_mag")}
        return SAE(self, {**sae.params, **new})

    def selection(
        self, params: Mapping[str, torch.Tensor], context: Context | None
    ) -> Selection | None:
        """Return the choice of all whose gate is open, in use; training decodes twice, and is done here."""
        return _EVERYWHERE if context is None else None

    def codes_at(
        self, params: Mapping[str, torch.Tensor], latents: Any, z: torch.Tensor
    ) -> torch.Tensor:
        """Return the magnitudes where the gate z is open."""
        magnitudes = (z - params["b_enc"][latents]) * params["r_mag"][latents].exp()
        return (magnitudes + params["b_mag"][latents]).clamp_min(0.0) * (z > 0)

    def first_share(self) -> float:
        """Return the share of latents active at the start."""
        return self.active_at_start

    def dense(
        self,
        params: Mapping[str, torch.Tensor],
        z: Float[torch.Tensor, "token d_sae"],
        context: Context,
    ) -> tuple[Float[torch.Tensor, "token d_sae"], torch.Tensor]:
        """Return the codes and the weighted sum of open gates."""
        weight = self.weight(params, context, len(z))
        return self.codes_at(params, slice(None), z), weight * z.relu().sum()

    def evaluate(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
    ) -> Evaluation:
        """Return the objective in dense arithmetic, differentiable by autograd."""
        gates = torch.addmm(params["b_enc"], x - params["b_dec"], params["W_enc"])
        codes, penalty = self.dense(params, gates, context)
        energy = (x - (codes @ params["W_dec"] + params["b_dec"])).square().sum()
        frozen = gates.relu() @ params["W_dec"].detach() + params["b_dec"].detach()
        loss = (energy + (x - frozen).square().sum()) / x.numel() + penalty
        active = codes > 0
        return Evaluation(loss, energy, active.any(dim=0), active.sum())

    def gradients(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        context: Context,
        workspace: Workspace,
    ) -> Evaluation:
        """Return the objective and its gradients, derived by hand where gates are open."""
        with torch.no_grad():
            inputs = x - params["b_dec"]
            if not stepping.is_dense(inputs, params, _EVERYWHERE, workspace):
                sites = select(inputs, params, _EVERYWHERE, workspace)
                return self._at_sites(params, inputs, sites, context)
        return self.plain_gradients(params, x, context)

    def _at_sites(
        self,
        params: Mapping[str, torch.Tensor],
        inputs: Float[torch.Tensor, "token d_in"],
        sites: Sites,
        context: Context,
    ) -> Evaluation:
        offsets, latents, gates = sites.offsets, sites.latents, sites.z
        gain = params["r_mag"][latents].exp()
        scaled = (gates - params["b_enc"][latents]) * gain
        magnitudes = scaled + params["b_mag"][latents]
        values = magnitudes.clamp_min(0.0)
        decoder, scale = params["W_dec"], 2 / inputs.numel()
        error, to_values = site_products(offsets, latents, values, decoder, inputs)
        missed, to_gates = site_products(offsets, latents, gates, decoder, inputs)
        weight = self.weight(params, context, len(inputs))
        to_magnitudes = to_values.mul_(scale) * (magnitudes > 0)
        to_gates = to_gates.mul_(scale).add_(weight)
        to_u = to_magnitudes * gain + to_gates
        by = by_latent(latents, sites.tokens(), self.d_sae)
        into = params["W_enc"] @ by.totals(to_u)
        found = {
            "W_enc": by.sums(inputs, to_u).t(),
            "b_enc": by.totals(to_gates),
            "W_dec": by.sums(error, values * scale),
            "b_dec": error.sum(dim=0).mul_(scale).sub_(into),
            "b_mag": by.totals(to_magnitudes),
            "r_mag": by.totals(to_magnitudes * scaled),
        }
        energy = error.square().sum()
        loss = (energy + missed.square().sum()) / inputs.numel() + weight * gates.sum()
        positive = values > 0
        fired = torch.zeros(self.d_sae, dtype=torch.bool, device=inputs.device)
        fired[latents[positive]] = True
        return Evaluation(loss, energy, fired, positive.sum(), found)
