"""The scale on which a metric's seeds are averaged: its own, or one on which counts vary alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class OwnScale:
    """The scale of the metric itself.

    Attributes:
        is_share: Whether it is a share, so that bounds are cut at 0 and 1.
        least_variance: What one value varies by at least: nothing is known.
    """

    is_share: bool = False
    least_variance: ClassVar[float] = 0.0

    def forward(self, values: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
        """Return the values as they are."""
        return values

    def back(self, y: float) -> float:
        """Return the value as it is, a share between 0 and 1."""
        return min(max(y, 0.0), 1.0) if self.is_share else y

    def slope(self, y: float) -> float:
        """Return by how much the value changes with y: 1."""
        return 1.0


@dataclass(frozen=True)
class CountScale:
    """The scale of a share of n that are counted, on which a binomial count has variance 1.

    y = 2 sqrt(n + 1/2) arcsin sqrt((x + 3/8) / (n + 3/4)) of a count x. It is steady to within a few percent
    from an expected count of 2 on; at one of 0.5 the variance is 0.5.

    Attributes:
        n: How many are counted.
        least_variance: What one value varies by at least: as a count does.

    Source: Anscombe 1948 (Biometrika 35:246), equation 3.1.
    """

    n: int
    least_variance: ClassVar[float] = 1.0

    def forward(self, values: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
        """Return y of each share."""
        inside = np.clip((values * self.n + 0.375) / (self.n + 0.75), 0.0, 1.0)
        found: Float[np.ndarray, "*any"] = 2 * math.sqrt(self.n + 0.5) * np.arcsin(np.sqrt(inside))
        return found

    def back(self, y: float) -> float:
        """Return the share, between 0 and 1, whose y it is."""
        return float(self.shares(np.array(y)))

    def shares(self, y: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
        """Return the share, between 0 and 1, of each y."""
        angle = np.clip(y / (2 * math.sqrt(self.n + 0.5)), 0.0, math.pi / 2)
        count = (self.n + 0.75) * np.sin(angle) ** 2 - 0.375
        return np.asarray(np.clip(count / self.n, 0.0, 1.0))

    def slope(self, y: float) -> float:
        """Return by how much the share changes with y."""
        angle = min(max(y / (2 * math.sqrt(self.n + 0.5)), 0.0), math.pi / 2)
        return (self.n + 0.75) * math.sin(2 * angle) / (2 * math.sqrt(self.n + 0.5)) / self.n


Scale = OwnScale | CountScale
