"""Lookup tables of latents, and the inner products of what they predict over the tokens of a block.

A table is sparse: its prediction at a token is one of its entries plus a multiple of the latent's mean.
Predictions are never written down by token, since sums over tokens can be computed as sums over keys.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, Integer

from sae_placebo.latents.ladder.block_sums import BlockSums, Keys, LookupKeys, adder, parts_of
from sae_placebo.latents.ladder.inner_products import N_LOOKUPS, PAIR, POSITION, PREVIOUS, TOKEN
from sae_placebo.latents.ladder.predictors import Readouts

_AT_ONCE = 512
"""Number of latents whose products are formed at a time."""


@dataclass(frozen=True, eq=False)
class FitSums:
    """Sums of latents over fitted tokens; those of two sets of documents add up.

    Attributes:
        n: Number of tokens.
        active: Number of tokens on which each latent is active.
        total: Sum of each latent.
        products: X'y.
        words, previous, pairs: Sums by key, CSR [key, latent].
        bins: Sums by bin of the position.
    """

    n: int
    active: Int64[np.ndarray, " latent"]
    total: Float64[np.ndarray, " latent"]
    products: Float32[np.ndarray, "latent feature"]
    words: Any
    previous: Any
    pairs: Any
    bins: Float32[np.ndarray, "bin latent"]

    @classmethod
    def of(cls, codes: Any, readouts: Readouts, portion: int) -> FitSums:
        """Return the sums over the fitted tokens that a portion adds to the one before.

        Args:
            codes: Codes of the latents at these tokens, CSR [added, latent].
            readouts: Features that are read linearly.
            portion: Index of the portion.
        """
        tokens = readouts.tokens
        at, keys = tokens.fit[tokens.added[portion]], tokens.keys
        words, previous, pairs = ((k.adder(at) @ codes).tocsr() for k in keys[:3])
        by_latent = codes.T
        products = [by_latent @ x for x in readouts.fitted(portion)]
        return cls(
            n=len(at),
            active=np.asarray(codes.getnnz(axis=0), dtype=np.int64),
            total=np.asarray(codes.sum(axis=0, dtype=np.float64)).ravel(),
            products=np.concatenate(products, axis=1, dtype=np.float32),
            words=words,
            previous=previous,
            pairs=pairs,
            bins=(adder(keys.bins[at], keys.n_bins) @ codes).toarray(),
        )

    def __add__(self, other: FitSums) -> FitSums:
        return FitSums(
            self.n + other.n,
            self.active + other.active,
            self.total + other.total,
            self.products + other.products,
            self.words + other.words,
            self.previous + other.previous,
            self.pairs + other.pairs,
            self.bins + other.bins,
        )

    @property
    def mean(self) -> Float32[np.ndarray, " latent"]:
        """Mean of each latent."""
        return np.asarray(self.total / self.n, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class LatentTables:
    """Lookup tables of latents, [key, latent], as a portion of the text to fit on gives them.

    Attributes:
        keys: The keys, as the portion counts them.
        mean: Mean of each latent.
        word, previous: CSR tables without the multiple of the mean.
        pair: CSR table without the multiple of the token's prediction.
        position: What each bin of the position adds to the mean.
    """

    keys: LookupKeys
    mean: Float32[np.ndarray, " latent"]
    word: Any
    previous: Any
    pair: Any
    position: Float32[np.ndarray, "bin latent"]

    @classmethod
    def of(
        cls, sums: FitSums, keys: LookupKeys, fit: Int64[np.ndarray, " fitted"], prior: float
    ) -> LatentTables:
        """Return the tables.

        Args:
            sums: Sums over the portion.
            keys: The keys, as the portion counts them.
            fit: The portion's tokens.
            prior: Number of occurrences that the mean is worth at a position.
        """
        n = np.bincount(keys.bins[fit], minlength=keys.n_bins).astype(np.float32)[:, None]
        position = (sums.bins - n * sums.mean) / (n + np.float32(prior))
        return cls(
            keys=keys,
            mean=sums.mean,
            word=_table(sums.words, keys.words),
            previous=_table(sums.previous, keys.previous),
            pair=_table(sums.pairs, keys.pairs),
            position=position,
        )


def _table(sums: Any, keys: Keys) -> Any:
    """Return sums by key as a table, without the keys that are backed off."""
    table = sums.copy()
    table.data *= np.repeat(keys.weight, np.diff(table.indptr))
    table.eliminate_zeros()
    table.sort_indices()
    return table


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a table predicts of each latent at each key: an entry plus a multiple of the latent's mean.

    Attributes:
        entries: CSR [latent, key].
        rest: The multiple of the mean at each key.
        mean: Mean of each latent.
    """

    entries: Any
    rest: Float64[np.ndarray, " key"]
    mean: Float64[np.ndarray, " latent"]

    def sums(
        self, weights: Float64[np.ndarray, "key weighting"]
    ) -> Float64[np.ndarray, "latent weighting"]:
        """Return the weighted sums of the predictions over the keys."""
        return np.asarray(self.entries @ weights + np.outer(self.mean, self.rest @ weights))

    def squares(
        self, weights: Float64[np.ndarray, "key weighting"]
    ) -> Float64[np.ndarray, "latent weighting"]:
        """Return the weighted sums of the squared predictions over the keys."""
        mean = self.mean[:, None]
        both = self.entries @ (self.rest[:, None] * weights)
        squares = squared(self.entries) @ weights + 2 * mean * both
        return np.asarray(squares + mean**2 * (self.rest**2 @ weights))

    def products(
        self, rows: slice, features: Float32[np.ndarray, "key feature"]
    ) -> Float32[np.ndarray, "some feature"]:
        """Return the products of some latents' predictions with the sums of features by key."""
        products: Float32[np.ndarray, "some feature"] = self.entries[rows] @ features
        if self.rest.any():
            of_mean = self.rest.astype(np.float32) @ features
            products += self.mean[rows, None].astype(np.float32) * of_mean
        return products


