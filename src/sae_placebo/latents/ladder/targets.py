"""Latents as what is predicted, and their inner products with their predictors."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from sae_placebo.latents.ladder.block_sums import BlockSums
from sae_placebo.latents.ladder.inner_products import (
    N_LOOKUPS,
    PREVIOUS,
    TARGET,
    Fitted,
    PieceProducts,
    mixer,
    partner_weights,
)
from sae_placebo.latents.ladder.latent_tables import (
    BlockTables,
    LatentTables,
    row_sums,
    squared,
)
from sae_placebo.latents.ladder.predictors import Readouts


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents as targets, which are 0 at most tokens.

    Attributes:
        codes: Codes of the latents, CSR [token, latent].
        readouts: Features that are read linearly.
        partners: [partner, latent] placebo latents that each latent is predicted from; no rows without a
            placebo.
        placebo: Codes of the placebo, CSR [token, placebo latent]; None without a placebo.
        n_fitted: Number of fitted tokens on which the latent is active.
        mean: Mean over the fitted tokens.
        fitted: X'y on the fitted tokens.
    """

    codes: Any
    readouts: Readouts
    partners: Int64[np.ndarray, "partner latent"]
    placebo: Any
    n_fitted: Int64[np.ndarray, " latent"] = field(init=False)
    mean: Float32[np.ndarray, " latent"] = field(init=False)
    fitted: Float32[np.ndarray, "latent feature"] = field(init=False)
    _tables: LatentTables = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tokens = self.readouts.tokens
        codes = self.codes[tokens.fit]
        put = functools.partial(object.__setattr__, self)
        put("n_fitted", np.asarray(codes.getnnz(axis=0), dtype=np.int64))
        put("mean", np.asarray(codes.mean(axis=0), dtype=np.float32).ravel())
        # columns of x have mean 0, so the target's mean does not matter
        fitted = [codes.T @ x for x in self.readouts.fitted]
        put("fitted", np.concatenate(fitted, axis=1, dtype=np.float32))
        put("_tables", LatentTables(codes, self.mean, tokens))

    def moments(
        self, sums: BlockSums, mix: Float64[np.ndarray, "partner latent"] | None = None
    ) -> PieceProducts:
        """Return the inner products over a block.

        Args:
            sums: Sums of the features over the block.
            mix: Weights of the partners, whose weighted sum is then one piece; None makes each a piece.
        """
        codes = self.codes[sums.keys.block.tokens].T.tocsr()
        tables = BlockTables(self._tables, sums)
        partners = self._beside(sums, mix) if len(self.partners) else []
        m, k = len(self.mean), N_LOOKUPS + len(partners)
        gram = np.zeros((m, k, k))
        gram[:, :N_LOOKUPS, :N_LOOKUPS] = tables.gram
        total, squares = row_sums(codes), squared(codes)
        square = row_sums(squares)
        mean = self.mean.astype(np.float64)
        target, *others = tables.with_lookups([codes, *(partner.codes for partner in partners)])
        # the target less its mean
        target -= mean[:, None] * tables.sums
        gram[:, TARGET, 1:N_LOOKUPS] = gram[:, 1:N_LOOKUPS, TARGET] = target
        gram[:, 0, 0] = square - 2 * mean * total + mean**2 * sums.keys.n
        for p, (partner, inner) in enumerate(zip(partners, others, strict=True)):
            piece = N_LOOKUPS + p
            inner -= partner.mean[:, None] * tables.sums
            # products with the token before are not needed, since no rung has it and partners
            gram[:, piece, 1:PREVIOUS] = gram[:, 1:PREVIOUS, piece] = inner[:, : PREVIOUS - 1]
            less = partner.total - partner.mean * sums.keys.n
            y = row_sums(partner.codes.multiply(codes)) - partner.mean * total - mean * less
            gram[:, piece, 0] = gram[:, 0, piece] = y
            for q, other in enumerate(partners[: p + 1]):
                same = p == q
                product = squared(partner.codes) if same else partner.codes.multiply(other.codes)
                both = row_sums(product) - partner.mean * other.total - other.mean * less
                gram[:, piece, N_LOOKUPS + q] = gram[:, N_LOOKUPS + q, piece] = both

        def products(rows: slice) -> list[Float32[np.ndarray, "some feature"]]:
            of_target = _dot(codes[rows], sums)
            of_target -= self.mean[rows, None] * sums.total
            of_partners = (partner.product(rows, sums) for partner in partners)
            return [of_target, *tables.products(rows), *of_partners]

        return PieceProducts(
            gram=gram,
            products=products,
            features=sums.gram,
            squares=square,
            fourths=row_sums(squared(squares)),
            active=np.diff(codes.indptr).astype(np.int64),
        )

    def errors(
        self, sums: BlockSums, fitted: Fitted
    ) -> tuple[Int64[np.ndarray, " latent"], Float64[np.ndarray, "name latent"]]:
        """Return each latent's active tokens in a block, and each prediction's squared errors there.

        Args:
            sums: Sums of the features over the block.
            fitted: The predictions; the errors are sums over the tokens of the block.
        """
        moments = self.moments(sums, fitted.mix)
        gram = moments.with_room(len(fitted.readouts))
        moments.put(gram, {i: r for i, r in enumerate(fitted.readouts) if r is not None})
        signed = fitted.signed
        errors = np.einsum("mnk,mnk->nm", signed @ gram, signed)
        return moments.active, fitted.spread(errors)

    def _beside(
        self, sums: BlockSums, mix: Float64[np.ndarray, "partner latent"] | None
    ) -> list[_Partner]:
        """Return the partners of each latent at the tokens of a block, or their weighted sum alone."""
        codes = self.placebo[sums.keys.block.tokens]
        others = codes.T.tocsr()
        by_other = _dot(others, sums)
        beside = []
        for at, weights in partner_weights(self.partners, mix):
            picked = mixer(at, weights, codes.shape[1])
            # transposing leaves the entries sorted
            column = others[at[0]] if mix is None else (codes @ picked).T.tocsr()
            mean = (weights * self._placebo_mean[at]).sum(0)
            beside.append(_Partner(column, mean, row_sums(column), picked.T, by_other))
        return beside

    @functools.cached_property
    def _placebo_mean(self) -> Float32[np.ndarray, " other"]:
        fitted = self.placebo[self.readouts.tokens.fit]
        return np.asarray(fitted.mean(axis=0), dtype=np.float32).ravel()


@dataclass(frozen=True, eq=False)
class _Partner:
    """One partner of each latent, or the weighted sum of all, at the tokens of a block.

    Attributes:
        codes: Codes of the partner, CSR [latent, token].
        mean: Mean over the fitted tokens.
        total: Sum over the block.
        picked: Weights of the placebo latents that make up the partner, CSR [latent, placebo latent].
        by_other: Products of the placebo latents with the features.
    """

    codes: Any
    mean: Float64[np.ndarray, " latent"]
    total: Float64[np.ndarray, " latent"]
    picked: Any
    by_other: Float32[np.ndarray, "other feature"]

    def product(self, rows: slice, sums: BlockSums) -> Float32[np.ndarray, "some feature"]:
        """Return the products of the partners of some latents, less their means, with the features."""
        products = np.asarray(self.picked[rows] @ self.by_other)
        products -= self.mean[rows, None].astype(np.float32) * sums.total
        return products


def _dot(by_latent: Any, sums: BlockSums) -> Float32[np.ndarray, "some feature"]:
    """Return the products of sparse columns, [latent, token], with the features."""
    return np.concatenate([by_latent @ x for x in sums.parts], axis=1)
