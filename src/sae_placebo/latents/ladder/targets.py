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

from sae_placebo.latents.ladder.block_sums import BlockSums, Keys, adder
from sae_placebo.latents.ladder.pieces import (
    N_LOOKUPS,
    PREVIOUS,
    TARGET,
    Fitted,
    PieceProducts,
    mixer,
    partner_weights,
)
from sae_placebo.latents.ladder.predictors import Readouts
from sae_placebo.latents.ladder.token_features import TokenFeatures

_AT_ONCE = 512
"""Latents whose products are formed at a time."""


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
        fitted = [there.T @ x for x in self.readouts.fitted]
        put("fitted", np.concatenate(fitted, axis=1, dtype=np.float32))
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
    def previous_squared(self) -> Any:
        """Squares of the entries of `previous`."""
        return _squared(self.previous)

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

    def moments(
        self, sums: BlockSums, mix: Float64[np.ndarray, "partner latent"] | None = None
    ) -> PieceProducts:
        """Return the inner products over a block.

        Args:
            sums: Over the block.
            mix: Weights of the partners, to have their weighted sum as one piece; None to have each.
        """
        here = self.codes[sums.keys.block.tokens].T.tocsr()
        tables = _Here(self, sums)
        partners = self._beside(sums, mix) if len(self.partners) else []
        m, k = len(self.mean), N_LOOKUPS + len(partners)
        gram = np.zeros((m, k, k))
        gram[:, :N_LOOKUPS, :N_LOOKUPS] = tables.gram
        total, squares = _row_sums(here), _squared(here)
        square = _row_sums(squares)
        mean = self.mean.astype(np.float64)
        own, *others = tables.with_lookups([here, *(partner.codes for partner in partners)])
        # the target less its mean
        own -= mean[:, None] * tables.sums
        gram[:, TARGET, 1:N_LOOKUPS] = gram[:, 1:N_LOOKUPS, TARGET] = own
        gram[:, 0, 0] = square - 2 * mean * total + mean**2 * sums.keys.n
        for p, (partner, inner) in enumerate(zip(partners, others, strict=True)):
            piece = N_LOOKUPS + p
            inner -= partner.mean[:, None] * tables.sums
            # not the token before, with which no rung has partners
            gram[:, piece, 1:PREVIOUS] = gram[:, 1:PREVIOUS, piece] = inner[:, : PREVIOUS - 1]
            less = partner.total - partner.mean * sums.keys.n
            y = _row_sums(partner.codes.multiply(here)) - partner.mean * total - mean * less
            gram[:, piece, 0] = gram[:, 0, piece] = y
            for q, other in enumerate(partners[: p + 1]):
                same = p == q
                codes = _squared(partner.codes) if same else partner.codes.multiply(other.codes)
                both = _row_sums(codes) - partner.mean * other.total - other.mean * less
                gram[:, piece, N_LOOKUPS + q] = gram[:, N_LOOKUPS + q, piece] = both

        def products(rows: slice) -> list[Float32[np.ndarray, "some feature"]]:
            own = _dot(here[rows], sums)
            own -= self.mean[rows, None] * sums.total
            found = [own, *tables.products(rows)]
            return [*found, *(partner.product(rows, sums) for partner in partners)]

        return PieceProducts(
            gram=gram,
            products=products,
            features=sums.gram,
            squares=square,
            fourths=_row_sums(_squared(squares)),
            active=np.diff(here.indptr).astype(np.int64),
        )

    def errors(
        self, sums: BlockSums, fitted: Fitted
    ) -> tuple[Int64[np.ndarray, " latent"], Float64[np.ndarray, "name latent"]]:
        """Return active tokens of a block, and the sum of squared errors of each prediction there."""
        moments = self.moments(sums, fitted.mix)
        gram = moments.with_room(len(fitted.readouts))
        moments.put(gram, {i: r for i, r in enumerate(fitted.readouts) if r is not None})
        signed = fitted.signed
        errors = np.einsum("mnk,mnk->nm", signed @ gram, signed)
        return moments.active, fitted.spread(errors)

    def _beside(
        self, sums: BlockSums, mix: Float64[np.ndarray, "partner latent"] | None
    ) -> list[_Partner]:
        """Return the partners of each latent at a block, or their weighted sum alone."""
        codes = self.placebo[sums.keys.block.tokens]
        others = codes.T.tocsr()
        by_other = _dot(others, sums)
        found = []
        for at, weights in partner_weights(self.partners, mix):
            picked = mixer(at, weights, codes.shape[1])
            # sorted, as transposing leaves it
            column = others[at[0]] if mix is None else (codes @ picked).T.tocsr()
            mean = (weights * self._placebo_mean[at]).sum(0)
            found.append(_Partner(column, mean, _row_sums(column), picked.T, by_other))
        return found

    @functools.cached_property
    def _placebo_mean(self) -> Float32[np.ndarray, " other"]:
        return np.asarray(self.placebo[self._tokens.fit].mean(axis=0), dtype=np.float32).ravel()


