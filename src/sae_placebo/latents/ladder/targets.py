"""Latents as what is predicted, and their inner products with their predictors."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from sae_placebo.latents.ladder.block_sums import BlockSums
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
from sae_placebo.latents.ladder.latent_tables import (
    BlockTables,
    FitSums,
    LatentTables,
    row_sums,
    squared,
)
from sae_placebo.latents.ladder.predictors import Readouts


class Latents:
    """Latents as targets, which are 0 at most tokens.

    What is summed over fitted tokens is summed over what each portion adds, once. `at` gives the latents as
    one portion of the text to fit on knows them.
    """

    def __init__(
        self,
        codes: Stacked,
        readouts: Readouts,
        partners: Int64[np.ndarray, "partner latent"],
        placebo: Stacked | None,
    ) -> None:
        """Sum over the fitted tokens.

        Args:
            codes: Codes of the latents, CSR [token, latent].
            readouts: Features that are read linearly.
            partners: Placebo latents that each latent is predicted from; no rows without a placebo.
            placebo: Codes of the placebo, CSR [token, placebo latent]; None without a placebo.
        """
        self.codes, self.readouts, self.partners, self.placebo = codes, readouts, partners, placebo
        self._block: BlockCodes | None = None

    @functools.cached_property
    def _portions(self) -> tuple[PortionOfLatents, ...]:
        tokens = self.readouts.tokens
        sums = itertools.accumulate(
            FitSums.of(self.codes[tokens.fit[rows]], self.readouts, portion)
            for portion, rows in enumerate(tokens.added)
        )
        return tuple(
            PortionOfLatents(self, portion, one, self._tables(portion, one))
            for portion, one in enumerate(sums)
        )

    def _tables(self, portion: int, sums: FitSums) -> LatentTables:
        tokens = self.readouts.tokens
        fit = tokens.fit[: tokens.text.n_fitted[portion]]
        return LatentTables.of(sums, tokens.counted[portion], fit, tokens.spec.prior)

    def at(self, portion: int) -> PortionOfLatents:
        """Return the latents as a portion of the text to fit on knows them."""
        return self._portions[portion]

    def in_block(self, sums: BlockSums) -> BlockCodes:
        """Return the codes in a block, which are kept until another block is asked for."""
        if self._block is None or self._block.sums is not sums:
            self._block = BlockCodes(self, sums)
        return self._block

    @functools.cached_property
    def placebo_mean(self) -> Float32[np.ndarray, " other"]:
        """Mean of each placebo latent over all fitted tokens."""
        assert self.placebo is not None
        fitted = self.placebo[self.readouts.tokens.fit]
        return np.asarray(fitted.mean(axis=0), dtype=np.float32).ravel()


class BlockCodes:
    """Codes of latents and of their placebo at the tokens of a block, whatever is fitted on."""

    def __init__(self, latents: Latents, sums: BlockSums) -> None:
        """Take the codes of a block, of which `sums` are the sums of features."""
        self.latents, self.sums = latents, sums
        self.codes = latents.codes[sums.keys.block.tokens].T.tocsr()
        squares = squared(self.codes)
        self.total, self.squares = row_sums(self.codes), row_sums(squares)
        self.fourths = row_sums(squared(squares))
        self.active = np.diff(self.codes.indptr).astype(np.int64)

    @functools.cached_property
    def products(self) -> Float32[np.ndarray, "latent feature"]:
        """Products of the latents with the features."""
        return _dot(self.codes, self.sums)

    @functools.cached_property
    def _placebo(self) -> tuple[Any, Any, Float32[np.ndarray, "other feature"]]:
        """Codes of the placebo, by token and by latent, and their products with the features."""
        assert self.latents.placebo is not None
        codes = self.latents.placebo[self.sums.keys.block.tokens]
        by_latent = codes.T.tocsr()
        return codes, by_latent, _dot(by_latent, self.sums)

    def partners(self, mix: Float64[np.ndarray, "partner latent"] | None) -> list[_Partner]:
        """Return the partners of each latent, or their sum with these weights alone."""
        latents, partners = self.latents, []
        if not len(latents.partners):
            return []
        codes, by_latent, by_other = self._placebo
        for at, weights in partner_weights(latents.partners, mix):
            picked = mixer(at, weights, codes.shape[1])
            # transposing leaves the entries sorted
            column = by_latent[at[0]] if mix is None else (codes @ picked).T.tocsr()
            mean = (weights * latents.placebo_mean[at]).sum(0)
            partners.append(_Partner(column, mean, row_sums(column), picked.T, by_other))
        return partners


@dataclass(frozen=True, eq=False)
class PortionOfLatents:
    """Latents as a portion of the text to fit on knows them.

    Attributes:
        latents: The latents.
        portion: Index of the portion.
        sums: Sums over the portion's tokens.
        tables: Lookup tables.
    """

    latents: Latents
    portion: int
    sums: FitSums
    tables: LatentTables

    @property
    def n_fitted(self) -> Int64[np.ndarray, " latent"]:
        """Number of fitted tokens on which each latent is active."""
        return self.sums.active

    @property
    def fitted(self) -> Float32[np.ndarray, "latent feature"]:
        """X'y on the fitted tokens, about the means."""
        totals = self.latents.readouts.totals[self.portion].astype(np.float32)
        return self.sums.products - self.sums.mean[:, None] * totals

    def moments(
        self, sums: BlockSums, mix: Float64[np.ndarray, "partner latent"] | None = None
    ) -> PieceProducts:
        """Return the inner products over a block.

        Args:
            sums: Sums of the features over the block.
            mix: Weights of the partners, whose weighted sum is then one piece; None makes each a piece.
        """
        block, tables = self.latents.in_block(sums), BlockTables(self.tables, sums)
        partners, mean32 = block.partners(mix), self.sums.mean
        mean, n = mean32.astype(np.float64), sums.keys.n
        k = N_LOOKUPS + len(partners)
        gram = np.zeros((len(mean), k, k))

        def put(one: int, other: int | slice, products: Float64[np.ndarray, "latent ..."]) -> None:
            gram[:, one, other] = gram[:, other, one] = products

        gram[:, :N_LOOKUPS, :N_LOOKUPS] = tables.gram
        target, *others = tables.with_lookups([block.codes, *(p.codes for p in partners)])
        put(TARGET, TARGET, block.squares - 2 * mean * block.total + mean**2 * n)
        put(TARGET, slice(1, N_LOOKUPS), target - mean[:, None] * tables.sums)
        for i, (partner, inner) in enumerate(zip(partners, others, strict=True)):
            piece, less = N_LOOKUPS + i, partner.total - partner.mean * n
            products = row_sums(partner.codes.multiply(block.codes))
            put(piece, TARGET, products - partner.mean * block.total - mean * less)
            # products with the token before are not needed, since no rung has it and partners
            with_lookups = inner - partner.mean[:, None] * tables.sums
            put(piece, slice(1, PREVIOUS), with_lookups[:, : PREVIOUS - 1])
            for j, other in enumerate(partners[: i + 1]):
                both = squared(other.codes) if i == j else partner.codes.multiply(other.codes)
                less_means = row_sums(both) - partner.mean * other.total - other.mean * less
                put(piece, N_LOOKUPS + j, less_means)

        def with_features(rows: slice) -> list[Float32[np.ndarray, "some feature"]]:
            of_target = block.products[rows] - mean32[rows, None] * sums.total
            of_partners = (partner.product(rows, sums) for partner in partners)
            return [of_target, *tables.products(rows), *of_partners]

        return PieceProducts(
            gram, with_features, sums.gram, block.squares, block.fourths, block.active
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
