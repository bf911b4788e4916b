"""Dense vectors as what is predicted; their predictions are written down, a few tokens at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32, Float64, Int64

from sae_placebo.latents.ladder.block_sums import BlockSums, Keys, parts_of
from sae_placebo.latents.ladder.fit_text import Stacked
from sae_placebo.latents.ladder.inner_products import (
    N_LOOKUPS,
    PREVIOUS,
    TARGET,
    Fitted,
    PieceProducts,
    mixer,
    partner_weights,
)
from sae_placebo.latents.ladder.predictors import Readouts

_AT_ONCE = 1_024
_FITTED_AT_ONCE = 4_096
_TABLE_AT_ONCE = 65_536


class Vector:
    """The dimensions of a dense vector as targets, with the same numbers as `Latents` of the same values."""

    def __init__(
        self,
        values: Stacked,
        readouts: Readouts,
        partners: Int64[np.ndarray, "partner target"],
        placebo: Stacked | None,
    ) -> None:
        """Take the values, float32 [token, target]; the others are those of `Latents`."""
        self.values, self.readouts, self.partners, self.placebo = (
            values,
            readouts,
            partners,
            placebo,
        )
        self._portions = [
            PortionOfVector(self, portion) for portion in range(len(readouts.tokens.added))
        ]

    def at(self, portion: int) -> PortionOfVector:
        """Return the dimensions as a portion of the text to fit on knows them."""
        return self._portions[portion]


class PortionOfVector:
    """The dimensions of a dense vector as a portion of the text to fit on knows them.

    Attributes:
        n_fitted: Number of fitted tokens where the dimension is not 0.
        fitted: X'y on the fitted tokens, about the means.
    """

    def __init__(self, vector: Vector, portion: int) -> None:
        """Fit the tables of a vector on a portion."""
        tokens = vector.readouts.tokens
        self._values, self._tokens, self._keys = vector.values, tokens, tokens.counted[portion]
        self._partners, self._placebo = vector.partners, vector.placebo
        self._fit = tokens.fit[: tokens.text.n_fitted[portion]]
        n, m = len(self._fit), vector.values.shape[1]
        total, self.n_fitted = np.zeros(m), np.zeros(m, dtype=np.int64)
        parts = list(parts_of(n, _FITTED_AT_ONCE))
        for part in parts:
            y = self._values[self._fit[part]]
            total += y.sum(0, dtype=np.float64)
            self.n_fitted += np.count_nonzero(y, axis=0)
        self._mean = (total / n).astype(np.float32)
        features = vector.readouts.rows(slice(0, n))
        products = [np.zeros((m, x.shape[1]), dtype=np.float32) for x in features]
        for part in parts:
            y = self._values[self._fit[part]] - self._mean
            for x, product in zip(features, products, strict=True):
                product += y.T @ x[part]
        # what is summed is less the targets' means, so that the features' do not matter
        self.fitted = np.concatenate(products, axis=1)
        bins = self._keys.bins
        in_bins = np.bincount(bins[self._fit], minlength=self._keys.n_bins + 1)
        self._position = self._table(Keys(bins, in_bins, tokens.spec.prior))
        self._word, self._previous = (
            self._table(k) for k in (self._keys.words, self._keys.previous)
        )
        # what pairs add is n / (n + prior) of what they are beyond their current token's prediction
        pairs = self._keys.pairs
        self._pair = self._table(pairs)
        share = (1 - pairs.rest).astype(np.float32)[:, None]
        self._pair -= share * self._word[tokens.word_of_pair]
        if len(self._partners):
            assert self._placebo is not None
            fitted = self._placebo[tokens.fit].mean(axis=0)
            self._placebo_mean = np.asarray(fitted, dtype=np.float32).ravel()

    def _table(self, keys: Keys) -> Float32[np.ndarray, "key target"]:
        """Return what each key adds to the mean."""
        table = np.zeros((len(keys.n), self._values.shape[1]), dtype=np.float32)
        for part in parts_of(len(self._fit), _TABLE_AT_ONCE):
            at = self._fit[part]
            table += keys.adder(at) @ self._values[at]
        table -= keys.n.astype(np.float32)[:, None] * self._mean
        table *= keys.weight[:, None]
        return table

    def moments(self, sums: BlockSums) -> PieceProducts:
        """Return the inner products over a block."""
        m, n = self._values.shape[1], N_LOOKUPS + len(self._partners)
        gram, powers = np.zeros((m, n, n)), np.zeros((2, m))
        of_target = [np.zeros((m, x.shape[1]), dtype=np.float32) for x in sums.parts]
        active = np.zeros(m, dtype=np.int64)
        for part, pieces in self._pieces(sums, None):
            ones = np.ones(len(pieces[0]), dtype=np.float32)
            both = np.empty_like(pieces[0])
            for i, piece in enumerate(pieces):
                for j in range(i + 1):
                    if PREVIOUS in (i, j) and i != j and j != TARGET:
                        continue
                    gram[:, i, j] += ones @ np.multiply(piece, pieces[j], out=both)
                    gram[:, j, i] = gram[:, i, j]
            for x, product in zip(sums.parts, of_target, strict=True):
                product += pieces[TARGET].T @ x[part]
            y = self._values[sums.keys.block.tokens[part]]
            active += np.count_nonzero(y, axis=0)
            y *= y
            powers += np.stack([ones @ y, ones @ np.square(y)])
        products = [np.concatenate(of_target, axis=1), *self._products(sums)]

        def of(rows: slice) -> list[Float32[np.ndarray, "some feature"]]:
            return [product[rows] for product in products]

        return PieceProducts(gram, of, sums.gram, powers[0], powers[1], active)

    def _products(self, sums: BlockSums) -> list[Float32[np.ndarray, "target feature"]]:
        """Return the products of position, token, pair and partners with the features."""
        keys = sums.keys
        products = [
            self._position[: len(sums.by_bin)].T @ sums.by_bin,
            self._word[keys.word_keys].T @ sums.by_word,
            self._pair[keys.pair_keys].T @ sums.by_pair,
        ]
        if len(self._partners):
            assert self._placebo is not None
            codes = self._placebo[keys.block.tokens].T
            by_other = np.concatenate([codes @ x for x in sums.parts], axis=1)
            by_other -= self._placebo_mean[:, None] * sums.total
            products += [by_other[at] for at in self._partners]
        return products

    def errors(
        self, sums: BlockSums, fitted: Fitted
    ) -> tuple[Int64[np.ndarray, " target"], Float64[np.ndarray, "name target"]]:
        """Return each target's active tokens in a block, and each prediction's squared errors there.

        Args:
            sums: Sums of the features over the block.
            fitted: The predictions; the errors are sums over the tokens of the block.
        """
        m = self._values.shape[1]
        active, errors = np.zeros(m, dtype=np.int64), np.zeros((int(fitted.there.sum()), m))
        signed = fitted.signed.astype(np.float32).transpose(1, 2, 0)
        used = [np.flatnonzero(weights.any(axis=1)) for weights in signed]
        for part, pieces in self._pieces(sums, fitted):
            active += np.count_nonzero(self._values[sums.keys.block.tokens[part]], axis=0)
            for read in fitted.readouts:
                pieces.append(pieces[0] if read is None else _read(sums, part, *read))
            ones = np.ones(len(pieces[0]), dtype=np.float32)
            left, step = np.empty_like(pieces[0]), np.empty_like(pieces[0])
            for i, weights in enumerate(signed):
                left.fill(0)
                for piece in used[i]:
                    left += np.multiply(pieces[piece], weights[piece], out=step)
                left *= left
                errors[i] += ones @ left
        return active, fitted.spread(errors)

    def _pieces(
        self, sums: BlockSums, fitted: Fitted | None
    ) -> Iterator[tuple[slice, list[Float32[np.ndarray, "part target"]]]]:
        """Yield the pieces of a few tokens at a time, with each partner or, once fitted, their sum."""
        keys, all_tokens = self._keys, sums.keys.block.tokens
        mixed = []
        if len(self._partners):
            mix = None if fitted is None else fitted.mix
            assert self._placebo is not None
            for at, weights in partner_weights(self._partners, mix):
                mean = (weights * self._placebo_mean[at]).sum(0).astype(np.float32)
                mixed.append((mixer(at, weights, self._placebo.shape[1]), mean))
        for part in parts_of(len(all_tokens), _AT_ONCE):
            at = all_tokens[part]
            pieces = [
                self._values[at] - self._mean,
                self._position[keys.bins[at]],
                self._word[keys.words.of[at]],
                self._pair[keys.pairs.of[at]],
                self._previous[keys.previous.of[at]],
            ]
            if mixed:
                assert self._placebo is not None
                codes = self._placebo[at]
                pieces += [(codes @ picked).toarray() - mean for picked, mean in mixed]
            yield part, pieces


def _read(
    sums: BlockSums, part: slice, columns: slice, coefficients: Float32[np.ndarray, "target column"]
) -> Float32[np.ndarray, "part target"]:
    """Return the prediction of a readout at some tokens of a block."""
    prediction, first = np.float32(0), 0
    for x in sums.parts:
        # the readout's columns in these features
        start, stop = max(columns.start, first), min(columns.stop, first + x.shape[1])
        if start < stop:
            b = coefficients[:, start - columns.start : stop - columns.start]
            prediction = prediction + x[part, start - first : stop - first] @ b.T
        first += x.shape[1]
    return np.asarray(prediction)
