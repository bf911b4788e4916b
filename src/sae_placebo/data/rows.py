"""Rows of token ids, with the documents that they come from and the labels of their tokens.

A row holds consecutive tokens of one document, behind the tokenizer's BOS token where it has one,
and padding on the right. Decoder attention is causal, so padding never reaches a real token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int32

from sae_placebo.data.labels.align import N_BYTES, TokenLabels
from sae_placebo.data.labels.base import Labels
from sae_placebo.data.labels.catalogue import NAMES
from sae_placebo.data.usable import UsableTokens


@dataclass(frozen=True)
class Rows:
    """Rows of token ids of one split.

    Attributes:
        token_ids: [row, pos]; padding holds id 0.
        lengths: [row] tokens that are real, BOS included.
        documents: [row] index into `names`.
        names: Document names.
        labels: Known structure of documents that are Python source; None where no document is, or
            where the tokenizer does not tell which characters a token covers.
        left_out: [row, pos] tokens that do not count though they are no padding; None where there are none
            but the first of each row.
    """

    token_ids: Int32[np.ndarray, "row pos"]
    lengths: Int32[np.ndarray, " row"]
    documents: Int32[np.ndarray, " row"]
    names: tuple[str, ...]
    labels: Labels | None = None
    left_out: Bool[np.ndarray, "row pos"] | None = None

    def usable(self) -> Bool[np.ndarray, "row pos"]:
        """Return the positions that count: neither the first of a row nor padding, nor left out.

        The first position is BOS, or, without BOS, a token that sees no context and that models use
        as an attention sink (SmolLM2-135M after layer 11: norm 23,800 against 143 elsewhere).
        """
        position = np.arange(self.token_ids.shape[1])
        found = np.asarray((position > 0) & (position < self.lengths[:, None]))
        return found if self.left_out is None else found & ~self.left_out


@dataclass(frozen=True)
class TokenRun:
    """Consecutive tokens of one document, BOS not included."""

    ids: list[int]
    labels: TokenLabels | None

    def __getitem__(self, part: slice) -> TokenRun:
        return TokenRun(self.ids[part], self.labels[part] if self.labels is not None else None)


@dataclass(frozen=True)
class RowsBuilder:
    """Rows that are being filled: a piece each, and the index of its document's name.

    Attributes:
        bos: The id that stands in front of each row; None for none.
        rule: Which tokens count; its positions are those of a row.
    """

    bos: int | None
    rule: UsableTokens
    pieces: list[TokenRun] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    @property
    def context(self) -> int:
        """Return the positions of a row."""
        return len(self.rule.positions)

    def add(self, piece: TokenRun, most: int) -> TokenRun:
        """Add a row of the document whose name is added next, cut where `most` of its tokens count.

        Returns:
            The piece as it was added.
        """
        counted = np.cumsum(self.usable(piece))
        kept = piece[: int(np.searchsorted(counted, most)) + 1]
        self.pieces.append(kept)
        self.owners.append(len(self.names))
        self.sizes.append(int(min(counted[-1], most)))
        return kept

    def usable(self, piece: TokenRun) -> Bool[np.ndarray, " token"]:
        """Return which tokens of a row count: without BOS, not the first one."""
        return self.rule.of(piece.ids, int(self.bos is not None))

    @property
    def n_tokens(self) -> int:
        """Return how many tokens count."""
        return sum(self.sizes)

    def labelled(self) -> bool:
        """Return whether any document is one whose labels could be known."""
        return any(piece.labels is not None for piece in self.pieces)

    def build(self, labelled: bool) -> Rows:
        """Return the rows, padded to the context, behind BOS where there is one; labels if asked for."""
        n, ahead, context = len(self.pieces), int(self.bos is not None), self.context
        left_out = None if self.rule.is_default else np.zeros((n, context), dtype=bool)
        token_ids = np.zeros((n, context), dtype=np.int32)
        bits = np.zeros((n, context, N_BYTES), dtype=np.uint8)
        known = np.zeros((n, context), dtype=bool)
        for i, piece in enumerate(self.pieces):
            place = slice(ahead, ahead + len(piece.ids))
            token_ids[i, :ahead], token_ids[i, place] = self.bos or 0, piece.ids
            if left_out is not None:
                left_out[i, place] = ~self.usable(piece)
            if piece.labels is not None:
                bits[i, place], known[i, place] = piece.labels.bits, piece.labels.known
        return Rows(
            token_ids=token_ids,
            lengths=np.array([ahead + len(one.ids) for one in self.pieces], dtype=np.int32),
            documents=np.array(self.owners, dtype=np.int32),
            names=tuple(self.names),
            labels=Labels(NAMES, bits, known) if labelled else None,
            left_out=left_out,
        )
