"""The pieces of which predictions are weighted sums, and their inner products over the tokens of a block."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from sae_placebo.latents.ladder.block_sums import parts_of

TARGET, POSITION, TOKEN, PAIR, PREVIOUS = range(5)
"""Pieces: the target less its mean, then what each lookup adds to the mean. `PAIR` is what the table of
pairs adds to that of tokens. Partners come after these."""
N_LOOKUPS = 5
READ = (TARGET, POSITION, TOKEN, PAIR)
"""Pieces whose products with the features are known, in the order of `PieceProducts.products`."""
LATENT_PARTNERS = "placebo_latents"
"""Name of the one prediction that has partners."""
_AT_ONCE = 512
"""Number of targets whose inner products are formed at a time."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """All predictions of all targets.

    Attributes:
        names: Names of the predictions.
        weights: For each prediction that there is, the weights of the pieces, then of the readouts.
        readouts: Columns and coefficients [target, part] of each readout; None where there is none.
        n_partners: Number of partners, whose pieces come after the lookups.
    """

    names: tuple[str, ...]
    weights: dict[str, Float64[np.ndarray, "target piece"]]
    readouts: tuple[tuple[slice, Any] | None, ...]
    n_partners: int

    @functools.cached_property
    def mix(self) -> Float64[np.ndarray, "partner target"] | None:
        """Weights of the partners; where errors are taken, only their weighted sum is needed."""
        weights = self.weights.get(LATENT_PARTNERS)
        if weights is None or not self.n_partners:
            return None
        return np.ascontiguousarray(weights[:, N_LOOKUPS : N_LOOKUPS + self.n_partners].T)

    @functools.cached_property
    def there(self) -> Bool[np.ndarray, " name"]:
        """Which of the names have a prediction."""
        return np.array([name in self.weights for name in self.names])

    @functools.cached_property
    def signed(self) -> Float64[np.ndarray, "target there piece"]:
        """Weights of prediction less target, in the order of `names`, with all partners as one piece."""
        signed = []
        for name in self.names:
            if name in self.weights:
                weights = self.weights[name]
                parts = [weights[:, :N_LOOKUPS].copy(), weights[:, N_LOOKUPS + self.n_partners :]]
                parts[0][:, TARGET] = -1
                if self.mix is not None:
                    weight = float(name == LATENT_PARTNERS)
                    parts.insert(1, np.full((len(weights), 1), weight))
                signed.append(np.concatenate(parts, axis=1))
        return np.stack(signed, axis=1)

    def spread(
        self, errors: Float64[np.ndarray, "there target"]
    ) -> Float64[np.ndarray, "name target"]:
        """Return the errors of all names, NaN where there is no prediction of that name."""
        by_name = np.full((len(self.names), errors.shape[1]), np.nan)
        by_name[self.there] = errors
        return by_name


@dataclass(frozen=True, eq=False)
class PieceProducts:
    """Inner products over the tokens of a block.

    Attributes:
        gram: Inner products of the pieces with one another; those of `PREVIOUS` are with itself and with
            the target only.
        products: Function of a slice of targets that returns the products of the pieces in `READ`, then of
            the partners, with the features, [target, feature] each.
        features: X'X.
        squares, fourths: Sums of powers of the target, without its mean subtracted.
        active: Number of tokens where the target is not 0.
    """

    gram: Float64[np.ndarray, "target piece piece"]
    products: Callable[[slice], Sequence[Float32[np.ndarray, "some feature"]]]
    features: Float64[np.ndarray, "feature feature"]
    squares: Float64[np.ndarray, " target"]
    fourths: Float64[np.ndarray, " target"]
    active: Int64[np.ndarray, " target"]

    def with_room(self, n: int) -> Float64[np.ndarray, "target piece piece"]:
        """Return the inner products of the pieces, followed by room for those of `n` readouts."""
        m, k = self.gram.shape[:2]
        gram = np.zeros((m, k + n, k + n))
        gram[:, :k, :k] = self.gram
        return gram

    def put(
        self,
        gram: Float64[np.ndarray, "target piece piece"],
        readouts: dict[int, tuple[slice, Float32[np.ndarray, "target part"]]],
    ) -> None:
        """Write the inner products of readouts x'b with themselves and with the pieces.

        Those of readouts with one another are left 0, since no prediction has two.

        Args:
            gram: What `with_room` returned; it is changed.
            readouts: Columns and coefficients of each readout, by its place after the pieces.
        """
        k = self.gram.shape[1]
        read = [*READ, *range(N_LOOKUPS, k)]
        inner = {
            i: np.ascontiguousarray(self.features[columns, columns], dtype=np.float32)
            for i, (columns, _) in readouts.items()
        }
        for rows in parts_of(len(gram), _AT_ONCE):
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
    """Return which partners make up each piece, with their weights.

    Args:
        partners: Partners of each target.
        mix: Weights with which all partners make up one piece; None makes each partner a piece.
    """
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
