"""AuxK: dead latents learn from what the living ones leave over.

With the error `e = x - x_hat`, a constant here, the term is

    coefficient * sum_t |e_t - e_hat_t|^2 / sum_t |e_t|^2

where `e_hat` is decoded, without `b_dec`, from the `k` largest pre-activations of dead latents, where
above zero. Its gradient reaches the encoder, both biases and the decoder rows of dead latents.

Source: Gao et al., "Scaling and evaluating sparse autoencoders", arXiv 2406.04093, appendix A.2.
Differs: the divisor is the error's energy, not its variance, so that a batch of one token has a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from sae_placebo.core.lazy import torch
from sae_placebo.core.workers import Workers
from sae_placebo.saes.fast_sites import by_latent, decoded
from sae_placebo.saes.kernels import CHUNK_TOKENS, Workspace, largest

_FLOOR = 1e-12


@dataclass(frozen=True)
class Auxiliary:
    """The term, and its derivatives by the rows of the dead latents."""

    loss: Float[torch.Tensor, ""]
    latents: Int64[torch.Tensor, "chosen"]
    to_encoder: Float[torch.Tensor, "chosen d_in"]
    to_decoder: Float[torch.Tensor, "chosen d_in"]
    to_b_enc: Float[torch.Tensor, "chosen"]
    to_b_dec: Float[torch.Tensor, "d_in"]


def plain(
    z: Float[torch.Tensor, "token d_sae"],
    decoder: Float[torch.Tensor, "d_sae d_in"],
    error: Float[torch.Tensor, "token d_in"],
    dead: Bool[torch.Tensor, "d_sae"],
    coefficient: float,
    k: int,
) -> Float[torch.Tensor, ""]:
    """Return the term in dense arithmetic, differentiable by autograd; 0 if nothing is dead.

    Args:
        z: Pre-activations.
        decoder: `W_dec`.
        error: `x - x_hat`; taken as a constant.
        dead: Latents that may be used.
        coefficient: Weight of the term.
        k: Most dead latents per token.
    """
    chosen = dead.nonzero()[:, 0]
    if coefficient == 0 or len(chosen) == 0:
        return error.new_zeros(())
    target = error.detach()
    left = z[:, chosen].relu()
    if len(chosen) > k:
        top = largest(z.detach()[:, chosen], k)
        left = torch.zeros_like(left).scatter(1, top, left.gather(1, top))
    missed = (left @ decoder[chosen] - target).square().sum()
    return coefficient * missed / target.square().sum().clamp_min(_FLOOR)


def by_hand(
    params: Mapping[str, torch.Tensor],
    inputs: Float[torch.Tensor, "token d_in"],
    error: Float[torch.Tensor, "token d_in"],
    dead: Bool[torch.Tensor, "d_sae"],
    coefficient: float,
    k: int,
) -> Auxiliary | None:
    """Return the term and its derivatives; None if it is switched off or nothing is dead.

    `k` is of the order of the number of dead latents, so this works densely on them alone.

    Args:
        params: The tensors.
        inputs: `x - b_dec`.
        error: `x_hat - x`, of the sign opposite to that in `plain`.
        dead: Latents that may be used.
        coefficient: Weight of the term.
        k: Most dead latents per token.
    """
    chosen = dead.nonzero()[:, 0]
    if coefficient == 0 or len(chosen) == 0:
        return None
    encoder, decoder = params["W_enc"].t()[chosen], params["W_dec"][chosen]
    biases = params["b_enc"][chosen]
    to_encoder, to_decoder = torch.zeros_like(encoder), torch.zeros_like(decoder)
    to_biases, missed = torch.zeros_like(biases), torch.zeros_like(error[0, 0])
    for start in range(0, len(inputs), CHUNK_TOKENS):
        rows = slice(start, start + CHUNK_TOKENS)
        tokens, wrong = inputs[rows], error[rows]
        left = torch.addmm(biases, tokens, encoder.t())
        if len(chosen) > k:
            top = largest(left, k)
            left = torch.zeros_like(left).scatter_(1, top, left.gather(1, top))
        left = left.relu_()
        away = torch.addmm(wrong, left, decoder)
        missed += away.square().sum()
        to_decoder.addmm_(left.t(), away)
        back = (away @ decoder.t()).mul_(left > 0)
        to_encoder.addmm_(back.t(), tokens)
        to_biases += back.sum(dim=0)
    share = coefficient / error.square().sum().clamp_min(_FLOOR)
    to_biases.mul_(2 * share)
    return Auxiliary(
        share * missed,
        chosen,
        to_encoder.mul_(2 * share),
        to_decoder.mul_(2 * share),
        to_biases,
        -(to_biases @ encoder),
    )


def at_sites(
    rows: Mapping[str, torch.Tensor],
    inputs: Float[torch.Tensor, "token d_in"],
    error: Float[torch.Tensor, "token d_in"],
    sites: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    coefficient: float,
    workspace: Workspace,
    workers: Workers,
) -> Auxiliary:
    """Return what `by_hand` does, by compiled loops over sites that are chosen already.

    Its time goes with the sites, not with the number of dead latents. Latents without a site are
    left out. The derivatives by rows lie in buffers of `workspace`.

    Args:
        rows: The tensors, `W_enc` as [d_sae, d_in].
        inputs: `x - b_dec`.
        error: `x_hat - x`.
        sites: Each token's `k` largest pre-activations of dead latents, all above zero, as
            `fast_selection.select_sites` returns them.
        coefficient: Weight of the term.
        workspace: For buffers.
        workers: Threads.
    """
    from sae_placebo.saes import compiled_update as compiled

    away, to_z, missed, energy, _ = decoded(
        -error, rows["W_dec"], sites, workspace, workers, "auxiliary"
    )
    share = coefficient / max(energy, _FLOOR)
    to_z.mul_(2 * share)
    by, totals, _ = by_latent(sites, to_z, len(rows["b_enc"]))
    chosen = np.diff(by[0]).nonzero()[0]
    shape = (len(chosen), error.shape[1])
    to_encoder = workspace.buffer("auxiliary to encoder", shape, error)
    to_decoder = workspace.buffer("auxiliary to decoder", shape, error)
    one, twice = np.float32(1), np.float32(2 * share)
    encoding = inputs.numpy(), to_z.numpy(), one, to_encoder.numpy()
    decoding = away.numpy(), sites[2].numpy(), twice, to_decoder.numpy()

    def work(_: int, first: int, stop: int) -> None:
        compiled.row_sums(by, chosen, *encoding, first, stop)
        compiled.row_sums(by, chosen, *decoding, first, stop)

    workers.run(work, len(chosen), 64)
    to_biases, picked = torch.from_numpy(totals), torch.from_numpy(chosen)
    to_b_dec = -(to_biases @ rows["W_enc"])
    loss = torch.tensor(share * missed, dtype=error.dtype)
    return Auxiliary(loss, picked, to_encoder, to_decoder, to_biases[picked], to_b_dec)
