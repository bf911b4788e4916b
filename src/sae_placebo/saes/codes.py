"""Sparse codes of tokens: what every SAE returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Float32, Int64

from sae_placebo.core.lazy import torch
from sae_placebo.saes.selection import Sites


@dataclass(frozen=True)
class Codes:
    """Sparse codes of some tokens: row t holds `offsets[t]` to `offsets[t + 1]`.

    Values are above zero; what is zero is not stored. The order of latents within a token is not
    promised.
    """

    offsets: Int64[torch.Tensor, "token_plus_one"]
    latents: Int64[torch.Tensor, "active"]
    values: Float32[torch.Tensor, "active"]
    d_sae: int

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens."""
        return len(self.offsets) - 1

    def tokens(self) -> Int64[torch.Tensor, "active"]:
        """Return the token of each stored value, ascending."""
        index = torch.arange(self.n_tokens, device=self.offsets.device)
        return index.repeat_interleave(self.offsets.diff())

    def dense(self) -> Float32[torch.Tensor, "token d_sae"]:
        """Return the codes with their zeros; for small inputs."""
        out = self.values.new_zeros(self.n_tokens, self.d_sae)
        out[self.tokens(), self.latents] = self.values
        return out

    @classmethod
    def from_sites(cls, sites: Sites, values: Float[torch.Tensor, "site"], d_sae: int) -> Codes:
        """Return codes from the values at selected sites; those at or below zero are dropped."""
        stored = values > 0
        if bool(stored.all()):
            return cls(sites.offsets, sites.latents, values.float(), d_sae)
        before = torch.zeros(len(values) + 1, dtype=torch.int64, device=values.device)
        torch.cumsum(stored, dim=0, out=before[1:])
        return cls(before[sites.offsets], sites.latents[stored], values[stored].float(), d_sae)

    @classmethod
    def concatenate(cls, parts: Sequence[Codes]) -> Codes:
        """Return the codes of all parts' tokens, in order.

        Raises:
            ValueError: there is no part, or the parts differ in `d_sae`.
        """
        widths = {part.d_sae for part in parts}
        if len(widths) != 1:
            raise ValueError(f"codes of one d_sae are needed, not of {sorted(widths)}")
        counts = torch.cat([part.offsets.diff() for part in parts])
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        latents = torch.cat([part.latents for part in parts])
        return cls(offsets, latents, torch.cat([part.values for part in parts]), widths.pop())
