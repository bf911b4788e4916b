"""What latents are predicted from linearly: features of tokens, and the activations of a placebo.

Nothing here depends on an SAE, so that all SAEs that are read at the same tokens and compared with the same
placebo model share one `Readouts`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from sae_placebo.core.lazy import torch
from sae_placebo.latents.ladder.block_sums import BlockSums, gram_of, parts_of
from sae_placebo.latents.ladder.token_features import (
    AT_ONCE,
    TokenFeatures,
    less_words,
    n_bag_columns,
    scale_columns,
)


@dataclass(frozen=True, eq=False)
class Readouts:
    """Features that are read linearly, each column with mean 0 and variance 1 on the fitted tokens.

    The columns are ones; the bag as it is; then bag, window and activations of the placebo, from which the
    mean by current token (the table's, with its prior) has been subtracted. Used with the table of the
    current token, these explain what that table does not (Frisch, Waugh and Lovell). The features of the
    tokens hold all columns but those of the placebo, once for all placebos.

    Attributes:
        tokens: The features of the tokens.
        own: Columns of the placebo, with the rows of `TokenFeatures.x`; None where there is no placebo.
    """

    tokens: TokenFeatures
    own: Float32[np.ndarray, "ordered part"] | None

    @classmethod
    def of(
        cls, tokens: TokenFeatures, activations: Float[torch.Tensor, "token d_in"] | None
    ) -> Readouts:
        """Return the features of the tokens with those of the placebo's model, if there is one."""
        if activations is None:
            return cls(tokens, None)
        n_fit = len(tokens.fit)
        columns = _leading(activations, tokens.order, n_fit, tokens.spec.readout)
        less_words(columns, tokens.words, tokens.order, n_fit, 0)
        scale_columns(columns, n_fit, (slice(None),))
        return cls(tokens, columns)

    @property
    def bag_alone(self) -> slice:
        """Columns of the bag as it is."""
        return slice(1, 1 + n_bag_columns(self.tokens.spec))

    @property
    def bag(self) -> slice:
        """Columns of the bag from which the mean by current token has been subtracted."""
        n_bag = n_bag_columns(self.tokens.spec)
        return slice(1 + n_bag, 1 + 2 * n_bag)

    @property
    def window(self) -> slice:
        """Columns of bag and window."""
        return slice(self.bag.start, self.tokens.x.shape[1])

    @property
    def placebo(self) -> slice | None:
        """Columns of bag, window and placebo; None where there is no placebo."""
        if self.own is None:
            return None
        return slice(self.bag.start, self.tokens.x.shape[1] + self.own.shape[1])

    @property
    def fitted(self) -> tuple[Float32[np.ndarray, "fitted _"], ...]:
        """The features at the fitted tokens, side by side."""
        return self._at(slice(0, len(self.tokens.fit)))

    @functools.cached_property
    def fit_gram(self) -> Float64[np.ndarray, "feature feature"]:
        """X'X on the fitted tokens."""
        return gram_of(self.fitted, self.tokens.fit_gram)

    @functools.cached_property
    def choose(self) -> BlockSums:
        """Sums over the tokens that are chosen on."""
        return self._sums(self.tokens.sums[0])

    @functools.cached_property
    def score(self) -> tuple[BlockSums, ...]:
        """Sums over the scored tokens, by group of documents."""
        return tuple(self._sums(known) for known in self.tokens.sums[1:])

    @functools.cached_property
    def readings(self) -> dict[str, FittedReadout]:
        """Each readout's columns and the eigenvectors of its X'X on the fitted tokens."""
        named = {
            "bag_alone": self.bag_alone,
            "bag": self.bag,
            "window": self.window,
            "placebo_readout": self.placebo,
        }
        return {
            name: FittedReadout.of(self.fit_gram, columns)
            for name, columns in named.items()
            if columns is not None
        }

    def _at(self, rows: slice) -> tuple[Float32[np.ndarray, "chosen _"], ...]:
        placebo = () if self.own is None else (self.own[rows],)
        return self.tokens.x[rows], *placebo

    def _sums(self, known: BlockSums) -> BlockSums:
        if self.own is None:
            return known
        return BlockSums.of(known.keys, self._at(known.keys.block.rows), known)


@dataclass(frozen=True, eq=False)
class FittedReadout:
    """Columns of a readout and the eigenvectors of their X'X on the fitted tokens."""

    columns: slice
    values: Float64[np.ndarray, " feature"]
    vectors: Float32[np.ndarray, "feature feature"]

    @classmethod
    def of(cls, gram: Float64[np.ndarray, "all all"], columns: slice) -> FittedReadout:
        """Return the columns with the eigenvectors of their part of `gram`."""
        values, vectors = np.linalg.eigh(gram[columns, columns])
        return cls(columns, np.maximum(values, 0), vectors.astype(np.float32))


def _leading(
    activations: Float[torch.Tensor, "token d_in"],
    order: Int64[np.ndarray, " ordered"],
    n_fit: int,
    width: int,
) -> Float32[np.ndarray, "ordered part"]:
    """Return a copy of the activations in order, or their leading components where there are too many.

    Components are computed on the fitted tokens, which come first in `order`.
    """
    x = activations.detach().float().cpu().numpy()
    leading = np.empty((len(order), min(x.shape[1], width)), dtype=np.float32)
    if x.shape[1] <= width:
        # with mode "clip" NumPy needs no buffer of all that is copied
        np.take(x, order, axis=0, out=leading, mode="clip")
        return leading
    mean = sum(x[order[p]].sum(0, dtype=np.float64) for p in parts_of(n_fit, AT_ONCE)) / n_fit
    gram = np.zeros((x.shape[1], x.shape[1]))
    for part in parts_of(n_fit, AT_ONCE):
        centered = x[order[part]] - mean.astype(np.float32)
        gram += centered.T @ centered
    vectors = np.linalg.eigh(gram)[1][:, ::-1][:, :width].astype(np.float32)
    for part in parts_of(len(order), AT_ONCE):
        leading[part] = x[order[part]] @ vectors
    return leading
