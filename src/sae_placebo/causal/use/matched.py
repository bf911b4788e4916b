"""Squared gradients along directions, and along random ones at the same angle to each activation.

A random direction u at the angle of d to an activation x is `u = c xh + s w`, with xh = x / |x|,
c = d . xh, s = sqrt(1 - c^2) and w a random unit vector orthogonal to xh: x + a u is then as long as
x + a d. For a gradient g, `(g . u)^2 = c^2 A^2 + 2 c s A B + s^2 B^2` with A = g . xh and B = g . w. Only
c, s and the amount differ among directions, so that with K vectors w shared by all of them the null of
every direction, on its own tokens and with its own amounts, is two products of a sparse matrix
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
"""Most floats of gathered directions at once."""


def shared_nulls(seed: int, n: int, width: int) -> Float32[torch.Tensor, "null d_in"]:
    """Return random unit vectors, isotropic, that all directions share."""
    drawn = torch.randn(n, width, generator=generator(seed, "screen", "nulls"))
    unit: torch.Tensor = drawn / drawn.norm(dim=1, keepdim=True)
    return unit


class MatchedSums:
    """Sums over tokens of squared gradients along directions and along their nulls.

    Args:
        directions: Whose amounts weigh the tokens.
        nulls: Shared random vectors.
        n_readers: Gradients per token and sample.

    Attributes:
        score: [half, direction, reader] sums of a^2 mean_s (g_s . d)^2, by half of the documents.
        null: [direction, reader, null] the same along each null, over both halves.
        linear: [direction, reader] sums of a (g . d), of the gradients given as `linear`.
        n: [half, direction] tokens.
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
        """Take in the gradients of some tokens.

        Args:
            tokens: Rows of the amounts.
            halves: 0 or 1 for each.
            site: Activations at the hookpoint.
            gradients: At the hookpoint, through each reader.
            linear: Gradients that are summed along directions with their signs.
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
        """Return, for each held direction at each token, g . d (`linear` last) and the angle's cosine."""
        if linear is not None:
            gradients = torch.cat([gradients, linear[None]])
        samples, n, readers, width = gradients.shape
        columns = gradients.permute(1, 3, 0, 2).reshape(n, width, samples * readers)
        columns = torch.cat([columns, unit[..., None]], 2)
        counts = np.diff(amounts.indptr)
        most = max(int(counts.max(initial=0)), 1)
        step = max(_GATHERED // (most * width), 1)
        found, cosines = [], []
        for start in range(0, n, step):
            here = amounts[start : start + step]
            held = np.arange(most)[None] < np.diff(here.indptr)[:, None]
            index = np.zeros(held.shape, dtype=np.int64)
            index[held] = here.indices
            rows = self._vectors[torch.from_numpy(index).to(unit.device)]
            dots = torch.bmm(rows, columns[start : start + step])
            dots = dots[torch.from_numpy(held).to(unit.device)]
            cosines.append(dots[:, -1].cpu().numpy())
            found.append(dots[:, :-1].reshape(len(dots), samples, readers).cpu().numpy())
        return np.concatenate(found), np.concatenate(cosines)

    def _add_nulls(
        self,
        pairs: tuple[Int64[np.ndarray, " pair"], Any],
        weights: Float[np.ndarray, " pair"],
        cosines: Float[np.ndarray, " pair"],
        unit: torch.Tensor,
        gradients: torch.Tensor,
    ) -> None:
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
            found = sparse @ terms.cpu().numpy()
            found += constant[:, [reader]]
            self.null[active, reader] += found


def summed(
    slots: Int64[np.ndarray, " pair"] | Any, values: Float[np.ndarray, "pair column"], n: int
) -> Float[np.ndarray, "slot column"]:
    """Return the sums of the values that share a slot."""
    from scipy.sparse import csr_matrix

    ones = csr_matrix((np.ones(len(slots)), (slots, np.arange(len(slots)))), shape=(n, len(slots)))
    return np.asarray(ones @ values)
