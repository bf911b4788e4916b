"""Gradients derived by hand, from what an architecture says about its sites.

A step of a sparse autoencoder needs one dense product, the encoder's. Everything else touches active
sites: decoding and the gradients are sums of few rows. Sorting the sites by latent (a stable sort)
turns the gradients of both weight matrices into such sums too, so no result depends on the order in
which threads finish. An architecture that starts dense is stepped by dense products until its codes
are sparse enough for sums of rows to pay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from jaxtyping import Float

from sae_placebo.core.lazy import torch
from sae_placebo.saes import auxiliary
from sae_placebo.saes.base import SAE, Context, Evaluation, SAESpec
from sae_placebo.saes.codes import Codes
from sae_placebo.saes.kernels import Workspace, by_latent, site_products
from sae_placebo.saes.selection import Selection, pre_activations, select

DENSE_SHARE = 1 / 16
"""Share of active sites from which dense products are faster than sums of rows."""


def gradients(
    spec: SAESpec,
    params: Mapping[str, torch.Tensor],
    x: Float[torch.Tensor, "token d_in"],
    context: Context,
    workspace: Workspace,
) -> Evaluation:
    """Return the objective and its gradients, equal to `spec.plain_gradients` up to rounding."""
    chosen = spec.selection(params, context)
    if chosen is None:
        return spec.plain_gradients(params, x, context)
    with torch.no_grad():
        inputs = torch.sub(x, params["b_dec"], out=workspace.buffer("inputs", x.shape, x))
        if is_dense(inputs, params, chosen, workspace):
            return _dense(spec, params, inputs, chosen, context, workspace)
        return _sparse(spec, params, inputs, chosen, context, workspace)


def look(
    spec: SAESpec,
    params: Mapping[str, torch.Tensor],
    x: Float[torch.Tensor, "token d_in"],
    context: Context,
    workspace: Workspace,
) -> Evaluation:
    """Return what a step of an SAE that learns nothing still records; its loss is NaN."""
    with torch.no_grad():
        chosen = spec.selection(params, context)
        if chosen is None:
            plain = spec.evaluate(params, x, context)
            return replace(plain, loss=torch.full_like(plain.loss, math.nan))
        inputs = x - params["b_dec"]
        sites = select(inputs, params, chosen, workspace)
        values = spec.codes_at(params, sites.latents, sites.z)
        codes = Codes.from_sites(sites, values, spec.d_sae)
        missed = (SAE(spec, dict(params)).decode(codes) - x).square().sum()
        fired = torch.zeros(spec.d_sae, dtype=torch.bool, device=x.device)
        fired[codes.latents] = True
        active = codes.offsets[-1]
        buffers = spec.next_buffers(params, values, context)
        return Evaluation(torch.full_like(missed, math.nan), missed, fired, active, buffers=buffers)


def is_dense(
    inputs: Float[torch.Tensor, "token d_in"],
    params: Mapping[str, torch.Tensor],
    chosen: Selection,
    workspace: Workspace,
) -> bool:
    """Return whether so many sites are active that dense products are faster; judged by a few tokens."""
    if chosen.kind != "above" or len(inputs) == 0:
        return False
    limit = 0.0 if chosen.threshold is None else chosen.threshold
    _, z = next(pre_activations(inputs[:64], params, workspace))
    return float((z > limit).float().mean()) > DENSE_SHARE


def _sparse(
    spec: SAESpec,
    params: Mapping[str, torch.Tensor],
    inputs: Float[torch.Tensor, "token d_in"],
    chosen: Selection,
    context: Context,
    workspace: Workspace,
) -> Evaluation:
    sites = select(inputs, params, chosen, workspace)
    values = spec.codes_at(params, sites.latents, sites.z)
    # inputs are x - b_dec, and x_hat - x = codes W_dec - (x - b_dec)
    error, products = site_products(sites.offsets, sites.latents, values, params["W_dec"], inputs)
    energy = error.square().sum()
    scale = 2 / inputs.numel()
    more = spec.at_sites(params, sites.latents, sites.z, products.mul_(scale), context, len(inputs))
    by = by_latent(sites.latents, sites.tokens(), spec.d_sae)
    b_enc = by.totals(more.to_z)
    found = {
        "W_enc": by.sums(inputs, more.to_z),
        "b_enc": b_enc,
        "W_dec": by.sums(error, values * scale),
        "b_dec": error.sum(dim=0).mul_(scale).sub_(params["W_enc"] @ b_enc),
    }
    found |= {name: by.totals(weights) for name, weights in more.to_latents.items()}
    loss = energy / inputs.numel() + more.penalty
    aux = auxiliary.by_hand(params, inputs, error, context.dead, *spec.auxiliary(inputs.shape[1]))
    if aux is not None:
        found["W_enc"].index_add_(0, aux.latents, aux.to_encoder)
        found["W_dec"].index_add_(0, aux.latents, aux.to_decoder)
        found["b_enc"].index_add_(0, aux.latents, aux.to_b_enc)
        found["b_dec"] += aux.to_b_dec
        loss = loss + aux.loss
    found["W_enc"] = found["W_enc"].t()
    positive = values > 0
    fired = torch.zeros(spec.d_sae, dtype=torch.bool, device=inputs.device)
    fired[sites.latents[positive]] = True
    buffers = spec.next_buffers(params, values, context)
    return Evaluation(loss, energy, fired, positive.sum(), found, buffers)


def _dense(
    spec: SAESpec,
    params: Mapping[str, torch.Tensor],
    inputs: Float[torch.Tensor, "token d_in"],
    chosen: Selection,
    context: Context,
    workspace: Workspace,
) -> Evaluation:
    """Return the same by dense products, a chunk of tokens at a time."""
    limit = 0.0 if chosen.threshold is None else chosen.threshold
    everywhere, scale = slice(None), 2 / inputs.numel()
    decoder = params["W_dec"]
    found = {
        "W_enc": torch.zeros_like(decoder),
        "b_enc": torch.zeros_like(params["b_enc"]),
        "W_dec": torch.zeros_like(decoder),
        "b_dec": torch.zeros_like(params["b_dec"]),
    }
    energy = loss = inputs.new_zeros(())
    fired = torch.zeros(spec.d_sae, dtype=torch.bool, device=inputs.device)
    active, codes = fired.sum(), []
    for rows, z in pre_activations(inputs, params, workspace):
        values = spec.codes_at(params, everywhere, z)
        error = torch.addmm(inputs[rows], values, decoder, beta=-1)
        energy = energy + error.square().sum()
        products = torch.mm(error, decoder.t(), out=workspace.buffer("products", z.shape, z)).mul_(
            scale
        )
        more = spec.at_sites(params, everywhere, z, products, context, len(inputs))
        loss = loss + more.penalty
        to_z = more.to_z * (z > limit)
        found["W_enc"].addmm_(to_z.t(), inputs[rows])
        found["b_enc"] += to_z.sum(dim=0)
        found["W_dec"].addmm_(values.t(), error, alpha=scale)
        found["b_dec"] += error.sum(dim=0).mul_(scale)
        for name, weights in more.to_latents.items():
            kept = (weights * (z > limit)).sum(dim=0)
            found[name] = found[name] + kept if name in found else kept
        positive = values > 0
        fired |= positive.any(dim=0)
        active = active + positive.sum()
        if spec.buffers:
            codes.append(values[positive])
    found["b_dec"] -= params["W_enc"] @ found["b_enc"]
    found["W_enc"] = found["W_enc"].t()
    buffers = spec.next_buffers(params, torch.cat(codes), context) if codes else {}
    return Evaluation(energy / inputs.numel() + loss, energy, fired, active, found, buffers)
