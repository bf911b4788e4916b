"""Lookup tables of latents, and the inner products of what they predict over the tokens of a block.

A table is sparse: its prediction at a token is one of its rows plus a multiple of the latent's mean.
Predictions are never written down by token, since sums over tokens can be computed as sums over keys.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64, Integer

from sae_placebo.latents.ladder.block_sums import BlockSums, Keys, adder, parts_of
from sae_placebo.latents.ladder.inner_products import N_LOOKUPS
from sae_placebo.latents.ladder.token_features import TokenFeatures

_AT_ONCE = 512
"""Number of latents whose products are formed at a time."""


@dataclass(frozen=True, eq=False)
class LatentTables:
    """Lookup tables of latents, [key, latent], as the fitted tokens give them.

    Attributes:
        codes: Codes of the latents on the fitted tokens, CSR [fitted, latent].
        mean: Mean of each latent over the fitted tokens.
        tokens: Keys and bins of the tokens.
    """

    codes: Any
    mean: Float32[np.ndarray, " latent"]
    tokens: TokenFeatures

    @functools.cached_property
    def word(self) -> Any:
        """Table of the current token, without the multiple of the mean: CSR [key, latent]."""
        return self._table(self.tokens.words)

    @functools.cached_property
    def previous(self) -> Any:
        """Table of the token before, without the multiple of the mean."""
        return self._table(self.tokens.previous)

    @functools.cached_property
    def previous_squared(self) -> Any:
        """Squares of the entries of `previous`."""
        return squared(self.previous)

    @functools.cached_property
    def pair(self) -> Any:
        """Table of pairs, without the multiple of the token's prediction."""
        return self._table(self.tokens.pairs)

    @functools.cached_property
    def pair_with_word(self) -> Any:
        """Entries of `pair` times those of `word` for the pair's current token."""
        pair, word, n = self.pair, self.word, self.word.shape[1]
        wanted = self.tokens.word_of_pair[row_of(pair.indptr)] * n + pair.indices
        known = row_of(word.indptr) * n + word.indices
        at = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
        there = known[at] == wanted if len(known) else np.zeros(0, dtype=bool)
        both = pair.copy()
        both.data = np.where(there, pair.data * word.data[at], 0).astype(np.float32)
        return both

    @functools.cached_property
    def position(self) -> Float32[np.ndarray, "bin latent"]:
        """What each bin of the position adds to the mean."""
        tokens = self.tokens
        bins = tokens.bins[tokens.fit]
        n = np.bincount(bins, minlength=tokens.n_bins).astype(np.float32)[:, None]
        sums = (adder(bins, tokens.n_bins) @ self.codes).toarray()
        added = (sums - n * self.mean) / (n + np.float32(tokens.spec.prior))
        return np.asarray(added, dtype=np.float32)

    def _table(self, keys: Keys) -> Any:
        table = (keys.sums(self.tokens.fit) @ self.codes).tocsr()
        table.sort_indices()
        weight = 1 / (keys.n + keys.prior)
        table.data *= np.repeat(weight, np.diff(table.indptr)).astype(np.float32)
        return table


