"""A step by compiled loops: selection, sparse decode, sparse gradients and Adam, nothing dense kept.

It serves every architecture that gives a `Selection`, on a CPU, in float32. Two thirds of it and more
is the encoder's product. The gradient of a weight matrix is never whole: each latent's row is summed,
projected, stepped and scaled to unit length while it is in cache.

**Adam is dense Adam**, for rows without a gradient too: their moments decay and they go on moving by
the mean. Only after so many quiet steps that the mean is below 1e-8 of what it was (175 at beta1 0.9) is a
row left alone; its mean is then taken as zero, and its square is decayed when the row is next
touched. What is left out is below the rounding of the weights.

Threads take ranges of tokens, then of latents; each runs its own products on one thread, so that a
chunk of pre-activations is still in its core's cache when its k largest are looked for.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from sae_placebo.core.lazy import torch
from sae_placebo.core.workers import Workers
from sae_placebo.saes import auxiliary
from sae_placebo.saes.base import Context, Evaluation, SAESpec
from sae_placebo.saes.fast_selection import Aside, Search, select_both
from sae_placebo.saes.fast_sites import by_latent, decoded
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.selection import Selection

SWITCH = "SAE_PLACEBO_COMPILED"
"""The environment variable of this name switches the compiled loops off if it is `0`."""

_NEGLIGIBLE = 1e-8


def available() -> bool:
    """Return whether compiled loops can be used: numba is installed and they are not switched off."""
    return os.environ.get(SWITCH, "1") != "0" and importlib.util.find_spec("numba") is not None


class FastStep:
    """The compiled step of one SAE in training.

    Args:
        spec: The architecture.
        rows: Its tensors, W_enc latent by latent; they are changed in place.
        moments: For each trained tensor, Adam's `exp_avg`, `exp_avg_sq` and `step`.
        betas: Adam's.
        search: Whether candidates are looked for in 8-bit products; see `fast_selection.Search`.
    """

    def __init__(
        self,
        spec: SAESpec,
        rows: Mapping[str, torch.Tensor],
        moments: Mapping[str, Mapping[str, torch.Tensor]],
        betas: tuple[float, float],
        search: bool = False,
    ) -> None:
        self._spec, self._rows, self._moments, self._betas = spec, rows, moments, betas
        self.search = Search(rows["W_enc"]) if search else None
        patience = math.ceil(math.log(_NEGLIGIBLE) / math.log(betas[0])) if betas[0] > 0 else 1
        self.patience = patience
        n = spec.d_sae
        # a row that never had a gradient has no moments: leaving it alone is exact from the start
        self.quiet = {
            name: torch.full((n,), patience + 1, dtype=torch.int32)
            for name in ("W_enc", "W_dec")
            if name in moments
        }
        self._sites: Any = None
        self._place = np.full(n, -1, np.int32)

    def evaluate(
        self,
        params: Mapping[str, torch.Tensor],
        x: Float[torch.Tensor, "token d_in"],
        chosen: Selection,
        context: Context,
        workspace: Workspace,
    ) -> Evaluation:
        """Return the objective, and the gradients of all tensors but the two matrices.

        `update` then steps the matrices.
        """
        spec = self._spec
        with torch.no_grad(), Workers() as workers:
            inputs = workspace.buffer("inputs", x.shape, x)
            workers.run(
                lambda _, a, b: torch.sub(x[a:b], params["b_dec"], out=inputs[a:b]), len(x), 64
            )
            weight, most = spec.auxiliary(x.shape[1])
            # no more dead latents than are used: none is chosen, and dense products are faster
            many = weight > 0 and int(context.dead.sum()) > most
            (offsets, latents, z), *dead_sites = select_both(
                inputs, self._rows, chosen, Aside(context.dead, most) if many else None, workspace,
                workers, self.search,
            )  # fmt: skip
            index = latents.long()
            values = spec.codes_at(params, index, z)
            codes = (offsets, latents, values)
            error, products, missed, given, sums = decoded(
                inputs, self._rows["W_dec"], codes, workspace, workers, "site"
            )
            energy, (error_sum, input_sum) = torch.tensor(missed, dtype=x.dtype), sums
            scale = 2 / x.numel()
            more = spec.at_sites(params, index, z, products.mul_(scale), context, len(x))
            sites, *counted = by_latent(codes, more.to_z, spec.d_sae)
            totals, fired = (torch.from_numpy(count) for count in counted)
            found = {
                "b_enc": totals,
                "b_dec": error_sum.mul_(scale),  # less what `update` takes off
            }
            for name, weights in more.to_latents.items():
                found[name] = torch.zeros_like(totals).index_add_(0, index, weights)
            loss = energy / x.numel() + more.penalty
            if many:
                args = (self._rows, inputs, error, dead_sites[0], weight, workspace, workers)
                aux: auxiliary.Auxiliary | None = auxiliary.at_sites(*args)
            else:
                aux = auxiliary.by_hand(params, inputs, error, context.dead, weight, most)
            if aux is not None:
                found["b_enc"] = totals.index_add(0, aux.latents, aux.to_b_enc)
                found["b_dec"] += aux.to_b_dec
                loss = loss + aux.loss
            buffers = spec.next_buffers(params, values, context)
        if "W_enc" not in self.quiet:
            found["b_dec"] -= totals @ self._rows["W_enc"]
        variance = given - torch.dot(input_sum, input_sum) / len(x)
        self._sites = (sites, inputs, error, more.to_z, values, aux, scale, totals)
        active = (values > 0).sum()
        return Evaluation(loss, energy, fired, active, found, buffers, variance)

    def update(self, rate: float, b_dec: Float[torch.Tensor, "d_in"]) -> None:
        """Step the two matrices with what `evaluate` found, and complete the gradient of `b_dec`."""
        with Workers() as workers:
            self._update(rate, b_dec, workers)

    def _update(self, rate: float, b_dec: torch.Tensor, workers: Workers) -> None:
        from sae_placebo.saes import compiled_update as compiled

        sites, inputs, error, to_z, values, aux, scale, totals = self._sites
        self._sites = None
        width = inputs.shape[1]
        nothing = np.empty((0, width), np.float32)
        extra = dict.fromkeys(self.quiet, (self._place, nothing))
        if aux is not None:
            chosen = aux.latents.numpy()
            self._place[chosen] = np.arange(len(chosen), dtype=np.int32)
            extra["W_enc"] = (self._place, aux.to_encoder.numpy())
            extra["W_dec"] = (self._place, aux.to_decoder.numpy())
        if "W_enc" in self.quiet:
            adam = self._stepped("W_enc", rate)
            state, quiet = self._state("W_enc")
            offsets = np.zeros((workers.threads, width), np.float32)
            workers.run(
                lambda i, first, stop: compiled.update_encoder(
                    sites, inputs.numpy(), to_z.numpy(), extra["W_enc"], state, quiet,
                    totals.numpy(), offsets[i], adam, self.patience, first, stop,
                ),
                self._spec.d_sae, 64,
            )  # fmt: skip
            b_dec += torch.from_numpy(offsets.sum(axis=0))
        if "W_dec" in self.quiet:
            adam = self._stepped("W_dec", rate)
            state, quiet = self._state("W_dec")
            workers.run(
                lambda _, first, stop: compiled.update_decoder(
                    sites, error.numpy(), values.numpy(), extra["W_dec"], state, quiet, adam,
                    self.patience, np.float32(scale), first, stop,
                ),
                self._spec.d_sae, 64,
            )  # fmt: skip
        if aux is not None:
            self._place[chosen] = -1

    def settle(self) -> None:
        """Bring the moments of rows that were left alone up to date, before another kind of step."""
        for name, quiet in self.quiet.items():
            late = (quiet > self.patience).nonzero()[:, 0]
            missed = (quiet[late] - self.patience).to(torch.float64)
            self._moments[name]["exp_avg"][late] = 0
            decay = (self._betas[1] ** missed).float()
            self._moments[name]["exp_avg_sq"][late] *= decay[:, None]
            quiet.zero_()

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the next step depends on, besides tensors and moments."""
        kept = {f"{name}.quiet": quiet.clone() for name, quiet in self.quiet.items()}
        return kept | ({} if self.search is None else {"search": self.search.state()})

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take up the counts of quiet steps; a state of the plain step has none, and needs none."""
        if self.search is not None and "search" in state:
            self.search.restore(state["search"])
        for name, quiet in self.quiet.items():
            key = f"{name}.quiet"
            quiet.copy_(state[key]) if key in state else quiet.zero_()

    def _stepped(self, name: str, rate: float) -> np.ndarray:
        step = self._moments[name]["step"]
        step += 1
        beta1, beta2 = self._betas
        n = float(step)
        root = 1 / math.sqrt(1 - beta2**n) if beta2 > 0 else 1.0
        return np.array([rate / (1 - beta1**n), beta1, beta2, root, 1e-8], np.float32)

    def _state(self, name: str) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        moments = self._moments[name]
        tensors = (self._rows[name], moments["exp_avg"], moments["exp_avg_sq"])
        return tuple(tensor.numpy() for tensor in tensors), self.quiet[name].numpy()
