"""Tokens of a block of documents by their keys in lookup tables, and sums of features by key."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64, Integer

_TOKENS_AT_ONCE = 65_536


@dataclass(frozen=True, eq=False)
class Keys:
    """The keys of one lookup table.

    Attributes:
        of: Key of each token; `len(n) - 1` where the table has none, and backs off to the shorter context.
        n: Occurrences of each key in the fitted documents; 0 for the last, and for keys that are too rare.
        prior: Number of occurrences that the prediction of the shorter context is worth.
        least: Occurrences below which a key is backed off.
    """

    of: Int64[np.ndarray, " token"]
    n: Int64[np.ndarray, " key"]
    prior: float
    least: int = 1

    @classmethod
    def among(
        cls,
        keys: Integer[np.ndarray, " token"],
        fit: Int64[np.ndarray, " fitted"],
        prior: float,
        least: int = 1,
        wanted: Int64[np.ndarray, " wanted"] | None = None,
    ) -> Keys:
        """Return the keys seen at least `least` times at the tokens `fit`.

        Args:
            keys: What a token is looked up by.
            fit: Fitted tokens.
            prior: Number of occurrences that the prediction of the shorter context is worth.
            least: Occurrences below which a key is backed off.
            wanted: Only keys that occur at these tokens too are kept, since no other is ever looked up;
                None keeps all.
        """
        known, n = np.unique(keys[fit], return_counts=True)
        kept = n >= least
        if wanted is not None:
            kept &= np.isin(known, keys[wanted])
        known, n = known[kept], n[kept]
        if not len(known):
            none = np.zeros(len(keys), dtype=np.int64)
            return cls(none, np.zeros(1, dtype=np.int64), prior, least)
        at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        of = np.where(known[at] == keys, at, len(known)).astype(np.int64)
        return cls(of, np.append(n, 0).astype(np.int64), prior, least)

    def counted(self, fit: Int64[np.ndarray, " fitted"]) -> Keys:
        """Return the same keys, counted at a part of the fitted tokens."""
        n = np.bincount(self.of[fit], minlength=len(self.n))
        n[-1] = 0
        n[n < self.least] = 0
        return Keys(self.of, n.astype(np.int64), self.prior, self.least)

    @functools.cached_property
    def rest(self) -> Float64[np.ndarray, " key"]:
        """Weight of the shorter context's prediction, prior / (n + prior), for each key."""
        return np.asarray(self.prior / (self.n + self.prior))

    @functools.cached_property
    def weight(self) -> Float32[np.ndarray, " key"]:
        """What a sum over a key's fitted tokens is multiplied with; 0 where the key is backed off."""
        weight = np.where(self.n > 0, 1 / (self.n + self.prior), 0)
        return np.asarray(weight, dtype=np.float32)

    def adder(self, tokens: Int64[np.ndarray, " chosen"]) -> Any:
        """Return the sparse matrix [key, chosen] that adds up by key; the last key has zeros only."""
        matrix = adder(self.of[tokens], len(self.n))
        matrix.data[matrix.indptr[-2] :] = 0
        return matrix


def adder(keys: Int64[np.ndarray, " chosen"], n_keys: int) -> Any:
    """Return the float32 CSR matrix [key, chosen] that adds up by key."""
    from scipy.sparse import csr_matrix

    ones = np.ones(len(keys), dtype=np.float32)
    return csr_matrix((ones, (keys, np.arange(len(keys)))), shape=(n_keys, len(keys)))


@dataclass(frozen=True, eq=False)
class TokenBlock:
    """Tokens that are summed over together: those chosen on, or those of one scored group.

    Attributes:
        tokens: Indices of the tokens.
        group: Their group of documents; -1 for the tokens that are chosen on.
        rows: Their rows in the features, which are in the order of blocks.
    """

    tokens: Int64[np.ndarray, " chosen"]
    group: int
    rows: slice


class LookupKeys(NamedTuple):
    """Keys of all tokens in every lookup table, and the bin of each position."""

    words: Keys
    previous: Keys
    pairs: Keys
    bins: Int64[np.ndarray, " token"]
    n_bins: int

    def counted(self, fit: Int64[np.ndarray, " fitted"]) -> LookupKeys:
        """Return the same keys, counted at a part of the fitted tokens."""
        words, previous, pairs = (k.counted(fit) for k in (self.words, self.previous, self.pairs))
        return LookupKeys(words, previous, pairs, self.bins, self.n_bins)