@dataclass(frozen=True, eq=False)
class BlockTables:
    """The rows of the latents' tables that occur in a block, and their inner products there.

    Attributes:
        latents: The tables.
        of: Sums of the features over the block.
    """

    latents: LatentTables
    of: BlockSums

    @functools.cached_property
    def word(self) -> Any:
        """Rows of the table of the current token."""
        return self.latents.word[self.of.keys.word_keys]

    @functools.cached_property
    def pair(self) -> Any:
        """Rows of the table of pairs."""
        return self.latents.pair[self.of.keys.pair_keys]

    @functools.cached_property
    def by_latent(self) -> tuple[Any, Any]:
        """Both tables transposed, [latent, key]."""
        return self.word.T.tocsr(), self.pair.T.tocsr()

    @functools.cached_property
    def rest(self) -> Float64[np.ndarray, " word"]:
        """Weight of the mean in each current token's prediction."""
        return np.asarray(self.latents.tokens.words.rest[self.of.keys.word_keys])

    @functools.cached_property
    def of_mean(self) -> Float32[np.ndarray, " twice"]:
        """Product of the weight of the mean with the features, as they are and weighted by the share."""
        products: Float32[np.ndarray, " twice"] = self.rest.astype(np.float32) @ self.of.by_word
        products[: self.of.n_features] -= self.of.total
        return products

    def products(self, rows: slice) -> tuple[Float32[np.ndarray, "some feature"], ...]:
        """Return the products of position, token and pair of some latents with the features."""
        of, mean, d = self.of, self.latents.mean[rows, None], self.of.n_features
        word, pair = self.by_latent
        position = self.latents.position[:, rows].T @ of.by_bin
        # the rows' multiples of the mean, less the mean
        token = word[rows] @ of.by_word
        token += mean * self.of_mean
        paired = pair[rows] @ of.by_pair
        paired -= token[:, d:]
        return position, token[:, :d], paired

    @functools.cached_property
    def _linear(self) -> Float64[np.ndarray, "latent weighting"]:
        """Sums of the rows of words by power of the share, the same with the mean's weight, and by bin."""
        keys = self.of.keys
        rest = self.rest[:, None] * keys.powers
        by = np.concatenate([keys.powers, rest, keys.word_bins, keys.share_bins], axis=1)
        return np.asarray(self.by_latent[0] @ by)

    @functools.cached_property
    def sums(self) -> Float64[np.ndarray, "latent lookup"]:
        """Sum of what each lookup adds to the mean."""
        keys, latents = self.of.keys, self.latents
        mean, before = latents.mean.astype(np.float64), latents.tokens.previous
        rest = self.rest @ keys.powers
        position = latents.position.T.astype(np.float64) @ keys.word_bins.sum(0)
        token = self._linear[:, 0] + mean * (rest[0] - keys.n)
        pair = self.by_latent[1] @ keys.n_pair - self._linear[:, 1] - mean * rest[1]
        previous = latents.previous.T @ keys.n_before + mean * (keys.n_before @ (before.rest - 1))
        return np.stack([position, token, pair, previous], axis=1)

    @functools.cached_property
    def gram(self) -> Float64[np.ndarray, "latent piece piece"]:
        """Inner products of the lookups with one another; those with the target are left 0."""
        keys, position = self.of.keys, self.latents.position.astype(np.float64)
        mean, n_bins, n = self.latents.mean.astype(np.float64), len(position), keys.n
        rest, linear = self.rest[:, None], self._linear
        squares = squared(self.by_latent[0]) @ keys.powers
        squares += 2 * mean[:, None] * linear[:, 3:6]
        squares += mean[:, None] ** 2 * (rest**2 * keys.powers).sum(0)
        of_mean = (rest * np.concatenate([keys.word_bins, keys.share_bins], axis=1)).sum(0)
        by_bin = linear[:, 6:] + mean[:, None] * of_mean
        bins = np.einsum("bm,mb->m", position, by_bin[:, :n_bins])
        shared_bins = np.einsum("bm,mb->m", position, by_bin[:, n_bins:])
        pair_pair, pair_token, pair_shared, pair_bins, total_pair = self._pairs()
        token_sum = self.sums[:, 1] + mean * n
        shared_sum = total_pair - self.sums[:, 2]
        gram = np.zeros((len(mean), N_LOOKUPS, N_LOOKUPS))
        gram[:, 1, 1] = keys.word_bins.sum(0) @ position**2
        gram[:, 2, 2] = squares[:, 0] - 2 * mean * token_sum + mean**2 * n
        gram[:, 3, 3] = pair_pair - 2 * pair_shared + squares[:, 2]
        gram[:, 1, 2] = gram[:, 2, 1] = bins - mean * self.sums[:, 0]
        gram[:, 1, 3] = gram[:, 3, 1] = pair_bins - shared_bins
        across = pair_token - squares[:, 1] - mean * (total_pair - shared_sum)
        gram[:, 2, 3] = gram[:, 3, 2] = across
        gram[:, 4, 4] = self._previous()
        return gram

    def _pairs(self) -> tuple[Any, Any, Any, Any, Any]:
        """Return the inner products of the rows of pairs with five things, in this order.

        They are the rows themselves, the token's row, the same weighted by the share, the row of the bin,
        and ones.
        """
        keys, tokens, pair = self.of.keys, self.latents.tokens, self.by_latent[1]
        mean = self.latents.mean.astype(np.float64)
        n = keys.n_pair
        share = 1 - tokens.pairs.rest[keys.pair_keys]
        rest = tokens.words.rest[tokens.word_of_pair[keys.pair_keys]]
        weights = np.stack([n, share * n], axis=1)
        linear = pair @ np.concatenate(
            [n[:, None], rest[:, None] * weights, keys.pair_bins], axis=1
        )
        both = self.latents.pair_with_word[keys.pair_keys]
        with_word = both.T @ weights + mean[:, None] * linear[:, 1:3]
        with_bin = np.einsum("mb,bm->m", linear[:, 3:], self.latents.position)
        return squared(pair) @ n, with_word[:, 0], with_word[:, 1], with_bin, linear[:, 0]

    def _previous(self) -> Float64[np.ndarray, " latent"]:
        keys, n = self.latents.tokens.previous, self.of.keys.n_before
        mean, less = self.latents.mean.astype(np.float64), keys.rest - 1
        squares = self.latents.previous_squared.T @ n
        linear = self.latents.previous.T @ (n * less)
        return np.asarray(squares + 2 * mean * linear + mean**2 * (n @ less**2))

    def with_lookups(self, codes: list[Any]) -> list[Float64[np.ndarray, "latent lookup"]]:
        """Return the inner products of sparse codes, each [latent, token], with what each lookup adds.

        Only the first codes have products with the lookup of the token before; for others these are 0.
        """
        tokens, of = self.latents.tokens, self.of.keys
        word, pair = self.by_latent
        before = self.latents.previous[of.before_keys].T.tocsr()
        rest, before_less = self.rest, tokens.previous.rest[of.before_keys] - 1
        products = [np.zeros((len(self.latents.mean), N_LOOKUPS - 1)) for _ in codes]
        for rows in parts_of(len(self.latents.mean), _AT_ONCE):
            tables = [table[rows].toarray() for table in (word, pair, before)]
            bins = self.latents.position[:, rows].T
            for matrix, inner in zip(codes, products, strict=True):
                bounds = matrix.indptr[rows.start : rows.stop + 1]
                at, latent = slice(bounds[0], bounds[-1]), row_of(bounds)
                token, mean = matrix.indices[at], self.latents.mean[rows][latent].astype(np.float64)
                words, share = of.word_at[token], of.share[token]
                by_word = _entries(tables[0], latent, words) + mean * rest[words]
                by_pair = _entries(tables[1], latent, of.pair_at[token])
                in_bin = _entries(bins, latent, of.bins[token])
                added = [in_bin, by_word - mean, by_pair - share * by_word]
                if matrix is codes[0]:
                    keys = of.before_at[token]
                    previous = _entries(tables[2], latent, keys)
                    added.append(previous + mean * before_less[keys])
                for lookup, values in enumerate(added):
                    values = values * matrix.data[at]
                    inner[rows, lookup] = np.bincount(latent, values, minlength=len(bins))
        return products


def _entries(
    table: Float32[np.ndarray, "some key"],
    rows: Int64[np.ndarray, " entry"],
    columns: Int64[np.ndarray, " entry"],
) -> Float32[np.ndarray, " entry"]:
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
