"""Families of tokens: those that are equal but for case, leading space and suffix, one word to a reader."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int64

from sae_placebo.data.tokenizing import is_numbered

# what tokenizers write for a leading space (byte-level BPE, SentencePiece), for a newline, and for
# a piece inside a word (WordPiece)
_MARKERS = re.compile("^(?:[\\sĠ▁Ċ]|##)+|[\\sĠ▁Ċ]+$")
_SUFFIX = re.compile("(?:'s|’s|ing|edly|ed|es|s|ly)$")
_DOUBLED = re.compile(r"([^\W\d_aeiou])\1$")
_SHORTEST_STEM = 3
PIECE = "\ufffd"
"""Character in the text of a token that stands for bytes that are not a whole character."""


@lru_cache(maxsize=1 << 18)
def fold(token: str) -> str:
    """Return the stem that names a token's family.

    Four rules are applied in order. (1) Surrounding white space and the tokenizers' marks for it are removed,
    and WordPiece's ##. (2) Case is folded. (3) If only letters (and an apostrophe) are left, one suffix of
    's, ing, edly, ed, es, s, ly is removed, where it leaves three letters or more and is not the second
    s of ss. (4) If more than three letters remain, a final e is removed, a doubled final consonant becomes
    one, and a final y becomes i. A token of white space alone is its own family.

    The rules are English and crude: "news" is in the family of "new", and "ran" is not in that of "run".
    They make the same errors in every arm.

    >>> fold(" Running") == fold("runs") == fold("Ġrun")
    True
    """
    stem = _MARKERS.sub("", token).casefold()
    if not stem:
        return token
    if not stem.replace("'", "").replace("’", "").isalpha():
        return stem
    cut = _SUFFIX.sub("", stem)
    if len(cut) >= _SHORTEST_STEM and not stem.endswith("ss"):
        stem = cut
    if len(stem) > _SHORTEST_STEM:
        stem = _DOUBLED.sub(r"\1", stem.removesuffix("e"))
        stem = re.sub("y$", "i", stem)
    return stem


def token_families(
    vocabulary: Sequence[str], token_ids: Int64[np.ndarray, " type"]
) -> Int64[np.ndarray, " type"]:
    """Return the index of each token's family; tokens of one family have the same number.

    A token with a piece of a character in it is a family of its own, since all pieces have the same text, and
    a script whose characters take several tokens each would otherwise be one family. So is each token
    where no tokenizer says how it is spelled.
    """
    if is_numbered(vocabulary):
        return np.arange(len(token_ids), dtype=np.int64)
    numbers: dict[str | int, int] = {}
    texts = [(int(token), vocabulary[token]) for token in token_ids]
    names = [token if PIECE in text else fold(text) for token, text in texts]
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)