@dataclass(frozen=True, eq=False)
class _Partner:
    """A column of a placebo's codes beside each latent, at the tokens of a block.

    Attributes:
        codes: CSR [latent, token].
        mean: On the fitted tokens.
        total: Sum over the block.
        picked: CSR [latent, placebo latent] what the column is made of.
        by_other: Products of the placebo latents with the features.
    """

    codes: Any
    mean: Float64[np.ndarray, " latent"]
    total: Float64[np.ndarray, " latent"]
    picked: Any
    by_other: Float32[np.ndarray, "other feature"]

    def product(self, rows: slice, sums: BlockSums) -> Float32[np.ndarray, "some feature"]:
        """Return the products of the columns, each less its mean, with the features."""
        found = np.asarray(self.picked[rows] @ self.by_other)
        found -= self.mean[rows, None].astype(np.float32) * sums.total
        return found


def _dot(by_latent: Any, sums: BlockSums) -> Float32[np.ndarray, "some feature"]:
    """Return the products of sparse columns, [latent, token], with the features."""
    return np.concatenate([by_latent @ x for x in sums.parts], axis=1)


def _row_sums(matrix: Any) -> Float64[np.ndarray, " target"]:
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return np.bincount(rows, matrix.data, minlength=matrix.shape[0])


def _squared(matrix: Any) -> Any:
    """Return a sparse matrix with each entry squared."""
    parts = (matrix.data**2, matrix.indices, matrix.indptr)
    return type(matrix)(parts, shape=matrix.shape)


