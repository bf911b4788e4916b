"""Where one outcome of a planted feature ends and the next begins: one decision list, in order.

In this order: *absorbed*, a latent detects a parent where no child is active and has a hole where one is;
*detected*, one latent points along the spike and detects it; for a circle, those in its plane together;
*split*, several latents that carry part of it detect it together; *composed*, a latent that carries part of
it fires on most of its tokens, but is about something else besides; *lost*.
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
"""Latents past a cosine threshold whose detectors are tried: the best by F1 of firing or recall."""


class Thresholds(Spec):
    """Where one outcome ends and the next begins."""

    cosine: float = Field(0.7, gt=0, le=1)
    """A latent is the spike's from this cosine on; for a circle, the length of its decoder row's projection
    on the plane."""
    f1: float = Field(0.5, gt=0, le=1)
    """It detects the spike from this F1 on."""
    part: float = Field(0.35, gt=0, le=1)
    """A latent carries part of the spike from this cosine on."""
    share: float = Field(0.5, gt=0, le=1)
    """Least precision of a latent that is one of several of a split spike; least recall of one that a spike
    is composed into."""
    hole: float = Field(0.5, gt=0, lt=1)
    """A parent is absorbed if its latent's recall where a child is active is at most this share of its
    recall elsewhere."""
    least_tokens: int = Field(10, ge=1)
    """A spike that is active on fewer held-out tokens is not judged; nor is a hole, with fewer on a side."""


@dataclass(frozen=True)
class OutcomeRules:
    """The decision list, on one SAE's codes of held-out tokens.

    Attributes:
        codes: scipy CSC matrix [token, latent], zeros not stored.
        per_latent: On how many tokens each latent fires.
        limits: Where outcomes end.
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
        """Return everything about one spike: the fields of `Found`.

        Args:
            cosines: Of each latent's decoder row to the spike.
            together: On how many tokens both are active.
            active: On which tokens the spike is.
            child: On which tokens a spike is that never occurs without it; None: it has none.
            dimension: 1, or 2 for a circle.
        """
        limits, n = self.limits, int(active.sum())
        firing = 2 * together / np.maximum(self.per_latent + n, 1)
        near = cosines >= limits.cosine
        candidates = np.flatnonzero(near) if near.any() else np.array([cosines.argmax()])
        candidates = candidates[np.argsort(-firing[candidates], kind="stable")][:_CANDIDATES]
        predicted = [self.predicted(int(latent), active) for latent in candidates]
        f1s = [_f1(one, active) for one in predicted]
        best = int(np.argmax(f1s))
        latent = int(candidates[best])
        fires = self.per_latent[latent]
        precise = [one for one in predicted if _precision(one, active) >= limits.share]
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
        some = np.flatnonzero(cosines >= self.limits.part)
        some = some[np.argsort(-together[some], kind="stable")][:_CANDIDATES]
        predicted = [self.predicted(int(latent), active) for latent in some]
        precise = [one for one in predicted if _precision(one, active) >= self.limits.share]
        if len(precise) >= 2 and _union_f1(precise, active) >= self.limits.f1:
            return SPLIT
        recalled = together[some] >= self.limits.share * active.sum()
        return COMPOSED if recalled.any() else LOST

    def predicted(
        self, latent: int, active: Bool[np.ndarray, " token"]
    ) -> Bool[np.ndarray, " token"]:
        """Return where a latent's code is above a threshold found on the other half of the tokens."""
        first, last = self.codes.indptr[latent : latent + 2]
        tokens, values = self.codes.indices[first:last], self.codes.data[first:last]
        middle = len(active) // 2
        found = np.zeros(len(active), dtype=bool)
        for late in (False, True):
            chosen = (tokens >= middle) == late
            inside = active[middle:] if late else active[:middle]
            threshold = best_threshold(values[chosen], active[tokens[chosen]], int(inside.sum()))
            found[tokens[~chosen & (values >= threshold)]] = True
        return found

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
        seen = _f1(fires & ~child, alone) >= self.limits.f1
        return bool(seen and inside <= self.limits.hole * outside)


def best_threshold(
    values: Float32[np.ndarray, " firing"], right: Bool[np.ndarray, " firing"], n: int
) -> float:
    """Return the threshold with the largest F1, itself counted as above; infinite where nothing is right.

    Args:
        values: Codes above zero.
        right: Whether the spike is active on each one's token.
        n: Tokens on which the spike is active.
    """
    if not right.any():
        return float("inf")
    order = np.argsort(-values, kind="stable")
    f1 = 2 * np.cumsum(right[order]) / (np.arange(1, len(order) + 1) + n)
    ranked = values[order]
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # no threshold separates equal values
    return float(ranked[int(f1.argmax())])


def _f1(predicted: Bool[np.ndarray, " token"], active: Bool[np.ndarray, " token"]) -> float:
    return float(2 * (predicted & active).sum() / max(predicted.sum() + active.sum(), 1))


def _precision(predicted: Bool[np.ndarray, " token"], active: Bool[np.ndarray, " token"]) -> float:
    return float((predicted & active).sum() / predicted.sum()) if predicted.any() else 0.0


def _union_f1(
    predicted: list[Bool[np.ndarray, " token"]], active: Bool[np.ndarray, " token"]
) -> float:
    return _f1(np.logical_or.reduce(predicted), active) if predicted else 0.0
