"""Latents as what is predicted, and their inner products with their predictors.

Predictors from lookup tables are never written down by token. A table is sparse, its prediction at a
token is a row of it plus a multiple of the target's mean, and sums over tokens are sums over keys.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from sae_placebo.structure.predictors import (
    BlockSums,
    Keys,
    Readouts,
    TokenFeatures,
    adder,
)

TARGET, POSITION, TOKEN, PAIR, PREVIOUS = range(5)
"""Pieces: the target less its mean, then what each lookup adds to the mean. `PAIR` is what the table of
pairs adds to that of tokens; partners come behind."""
N_LOOKUPS = 5
READ = (TARGET, POSITION, TOKEN, PAIR)
"""Pieces whose products with the features are known, in the order of `Moments.products`."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Inner products over the tokens of a block.

    Attributes:
        gram: Of the pieces with one another; those of `PREVIOUS` with itself and the target only.
        products: Of the pieces in `READ`, then of the partners, with the features.
        features: X'X.
        squares, fourths: Sums of powers of the target as it is.
        active: Tokens where it is not 0.
    """

    gram: Float64[np.ndarray, "target piece piece"]
    products: Float32[np.ndarray, "target read feature"]
    features: Float64[np.ndarray, "feature feature"]
    squares: Float64[np.ndarray, " target"]
    fourths: Float64[np.ndarray, " target"]
    active: Int64[np.ndarray, " target"]

    def with_readouts(
        self, coefficients: Float32[np.ndarray, "target readout feature"]
    ) -> Float64[np.ndarray, "target piece piece"]:
        """Return the inner products of the pieces and, behind them, of readouts x'b with the pieces.

        Those of readouts with one another are left 0, since no rung has two.
        """
        m, k = self.gram.shape[:2]
        n = coefficients.shape[1]
        found = np.zeros((m, k + n, k + n))
        found[:, :k, :k] = self.gram
        read = [*READ, *range(N_LOOKUPS, k)]
        across = self.products @ coefficients.transpose(0, 2, 1)
        features = self.features.astype(np.float32)
        for i in range(n):
            found[:, read, k + i] = found[:, k + i, read] = across[:, :, i]
            b = coefficients[:, i]
            used = np.flatnonzero(b.any(axis=0))
            if len(used):
                # a readout's columns are one run
                columns = slice(used[0], used[-1] + 1)
                b = np.ascontiguousarray(b[:, columns])
                found[:, k + i, k + i] = np.einsum("md,md->m", b @ features[columns, columns], b)
        return found


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents: targets that are 0 at most tokens.

    Attributes:
        codes: CSR [token, latent].
        readouts: Features.
        partners: [partner, latent] placebo latents that each is predicted from; none without a placebo.
        placebo: CSR [token, placebo latent]; None without a placebo.
        n_fitted: Active fitted tokens.
        mean: On the fitted tokens.
        fitted: X'y on the fitted tokens.
    """

    codes: Any
    readouts: Readouts
    partners: Int64[np.ndarray, "partner latent"]
    placebo: Any
    n_fitted: Int64[np.ndarray, " latent"] = field(init=False)
    mean: Float32[np.ndarray, " latent"] = field(init=False)
    fitted: Float32[np.ndarray, "latent feature"] = field(init=False)
    _there: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tokens = self._tokens
        there = self.codes[tokens.fit]
        put = functools.partial(object.__setattr__, self)
        put("n_fitted", np.asarray(there.getnnz(axis=0), dtype=np.int64))
        put("mean", np.asarray(there.mean(axis=0), dtype=np.float32).ravel())
        # columns of x have mean 0, so the target's mean does not matter
        put("fitted", np.asarray(there.T @ self.readouts.x[tokens.fit], dtype=np.float32))
        put("_there", there)

    @property
    def _tokens(self) -> TokenFeatures:
        return self.readouts.tokens

    @functools.cached_property
    def word(self) -> Any:
        """Table of the current token, without the multiple of the mean."""
        return self._table(self._tokens.words)

    @functools.cached_property
    def previous(self) -> Any:
        """Table of the token before, without the multiple of the mean."""
        return self._table(self._tokens.previous)

    @functools.cached_property
    def pair(self) -> Any:
        """Table of pairs, without the multiple of the token's prediction."""
        return self._table(self._tokens.pairs)

    @functools.cached_property
    def pair_with_word(self) -> Any:
        """Entries of `pair` times those of `word` for the pair's current token."""
        pair, word, n = self.pair, self.word, self.word.shape[1]
        rows = np.repeat(np.arange(pair.shape[0]), np.diff(pair.indptr))
        wanted = self._tokens.word_of_pair[rows] * n + pair.indices
        known = np.repeat(np.arange(word.shape[0]), np.diff(word.indptr)) * n + word.indices
        at = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
        there = known[at] == wanted if len(known) else np.zeros(0, dtype=bool)
        found = pair.copy()
        found.data = np.where(there, pair.data * word.data[at], 0).astype(np.float32)
        return found

    @functools.cached_property
    def position(self) -> Float32[np.ndarray, "bin latent"]:
        """What each bin of the position adds to the mean."""
        tokens = self._tokens
        bins = tokens.bins[tokens.fit]
        n = np.bincount(bins, minlength=tokens.n_bins).astype(np.float32)[:, None]
        sums = (adder(bins, tokens.n_bins) @ self._there).toarray()
        found = (sums - n * self.mean) / (n + np.float32(tokens.spec.prior))
        return np.asarray(found, dtype=np.float32)

    def _table(self, keys: Keys) -> Any:
        found = (keys.sums(self._tokens.fit) @ self._there).tocsr()
        found.sort_indices()
        weight = 1 / (keys.n + keys.prior)
        found.data *= np.repeat(weight, np.diff(found.indptr)).astype(np.float32)
        return found

    def moments(self, sums: BlockSums) -> Moments:
        """Return the inner products over a block."""
        here = self.codes[sums.block.tokens]
        tables = _Here(self, sums)
        gram, products = tables.gram, tables.products
        m, n_partners = len(self.mean), len(self.partners)
        whole = np.zeros((m, N_LOOKUPS + n_partners, N_LOOKUPS + n_partners))
        whole[:, :N_LOOKUPS, :N_LOOKUPS] = gram
        read = np.empty((m, len(READ) + n_partners, sums.x.shape[1]), dtype=np.float32)
        for piece, product in zip(READ[1:], products, strict=True):
            read[:, piece] = product
        own = here.T @ sums.x
        total = own[:, 0].astype(np.float64)
        squares = here.multiply(here)
        square = _column_sums(squares)
        inner = tables.with_lookups(here)
        # the target less its mean
        inner -= self.mean[:, None] * tables.sums
        whole[:, TARGET, 1:N_LOOKUPS] = whole[:, 1:N_LOOKUPS, TARGET] = inner
        mean = self.mean.astype(np.float64)
        whole[:, 0, 0] = square - 2 * mean * total + mean**2 * here.shape[0]
        own -= self.mean[:, None] * sums.x.sum(0)
        read[:, TARGET] = own
        if n_partners:
            self._add_partners(sums, tables, here, whole, read)
        return Moments(
            gram=whole,
            products=read,
            features=sums.gram,
            squares=square,
            fourths=_column_sums(squares.multiply(squares)),
            active=np.asarray(here.getnnz(axis=0), dtype=np.int64),
        )

    def _add_partners(
        self, sums: BlockSums, tables: _Here, here: Any, gram: Any, read: Any
    ) -> None:
        """Write the inner products of the partners, each less its mean on the fitted tokens."""
        used, at = np.unique(self.partners, return_inverse=True)
        at = at.reshape(self.partners.shape)
        codes = self.placebo[sums.block.tokens][:, used]
        # columns of x but the first have mean 0 where they are fitted, not in this block
        mean = self._placebo_mean[used]
        products = (codes.T @ sums.x) - mean[:, None] * sums.x.sum(0)
        n = here.shape[0]
        by_latent = codes.tocsc()
        columns = [by_latent[:, at[p]].tocsr() for p in range(len(at))]
        for p, column in enumerate(columns):
            piece, own = N_LOOKUPS + p, mean[at[p]].astype(np.float64)
            read[:, len(READ) + p] = products[at[p]]
            total = _column_sums(column)
            inner = tables.with_lookups(column, previous=False) - own[:, None] * tables.sums
            gram[:, piece, 1:N_LOOKUPS] = gram[:, 1:N_LOOKUPS, piece] = inner
            y = _column_sums(column.multiply(here)) - own * _column_sums(here)
            y -= self.mean * (total - own * n)
            gram[:, piece, 0] = gram[:, 0, piece] = y
            for q in range(p + 1):
                other, their = columns[q], mean[at[q]].astype(np.float64)
                both = _column_sums(column.multiply(other)) - own * _column_sums(other)
                both -= their * (total - own * n)
                gram[:, piece, N_LOOKUPS + q] = gram[:, N_LOOKUPS + q, piece] = both

    @functools.cached_property
    def _placebo_mean(self) -> Float32[np.ndarray, " other"]:
        return np.asarray(self.placebo[self._tokens.fit].mean(axis=0), dtype=np.float32).ravel()