@dataclass(frozen=True, eq=False)
class _Here:
    """The rows of a latent's tables that occur in a block."""

    latents: Latents
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
        """Both, [latent, key]."""
        return self.word.T.tocsr(), self.pair.T.tocsr()

    @functools.cached_property
    def rest(self) -> Float64[np.ndarray, " word"]:
        """Weight of the mean in each current token's prediction."""
        return np.asarray(self.latents.readouts.tokens.words.rest[self.of.keys.word_keys])

    @functools.cached_property
    def of_mean(self) -> Float32[np.ndarray, " twice"]:
        """Product of the weight of the mean with the features, as they are and weighted by the share."""
        found: Float32[np.ndarray, " twice"] = self.rest.astype(np.float32) @ self.of.by_word
        found[: self.of.n_features] -= self.of.total
        return found

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
        """Sums of the rows of words: by power of the share, the same by weight of the mean, by bin."""
        keys = self.of.keys
        rest = self.rest[:, None] * keys.powers
        by = np.concatenate([keys.powers, rest, keys.word_bins, keys.share_bins], axis=1)
        return np.asarray(self.by_latent[0] @ by)

    @functools.cached_property
    def sums(self) -> Float64[np.ndarray, "latent lookup"]:
        """Sum of what each lookup adds to the mean."""
        keys, latents = self.of.keys, self.latents
        mean, before = latents.mean.astype(np.float64), latents.readouts.tokens.previous
        rest = self.rest @ keys.powers
        position = latents.position.T.astype(np.float64) @ keys.word_bins.sum(0)
        token = self._linear[:, 0] + mean * (rest[0] - keys.n)
        pair = self.by_latent[1] @ keys.n_pair - self._linear[:, 1] - mean * rest[1]
        previous = latents.previous.T @ keys.n_before + mean * (keys.n_before @ (before.rest - 1))
        return np.stack([position, token, pair, previous], axis=1)

    @functools.cached_property
    def gram(self) -> Float64[np.ndarray, "latent piece piece"]:
        """Inner products of the lookups; those with the target are 0."""
        keys, position = self.of.keys, self.latents.position.astype(np.float64)
        mean, n_bins, n = self.latents.mean.astype(np.float64), len(position), keys.n
        rest, linear = self.rest[:, None], self._linear
        squares = _squared(self.by_latent[0]) @ keys.powers
        squares += 2 * mean[:, None] * linear[:, 3:6]
        squares += mean[:, None] ** 2 * (rest**2 * keys.powers).sum(0)
        of_mean = (rest * np.concatenate([keys.word_bins, keys.share_bins], axis=1)).sum(0)
        by_bin = linear[:, 6:] + mean[:, None] * of_mean
        bins = np.einsum("bm,mb->m", position, by_bin[:, :n_bins])
        shared_bins = np.einsum("bm,mb->m", position, by_bin[:, n_bins:])
        pair_pair, pair_token, pair_shared, pair_bins, total_pair = self._pairs()
        token_sum = self.sums[:, 1] + mean * n
        shared_sum = total_pair - self.sums[:, 2]
        found = np.zeros((len(mean), N_LOOKUPS, N_LOOKUPS))
        found[:, 1, 1] = keys.word_bins.sum(0) @ position**2
        found[:, 2, 2] = squares[:, 0] - 2 * mean * token_sum + mean**2 * n
        found[:, 3, 3] = pair_pair - 2 * pair_shared + squares[:, 2]
        found[:, 1, 2] = found[:, 2, 1] = bins - mean * self.sums[:, 0]
        found[:, 1, 3] = found[:, 3, 1] = pair_bins - shared_bins
        across = pair_token - squares[:, 1] - mean * (total_pair - shared_sum)
        found[:, 2, 3] = found[:, 3, 2] = across
        found[:, 4, 4] = self._previous()
        return found

    def _pairs(self) -> tuple[Any, Any, Any, Any, Any]:
        """Return inner products of the rows of pairs: own, token's, its weighted by the share, bin's, 1's."""
        keys, tokens, pair = self.of.keys, self.latents.readouts.tokens, self.by_latent[1]
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
        return _squared(pair) @ n, with_word[:, 0], with_word[:, 1], with_bin, linear[:, 0]

    def _previous(self) -> Float64[np.ndarray, " latent"]:
        keys, n = self.latents.readouts.tokens.previous, self.of.keys.n_before
        mean, less = self.latents.mean.astype(np.float64), keys.rest - 1
        own = self.latents.previous_squared.T @ n
        linear = self.latents.previous.T @ (n * less)
        return np.asarray(own + 2 * mean * linear + mean**2 * (n @ less**2))

    def with_lookups(self, codes: list[Any]) -> list[Float64[np.ndarray, "latent lookup"]]:
        """Return the inner products of sparse codes, each [latent, token], with what each lookup adds.

        Those with the lookup of the token before are of the first codes only, else 0.
        """
        tokens, of = self.latents.readouts.tokens, self.of.keys
        word, pair = self.by_latent
        before = self.latents.previous[of.before_keys].T.tocsr()
        rest, before_less = self.rest, tokens.previous.rest[of.before_keys] - 1
        found = [np.zeros((len(self.latents.mean), N_LOOKUPS - 1)) for _ in codes]
        for first in range(0, len(self.latents.mean), _AT_ONCE):
            rows = slice(first, min(first + _AT_ONCE, len(self.latents.mean)))
            tables = [table[rows].toarray() for table in (word, pair, before)]
            bins = self.latents.position[:, rows].T
            for some, inner in zip(codes, found, strict=True):
                at = slice(some.indptr[rows.start], some.indptr[rows.stop])
                latent = np.repeat(
                    np.arange(rows.stop - first), np.diff(some.indptr[first : rows.stop + 1])
                )
                token, mean = some.indices[at], self.latents.mean[rows][latent].astype(np.float64)
                words, share = of.word_at[token], of.share[token]
                by_word = _entries(tables[0], latent, words) + mean * rest[words]
                by_pair = _entries(tables[1], latent, of.pair_at[token])
                in_bin = _entries(bins, latent, of.bins[token])
                added = [in_bin, by_word - mean, by_pair - share * by_word]
                if some is codes[0]:
                    keys = of.before_at[token]
                    previous = _entries(tables[2], latent, keys)
                    added.append(previous + mean * before_less[keys])
                for lookup, values in enumerate(added):
                    values = values * some.data[at]
                    inner[rows, lookup] = np.bincount(latent, values, minlength=len(bins))
        return found


def _entries(
    table: Float32[np.ndarray, "some key"],
    rows: Int64[np.ndarray, " entry"],
    columns: Int64[np.ndarray, " entry"],
) -> Float32[np.ndarray, " entry"]:
    return np.asarray(table.ravel().take(rows * table.shape[1] + columns))
