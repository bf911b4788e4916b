"""The sites of a batch, its active (token, latent) pairs, are chosen here.

The pre-activations of a chunk of tokens are computed, the few that matter are taken, and the rest is
overwritten by the next chunk: no array of tokens by latents is ever whole.

Where pre-activations are equal at the edge, the latent with the lower index is taken (in a batch: the
earlier token, then the lower index), in this and in every faster way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Int64

from sae_placebo.core.lazy import torch
from sae_placebo.saes.kernels import CHUNK_TOKENS, Workspace, largest


@dataclass(frozen=True)
class Selection:
    """A selection says how sites are chosen from the pre-activations z.

    Attributes:
        kind: `row`: each token's `k` largest that are above zero. `batch`: the `k` times tokens
            largest of the batch that are above zero. `above`: all that exceed `threshold`.
        k: Latents per token, for `row` and `batch`; for `batch` it may be a fraction.
        threshold: For `above`: one number, or one per latent. For `batch`: a guess of the value that
            is just reached; it saves time, and no result depends on it.
    """

    kind: Literal["row", "batch", "above"]
    k: int | float = 0
    threshold: torch.Tensor | None = None

    def target(self, n_tokens: int, d_sae: int) -> int:
        """Return how many sites a batch may have at most, for `batch`."""
        return min(max(1, round(self.k * n_tokens)), n_tokens * d_sae)


@dataclass(frozen=True)
class Sites:
    """Chosen sites, token by token: token t holds `offsets[t]` to `offsets[t + 1]`."""

    offsets: Int64[torch.Tensor, "token_plus_one"]
    latents: Int64[torch.Tensor, "site"]
    z: Float[torch.Tensor, "site"]

    def tokens(self) -> Int64[torch.Tensor, "site"]:
        """Return the token of each site, ascending."""
        index = torch.arange(len(self.offsets) - 1, device=self.offsets.device)
        return index.repeat_interleave(self.offsets.diff(), output_size=len(self.latents))

    def keep(self, chosen: Bool[torch.Tensor, "site"]) -> Sites:
        """Return the chosen ones alone."""
        before = self.offsets.new_zeros(len(chosen) + 1)
        torch.cumsum(chosen, dim=0, out=before[1:])
        return Sites(before[self.offsets], self.latents[chosen], self.z[chosen])


def pre_activations(
    inputs: Float[torch.Tensor, "token d_in"],
    params: Mapping[str, torch.Tensor],
    workspace: Workspace,
) -> Iterator[tuple[slice, Float[torch.Tensor, "chunk d_sae"]]]:
    """Yield z = inputs W_enc + b_enc a chunk of tokens at a time; each overwrites the last."""
    weights, bias = params["W_enc"], params["b_enc"]
    for start in range(0, len(inputs), CHUNK_TOKENS):
        rows = slice(start, min(start + CHUNK_TOKENS, len(inputs)))
        kept = workspace.buffer("z", (rows.stop - start, len(bias)), inputs)
        yield rows, torch.addmm(bias, inputs[rows], weights, out=kept)


def select(
    inputs: Float[torch.Tensor, "token d_in"],
    params: Mapping[str, torch.Tensor],
    chosen: Selection,
    workspace: Workspace,
) -> Sites:
    """Return the sites of `inputs`, which are activations less `b_dec`."""
    if chosen.kind == "row":
        return _of_rows(inputs, params, int(chosen.k), workspace)
    if chosen.kind == "above":
        limit = inputs.new_zeros(()) if chosen.threshold is None else chosen.threshold
        return _above(inputs, params, limit, workspace)
    target = chosen.target(len(inputs), len(params["b_enc"]))
    for limit in limits(inputs, params, chosen, workspace):
        sites = _above(inputs, params, limit, workspace)
        if len(sites.z) >= target:
            break
    if len(sites.z) <= target:
        return sites
    kept = torch.zeros_like(sites.z, dtype=torch.bool)
    kept[largest(sites.z[None], target)[0]] = True
    return sites.keep(kept)


_SAMPLE_TOKENS, _SAMPLE_SHARE = 64, 0.8


def limits(
    inputs: Float[torch.Tensor, "token d_in"],
    params: Mapping[str, torch.Tensor],
    chosen: Selection,
    workspace: Workspace,
) -> list[torch.Tensor]:
    """Return above which values a batch's largest are looked for, the first that suffices being used.

    The guess of `chosen`, or, where it has none above zero, four fifths of what a few tokens reach; then
    zero.
    """
    nothing = inputs.new_zeros(())
    if chosen.threshold is not None and float(chosen.threshold) > 0:
        return [chosen.threshold, nothing]
    if len(inputs) == 0:
        return [nothing]
    _, z = next(pre_activations(inputs[:_SAMPLE_TOKENS], params, workspace))
    reached = z.reshape(-1).topk(chosen.target(len(z), z.shape[1]), sorted=True).values[-1]
    return [(_SAMPLE_SHARE * reached).clamp_min(0.0), nothing]


def _of_rows(
    inputs: Float[torch.Tensor, "token d_in"],
    params: Mapping[str, torch.Tensor],
    k: int,
    workspace: Workspace,
) -> Sites:
    latents = workspace.buffer("latents", (len(inputs), k), inputs, torch.int64)
    values = workspace.buffer("values", (len(inputs), k), inputs)
    for rows, z in pre_activations(inputs, params, workspace):
        latents[rows] = largest(z, k)
        torch.gather(z, 1, latents[rows], out=values[rows])
    stored = values > 0
    offsets = torch.zeros(len(inputs) + 1, dtype=torch.int64, device=inputs.device)
    torch.cumsum(stored.sum(dim=1), dim=0, out=offsets[1:])
    return Sites(offsets, latents[stored], values[stored])


def _above(
    inputs: Float[torch.Tensor, "token d_in"],
    params: Mapping[str, torch.Tensor],
    limit: Float[torch.Tensor, "*d_sae"],
    workspace: Workspace,
) -> Sites:
    counts, latents, values = [], [], []
    for _, z in pre_activations(inputs, params, workspace):
        over = z > limit
        counts.append(over.sum(dim=1))
        latents.append(over.nonzero()[:, 1])
        values.append(z[over])
    offsets = torch.zeros(len(inputs) + 1, dtype=torch.int64, device=inputs.device)
    if counts:
        torch.cumsum(torch.cat(counts), dim=0, out=offsets[1:])
        return Sites(offsets, torch.cat(latents), torch.cat(values))
    return Sites(offsets, offsets[:0].clone(), inputs.new_zeros(0))
