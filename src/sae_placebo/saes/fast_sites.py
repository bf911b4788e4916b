"""Chosen sites by compiled loops: decoded, and sorted by latent."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sae_placebo.core.lazy import torch
from sae_placebo.core.workers import Workers
from sae_placebo.saes.kernels import Workspace

_BLOCK = 64
"""Tokens that are summed over at once, by one thread: so sums do not hang on how many threads there are."""


class Decoded(NamedTuple):
    """The reconstruction from sites, and its error against a target.

    Attributes:
        error: Decoded less the target.
        products: At each site, the product of the token's error with the latent's row.
        energy: Sum of squares of the error.
        target_energy: The same of the target.
        sums: Sums over tokens of the error and of the target.
    """

    error: Float[torch.Tensor, "token d_in"]
    products: Float[torch.Tensor, " site"]
    energy: float
    target_energy: float
    sums: Float[torch.Tensor, "2 d_in"]


def decoded(
    target: Float[torch.Tensor, "token d_in"],
    decoder: Float[torch.Tensor, "d_sae d_in"],
    sites: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    workspace: Workspace,
    workers: Workers,
    name: str,
) -> Decoded:
    """Return the error of sites' codes; arrays lie in buffers of `workspace` that start with `name`."""
    from sae_placebo.saes import compiled_update as compiled

    error = workspace.buffer(f"{name} error", target.shape, target)
    products = workspace.buffer(f"{name} products", sites[2].shape, target)
    arrays = [tensor.numpy() for tensor in (target, decoder, *sites)]
    out = error.numpy(), products.numpy()
    n = len(target)
    blocks = -(-n // _BLOCK)
    sums = np.zeros((blocks, 2, target.shape[1]), np.float32)
    energies = np.zeros((blocks, 2))

    def work(_: int, first: int, stop: int) -> None:
        for i in range(first, stop):
            tokens = i * _BLOCK, min((i + 1) * _BLOCK, n)
            energies[i] = compiled.decode_rows(*arrays, *tokens, *out, sums[i])

    workers.run(work, blocks)
    energy, given = energies.sum(axis=0).tolist()
    return Decoded(error, products, energy, given, torch.from_numpy(sums.sum(axis=0)))


def by_latent(
    sites: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    to_z: torch.Tensor,
    d_sae: int,
) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Return (starts, order, tokens) of the sites by latent, sums of `to_z`, and which latents fired.

    Latent f holds `starts[f]` to `starts[f + 1]`. The third of `sites` are the codes.
    """
    from sae_placebo.saes import compiled_update as compiled

    offsets, latents, values = (tensor.numpy() for tensor in sites)
    starts = np.empty(d_sae + 1, np.int32)
    order, tokens = np.empty(len(latents), np.int32), np.empty(len(latents), np.int32)
    totals, fired = np.empty(d_sae, np.float32), np.empty(d_sae, np.bool_)
    compiled.by_latent(latents, offsets, to_z.numpy(), starts, order, tokens, totals, fired, values)
    return (starts, order, tokens), totals, fired
