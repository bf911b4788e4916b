"""Bits by document, and what they are per token under any weights of the documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, Num

from sae_placebo.stats.quantiles import student_quantile


@dataclass(frozen=True, eq=False)
class DocumentBits:
    """Bits of one dictionary at one distortion, by document.

    Attributes:
        bits: Sum of the bits of each document's scored tokens, without those of the dictionary itself. They
            are adjusted so that, under any weights of the documents, they add up to the cost at the stated
            distortion; see `rate.TokenBits.adjusted`.
        tokens: Scored tokens of each document; 0 where it is not scored.
    """

    bits: Float[np.ndarray, " document"]
    tokens: Float[np.ndarray, " document"]

    def per_token(
        self, weights: Num[np.ndarray, "document replicate"]
    ) -> Float[np.ndarray, " replicate"]:
        """Return bits per token under each column of document weights; NaN where no token has weight."""
        tokens = self.tokens @ weights
        bits = np.full(weights.shape[1], np.nan)
        np.divide(self.bits @ weights, tokens, out=bits, where=tokens > 0)
        return bits

    @classmethod
    def of(
        cls,
        bits: Float[np.ndarray, " token"],
        documents: Int64[np.ndarray, " token"],
        n_documents: int,
    ) -> DocumentBits:
        """Return the sums of each document's bits, and the number of its tokens."""
        parts = (bits, np.ones(len(bits)))
        return cls(*(by_document(part, documents, n_documents) for part in parts))

    def less(self, other: DocumentBits) -> DocumentBits:
        """Return the bits that another code saves on the same tokens."""
        return DocumentBits(self.bits - other.bits, self.tokens)

    @property
    def interval(self) -> tuple[float, float]:
        """The bounds of the 95% interval of bits per token, over documents; see `ratio_interval`."""
        return ratio_interval(self.bits, self.tokens)


def by_document(
    values: Float[np.ndarray, " token"], documents: Int64[np.ndarray, " token"], n_documents: int
) -> Float[np.ndarray, " document"]:
    """Return the sum of values over each document's tokens."""
    return np.bincount(documents, weights=values, minlength=n_documents)


def ratio_interval(
    numerator: Float[np.ndarray, " document"], denominator: Float[np.ndarray, " document"]
) -> tuple[float, float]:
    """Return the bounds of the 95% interval of a ratio of sums over documents.

    Documents whose denominator is 0 do not count. Both bounds are NaN where fewer than two count.

    Source: linearization (Cochran 1977, section 2.11) with Student's t.
    """
    there = denominator > 0
    n = int(there.sum())
    if n < 2:
        return float("nan"), float("nan")
    top, bottom = numerator[there], denominator[there]
    value = top.sum() / bottom.sum()
    spread = np.sqrt(np.square(top - value * bottom).sum() * n / (n - 1)) / bottom.sum()
    half = student_quantile(n - 1) * spread
    return float(value - half), float(value + half)
