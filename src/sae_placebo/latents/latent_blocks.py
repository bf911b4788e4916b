"""Blocks of consecutive latents, and sums over their codes by latent and group of documents.

The codes have many entries (96 million for 3 million tokens and k = 32), so what is computed for each entry
is held for one block of latents at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64, Integer

from sae_placebo.latents.base import Encoded, Folds

# about how many entries a block has: its largest arrays are this many 8-byte numbers
_ENTRIES = 1 << 20
# how many latents a block has at most, which binds where they fire rarely
_LATENTS = 1 << 12


@dataclass(frozen=True, eq=False)
class LatentBlock:
    """Codes of consecutive latents.

    Attributes:
        first: The first latent.
        bounds: [latent + 1] where the entries of each latent begin; the last number is where they end.
        owners: [entry] the entry's latent, counted from `first`.
        tokens: [entry] the entry's token; tokens ascend within a latent.
        values: [entry] the activation.
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
        """Return the sum of the weights of the entries of each latent and cell.

        Args:
            cells: Cell of each entry, 0 to n_cells - 1, such as its group of documents.
            n_cells: Number of cells.
            weights: Weight of each entry; None counts entries.
        """
        n = len(self.bounds) - 1
        totals = np.bincount(self.owners * n_cells + cells, weights, minlength=n * n_cells)
        return totals.astype(np.float64, copy=False).reshape(n, n_cells)


def latent_blocks(
    reading: Encoded, entries: int = _ENTRIES, latents: int = _LATENTS
) -> Iterator[LatentBlock]:
    """Yield all latents in order, in blocks of at most `latents` latents and about `entries` entries.

    No latent is cut, so that one with more entries than that is a block of its own.
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
    """Return the sums over all groups, then over all groups but each: the last axis is 1 + n_groups."""
    total = by_group.sum(-1, keepdims=True)
    return np.concatenate([total, total - by_group], axis=-1)


def token_groups(reading: Encoded, folds: Folds) -> Int64[np.ndarray, " token"]:
    """Return the group of documents of each token."""
    groups: Int64[np.ndarray, " token"] = folds.groups[reading.tokens.documents]
    return groups


def on_every_fold(
    values: Float[np.ndarray, " latent"], folds: Folds
) -> Float[np.ndarray, "latent fold"]:
    """Return a statistic that is not computed again without each group, repeated in every fold."""
    return np.repeat(values.astype(np.float64)[:, None], 1 + folds.n_groups, axis=1)
