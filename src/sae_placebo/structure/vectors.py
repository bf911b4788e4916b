"""Dense vectors as what is predicted: their predictions are written down, a block of tokens at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from sae_placebo.structure.predictors import BlockSums, Keys, Readouts
from sae_placebo.structure.targets import N_LOOKUPS, PREVIOUS, Moments

_AT_ONCE = 2_048


class Vector:
    """A dense vector's dimensions; gives the same numbers as `Latents` for the same values.

    Attributes:
        n_fitted: Fitted tokens where each is not 0.
        fitted: X'y on the fitted tokens.
    """

    def __init__(
        self,
        values: Float32[np.ndarray, "token target"],
        readouts: Readouts,
        partners: Int64[np.ndarray, "partner target"],
        placebo: Any,
    ) -> None:
        self._values, self._readouts = values, readouts
        self._partners, self._placebo = partners, placebo
        tokens = readouts.tokens
        there = values[tokens.fit]
        self._mean = there.mean(0)
        self.n_fitted = np.count_nonzero(there, axis=0)
        self.fitted = ((there - self._mean).T @ readouts.x[tokens.fit]).astype(np.float32)
        n = np.bincount(tokens.bins[tokens.fit], minlength=tokens.n_bins + 1)
        bins = Keys(tokens.bins, n, tokens.spec.prior)
        self._position = self._table(bins, tokens.spec.prior)
        self._word = self._table(tokens.words, tokens.words.prior)
        self._previous = self._table(tokens.previous, tokens.previous.prior)
        # n / (n + prior) of what pairs are beyond their current token's prediction
        keys = tokens.pairs
        sums = keys.sums(tokens.fit) @ (there - self._mean)
        share = (keys.n / (keys.n + keys.prior)).astype(np.float32)[:, None]
        own = sums / (keys.n + keys.prior).astype(np.float32)[:, None]
        pair = own - share * self._word[tokens.word_of_pair]
        self._pair = np.where(share > 0, pair, 0).astype(np.float32)
        if len(partners):
            fitted = placebo[tokens.fit].mean(axis=0)
            self._placebo_mean = np.asarray(fitted, dtype=np.float32).ravel()

    def _table(self, keys: Keys, prior: float) -> Float32[np.ndarray, "key target"]:
        fit = self._readouts.tokens.fit
        sums = keys.sums(fit) @ (self._values[fit] - self._mean)
        return np.asarray(sums / (keys.n + prior)[:, None], dtype=np.float32)

    def moments(self, sums: BlockSums) -> Moments:
        """Return the inner products over a block."""
        n_pieces = N_LOOKUPS + len(self._partners)
        m = self._values.shape[1]
        gram = np.zeros((m, n_pieces, n_pieces))
        read = np.zeros((m, n_pieces - 1, sums.x.shape[1]), dtype=np.float32)
        powers = np.zeros((2, m))
        active = np.zeros(m, dtype=np.int64)
        for first in range(0, len(sums.x), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            at, x = sums.block.tokens[part], sums.x[part]
            pieces = self._pieces(at)
            for i, piece in enumerate(pieces):
                for j in range(i + 1):
                    both = np.einsum("tm,tm->m", piece, pieces[j], dtype=np.float64)
                    gram[:, i, j] += both
                    gram[:, j, i] = gram[:, i, j]
            for i, piece in enumerate([p for k, p in enumerate(pieces) if k != PREVIOUS]):
                read[:, i] += piece.T @ x
            square = self._values[at].astype(np.float64) ** 2
            powers += np.stack([square.sum(0), (square**2).sum(0)])
            active += np.count_nonzero(square, axis=0)
        return Moments(gram, read, sums.gram, powers[0], powers[1], active)

    def _pieces(self, at: Int64[np.ndarray, " part"]) -> list[Float32[np.ndarray, "part target"]]:
        tokens = self._readouts.tokens
        pieces = [
            self._values[at] - self._mean,
            self._position[tokens.bins[at]],
            self._word[tokens.words.of[at]],
            self._pair[tokens.pairs.of[at]],
            self._previous[tokens.previous.of[at]],
        ]
        if len(self._partners):
            codes = self._placebo[at]
            for partner in self._partners:
                pieces.append(codes[:, partner].toarray() - self._placebo_mean[partner])
        return pieces
