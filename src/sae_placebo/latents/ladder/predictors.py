"""What latents are predicted from linearly: features of tokens, and the activations of a placebo.

Nothing here depends on an SAE, so that all SAEs that are read at the same tokens and compared with the same
placebo model share one `Readouts`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from sae_placebo.core.lazy import torch
from sae_placebo.latents.ladder.block_sums import BlockSums, gram_of, parts_of
from sae_placebo.latents.ladder.fit_text import Stacked
from sae_placebo.latents.ladder.token_features import (
    AT_ONCE,
    TokenFeatures,
    less_words,
    n_bag_columns,
    scale_columns,
)


@dataclass(frozen=True, eq=False)
class Readouts:
    """Features that are read linearly, each column with mean 0 and variance 1 on all tokens to fit on.

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
        cls, tokens: TokenFeatures, activations: Sequence[Float[torch.Tensor, "_ d_in"]]
    ) -> Readouts:
        """Return the features of the tokens with those of the placebo's model, if there is one.

        Args:
            tokens: The features of the tokens.
            activations: Those of the placebo, in the parts in which they were read; none without a placebo.
        """
        if not activations:
            return cls(tokens, None)
        n_fit = len(tokens.fit)
        parts = Stacked([x.detach().float().cpu().numpy() for x in activations])
        columns = _leading(parts, tokens)
        less_words(columns, tokens.keys.words, tokens.order, n_fit, 0)
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

    def fitted(self, portion: int) -> tuple[Float32[np.ndarray, "added _"], ...]:
        """Return the features at the fitted tokens that a portion adds to the one before, side by side."""
        return self.rows(self.tokens.added[portion])

    @functools.cached_property
    def choose(self) -> BlockSums:
        """Sums over the tokens that are chosen on."""
        return self._sums(self.tokens.sums[0])

    @functools.cached_property
    def score(self) -> tuple[BlockSums, ...]:
        """Sums over the scored tokens, by group of documents."""
        return tuple(self._sums(known) for known in self.tokens.sums[1:])

    @functools.cached_property
    def totals(self) -> tuple[Float64[np.ndarray, " feature"], ...]:
        """Sum of each feature over the fitted tokens of each portion."""
        return tuple(gram[0] for gram in self._grams)

    @functools.cached_property
    def readings(self) -> tuple[dict[str, FittedReadout], ...]:
        """Each readout's columns and the eigenvectors of its X'X, by portion of the fitted tokens.

        X'X is about the portion's means, which are 0 only for the whole.
        """
        named = {
            "bag_alone": self.bag_alone,
            "bag": self.bag,
            "window": self.window,
            "placebo_readout": self.placebo,
        }
        found = []
        for gram in self._grams:
            # the first feature is 1, so that its products are the sums of the others
            about_means = gram - np.outer(gram[0], gram[0]) / gram[0, 0]
            found.append(
                {
                    name: FittedReadout.of(about_means, columns)
                    for name, columns in named.items()
                    if columns is not None
                }
            )
        return tuple(found)

    @functools.cached_property
    def _grams(self) -> tuple[Float64[np.ndarray, "feature feature"], ...]:
        """X'X on the fitted tokens of each portion."""
        known = self.tokens.fit_grams
        added = [gram_of(self.fitted(p), known[p]) for p in range(len(known))]
        return tuple(itertools.accumulate(added))

    def rows(self, rows: slice) -> tuple[Float32[np.ndarray, "chosen _"], ...]:
        """Return some rows of the features, which are side by side."""
        placebo = () if self.own is None else (self.own[rows],)
        return self.tokens.x[rows], *placebo

    def _sums(self, known: BlockSums) -> BlockSums:
        if self.own is None:
            return known
        return BlockSums.of(known.keys, self.rows(known.keys.block.rows), known)


@dataclass(frozen=True, eq=False)
class FittedReadout:
    """Columns of a readout and the eigenvectors of their X'X, about the means, on fitted tokens."""

    columns: slice
    values: Float64[np.ndarray, " feature"]
    vectors: Float32[np.ndarray, "feature feature"]

    @classmethod
    def of(cls, gram: Float64[np.ndarray, "all all"], columns: slice) -> FittedReadout:
        """Return the columns with the eigenvectors of their part of `gram`."""
        values, vectors = np.linalg.eigh(gram[columns, columns])
        return cls(columns, np.maximum(values, 0), vectors.astype(np.float32))


def _leading(activations: Stacked, tokens: TokenFeatures) -> Float32[np.ndarray, "ordered part"]:
    """Return a copy of the activations in order, or their leading components where there are too many.

    Components are computed on the fitted tokens.
    """
    d_in, width = activations.shape[1], tokens.spec.readout
    order = (tokens.fit, *(block.tokens for block in tokens.blocks))
    vectors = None if d_in <= width else _components(activations, tokens.fit, width)
    leading = np.empty((sum(map(len, order)), min(d_in, width)), dtype=np.float32)
    start = 0
    for some in order:
        for part in parts_of(len(some), AT_ONCE):
            x = activations[some[part]]
            leading[start : start + len(x)] = x if vectors is None else x @ vectors
            start += len(x)
    return leading


def _components(
    activations: Stacked, tokens: Int64[np.ndarray, " some"], width: int
) -> Float32[np.ndarray, "d_in width"]:
    """Return the directions of the most variance at some tokens."""
    parts = [tokens[part] for part in parts_of(len(tokens), AT_ONCE)]
    mean = sum(activations[part].sum(0, dtype=np.float64) for part in parts) / len(tokens)
    gram = np.zeros((len(mean), len(mean)))
    for part in parts:
        centered = activations[part] - mean.astype(np.float32)
        gram += centered.T @ centered
    return np.linalg.eigh(gram)[1][:, ::-1][:, :width].astype(np.float32)
