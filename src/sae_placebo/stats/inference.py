"""What is said of a difference between arms: its interval, and p values that agree with it at every level.

A p value is one minus the largest confidence at which the interval leaves the hypothesis out, found by
bisection. So it is below 0.05 exactly where the 95% interval does, whatever the interval is made of.

A difference of a metric on its own scale has a symmetric interval. That of two shares is judged on the scale
of counts, where it is y_a - y_c, of variance

    V = V_a + V_c - 2 C,    C = C_documents + C_seeds,

with the covariance C of what the two share taken source by source, each at most sqrt(V_a V_c) of its source.
With q the multiplier of the interval of y_a - y_c, a pair of true means is held possible where it lies in the
ellipse of q standard errors around the two. The interval of the difference of shares reaches from the least
to the largest that occurs in it, and so does that of the difference of log odds. An ellipse holds two equal
shares exactly where y_a - y_c is within q sqrt(V), and a larger q holds all that a smaller one does: so the
interval, the p value and the scale of counts say the same, and p falls as the difference grows.

Source: a function's range over a likelihood region as its interval, Venzon and Moolgavkar 1988 (Applied
Statistics 37:87), with Student's quantile in place of the normal one. An earlier version put the intervals of
the two shares together (MOVER, Zou and Donner 2008), which is not monotone in the confidence where a share's
bound is cut off at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable
from sae_placebo.stats.components import Component, half_width
from sae_placebo.stats.replicates import ReplicateKey
from sae_placebo.stats.scales import CountScale
from sae_placebo.stats.spreads import Spread, Spreads

LEAST_P = 1e-12
"""P values are not told apart below this."""
_LEAST_CONFIDENCE = 1e-6
# what stands for a bound without end
_FAR = 1e6
# where a share may be nearer to 0 or 1 than this, log odds are without end
_LEAST_SHARE = 1e-12
# the grid of angles on an ellipse, and how often it is made finer
_ANGLES, _FINER = 121, 3
_Values = Float[np.ndarray, "*any"]


class Bounds(NamedTuple):
    """The two ends of an interval."""

    low: float
    high: float


@dataclass(frozen=True)
class ArmNumber:
    """One arm's number, and the parts of its variance on its scale."""

    value: float
    spread: Spread
    components: tuple[Component, ...]

    @classmethod
    def of(cls, spreads: Spreads, cell: ReplicateKey) -> ArmNumber:
        """Return the number of one arm.

        Raises:
            NotEstimable: there is one SAE seed, one re-draw of a model that is drawn, or one document.
        """
        spread = spreads.of(cell)
        components = spread.components(spreads.table.n_documents[cell.hookpoint])
        return cls(spreads.table[cell].point, spread, components)

    @property
    def variance(self) -> float:
        """Return the variance of the mean, on the scale."""
        return sum(part.variance for part in self.components)

    def bounds(self, confidence: float = 0.95) -> Bounds:
        """Return the interval in the metric's unit."""
        half, scale = half_width(self.components, confidence), self.spread.scale
        low, high = (scale.back(self.spread.center + sign * half) for sign in (-1, 1))
        return Bounds(min(low, self.value), max(high, self.value))


@dataclass(frozen=True)
class Difference:
    """A difference on the metric's own scale, with a symmetric interval."""

    value: float
    components: tuple[Component, ...]

    def bounds(self, confidence: float = 0.95) -> Bounds:
        """Return the interval in the metric's unit."""
        half = half_width(self.components, confidence)
        return Bounds(self.value - half, self.value + half)

    def against_margin(self, confidence: float = 0.95) -> Bounds:
        """Return the interval on the scale of the smallest effect of interest: the same."""
        return self.bounds(confidence)


