"""Walking through codes latent by latent, and sums by latent and group of documents.

Entries of the codes are many (96 million for 3 million tokens and k = 32), so what is computed for
each of them is held for a block of latents at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64, Integer

from sae_placebo.latents.base import Encoded, Folds

# entries walked through at once, about: the largest arrays are this many 8-byte numbers
_ENTRIES = 1 << 20
# latents at once, at most: they may be many where they fire rarely
_LATENTS = 1 << 12


@dataclass(frozen=True, eq=False)
class LatentBlock:
    """Codes of consecutive latents.

    Attributes:
        first: The first latent.
        bounds: [latent + 1] where each one's entries begin, the last one's end behind.
        owners: [entry] latent, counted from `first`.
        tokens: [entry] token, ascending within a latent.
        values: [entry] activation.
    """

    first: int
    bounds: Int64[np.ndarray, " latents_plus_one"]
    owners: Int64[np.ndarray, " entry"]
    tokens: Integer[np.ndarray, " entry"]
    values: Float32[np.ndarray, " entry"]

    @property
    def latents(self) -> slice:
        """The latents of the block."""
        return slice(self.first, self.first + len(self.bounds) - 1)

    def sums(
        self,
        cells: Integer[np.ndarray, " entry"],
        n_cells: int,
        weights: Float[np.ndarray, " entry"] | None = None,
    ) -> Float[np.ndarray, "latent cell"]:
        """Return the sum of the weights by latent and cell; without weights, the number of entries."""
        n = len(self.bounds) - 1
        found = np.bincount(self.owners * n_cells + cells, weights, minlength=n * n_cells)
        return found.astype(np.float64, copy=False).reshape(n, n_cells)


def latent_blocks(
    reading: Encoded, entries: int = _ENTRIES, latents: int = _LATENTS
) -> Iterator[LatentBlock]:
    """Return blocks of latents, in order, with at most so many latents and about so many entries.

    No latent is cut, so one with more entries than that is a block of its own.
    """
    codes = reading.by_latent
    bounds = codes.indptr.astype(np.int64)
    first = 0
    while first < reading.d_sae:
        after = int(np.searchsorted(bounds, bounds[first] + entries, "right")) - 1
        last = min(max(first + 1, after), first + latents, reading.d_sae)
        part = slice(int(bounds[first]), int(bounds[last]))
        inside = bounds[first : last + 1] - bounds[first]
        yield LatentBlock(
            first=first,
            bounds=inside,
            owners=np.repeat(np.arange(last - first), np.diff(inside)),
            tokens=codes.indices[part],
            values=codes.data[part],
        )
        first = last


def leave_out(by_group: Float[np.ndarray, "*shape group"]) -> Float[np.ndarray, "*shape fold"]:
    """Return sums over all groups, and over all but each: the last axis becomes 1 + n_groups."""
    total = by_group.sum(-1, keepdims=True)
    return np.concatenate([total, total - by_group], axis=-1)


def token_groups(reading: Encoded, folds: Folds) -> Int64[np.ndarray, " token"]:
    """Return the group of documents of each token."""
    found: Int64[np.ndarray, " token"] = folds.groups[reading.tokens.documents]
    return found


def on_every_fold(
    values: Float[np.ndarray, " latent"], folds: Folds
) -> Float[np.ndarray, "latent fold"]:
    """Return a statistic that is not repeated without each group: its value, in every fold."""
    return np.repeat(values.astype(np.float64)[:, None], 1 + folds.n_groups, axis=1)