class BlockTables:
    """The latents' tables at the keys of a block, and the inner products there of what lookups add.

    With P the entry of the position's bin, W the prediction from the current token, V that from the token
    before, R the entry of the pair, s = n / (n + prior) of the pair, and m the mean, lookups add

        position: P,    token: W - m,    pair: R - s W,    token before: V - m.
    """

    def __init__(self, tables: LatentTables, of: BlockSums) -> None:
        """Look the keys of a block up.

        Args:
            tables: The tables.
            of: Sums of the features over the block.
        """
        keys, counted = of.keys, tables.keys
        self.of, self.keys = of, keys
        self.mean = mean = tables.mean.astype(np.float64)
        self.position = tables.position.astype(np.float64)

        def predictions(table: Any, at: Any, rest: Any) -> Predictions:
            return Predictions(table[at].T.tocsr(), rest, mean)

        words, pairs, befores = keys.word_keys, keys.pair_keys, keys.before_keys
        self.word = predictions(tables.word, words, counted.words.rest[words])
        self.previous = predictions(tables.previous, befores, counted.previous.rest[befores])
        self.pair = predictions(tables.pair, pairs, np.zeros(len(pairs)))
        self.share = 1 - counted.pairs.rest[pairs]

    @functools.cached_property
    def _shared(self) -> Any:
        """The matrix [word, pair] that adds pairs up by their current token, each times its share."""
        by_word = adder(self.keys.pair_word, len(self.keys.word_keys))
        return by_word.multiply(self.share).tocsr()

    @functools.cached_property
    def sums(self) -> Float64[np.ndarray, "latent lookup"]:
        """Sum over the block of what each lookup adds to the mean."""
        keys, of_mean = self.keys, self.mean * self.keys.n
        sums = np.zeros((len(self.mean), N_LOOKUPS - 1))
        sums[:, POSITION - 1] = self.position.T @ keys.word_bins.sum(0)
        sums[:, TOKEN - 1] = self._of_word[:, 0] - of_mean
        sums[:, PAIR - 1] = self._of_pair[:, 0] - self._of_word[:, 1]
        sums[:, PREVIOUS - 1] = self.previous.sums(keys.n_before[:, None])[:, 0] - of_mean
        return sums

    @functools.cached_property
    def _of_word(self) -> Float64[np.ndarray, "latent weighting"]:
        """Sums of W and of s W, over the block; then of W and of s W by bin."""
        keys = self.keys
        shared = self._shared @ np.concatenate([keys.n_pair[:, None], keys.pair_bins], axis=1)
        plain = (keys.n_word[:, None], keys.word_bins)
        return self.word.sums(
            np.concatenate([plain[0], shared[:, :1], plain[1], shared[:, 1:]], axis=1)
        )

    @functools.cached_property
    def _of_pair(self) -> Float64[np.ndarray, "latent weighting"]:
        """Sums of R over the block; then by bin."""
        keys = self.keys
        return self.pair.sums(np.concatenate([keys.n_pair[:, None], keys.pair_bins], axis=1))

    @functools.cached_property
    def gram(self) -> Float64[np.ndarray, "latent piece piece"]:
        """Inner products of the lookups with one another; those with the target are left 0.

        Those of the token before with other lookups are left 0, since no prediction has both.
        """
        keys, mean, n, n_bins = self.keys, self.mean, self.keys.n, len(self.position)
        shared = self._shared @ keys.n_pair, self._shared @ (self.share * keys.n_pair)
        w_w, w_sw, sw_sw = self.word.squares(np.stack([keys.n_word, *shared], axis=1)).T
        r_w, r_sw = self._pairs_with_words()
        v_v = self.previous.squares(keys.n_before[:, None])[:, 0]
        position, token, _, previous = self.sums.T
        by_bin = self._of_word[:, 2:]
        p_w, p_sw, p_r = (
            np.einsum("mb,bm->m", sums, self.position)
            for sums in (by_bin[:, :n_bins], by_bin[:, n_bins:], self._of_pair[:, 1:])
        )
        gram = np.zeros((len(mean), N_LOOKUPS, N_LOOKUPS))

        def put(one: int, other: int, products: Float64[np.ndarray, " latent"]) -> None:
            gram[:, one, other] = gram[:, other, one] = products

        put(POSITION, POSITION, keys.word_bins.sum(0) @ self.position**2)
        put(POSITION, TOKEN, p_w - mean * position)
        put(POSITION, PAIR, p_r - p_sw)
        # the sum of W is that of W - m, and n m
        put(TOKEN, TOKEN, w_w - 2 * mean * token - mean**2 * n)
        put(TOKEN, PAIR, r_w - w_sw - mean * (self._of_pair[:, 0] - self._of_word[:, 1]))
        put(PAIR, PAIR, self.pair.squares(keys.n_pair[:, None])[:, 0] - 2 * r_sw + sw_sw)
        put(PREVIOUS, PREVIOUS, v_v - 2 * mean * previous - mean**2 * n)
        return gram

    def _pairs_with_words(self) -> Float64[np.ndarray, "two latent"]:
        """Return the inner products of R with W, and with s W."""
        keys, pair, word = self.keys, self.pair.entries, self.word
        n_words = len(keys.word_keys)
        wanted = row_of(pair.indptr) * n_words + keys.pair_word[pair.indices]
        known = row_of(word.entries.indptr) * n_words + word.entries.indices
        # one more than there are, so that what is wanted beyond the last is found to differ from it
        at = np.searchsorted(known, wanted)
        known, entries = np.append(known, -1), np.append(word.entries.data, 0)
        both = pair.copy()
        both.data = np.where(known[at] == wanted, pair.data * entries[at], 0)
        weights = np.stack([keys.n_pair, self.share * keys.n_pair], axis=1)
        of_mean = pair @ (word.rest[keys.pair_word][:, None] * weights)
        return np.asarray(both @ weights + self.mean[:, None] * of_mean).T

    @functools.cached_property
    def _by_share(self) -> Float32[np.ndarray, "word feature"]:
        """Sums of the features by word, each token times its share."""
        return np.asarray(self._shared.astype(np.float32) @ self.of.by_pair)

    def products(self, rows: slice) -> tuple[Float32[np.ndarray, "some feature"], ...]:
        """Return the products of position, token and pair of some latents with the features."""
        of = self.of
        position = self.position[:, rows].T.astype(np.float32) @ of.by_bin
        token = self.word.products(rows, of.by_word)
        token -= self.mean[rows, None].astype(np.float32) * of.total
        pair = self.pair.products(rows, of.by_pair)
        pair -= self.word.products(rows, self._by_share)
        return position, token, pair

    def with_lookups(self, codes: list[Any]) -> list[Float64[np.ndarray, "latent lookup"]]:
        """Return the inner products of sparse codes, each [latent, token], with what each lookup adds.

        Only the first codes have products with the lookup of the token before; for others these are 0.
        """
        keys = self.keys
        products = [np.zeros((len(self.mean), N_LOOKUPS - 1)) for _ in codes]
        for rows in parts_of(len(self.mean), _AT_ONCE):
            word, pair, before = (
                table.entries[rows].toarray() for table in (self.word, self.pair, self.previous)
            )
            bins = np.ascontiguousarray(self.position[:, rows].T)
            for matrix, inner in zip(codes, products, strict=True):
                bounds = matrix.indptr[rows.start : rows.stop + 1]
                at, latent = slice(bounds[0], bounds[-1]), row_of(bounds)
                token, mean = matrix.indices[at], self.mean[rows][latent]
                words, pairs = keys.word_at[token], keys.pair_at[token]
                by_word = _entries(word, latent, words) + mean * self.word.rest[words]
                by_pair = _entries(pair, latent, pairs) - self.share[pairs] * by_word
                added = [_entries(bins, latent, keys.bins[token]), by_word - mean, by_pair]
                if matrix is codes[0]:
                    befores = keys.before_at[token]
                    by_before = _entries(before, latent, befores)
                    added.append(by_before + mean * (self.previous.rest[befores] - 1))
                for lookup, values in enumerate(added):
                    values = values * matrix.data[at]
                    inner[rows, lookup] = np.bincount(latent, values, minlength=len(bins))
        return products


def _entries(
    table: Any, rows: Int64[np.ndarray, " entry"], columns: Int64[np.ndarray, " entry"]
) -> Any:
    return np.asarray(table.ravel().take(rows * table.shape[1] + columns))


def row_of(bounds: Integer[np.ndarray, " rows_plus_one"]) -> Int64[np.ndarray, " entry"]:
    """Return the row of each entry, where `bounds` is the `indptr` of the rows."""
    return np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))


def row_sums(matrix: Any) -> Float64[np.ndarray, " target"]:
    """Return the sum of the entries of each row of a CSR matrix."""
    return np.bincount(row_of(matrix.indptr), matrix.data, minlength=matrix.shape[0])


def squared(matrix: Any) -> Any:
    """Return a sparse matrix with each entry squared."""
    parts = (matrix.data**2, matrix.indices, matrix.indptr)
    return type(matrix)(parts, shape=matrix.shape)