@dataclass(frozen=True)
class DifferenceOfShares:
    """A difference of two shares of what is counted.

    Attributes:
        arm: The first share.
        control: The share that is taken off.
        components: Parts of the variance of the difference, on the scale of counts.
    """

    arm: ArmNumber
    control: ArmNumber
    components: tuple[Component, ...]

    @property
    def covariance(self) -> float:
        """Return the covariance of the two, on the scale of counts."""
        apart = self.arm.variance + self.control.variance
        return (apart - sum(part.variance for part in self.components)) / 2

    @property
    def se(self) -> float:
        """Return the standard error of the difference, to first order."""
        one, other = (s.spread.scale.slope(s.spread.center) for s in (self.arm, self.control))
        variance = one**2 * self.arm.variance + other**2 * self.control.variance
        return math.sqrt(max(variance - 2 * self.covariance * one * other, 0.0))

    def bounds(self, confidence: float = 0.95) -> Bounds:
        """Return the interval of the difference, as a share."""
        value = self.arm.value - self.control.value
        return self._around(value, lambda share: share, confidence)

    def against_margin(self, confidence: float = 0.95) -> Bounds:
        """Return the interval in log odds; it is without end where a share may be 0 or 1."""
        one, other = (float(_log_odds(np.array(side.value))) for side in (self.arm, self.control))
        low, high = self._around(one - other, _log_odds, confidence)
        q = self._multiplier(confidence)
        for side, sign in ((self.arm, 1), (self.control, -1)):
            far = q * math.sqrt(side.variance)
            least, most = (side.spread.scale.back(side.spread.center + s * far) for s in (-1, 1))
            if least <= 0 or side.value <= 0:
                low, high = (-math.inf, high) if sign > 0 else (low, math.inf)
            if most >= 1 or side.value >= 1:
                low, high = (low, math.inf) if sign > 0 else (-math.inf, high)
        return Bounds(low, high)

    def _multiplier(self, confidence: float) -> float:
        variance = sum(part.variance for part in self.components)
        return (
            half_width(self.components, confidence) / math.sqrt(variance) if variance > 0 else 0.0
        )

    def _around(
        self, value: float, of_share: Callable[[_Values], _Values], confidence: float
    ) -> Bounds:
        """Return the least and the largest difference of a function of the shares in the ellipse."""
        q = self._multiplier(confidence)
        if q == 0:
            return Bounds(value, value)
        sides = (self.arm, self.control)
        deviations = [math.sqrt(side.variance) for side in sides]
        size = deviations[0] * deviations[1]
        r = min(max(self.covariance / size, -1.0), 1.0) if size > 0 else 0.0

        def at(angle: _Values) -> _Values:
            steps = np.cos(angle), r * np.cos(angle) + math.sqrt(1 - r * r) * np.sin(angle)
            one, other = (
                of_share(_shares(side, side.spread.center + q * deviation * step))
                for side, deviation, step in zip(sides, deviations, steps, strict=True)
            )
            return np.asarray(one - other)

        low, high = _ends(at)
        return Bounds(min(low, value), max(high, value))


AnyDifference = Difference | DifferenceOfShares


def difference(spreads: Spreads, cells: tuple[ReplicateKey, ReplicateKey]) -> AnyDifference:
    """Return the first arm minus the second; what both share over documents and seeds cancels.

    Raises:
        NotEstimable: as `ArmNumber.of`.
    """
    n_documents = spreads.table.n_documents[cells[0].hookpoint]
    together = spreads.signed({cells[0]: 1, cells[1]: -1})
    parts = together.components(n_documents)
    arm, control = (ArmNumber.of(spreads, cell) for cell in cells)
    if not isinstance(arm.spread.scale, CountScale):
        return Difference(arm.value - control.value, parts)
    return DifferenceOfShares(arm, control, _of_counts(arm, control, parts, together.measured))


def _of_counts(
    arm: ArmNumber, control: ArmNumber, parts: tuple[Component, ...], measured: float
) -> tuple[Component, ...]:
    """Return the parts of the variance of a difference of counts, no covariance above what it can be.

    The correlation over seeds is that of what was measured: an arm's variance may have been raised to that of
    independent latents, which would look like something that the two share.

    Args:
        arm: The first.
        control: The second.
        parts: Those of the difference taken seed by seed, that of the documents first.
        measured: The sum of its seeds' parts.
    """
    (documents, *first), (also, *second) = arm.components, control.components
    shared = _covariance(documents.variance, also.variance, parts[0].variance)
    apart = documents.variance + also.variance - 2 * shared
    found = [parts[0]._replace(variance=apart)]
    a, c = (sum(part.variance for part in side) for side in (first, second))
    before = arm.spread.measured, control.spread.measured
    size = math.sqrt(before[0] * before[1])
    r = _covariance(*before, measured) / size if size > 0 else 0.0
    seeds = parts[1:] if measured > 0 else (*first, *second)
    total = sum(part.variance for part in seeds)
    times = (a + c - 2 * r * math.sqrt(a * c)) / total if total > 0 else 0.0
    return (*found, *(part._replace(variance=times * part.variance) for part in seeds))


