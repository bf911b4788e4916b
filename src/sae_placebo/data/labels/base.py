"""Labels of rows of tokens, packed eight to a byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8


@dataclass(frozen=True)
class Labels:
    """The labels that hold at each position of rows of tokens.

    Attributes:
        names: Names of the labels, such as `kind.keyword`.
        bits: [row, pos, byte] the labels, packed along the last axis, lowest bit first.
        known: [row, pos] False where there is no ground truth: BOS, padding, documents that are no
            Python, that do not parse, and tokens that cover no character. Their bits are zero.
    """

    names: tuple[str, ...]
    bits: UInt8[np.ndarray, "row pos byte"]
    known: Bool[np.ndarray, "row pos"]

    def at(self, places: Int64[np.ndarray, "token two"]) -> Bool[np.ndarray, "token label"]:
        """Return which labels hold at places (row, pos); False everywhere where nothing is known."""
        packed = self.bits[places[:, 0], places[:, 1]]
        unpacked = np.unpackbits(packed, axis=-1, count=len(self.names), bitorder="little")
        return unpacked.astype(bool)
