"""Marginal structure: bits that an SAE saves over what is simpler, beyond what it saves on a placebo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num

from sae_placebo.core.errors import NotEstimable
from sae_placebo.stats.quantiles import student_quantile


@dataclass(frozen=True, eq=False)
class DocumentBits:
    """Bits of one dictionary at one distortion, by document.

    Attributes:
        bits: Sum over a document's scored tokens, adjusted so that they add up under any weights to
            the cost at the stated distortion; see `rate.TokenBits.adjusted`. Without the dictionary.
        tokens: Scored tokens of each document; 0 where it is not scored.
    """

    bits: Float[np.ndarray, " document"]
    tokens: Float[np.ndarray, " document"]

    def per_token(
        self, weights: Num[np.ndarray, "document replicate"]
    ) -> Float[np.ndarray, " replicate"]:
        """Return bits per token under each column of document weights; NaN without a token."""
        tokens = self.tokens @ weights
        found = np.full(weights.shape[1], np.nan)
        np.divide(self.bits @ weights, tokens, out=found, where=tokens > 0)
        return found

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the 95% interval over documents, Student's t of the linearized ratio.

        NaN where fewer than two documents are scored.
        """
        return ratio_interval(self.bits, self.tokens)


def ratio_interval(
    numerator: Float[np.ndarray, " document"], denominator: Float[np.ndarray, " document"]
) -> tuple[float, float]:
    """Return a 95% interval of a ratio of sums over documents that count at all.

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


def best_simpler(simpler: Mapping[str, DocumentBits]) -> str:
    """Return the method with the fewest bits per token on all scored documents.

    It is the best on the tokens that it is scored on, which favors it a little: what an SAE saves over
    it is stated too low rather than too high.

    Raises:
        NotEstimable: there is none.
    """
    known = {name: found.bits.sum() / found.tokens.sum() for name, found in simpler.items()}
    if not known:
        raise NotEstimable("no simpler method could be fitted on this arm")
    return min(known, key=lambda name: known[name])


def bits_saved(
    sae: DocumentBits,
    simpler: Mapping[str, DocumentBits],
    weights: Num[np.ndarray, "document replicate"],
) -> Float[np.ndarray, " replicate"]:
    """Return bits per token that an SAE saves over the best simpler method of the same arm.

    Below 0 where the simpler method is shorter. The method is chosen once, on all documents.

    Args:
        sae: Of the SAE.
        simpler: Of every other method at the same distortion, by name.
        weights: Multiplicities of documents; column 0 ones.

    Raises:
        NotEstimable: there is no simpler method.
    """
    best = simpler[best_simpler(simpler)]
    saved: Float[np.ndarray, " replicate"] = best.per_token(weights) - sae.per_token(weights)
    return saved


def marginal_structure(
    arm: Float[np.ndarray, " replicate"], placebo: Float[np.ndarray, " replicate"]
) -> Float[np.ndarray, " replicate"]:
    """Return bits saved on an arm minus bits saved on its placebo, under the same document weights."""
    found: Float[np.ndarray, " replicate"] = arm - placebo
    return found
