"""Marginal structure: bits that an SAE saves over simpler baselines, beyond what it saves on a placebo."""

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

    @property
    def interval(self) -> tuple[float, float]:
        """The bounds of the 95% interval of bits per token, over documents; see `ratio_interval`."""
        return ratio_interval(self.bits, self.tokens)


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


def best_simpler(simpler: Mapping[str, DocumentBits]) -> str:
    """Return the name of the baseline with the fewest bits per token on all scored documents.

    It is chosen as the best on the very tokens that it is scored on, which favors it a little. So what an SAE
    saves over it is stated too low rather than too high.

    Raises:
        NotEstimable: there is no baseline.
    """
    known = {name: one.bits.sum() / one.tokens.sum() for name, one in simpler.items()}
    if not known:
        raise NotEstimable("no simpler baseline could be fitted on this arm")
    return min(known, key=lambda name: known[name])


def bits_saved(
    sae: DocumentBits,
    simpler: Mapping[str, DocumentBits],
    weights: Num[np.ndarray, "document replicate"],
) -> Float[np.ndarray, " replicate"]:
    """Return the bits per token that an SAE saves over the best simpler baseline of the same arm.

    They are below 0 where the simpler baseline needs fewer bits. It is chosen once, on all documents.

    Args:
        sae: Bits of the SAE.
        simpler: Bits of every other baseline at the same distortion, by name.
        weights: How often each document counts; column 0 is ones.

    Raises:
        NotEstimable: there is no simpler baseline.
    """
    best = simpler[best_simpler(simpler)]
    saved: Float[np.ndarray, " replicate"] = best.per_token(weights) - sae.per_token(weights)
    return saved


def marginal_structure(
    arm: Float[np.ndarray, " replicate"], placebo: Float[np.ndarray, " replicate"]
) -> Float[np.ndarray, " replicate"]:
    """Return bits saved on an arm minus bits saved on its placebo, under the same document weights."""
    structure: Float[np.ndarray, " replicate"] = arm - placebo
    return structure
