"""Sums of squared gradients along directions, and along random directions at the same angle to activations.

At a token with activation x, a random direction u at the angle of d is `u = c xh + s w`. Here xh is x brought
to length 1, c = d . xh is the cosine of the angle, s = sqrt(1 - c^2) is its sine, and w is a random unit
vector at a right angle to x. Then x + a u is as long as x + a d. With a gradient g,

    (g . u)^2 = c^2 A^2 + 2 c s A B + s^2 B^2,    A = g . xh,    B = g . w.

Only c, s and the amount a depend on the direction. So where all directions share K vectors w, the sums over
tokens of a^2 (g . u)^2 for every direction, with its own tokens and amounts, are products of sparse matrices
[direction, token] with dense ones [token, null].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.causal.use.base import Directions
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator

_GATHERED = 2**23
"""No more than so many numbers of gathered vectors are held at once."""


def shared_nulls(seed: int, n: int, width: int) -> Float32[torch.Tensor, "null d_in"]:
    """Return `n` isotropic random unit vectors, from which the nulls of all directions are made."""
    drawn = torch.randn(n, width, generator=generator(seed, "screen", "nulls"))
    unit: torch.Tensor = drawn / drawn.norm(dim=1, keepdim=True)
    return unit


class MatchedSums:
    """Sums over tokens of squared gradients along directions, and along their nulls.

    A gradient g counts for each direction d that its token holds, with the square of the amount a.

    Args:
        directions: The directions, with their amounts.
        nulls: Random vectors that all directions share.
        n_readers: How many gradients there are for each token and sample of labels.

    Attributes:
        score: [half, direction, reader] The sums of a^2 (g . d)^2, mean over samples, by half of the
            documents.
        null: [direction, reader, null] The same sums along each null of the direction, over both halves.
        linear: [direction, reader] The sums of a (g . d), over the gradients given as `linear`.
        n: [half, direction] How many tokens hold the direction.
    """

    def __init__(
        self, directions: Directions, nulls: Float32[torch.Tensor, "null d_in"], n_readers: int = 1
    ) -> None:
        n = len(directions)
        self.directions = directions
        self.nulls = nulls
        self.score = np.zeros((2, n, n_readers))
        self.null = np.zeros((n, n_readers, len(nulls)), dtype=np.float32)
        self.linear = np.zeros((n, n_readers))
        self.n = np.zeros((2, n), dtype=np.int64)
        self._vectors = torch.from_numpy(directions.vectors).to(nulls.device)

    def add(
        self,
        tokens: Int64[np.ndarray, " token"],
        halves: Int64[np.ndarray, " token"],
        site: Float[torch.Tensor, "token d_in"],
        gradients: Float[torch.Tensor, "sample token reader d_in"],
        linear: Float[torch.Tensor, "token reader d_in"] | None = None,
    ) -> None:
        """Add the gradients at some tokens to the sums.

        Args:
            tokens: The tokens, as rows of the amounts.
            halves: The half that each token's document belongs to, 0 or 1.
            site: Their activations at the hookpoint.
            gradients: The gradients at the hookpoint, through each reader.
            linear: The gradients that are summed with their signs; None for none.
        """
        amounts = self.directions.amounts[tokens]
        unit = site / site.norm(dim=1, keepdim=True).clamp_min(1e-12)
        dots, cosines = self._along(amounts, unit, gradients, linear)
        samples = len(gradients)
        squares = np.square(dots[:, :samples]).mean(1)
        token_of = np.repeat(np.arange(len(tokens)), np.diff(amounts.indptr))
        weights = amounts.data.astype(np.float64) ** 2
        n = len(self.directions)
        slots = amounts.indices + n * halves[token_of]
        self.n += np.bincount(slots, minlength=2 * n).reshape(2, n)
        self.score += summed(slots, squares * weights[:, None], 2 * n).reshape(self.score.shape)
        if linear is not None:
            self.linear += summed(amounts.indices, dots[:, -1] * amounts.data[:, None], n)
        self._add_nulls((token_of, amounts.indices), weights, cosines, unit, gradients)

    def _along(
        self,
        amounts: Any,
        unit: torch.Tensor,
        gradients: torch.Tensor,
        linear: torch.Tensor | None,
    ) -> tuple[Float[np.ndarray, "pair row reader"], Float[np.ndarray, " pair"]]:
        """Return g . d and the cosine of d and the activation, for each pair of a token and a held d.

        The rows of the products are the samples, with `linear` as the last row where it is given.
        """
        if linear is not None:
            gradients = torch.cat([gradients, linear[None]])
        samples, n, readers, width = gradients.shape
        columns = gradients.permute(1, 3, 0, 2).reshape(n, width, samples * readers)
        columns = torch.cat([columns, unit[..., None]], 2)
        counts = np.diff(amounts.indptr)
        most = max(int(counts.max(initial=0)), 1)
        step = max(_GATHERED // (most * width), 1)
        products, cosines = [], []
        for start in range(0, n, step):
            chunk = amounts[start : start + step]
            # [token, slot]: as many slots as one token holds at most
            held = np.arange(most)[None] < np.diff(chunk.indptr)[:, None]
            index = np.zeros(held.shape, dtype=np.int64)
            index[held] = chunk.indices
            rows = self._vectors[torch.from_numpy(index).to(unit.device)]
            dots = torch.bmm(rows, columns[start : start + step])
            dots = dots[torch.from_numpy(held).to(unit.device)]
            cosines.append(dots[:, -1].cpu().numpy())
            products.append(dots[:, :-1].reshape(len(dots), samples, readers).cpu().numpy())
        return np.concatenate(products), np.concatenate(cosines)

    def _add_nulls(
        self,
        pairs: tuple[Int64[np.ndarray, " pair"], Any],
        weights: Float[np.ndarray, " pair"],
        cosines: Float[np.ndarray, " pair"],
        unit: torch.Tensor,
        gradients: torch.Tensor,
    ) -> None:
        """Add a^2 (g . u)^2 for every null u of each pair's direction, by the module's formula."""
        from scipy.sparse import csr_matrix

        token_of, direction = pairs
        active, row = np.unique(direction, return_inverse=True)
        n, readers = gradients.shape[1:3]
        along = (gradients * unit[:, None]).sum(-1)
        cosines = np.clip(cosines.astype(np.float64), -1, 1)
        sines = np.sqrt(1 - cosines**2)
        # one product for both terms: tokens stand twice, first for B^2, then for A B
        sparse = csr_matrix(
            (
                np.concatenate([weights * sines**2, 2 * weights * cosines * sines]),
                (np.concatenate([row, row]), np.concatenate([token_of, token_of + n])),
            ),
            shape=(len(active), 2 * n),
            dtype=np.float32,
        )
        fixed = csr_matrix(
            (weights * cosines**2, (row, token_of)), shape=(len(active), n), dtype=np.float32
        )
        constant = fixed @ along.square().mean(0).cpu().numpy()
        cross = 1 - (unit @ self.nulls.T).square()
        scale = cross.clamp_min(1e-12).rsqrt()
        for reader in range(readers):
            a = along[:, :, reader]
            across = gradients[:, :, reader] - a[..., None] * unit
            b = (across @ self.nulls.T) * scale
            terms = torch.cat([b.square().mean(0), (a[..., None] * b).mean(0)])
            sums = sparse @ terms.cpu().numpy()
            sums += constant[:, [reader]]
            self.null[active, reader] += sums


def summed(
    slots: Int64[np.ndarray, " pair"] | Any, values: Float[np.ndarray, "pair column"], n: int
) -> Float[np.ndarray, "slot column"]:
    """Return, for each of `n` slots, the sum of the rows of `values` whose slot it is."""
    from scipy.sparse import csr_matrix

    ones = csr_matrix((np.ones(len(slots)), (slots, np.arange(len(slots)))), shape=(n, len(slots)))
    return np.asarray(ones @ values)
