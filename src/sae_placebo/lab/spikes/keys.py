"""Tokens have keys, and random numbers are drawn by key.

So the same token gets the same numbers whenever it is read, in whatever order and by whatever arm.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from sae_placebo.data.rows import Rows


@dataclass(frozen=True)
class TokenKeys:
    """The keys of tokens: a hash of each token's document, its position there, and its id."""

    documents: UInt64[np.ndarray, " token"]
    positions: UInt64[np.ndarray, " token"]
    token_ids: Int64[np.ndarray, " token"]

    @classmethod
    def of_rows(cls, rows: Rows, places: Int64[np.ndarray, "token two"]) -> TokenKeys:
        """Return the keys of tokens of a text.

        A document is identified by its name, and a position counts from the document's first row, so that
        splits and the order of reading do not matter.

        Args:
            rows: The text.
            places: Row of each token and its position in the row, as in `ActivationBlock.places`.
        """
        names = np.array([_hashed("document", name) for name in rows.names], dtype=np.uint64)
        first = np.full(len(rows.names), len(rows.documents), dtype=np.int64)
        np.minimum.at(first, rows.documents, np.arange(len(rows.documents)))
        owner = rows.documents[places[:, 0]]
        ahead = places[:, 0] - first[owner]
        positions = ahead * rows.token_ids.shape[1] + places[:, 1]
        ids = rows.token_ids[places[:, 0], places[:, 1]].astype(np.int64)
        return cls(names[owner], positions.astype(np.uint64), ids)

    @classmethod
    def plain(cls, n_tokens: int, document: str = "") -> TokenKeys:
        """Return keys of tokens that come from no text: all are in one document and have the id 0."""
        return cls(
            np.full(n_tokens, _hashed("document", document), dtype=np.uint64),
            np.arange(n_tokens, dtype=np.uint64),
            np.zeros(n_tokens, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(
        self, which: Bool[np.ndarray, " token"] | Int64[np.ndarray, " chosen"]
    ) -> TokenKeys:
        return TokenKeys(self.documents[which], self.positions[which], self.token_ids[which])

    def hashes(self) -> UInt64[np.ndarray, " token"]:
        """Return one number per token that depends only on its document and position."""
        return _mixed(self.documents ^ _mixed(self.positions))


def _hashed(*names: str | int) -> int:
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:8], "big")


def _mixed(x: UInt64[np.ndarray, " token"]) -> UInt64[np.ndarray, " token"]:
    """Return the output function of SplitMix64 (Steele, Lea, Flood 2014): a bijection that mixes bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def uniforms(
    hashes: UInt64[np.ndarray, " token"], seed: int, *names: str
) -> Float64[np.ndarray, " token"]:
    """Return one number in (0, 1) per token; tokens of one hash, seed and names get the same number.

    Args:
        hashes: Hashes of the tokens, from `TokenKeys.hashes`.
        seed: Seed of the numbers.
        names: What the numbers are for; other names give independent numbers.
    """
    mixed = _mixed(hashes ^ np.uint64(_hashed(seed, *names)))
    drawn: np.ndarray = ((mixed >> np.uint64(11)) + 0.5) * 2.0**-53
    return drawn