def _column_sums(matrix: Any) -> Float64[np.ndarray, " target"]:
    return np.asarray(matrix.sum(axis=0, dtype=np.float64)).ravel()


@dataclass(frozen=True, eq=False)
class _Here:
    """The rows of a latent's tables that occur in a block."""

    latents: Latents
    of: BlockSums

    @functools.cached_property
    def word(self) -> Any:
        """Rows of the table of the current token."""
        return self.latents.word[self.of.word_keys]

    @functools.cached_property
    def pair(self) -> Any:
        """Rows of the table of pairs."""
        return self.latents.pair[self.of.pair_keys]

    @functools.cached_property
    def rest(self) -> Float64[np.ndarray, " word"]:
        """Weight of the mean in each current token's prediction."""
        return np.asarray(self.latents.readouts.tokens.words.rest[self.of.word_keys])

    @functools.cached_property
    def by_word(self) -> Any:
        """[word, token]."""
        return adder(self.of.word_at, len(self.of.word_keys))

    @functools.cached_property
    def by_share(self) -> Any:
        """[word, token], weighted by the share of the table of pairs."""
        return self.by_word.multiply(self.of.share).tocsr()

    @functools.cached_property
    def by_pair(self) -> Any:
        """[pair, token]."""
        return adder(self.of.pair_at, len(self.of.pair_keys))

    @functools.cached_property
    def by_bin(self) -> Any:
        """[bin, token]."""
        return adder(self.of.bins, len(self.latents.position))

    @functools.cached_property
    def by_previous(self) -> Any:
        """[key of the token before, token]."""
        keys = self.latents.readouts.tokens.previous
        return keys.sums(self.of.block.tokens)

    @functools.cached_property
    def products(self) -> tuple[Float32[np.ndarray, "latent feature"], ...]:
        """Products of position, token and pair with the features."""
        of, mean, rest = self.of, self.latents.mean, self.rest.astype(np.float32)
        position = self.latents.position.T @ of.bin_sums
        token = self.word.T @ of.word_sums
        # the rows' multiples of the mean, less the mean
        token += mean[:, None] * (rest @ of.word_sums - of.word_sums.sum(0))
        pair = self.pair.T @ of.pair_sums
        pair -= self.word.T @ of.word_shares
        pair -= mean[:, None] * (rest @ of.word_shares)
        return position, token, pair

    @functools.cached_property
    def sums(self) -> Float64[np.ndarray, "latent lookup"]:
        """Sum of what each lookup adds to the mean."""
        found = np.stack([product[:, 0] for product in self.products], axis=1).astype(np.float64)
        keys = self.latents.readouts.tokens.previous
        at = keys.of[self.of.block.tokens]
        n = np.bincount(at, minlength=len(keys.n)).astype(np.float64)
        sums = self.latents.previous.T @ n + self.latents.mean * (n @ (keys.rest - 1))
        return np.concatenate([found, sums[:, None]], axis=1)

    @functools.cached_property
    def gram(self) -> Float64[np.ndarray, "latent piece piece"]:
        """Inner products of the lookups; those with the target are 0."""
        of, position = self.of, self.latents.position.astype(np.float64)
        mean, n_bins = self.latents.mean.astype(np.float64), len(position)
        # per current token: tokens by bin, the same weighted by the share of pairs, and by its square
        n = (self.by_word @ self.by_bin.T).toarray().astype(np.float64)
        c = (self.by_share @ self.by_bin.T).toarray().astype(np.float64)
        cc = self.by_share @ of.share.astype(np.float64)
        power = np.stack([n.sum(1), c.sum(1), cc], axis=1)
        rest = self.rest[:, None]
        linear = self.word.T @ np.concatenate([rest * power, n, c], axis=1)
        of_mean = (rest**2 * power).sum(0)
        squares = self.word.multiply(self.word).tocsr().T @ power
        squares += 2 * mean[:, None] * linear[:, :3] + mean[:, None] ** 2 * of_mean
        by_bin = linear[:, 3:] + mean[:, None] * (rest * np.concatenate([n, c], axis=1)).sum(0)
        bins = np.einsum("bm,mb->m", position, by_bin[:, :n_bins])
        shared_bins = np.einsum("bm,mb->m", position, by_bin[:, n_bins:])
        pair_pair, pair_token, pair_shared, pair_bins = self._pairs()
        token_sum = self.sums[:, 1] + mean * len(of.bins)
        total_pair = self.pair.T @ np.bincount(of.pair_at).astype(np.float64)
        shared_sum = total_pair - self.sums[:, 2]
        found = np.zeros((len(mean), N_LOOKUPS, N_LOOKUPS))
        found[:, 1, 1] = n.sum(0) @ position**2
        found[:, 2, 2] = squares[:, 0] - 2 * mean * token_sum + mean**2 * len(of.bins)
        found[:, 3, 3] = pair_pair - 2 * pair_shared + squares[:, 2]
        found[:, 1, 2] = found[:, 2, 1] = bins - mean * self.sums[:, 0]
        found[:, 1, 3] = found[:, 3, 1] = pair_bins - shared_bins
        across = pair_token - squares[:, 1] - mean * (total_pair - shared_sum)
        found[:, 2, 3] = found[:, 3, 2] = across
        found[:, 4, 4] = self._previous()
        return found

    def _pairs(self) -> tuple[Any, Any, Any, Any]:
        """Return inner products of the rows of pairs: own, token's, its weighted by the share, bin's."""
        of, tokens = self.of, self.latents.readouts.tokens
        mean = self.latents.mean.astype(np.float64)
        both = self.latents.pair_with_word[of.pair_keys]
        n = np.bincount(of.pair_at).astype(np.float64)
        share = 1 - tokens.pairs.rest[of.pair_keys]
        rest = tokens.words.rest[tokens.word_of_pair[of.pair_keys]]
        weights = np.stack([n, share * n], axis=1)
        with_word = both.T @ weights + mean[:, None] * (self.pair.T @ (rest[:, None] * weights))
        bins = (self.by_pair @ self.by_bin.T).toarray().astype(np.float64)
        with_bin = np.einsum("mb,bm->m", self.pair.T @ bins, self.latents.position)
        own = self.pair.multiply(self.pair).tocsr().T @ n
        return own, with_word[:, 0], with_word[:, 1], with_bin

    def _previous(self) -> Float64[np.ndarray, " latent"]:
        keys, table = self.latents.readouts.tokens.previous, self.latents.previous
        n = np.bincount(keys.of[self.of.block.tokens], minlength=len(keys.n)).astype(np.float64)
        mean, less = self.latents.mean.astype(np.float64), keys.rest - 1
        own = table.multiply(table).tocsr().T @ n
        return np.asarray(own + 2 * mean * (table.T @ (n * less)) + mean**2 * (n @ less**2))

    def with_lookups(
        self, codes: Any, previous: bool = True
    ) -> Float64[np.ndarray, "latent lookup"]:
        """Return the inner products of sparse codes [token, latent] with what each lookup adds."""
        mean, rest = self.latents.mean.astype(np.float64), self.rest
        total = _column_sums(codes)
        words, shares = self.by_word @ codes, self.by_share @ codes
        position = np.einsum(
            "bm,bm->m", (self.by_bin @ codes).toarray(), self.latents.position, dtype=np.float64
        )
        token = _column_sums(words.multiply(self.word)) + mean * (words.T @ rest)
        shared = _column_sums(shares.multiply(self.word)) + mean * (shares.T @ rest)
        pair = _column_sums((self.by_pair @ codes).multiply(self.pair)) - shared
        found = np.stack([position, token - mean * total, pair, np.zeros_like(pair)], axis=1)
        if previous:
            keys = self.latents.readouts.tokens.previous
            before = self.by_previous @ codes
            found[:, 3] = _column_sums(before.multiply(self.latents.previous))
            found[:, 3] += mean * (before.T @ (keys.rest - 1))
        return found