@dataclass(frozen=True, eq=False)
class BlockKeys:
    """The tokens of a block by key, which depend on no SAE, no placebo, and not on what is fitted on.

    Attributes:
        block: The block.
        n: Number of tokens.
        bins: Bin of each token's position.
        word_at, pair_at, before_at: Index of each token's key among the keys that occur.
        word_keys, pair_keys, before_keys: The keys that occur.
        pair_word: Index among the words that occur of each pair's current token.
        by_word, by_pair, by_bin: [key, token] matrices that add up by key.
        word_bins, pair_bins: [key, bin] numbers of tokens.
        n_word, n_pair, n_before: Number of tokens of each key that occurs.
    """

    block: TokenBlock
    n: int
    bins: Int64[np.ndarray, " chosen"]
    word_at: Int64[np.ndarray, " chosen"]
    pair_at: Int64[np.ndarray, " chosen"]
    before_at: Int64[np.ndarray, " chosen"]
    word_keys: Int64[np.ndarray, " word"]
    pair_keys: Int64[np.ndarray, " pair"]
    before_keys: Int64[np.ndarray, " seen"]
    pair_word: Int64[np.ndarray, " pair"]
    by_word: Any
    by_pair: Any
    by_bin: Any
    word_bins: Float64[np.ndarray, "word bin"]
    pair_bins: Float64[np.ndarray, "pair bin"]
    n_word: Float64[np.ndarray, " word"]
    n_pair: Float64[np.ndarray, " pair"]
    n_before: Float64[np.ndarray, " seen"]

    @classmethod
    def of(cls, tables: LookupKeys, block: TokenBlock) -> BlockKeys:
        """Return the keys of the tokens of a block."""
        at = block.tokens
        words, at_word = np.unique(tables.words.of[at], return_inverse=True)
        pairs, at_pair = np.unique(tables.pairs.of[at], return_inverse=True)
        befores, at_before = np.unique(tables.previous.of[at], return_inverse=True)
        pair_word = np.zeros(len(pairs), dtype=np.int64)
        # the pair that has no key goes with several words, but nothing is ever looked up for it
        pair_word[at_pair] = at_word
        bins = tables.bins[at]
        by_word, by_pair = adder(at_word, len(words)), adder(at_pair, len(pairs))
        by_bin = adder(bins, tables.n_bins)
        word_bins, pair_bins = (
            (by @ by_bin.T).toarray().astype(np.float64) for by in (by_word, by_pair)
        )
        return cls(
            block=block,
            n=len(at),
            bins=bins,
            word_at=at_word.astype(np.int64),
            pair_at=at_pair.astype(np.int64),
            before_at=at_before.astype(np.int64),
            word_keys=words,
            pair_keys=pairs,
            before_keys=befores,
            pair_word=pair_word,
            by_word=by_word,
            by_pair=by_pair,
            by_bin=by_bin,
            word_bins=word_bins,
            pair_bins=pair_bins,
            n_word=word_bins.sum(1),
            n_pair=pair_bins.sum(1),
            n_before=np.bincount(at_before, minlength=len(befores)).astype(np.float64),
        )


@dataclass(frozen=True, eq=False)
class BlockSums:
    """Sums of the features over the tokens of a block, by key.

    Attributes:
        keys: The tokens by key.
        parts: [chosen, part] the features side by side, as views: those of tokens, then those of a placebo.
        total: Sum of each feature over the tokens.
        gram: X'X.
        by_word, by_pair, by_bin: [key, feature] sums.
    """

    keys: BlockKeys
    parts: tuple[Float32[np.ndarray, "chosen _"], ...]
    total: Float32[np.ndarray, " feature"]
    gram: Float64[np.ndarray, "feature feature"]
    by_word: Float32[np.ndarray, "word feature"]
    by_pair: Float32[np.ndarray, "pair feature"]
    by_bin: Float32[np.ndarray, "bin feature"]

    @classmethod
    def of(
        cls,
        keys: BlockKeys,
        parts: tuple[Float32[np.ndarray, "chosen _"], ...],
        known: BlockSums | None,
    ) -> BlockSums:
        """Return the sums; those of the first part are taken from `known` where it is given."""
        new = parts if known is None else parts[1:]
        sums = [[by @ x for x in new] for by in (keys.by_word, keys.by_pair, keys.by_bin)]
        if known is not None:
            for parts_of_sum, first in zip(
                sums, (known.by_word, known.by_pair, known.by_bin), strict=True
            ):
                parts_of_sum.insert(0, first)
        by_word, by_pair, by_bin = (np.concatenate(one, axis=1) for one in sums)
        gram = gram_of(parts, None if known is None else known.gram)
        return cls(keys, parts, by_bin.sum(0), gram, by_word, by_pair, by_bin)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.gram)


def parts_of(n: int, at_once: int) -> Iterator[slice]:
    """Yield slices of at most `at_once` that cover 0 to n."""
    for first in range(0, n, at_once):
        yield slice(first, min(first + at_once, n))


def gram_of(
    parts: tuple[Float32[np.ndarray, "chosen _"], ...],
    known: Float64[np.ndarray, "first first"] | None = None,
) -> Float64[np.ndarray, "feature feature"]:
    """Return X'X of features side by side.

    Args:
        parts: The features.
        known: X'X of the first part, where it has been computed already.
    """
    edges = np.cumsum([0, *(x.shape[1] for x in parts)])
    total = np.zeros((edges[-1], edges[-1]))
    for at in parts_of(len(parts[0]), _TOKENS_AT_ONCE):
        for i, a in enumerate(parts):
            for j, b in enumerate(parts[: i + 1]):
                if i or known is None:
                    rows, columns = slice(*edges[i : i + 2]), slice(*edges[j : j + 2])
                    total[rows, columns] += a[at].T @ b[at]
    if known is not None:
        total[: edges[1], : edges[1]] = known
    if len(parts) > 1:
        total[: edges[1], edges[1] :] = total[edges[1] :, : edges[1]].T
    return total
