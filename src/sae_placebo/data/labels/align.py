"""From labels of characters to labels of a language model's tokens, through offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from sae_placebo.data.labels.catalogue import NAMES
from sae_placebo.data.labels.kinds import white
from sae_placebo.data.labels.python import mark

N_BYTES = -(-len(NAMES) // 8)


@dataclass(frozen=True)
class TokenLabels:
    """Packed labels of consecutive tokens of one document, as in `Labels`."""

    bits: UInt8[np.ndarray, "token byte"]
    known: Bool[np.ndarray, " token"]

    def __getitem__(self, part: slice) -> TokenLabels:
        return TokenLabels(self.bits[part], self.known[part])


def label_tokens(
    text: str, offsets: Sequence[tuple[int, int]], first: int, stop: int
) -> TokenLabels:
    """Return the labels of the tokens [first, stop) of a document of Python source.

    A label holds for a token if it holds for any of its characters that is not white space, or, for a
    token of white space alone, for any of its characters. Nothing is known of a token that covers no
    character, and of any token where the text is no Python of this interpreter's version.

    Args:
        text: The whole document.
        offsets: [start, stop) in characters of the text, of each token of the document.
        first: First token to label.
        stop: Behind the last token to label.
    """
    spans = cover(text, offsets, first, stop)
    unknown = TokenLabels(
        np.zeros((stop - first, N_BYTES), np.uint8), np.zeros(stop - first, dtype=bool)
    )
    if not len(spans) or spans.max() <= spans.min():
        return unknown
    low, high = int(spans[:, 0].min()), int(spans[:, 1].max())
    rows = mark(text, low, high)
    if rows is None:
        return unknown
    return _gather(rows, white(text[low:high]), spans - low)


def cover(
    text: str, offsets: Sequence[tuple[int, int]], first: int, stop: int
) -> Int64[np.ndarray, "token two"]:
    """Return the spans of some tokens, white space in front included.

    Some tokenizers leave white space at the start of a token out of its offsets, some at the end.
    What lies between two tokens goes to the later one if it is all white space. Text that the
    tokenizer dropped otherwise belongs to no token.
    """
    covered = max((end for _, end in offsets[:first][-8:]), default=0)
    spans = np.array(offsets[first:stop], dtype=np.int64).reshape(-1, 2)
    before = np.maximum.accumulate(np.append(covered, spans[:, 1]))[:-1]
    for i in np.flatnonzero(before < spans[:, 0]):
        if not text[before[i] : spans[i, 0]].strip():
            spans[i, 0] = before[i]
    return spans


def _gather(
    rows: Bool[np.ndarray, "label char"],
    blank: Bool[np.ndarray, " char"],
    spans: Int64[np.ndarray, "token two"],
) -> TokenLabels:
    start, stop = spans[:, 0], spans[:, 1]
    n_solid = np.append(0, np.cumsum(~blank))
    solid = n_solid[stop] > n_solid[start]
    held = np.empty((len(spans), len(rows)), dtype=bool)
    count = np.zeros(rows.shape[1] + 1, dtype=np.int32)
    for i, row in enumerate(rows):
        np.cumsum(row & ~blank, out=count[1:])
        of_solid = count[stop] > count[start]
        np.cumsum(row, out=count[1:])
        held[:, i] = np.where(solid, of_solid, count[stop] > count[start])
    return TokenLabels(np.packbits(held, axis=-1, bitorder="little"), stop > start)
