"""A decision list says what became of a planted feature; the first outcome that applies is the one.

- *absorbed*: a latent detects a parent where no child is active, and fires much less often where one is;
- *detected*: one latent points along the spike and detects it, or, for a circle, the latents that lie in its
  plane detect it together;
- *split*: several latents that point partly along the spike detect it together;
- *composed*: a latent that points partly along the spike fires on most of its tokens, but does not detect it;
- *lost*: none of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64
from pydantic import Field

from sae_placebo.core.spec import Spec

DETECTED, SPLIT, COMPOSED, ABSORBED, LOST = "detected", "split", "composed", "absorbed", "lost"
OUTCOMES = (DETECTED, SPLIT, COMPOSED, ABSORBED, LOST)

_CANDIDATES = 8
"""Largest number of latents past a cosine threshold whose detectors are tried, the best by F1 or recall of
their firing."""


class Thresholds(Spec):
    """Where one outcome ends and the next begins."""

    cosine: float = Field(0.7, gt=0, le=1)
    """Least cosine at which a latent points along the spike. For a circle, the cosine is the length of the
    unit decoder row's projection on the plane."""
    f1: float = Field(0.5, gt=0, le=1)
    """Least F1 at which a latent, or several together, detect the spike."""
    part: float = Field(0.35, gt=0, le=1)
    """Least cosine at which a latent points partly along the spike."""
    share: float = Field(0.5, gt=0, le=1)
    """Least precision of a latent that detects a split spike or a circle together with others, and least
    recall of a latent that a spike is composed into."""
    hole: float = Field(0.5, gt=0, lt=1)
    """A parent is absorbed if its latent's recall where a child is active is at most this share of its
    recall elsewhere."""
    least_tokens: int = Field(10, ge=1)
    """A spike that is active on fewer held-out tokens is not judged. A parent is not called absorbed where
    fewer of its tokens have a child, or where fewer have none."""


