"""The pieces that predictions are weighted sums of, and their inner products over the tokens of a block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

TARGET, POSITION, TOKEN, PAIR, PREVIOUS = range(5)
"""Pieces: the target less its mean, then what each lookup adds to the mean. `PAIR` is what the table of
pairs adds to that of tokens; partners come behind."""
N_LOOKUPS = 5
READ = (TARGET, POSITION, TOKEN, PAIR)
"""Pieces whose products with the features are known, in the order of `PieceProducts.products`."""


LATENT_PARTNERS = "placebo_latents"
"""Name of the one prediction that has partners."""


_AT_ONCE = 512
"""Targets whose inner products are formed at a time."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """All predictions of all targets.

    Attributes:
        names: Of predictions.
        weights: Of each prediction that there is: of the pieces, then of the readouts.
        readouts: Columns and coefficients [target, part] of each readout; None where there is none.
        n_partners: Pieces behind the lookups.
    """

    names: tuple[str, ...]
    weights: dict[str, Float64[np.ndarray, "target piece"]]
    readouts: tuple[tuple[slice, Any] | None, ...]
    n_partners: int

    @functools.cached_property
    def mix(self) -> Float64[np.ndarray, "partner target"] | None:
        """Weights of the partners, of which no more than their sum is needed where errors are taken."""
        weights = self.weights.get(LATENT_PARTNERS)
        if weights is None or not self.n_partners:
            return None
        return np.ascontiguousarray(weights[:, N_LOOKUPS : N_LOOKUPS + self.n_partners].T)

    @functools.cached_property
    def there(self) -> Bool[np.ndarray, " name"]:
        """Which predictions there are."""
        return np.array([name in self.weights for name in self.names])

    @functools.cached_property
    def signed(self) -> Float64[np.ndarray, "target there piece"]:
        """Weights of prediction less target, in the order of `names`, all partners as one piece."""
        found = []
        for name in self.names:
            if name in self.weights:
                weights = self.weights[name]
                parts = [weights[:, :N_LOOKUPS].copy(), weights[:, N_LOOKUPS + self.n_partners :]]
                parts[0][:, TARGET] = -1
                if self.mix is not None:
                    one = float(name == LATENT_PARTNERS)
                    parts.insert(1, np.full((len(weights), 1), one))
                found.append(np.concatenate(parts, axis=1))
        return np.stack(found, axis=1)

    def spread(
        self, errors: Float64[np.ndarray, "there target"]
    ) -> Float64[np.ndarray, "name target"]:
        """Return errors by name, NaN where there is no such prediction."""
        found = np.full((len(self.names), errors.shape[1]), np.nan)
        found[self.there] = errors
        return found


@dataclass(frozen=True, eq=False)
class PieceProducts:
    """Inner products over the tokens of a block.

    Attributes:
        gram: Of the pieces with one another; those of `PREVIOUS` with itself and the target only.
        products: Gives, of some targets, the products of the pieces in `READ`, then of the partners,
            with the features, [target, feature] each.
        features: X'X.
        squares, fourths: Sums of powers of the target as it is.
        active: Tokens where it is not 0.
    """

    gram: Float64[np.ndarray, "target piece piece"]
    products: Callable[[slice], Sequence[Float32[np.ndarray, "some feature"]]]
    features: Float64[np.ndarray, "feature feature"]
    squares: Float64[np.ndarray, " target"]
    fourths: Float64[np.ndarray, " target"]
    active: Int64[np.ndarray, " target"]

    def with_room(self, n: int) -> Float64[np.ndarray, "target piece piece"]:
        """Return the inner products of the pieces and, behind them, room for those of `n` readouts."""
        m, k = self.gram.shape[:2]
        found = np.zeros((m, k + n, k + n))
        found[:, :k, :k] = self.gram
        return found

    def put(
        self,
        gram: Float64[np.ndarray, "target piece piece"],
        readouts: dict[int, tuple[slice, Float32[np.ndarray, "target part"]]],
    ) -> None:
        """Write the inner products of readouts x'b with themselves and the pieces, by place behind these.

        Those of readouts with one another are left 0, since no prediction has two.
        """
        k = self.gram.shape[1]
        read = [*READ, *range(N_LOOKUPS, k)]
        inner = {
            i: np.ascontiguousarray(self.features[columns, columns], dtype=np.float32)
            for i, (columns, _) in readouts.items()
        }
        for first in range(0, len(gram), _AT_ONCE):
            rows = slice(first, min(first + _AT_ONCE, len(gram)))
            products = self.products(rows)
            for i, (columns, coefficients) in readouts.items():
                b = coefficients[rows]
                for piece, product in zip(read, products, strict=True):
                    inner_product = np.einsum("md,md->m", product[:, columns], b)
                    gram[rows, piece, k + i] = gram[rows, k + i, piece] = inner_product
                gram[rows, k + i, k + i] = np.einsum("md,md->m", b @ inner[i], b)


def partner_weights(
    partners: Int64[np.ndarray, "partner target"],
    mix: Float64[np.ndarray, "partner target"] | None,
) -> list[tuple[Int64[np.ndarray, "some target"], Float64[np.ndarray, "some target"]]]:
    """Return which partners make up each piece and their weights: each its own, or `mix` of them all."""
    if mix is not None:
        return [(partners, mix)]
    return [(at[None], np.ones((1, len(at)))) for at in partners]


def mixer(
    partners: Int64[np.ndarray, "some target"],
    weights: Float64[np.ndarray, "some target"],
    n_others: int,
) -> Any:
    """Return the float32 CSC matrix [other, target] that adds up weighted partners."""
    from scipy.sparse import csc_matrix

    n, m = partners.shape
    entries = weights.T.ravel().astype(np.float32), partners.T.ravel(), np.arange(m + 1) * n
    return csc_matrix(entries, shape=(n_others, m))