def _covariance(a: float, c: float, apart: float) -> float:
    """Return the covariance of two numbers from the variance of their difference, at most what it can be."""
    size = math.sqrt(a * c)
    return min(max((a + c - apart) / 2, -size), size)


def _shares(side: ArmNumber, y: _Values) -> _Values:
    scale = side.spread.scale
    return scale.shares(y) if isinstance(scale, CountScale) else y


def _log_odds(share: _Values) -> _Values:
    inside = np.clip(share, _LEAST_SHARE, 1 - _LEAST_SHARE)
    return np.asarray(np.log(inside / (1 - inside)))


def _ends(of_angle: Callable[[_Values], _Values]) -> Bounds:
    """Return the least and the largest value of a function of an angle.

    They are sought on a grid that is made finer around the best.
    """
    signs = np.array([[-1.0], [1.0]])
    centers, width = np.full((2, 1), math.pi), math.pi
    ends = np.full(2, -math.inf)
    for _ in range(_FINER):
        angles = centers + width * np.linspace(-1, 1, _ANGLES)
        values = signs * of_angle(angles)
        best = values.argmax(axis=1, keepdims=True)
        ends = np.maximum(ends, np.take_along_axis(values, best, 1)[:, 0])
        centers, width = np.take_along_axis(angles, best, 1), 2 * width / (_ANGLES - 1)
    return Bounds(-float(ends[0]), float(ends[1]))


def p_of_none(found: AnyDifference) -> float:
    """Return the p value of a difference of 0.

    Raises:
        NotEstimable: nothing varied.
    """
    return _p(found.bounds, lambda at: max(at.low, -at.high))


def p_of_small(found: AnyDifference, margin: float) -> float:
    """Return the p value of a difference within -margin to margin; a small one says that it is larger.

    Source: the minimum-effect test (Murphy and Myors 1999, Journal of Applied Psychology 84:234), two-sided.

    Raises:
        NotEstimable: nothing varied.
        ValueError: the margin is not above 0.
    """
    _check_margin(margin)
    return _p(found.against_margin, lambda at: max(at.low, -at.high) - margin)


def p_of_large(found: AnyDifference, margin: float) -> float:
    """Return the p value of a difference outside -margin to margin; a small one says that it is within.

    It is that of two one-sided tests: below 0.05 exactly where the 90% interval lies within the margins.

    Source: Schuirmann 1987 (Journal of Pharmacokinetics and Biopharmaceutics 15:657).

    Raises:
        NotEstimable: nothing varied.
        ValueError: the margin is not above 0.
    """
    _check_margin(margin)
    return _p(found.against_margin, lambda at: margin - max(at.high, -at.low)) / 2


def _check_margin(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"the margin is {margin}; it must be above 0")


def _p(bounds: Callable[[float], Bounds], clear: Callable[[Bounds], float]) -> float:
    """Return one minus the largest confidence at which the interval leaves the hypothesis out.

    `clear` is by how much an interval leaves it out; below 0 where it does not.
    """
    from scipy.optimize import brentq

    wide, narrow = bounds(1 - LEAST_P), bounds(_LEAST_CONFIDENCE)
    if not (math.isfinite(narrow.low) or math.isfinite(narrow.high)):
        return 1.0
    if wide.low == wide.high:
        raise NotEstimable("nothing varied between documents, seeds or re-draws, so no p value")
    if clear(wide) > 0:
        return LEAST_P
    if clear(narrow) <= 0:
        return 1.0

    def at(log_p: float) -> float:
        by = min(max(clear(bounds(1 - math.exp(log_p))), -_FAR), _FAR)
        # an interval that ends at the hypothesis does not leave it out
        return by if by > 0 else min(by, -_LEAST_CONFIDENCE)

    ends = math.log(LEAST_P), math.log1p(-_LEAST_CONFIDENCE)
    return math.exp(brentq(at, *ends, xtol=1e-6))