@dataclass(frozen=True)
class OutcomeRules:
    """The decision list, applied to one SAE's codes of held-out tokens.

    Attributes:
        codes: The codes as a scipy CSC matrix [token, latent], zeros not stored.
        per_latent: Number of tokens on which each latent fires.
        limits: Thresholds between outcomes.
    """

    codes: Any
    per_latent: Float64[np.ndarray, " latent"]
    limits: Thresholds

    def one(
        self,
        cosines: Float64[np.ndarray, " latent"],
        together: Float64[np.ndarray, " latent"],
        active: Bool[np.ndarray, " token"],
        child: Bool[np.ndarray, " token"] | None,
        dimension: int,
    ) -> dict[str, Any]:
        """Return the fields of `RecoveredDirections` for one spike, by name.

        Args:
            cosines: Cosine of each latent's decoder row to the spike.
            together: Number of tokens on which both the latent and the spike are active.
            active: Whether the spike is active, by token.
            child: Whether a child of the spike is active, by token; None where the spike has no child.
            dimension: 1, or 2 for a circle.
        """
        limits, n = self.limits, int(active.sum())
        firing = 2 * together / np.maximum(self.per_latent + n, 1)
        near = cosines >= limits.cosine
        candidates = np.flatnonzero(near) if near.any() else np.array([cosines.argmax()])
        candidates = candidates[np.argsort(-firing[candidates], kind="stable")][:_CANDIDATES]
        predicted = [self.predicted(int(latent), active) for latent in candidates]
        f1s = [f1_of(tokens, active) for tokens in predicted]
        best = int(np.argmax(f1s))
        latent = int(candidates[best])
        fires = self.per_latent[latent]
        precise = self._precise(predicted, active)
        row: dict[str, Any] = {
            "n_tokens": n,
            "cosine": cosines.max(),
            "latent": latent,
            "f1": f1s[best] if n else np.nan,
            "firing_f1": firing[latent] if n else np.nan,
            "precision": together[latent] / fires if fires else np.nan,
            "recall": together[latent] / n if n else np.nan,
            "best_f1": firing.max() if n else np.nan,
            "n_latents": len(precise) if near.any() else 0,
        }
        if n < limits.least_tokens:
            return row | {"outcome": ""}
        if near.any():
            if child is not None and self._has_hole(predicted[best], active, child):
                return row | {"outcome": ABSORBED}
            reached = f1s[best] if dimension == 1 else _union_f1(precise, active)
            if reached >= limits.f1:
                return row | {"outcome": DETECTED}
        return row | {"outcome": self._partly(cosines, together, active)}

    def _partly(
        self,
        cosines: Float64[np.ndarray, " latent"],
        together: Float64[np.ndarray, " latent"],
        active: Bool[np.ndarray, " token"],
    ) -> str:
        """Return split, composed or lost."""
        partial = np.flatnonzero(cosines >= self.limits.part)
        partial = partial[np.argsort(-together[partial], kind="stable")][:_CANDIDATES]
        precise = self._precise([self.predicted(int(i), active) for i in partial], active)
        if len(precise) >= 2 and _union_f1(precise, active) >= self.limits.f1:
            return SPLIT
        recalled = together[partial] >= self.limits.share * active.sum()
        return COMPOSED if recalled.any() else LOST

    def _precise(
        self, predicted: list[Bool[np.ndarray, " token"]], active: Bool[np.ndarray, " token"]
    ) -> list[Bool[np.ndarray, " token"]]:
        """Return the predictions whose precision is at least `share`."""
        hits = [(tokens, (tokens & active).sum(), tokens.sum()) for tokens in predicted]
        return [tokens for tokens, hit, n in hits if n and hit / n >= self.limits.share]

    def predicted(
        self, latent: int, active: Bool[np.ndarray, " token"]
    ) -> Bool[np.ndarray, " token"]:
        """Return, by token, whether a latent's code is at least a threshold, the best on the other half.

        The tokens are cut in the middle; the threshold of each half is the one with the largest F1 on the
        other half.
        """
        first, last = self.codes.indptr[latent : latent + 2]
        tokens, values = self.codes.indices[first:last], self.codes.data[first:last]
        middle = len(active) // 2
        predicted = np.zeros(len(active), dtype=bool)
        for late in (False, True):
            chosen = (tokens >= middle) == late
            inside = active[middle:] if late else active[:middle]
            threshold = best_threshold(values[chosen], active[tokens[chosen]], int(inside.sum()))
            predicted[tokens[~chosen & (values >= threshold)]] = True
        return predicted

    def _has_hole(
        self,
        fires: Bool[np.ndarray, " token"],
        active: Bool[np.ndarray, " token"],
        child: Bool[np.ndarray, " token"],
    ) -> bool:
        """Return whether a latent detects the spike where no child is active, and not where one is."""
        least, alone, both = self.limits.least_tokens, active & ~child, active & child
        if alone.sum() < least or both.sum() < least:
            return False
        inside, outside = fires[both].mean(), fires[alone].mean()
        seen = f1_of(fires & ~child, alone) >= self.limits.f1
        return bool(seen and inside <= self.limits.hole * outside)


def best_threshold(
    values: Float32[np.ndarray, " firing"], right: Bool[np.ndarray, " firing"], n: int
) -> float:
    """Return the threshold with the largest F1; it is infinite where the spike is active on no code's token.

    A code that equals the threshold counts as above it.

    Args:
        values: Codes above zero.
        right: Whether the spike is active on the token of each code.
        n: Number of tokens on which the spike is active, with and without a code.
    """
    if not right.any():
        return float("inf")
    order = np.argsort(-values, kind="stable")
    f1 = 2 * np.cumsum(right[order]) / (np.arange(1, len(order) + 1) + n)
    ranked = values[order]
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # no threshold separates equal values
    return float(ranked[int(f1.argmax())])


def f1_of(predicted: Bool[np.ndarray, " token"], active: Bool[np.ndarray, " token"]) -> float:
    """Return the F1 of a prediction of where a spike is active; 0 where both are empty."""
    return float(2 * (predicted & active).sum() / max(predicted.sum() + active.sum(), 1))


def _union_f1(
    predicted: list[Bool[np.ndarray, " token"]], active: Bool[np.ndarray, " token"]
) -> float:
    return f1_of(np.logical_or.reduce(predicted), active) if predicted else 0.0
