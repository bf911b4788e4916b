"""How much of a latent is explained by one yes-or-no property of the current token: spelling or syntax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

from sae_placebo.data.tokenizing import is_numbered
from sae_placebo.latents.base import Columns, Encoded, Folds, TokenTable
from sae_placebo.latents.latent_blocks import LatentBlock, latent_blocks, leave_out, token_groups

# how many tokens must have a property, and how many lack it: with fewer, a latent may agree by chance
MIN_TOKENS = 100
_BLOCK_LATENTS = 512

SPELLING: tuple[str, ...] = (
    "spelling.leading_space",
    "spelling.lower_case",
    "spelling.capitalized",
    "spelling.all_caps",
    "spelling.digits",
    "spelling.punctuation",
    "spelling.white_space",
    "spelling.newline",
    "spelling.non_ascii",
    "spelling.suffix_s",
    "spelling.suffix_ed",
    "spelling.suffix_ing",
    "spelling.suffix_ly",
    "spelling.length_1",
    "spelling.length_2",
    "spelling.length_3",
    "spelling.length_4_5",
    "spelling.length_6_8",
    "spelling.length_9_or_more",
)
"""Properties that `spelling` reads off a token's text."""

_SPACES = " \tĠ▁"
_NEWLINES = "\n\rĊ"
_SHORTEST_WITH_SUFFIX = 4


def attributes(reading: Encoded, folds: Folds) -> tuple[Columns, list[str | None]]:
    """Return how well the best binary attribute of the current token explains each latent, and its name.

    Columns:
        attribute_r2: The largest share of the variance of a over tokens that is removed by the mean of a
            with and without one attribute, which is corr(a, attribute)^2; 0 to 1. The attributes are those
            of `SPELLING`, over all tokens, and each label of the text where it has labels, over the tokens
            whose labels are known. An attribute that fewer than 100 tokens have, or lack, is left out.
            Null 0: the largest of m = 83 independent squared correlations over n tokens is about
            2 ln(m) / n, and more for latents that fire a few times only. Each fold picks its own best
            attribute. NaN where the latent never fires on a token whose attributes are known, or is
            equally active on all of them.

    The names are those of the best attribute on all documents; None where the value is NaN.

    Source: variance reduction of a neuron by a binary property, Gurnee et al. 2024 (arXiv 2401.12181).
    Differs: theirs also tests the previous token and token ids, which are statistics of their own here.
    """
    table = _table(reading.tokens, token_groups(reading, folds), folds.n_groups)
    r2 = np.full((reading.d_sae, 1 + folds.n_groups), np.nan)
    best = np.full(reading.d_sae, -1)
    for block in latent_blocks(reading, latents=_BLOCK_LATENTS):
        shares = _shares(block, table)
        undefined = np.isnan(shares)
        shares[undefined] = -1
        largest = shares.max(1, initial=-1)
        r2[block.latents] = np.where(largest >= 0, largest, np.nan)
        first = shares[:, :, 0]
        best[block.latents] = np.where(largest[:, 0] >= 0, first.argmax(1), -1)
    return {"attribute_r2": r2}, [table.names[i] if i >= 0 else None for i in best]


def spelling(
    vocabulary: Sequence[str], ids: Int64[np.ndarray, " type"]
) -> Bool[np.ndarray, "type attribute"]:
    """Return which properties of `SPELLING` each token id has.

    White space at either end, and what tokenizers write for it, does not count towards case, length and
    suffix. Only words of four letters or more have a suffix. Where no tokenizer says how tokens are spelled,
    none has any.
    """
    if is_numbered(vocabulary):
        return np.zeros((len(ids), len(SPELLING)), dtype=bool)
    return np.array([_spelled(vocabulary[i]) for i in ids], dtype=bool).reshape(len(ids), -1)


def _spelled(text: str) -> list[bool]:
    word = text.strip(_SPACES + _NEWLINES).strip()
    letters, length = word.isalpha(), len(word)
    suffixed = letters and length >= _SHORTEST_WITH_SUFFIX
    lower = word.lower()
    return [
        text[:1] in tuple(_SPACES) and bool(word),
        letters and word.islower(),
        letters and word[:1].isupper() and (length == 1 or word[1:].islower()),
        letters and length > 1 and word.isupper(),
        word.isdigit(),
        bool(word) and not any(c.isalnum() or c == "\ufffd" for c in word),
        bool(text) and not word,
        any(c in _NEWLINES for c in text),
        not word.isascii(),
        suffixed and lower.endswith("s") and not lower.endswith("ss"),
        suffixed and lower.endswith("ed"),
        suffixed and lower.endswith("ing"),
        suffixed and lower.endswith("ly"),
        length == 1,
        length == 2,
        length == 3,
        4 <= length <= 5,
        6 <= length <= 8,
        length >= 9,
    ]


