"""Sums of products of two SAEs' codes; the work grows with the pairs that are active on the same token."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float, Int32, Int64, Integer

from sae_placebo.saes.fast import available

_BLOCK_NUMBERS = 1 << 22
"""How many products are held at a time where loops are not compiled: 32 MB."""
_DENSE = 4
"""With more than this many times the entries of a in the partners' columns, these are not gathered."""


class Products:
    """Sums of products of two SAEs' codes, without an array of latent x latent.

    Args:
        a: Codes [token, latent], CSR or CSC.
        b: Codes [token, latent], CSR.
        group: [token] group of documents of each token.
        n_groups: Number of groups.
        threads: Number of threads of the compiled loops.
    """

    def __init__(
        self, a: Any, b: Any, group: Int64[np.ndarray, " token"], n_groups: int, threads: int
    ) -> None:
        self.by_latent, self.b, self.group, self.n_groups = a.tocsc(), b.tocsr(), group, n_groups
        self.threads = threads
        n = a.shape[0]
        owner = group[self.by_latent.indices]
        size = np.diff(self.by_latent.indptr)
        index = owner * a.shape[1] + np.repeat(np.arange(a.shape[1]), size)
        self.sums_a = _grouped(index, self.by_latent.data, n_groups, a.shape[1])
        self.sums_b = self._sums_of_b()
        a_sum, a_square = self.sums_a[0].sum(axis=0), self.sums_a[1].sum(axis=0)
        b_sum, b_square = self.sums_b[0].sum(axis=0), self.sums_b[1].sum(axis=0)
        self.a_sum = a_sum
        self.scale_a = _one_over_sd(a_sum, a_square, n)
        scale = _one_over_sd(b_sum, b_square, n)
        # a constant latent has no correlation; an infinite mean makes it the last candidate of all
        self.b_mean = np.where(scale > 0, b_sum / max(n, 1), np.inf)
        self.b_scale = np.where(scale > 0, scale, 1.0)

    def best(
        self, place: Int64[np.ndarray, " token"]
    ) -> tuple[Int32[np.ndarray, " latent"], Float[np.ndarray, " latent"]]:
        """Return each latent's partner, and its score, when token t is paired with row `place[t]` of b.

        The score times `scale_a` / number of tokens is the correlation.
        """
        n = self.by_latent.shape[1]
        partner, score = np.full(n, -1, np.int32), np.full(n, -np.inf)
        if available():
            from sae_placebo.latents.partners.compiled_products import best_by_latent

            moments = (self.a_sum, self.b_mean, self.b_scale)
            given = (*self._arrays(), place, moments)
            self._in_ranges(lambda i, j: best_by_latent(*given, i, j, (partner, score)))
            return partner, score
        rows = self.b[place].astype(np.float64)
        wide = self.by_latent.T.astype(np.float64)
        for first, stop in _ranges(n, max(1, _BLOCK_NUMBERS // max(1, self.b.shape[1]))):
            total = (wide[first:stop] @ rows).toarray()
            with np.errstate(invalid="ignore"):  # 0 x infinity, of silent latents
                total = (total - self.a_sum[first:stop, None] * self.b_mean) * self.b_scale
            fires = np.diff(self.by_latent.indptr[first : stop + 1]) > 0
            at = total.argmax(axis=1)
            value = total[np.arange(stop - first), at]
            ok = fires & np.isfinite(value)
            partner[first:stop], score[first:stop] = (
                np.where(ok, at, -1),
                np.where(ok, value, -np.inf),
            )
        return partner, score

    def pairs(
        self, partner: Int32[np.ndarray, " latent"]
    ) -> tuple[Float[np.ndarray, "latent group"], Float[np.ndarray, "latent group"]]:
        """Return sums of products with the partner, and numbers of tokens on which both fire, by group."""
        n = self.by_latent.shape[1]
        products, joint = np.zeros((n, self.n_groups)), np.zeros((n, self.n_groups))
        entries = np.cumsum(np.bincount(self.b.indices, minlength=self.b.shape[1])[partner] + 1)
        if available() and entries[-1] > _DENSE * max(self.by_latent.nnz, n):
            from sae_placebo.latents.partners.compiled_products import pair_by_group

            given = (*self._arrays(), partner, self.group)
            self._in_ranges(lambda i, j: pair_by_group(*given, i, j, (products, joint)))
            return products, joint
        columns = self.b.tocsc().astype(np.float64)
        # partners may be dense, so that blocks have equal numbers of entries, not of latents
        cuts = np.searchsorted(entries, np.arange(_BLOCK_NUMBERS, entries[-1], _BLOCK_NUMBERS))
        for first, stop in itertools.pairwise(np.unique([0, *cuts, n])):
            block = self.by_latent[:, first:stop].astype(np.float64)
            both = block.multiply(columns[:, partner[first:stop]]).tocsc()
            both.sort_indices()
            latent = np.repeat(np.arange(stop - first), np.diff(both.indptr))
            index = latent * self.n_groups + self.group[both.indices]
            shape, length = (stop - first, self.n_groups), (stop - first) * self.n_groups
            products[first:stop] = np.bincount(index, both.data, length).reshape(shape)
            joint[first:stop] = np.bincount(index, minlength=length).reshape(shape)
        products[partner < 0], joint[partner < 0] = 0, 0
        return products, joint

    def _sums_of_b(self) -> Float[np.ndarray, "three group latent"]:
        b, d = self.b, self.b.shape[1]
        if available():
            from sae_placebo.latents.partners.compiled_products import sums_by_group

            out = np.zeros((3, self.n_groups, d))
            sums_by_group(*self._arrays()[1], self.group, out)
            return out
        index = np.repeat(self.group * d, np.diff(b.indptr)) + b.indices
        return _grouped(index, b.data, self.n_groups, d)

    def _arrays(self) -> tuple[Any, Any]:
        a, b = self.by_latent, self.b
        return (
            (_unsigned(a.indptr), _unsigned(a.indices), a.data),
            (_unsigned(b.indptr), _unsigned(b.indices), b.data),
        )

    def _in_ranges(self, work: Callable[[int, int], Any]) -> None:
        n = self.by_latent.shape[1]
        if self.threads == 1:
            work(0, n)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            # ranges are short, since latents differ in how often they fire
            ranges = _ranges(n, -(-n // (16 * self.threads)))
            list(pool.map(lambda ends: work(*ends), ranges))


def _grouped(
    index: Integer[np.ndarray, " entry"], values: Float[np.ndarray, " entry"], groups: int, d: int
) -> Float[np.ndarray, "three group latent"]:
    """Return sums, sums of squares and counts of entries by group and latent."""
    value = values.astype(np.float64)
    sums = [np.bincount(index, w, groups * d) for w in (value, value * value, None)]
    return np.stack(sums).astype(np.float64).reshape(3, groups, d)


def _one_over_sd(
    total: Float[np.ndarray, " latent"], square: Float[np.ndarray, " latent"], n: int
) -> Float[np.ndarray, " latent"]:
    """Return 1 / standard deviation; 0 where activations are constant but for rounding."""
    variance = square / max(n, 1) - (total / max(n, 1)) ** 2
    varies = variance > 1e-10 * square / max(n, 1)
    return np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1.0)), 0.0)


def _unsigned(index: Integer[np.ndarray, " n"]) -> Integer[np.ndarray, " n"]:
    return index.view(np.uint32 if index.dtype.itemsize == 4 else np.uint64)


def _ranges(n: int, size: int) -> list[tuple[int, int]]:
    size = max(1, size)
    return [(first, min(first + size, n)) for first in range(0, n, size)]