@dataclass(frozen=True, eq=False)
class _PropertyTable:
    """Attributes of tokens; tokens of one group that have the same attributes share a pattern.

    Attributes:
        names: [attribute] the name of each.
        base: [attribute] 0 where the attribute is known of every token, 1 where of tokens with labels only.
        pattern: [token] the pattern of each token.
        known: [pattern] whether the labels of its tokens are known.
        group: [pattern] the group of documents of its tokens.
        matrix: CSR [pattern, column * n_groups + group] of ones; the columns are the two bases (all tokens,
            tokens with labels), then the attributes.
        counts: [column, fold] number of tokens.
        usable: [attribute] whether enough tokens have it, and enough lack it.
    """

    names: tuple[str, ...]
    base: Int64[np.ndarray, " attribute"]
    pattern: Int64[np.ndarray, " token"]
    known: Bool[np.ndarray, " pattern"]
    group: Int64[np.ndarray, " pattern"]
    matrix: Any
    counts: Float[np.ndarray, "column fold"]
    usable: Bool[np.ndarray, " attribute"]


def _table(
    tokens: TokenTable, groups: Int64[np.ndarray, " token"], n_groups: int
) -> _PropertyTable:
    from scipy.sparse import csr_matrix

    ids, types = np.unique(tokens.ids, return_inverse=True)
    spelled = spelling(tokens.vocabulary, ids.astype(np.int64))
    labels = tokens.labels
    names = SPELLING + (labels.names if labels is not None else ())
    words = [_words(np.packbits(spelled, axis=1))[types], groups[:, None]]
    known = np.zeros(len(tokens), dtype=bool)
    if labels is not None:
        rows, places = tokens.places.T
        known = labels.known[rows, places]
        words += [known[:, None], _words(labels.bits[rows, places])]
    first, pattern = _patterns(words)
    columns = [np.ones((len(first), 1), dtype=bool), known[first, None], spelled[types[first]]]
    if labels is not None:
        columns.append(labels.at(tokens.places[first]) & known[first, None])
    place, column = np.nonzero(np.concatenate(columns, axis=1))
    group = groups[first]
    n_columns = 2 + len(names)
    matrix = csr_matrix(
        (np.ones(len(place), np.float32), (place, column * n_groups + group[place])),
        shape=(len(first), n_columns * n_groups),
    )
    by_group = np.bincount(pattern, minlength=len(first)).astype(np.float64) @ matrix
    counts = leave_out(by_group.reshape(n_columns, n_groups))
    base = (np.arange(len(names)) >= len(SPELLING)).astype(np.int64)
    there, size = counts[2:, 0], counts[base, 0]
    usable = (there >= MIN_TOKENS) & (size - there >= MIN_TOKENS)
    return _PropertyTable(names, base, pattern, known[first], group, matrix, counts, usable)


def _words(packed: UInt8[np.ndarray, "row byte"]) -> Int64[np.ndarray, "row word"]:
    """Return packed bits as 64-bit numbers."""
    filled = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8)))
    return np.ascontiguousarray(filled).view(np.int64)


def _patterns(
    words: Sequence[Any],
) -> tuple[Int64[np.ndarray, " pattern"], Int64[np.ndarray, " token"]]:
    """Return the first token of each distinct row of all the words, and each token's pattern."""
    columns = np.concatenate([np.asarray(part, dtype=np.int64) for part in words], axis=1).T
    pattern = np.zeros(columns.shape[1], dtype=np.int64)
    first = np.zeros(0, dtype=np.int64)
    # one column after the other, so that numbers are sorted and not rows of bytes
    for column in columns:
        values, place = np.unique(column, return_inverse=True)
        _, first, pattern = np.unique(
            pattern * len(values) + place, return_index=True, return_inverse=True
        )
    return first, pattern


def _shares(
    block: LatentBlock, table: _PropertyTable
) -> Float[np.ndarray, "latent attribute fold"]:
    """Return the share of variance that each attribute removes; NaN where there is none."""
    from scipy.sparse import csr_matrix

    n_latents, n_groups = len(block.bounds) - 1, table.counts.shape[1] - 1
    patterns = table.pattern[block.tokens]
    codes = csr_matrix(
        (block.values, patterns, block.bounds), shape=(n_latents, table.matrix.shape[0])
    )
    by_group = (codes @ table.matrix).toarray().reshape(n_latents, -1, n_groups)
    sums = leave_out(by_group.astype(np.float64))
    squares = block.values.astype(np.float64) ** 2
    cells = table.group[patterns]
    total = leave_out(block.sums(cells, n_groups, squares))
    with_labels = leave_out(block.sums(cells, n_groups, squares * table.known[patterns]))
    second = np.stack([total, with_labels], axis=1)
    bases = table.counts[:2]
    shares = np.full((n_latents, len(table.names), 1 + n_groups), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = second - sums[:, :2] ** 2 / bases
        spread = np.where(spread > 1e-6 * second, spread, np.nan)
        for i in np.flatnonzero(table.usable):
            base, there = table.base[i], table.counts[2 + i]
            covariance = sums[:, 2 + i] - sums[:, base] * there / bases[base]
            around = there * (1 - there / bases[base])
            removed = covariance**2 / (spread[:, base] * np.where(around > 0, around, np.nan))
            shares[:, i] = np.minimum(removed, 1)
    return shares
