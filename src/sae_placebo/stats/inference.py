"""What is said of a difference between arms: its interval, and p values that agree with it at every level.

A p value is one minus the largest confidence at which the interval leaves the hypothesis out, found by
bisection. So it is below 0.05 exactly where the 95% interval does, whatever the interval is made of.

A difference of a metric on its own scale has a symmetric interval. That of two shares is put together from
the intervals of the two (MOVER): each is made on the scale of counts and carried back, so that none leaves
0 to 100%, and

    low = e - sqrt((a - la)^2 + (uc - c)^2 - 2 r (a - la) (uc - c)),

the upper bound alike, with a and c the two shares, la, ua, lc, uc their bounds, e = a - c, and r their
correlation over the documents and seeds that they share. On the scale of log odds the same is done with
the log odds of all of these.

Source: Zou and Donner 2008 (Statistics in Medicine 27:1693); with correlation, Zou 2007 (Psychological
Methods 12:399).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

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
    """A difference of two shares of what is counted."""

    arm: ArmNumber
    control: ArmNumber
    correlation: float

    @property
    def se(self) -> float:
        """Return the standard error of the difference, to first order."""
        one, other = (
            math.sqrt(side.variance) * side.spread.scale.slope(side.spread.center)
            for side in (self.arm, self.control)
        )
        return math.sqrt(max(one**2 + other**2 - 2 * self.correlation * one * other, 0.0))

    def bounds(self, confidence: float = 0.95) -> Bounds:
        """Return the interval of the difference, as a share."""
        sides = self.arm.bounds(confidence), self.control.bounds(confidence)
        return _mover(self.arm.value, sides[0], self.control.value, sides[1], self.correlation)

    def against_margin(self, confidence: float = 0.95) -> Bounds:
        """Return the interval in log odds; it is without end where a share may be 0 or 1."""
        numbers, bounds = [], []
        for one in (self.arm, self.control):
            found = one.bounds(confidence)
            n = one.spread.scale.n if isinstance(one.spread.scale, CountScale) else 1
            count = min(max(one.value * n, 0.5), n - 0.5)
            numbers.append(_log_odds(count / n))
            bounds.append(Bounds(_log_odds(found.low), _log_odds(found.high)))
        return _mover(numbers[0], bounds[0], numbers[1], bounds[1], self.correlation)


AnyDifference = Difference | DifferenceOfShares


def difference(spreads: Spreads, cells: tuple[ReplicateKey, ReplicateKey]) -> AnyDifference:
    """Return the first arm minus the second; what both share over documents and seeds cancels.

    Raises:
        NotEstimable: as `ArmNumber.of`.
    """
    n_documents = spreads.table.n_documents[cells[0].hookpoint]
    together = spreads.signed({cells[0]: 1, cells[1]: -1}).components(n_documents)
    arm, control = (ArmNumber.of(spreads, cell) for cell in cells)
    if not isinstance(arm.spread.scale, CountScale):
        return Difference(arm.value - control.value, together)
    size = math.sqrt(arm.variance * control.variance)
    apart = arm.variance + control.variance - sum(part.variance for part in together)
    correlation = apart / (2 * size) if size > 0 else 0.0
    return DifferenceOfShares(arm, control, min(max(correlation, -1.0), 1.0))


def _mover(a: float, of_a: Bounds, c: float, of_c: Bounds, correlation: float) -> Bounds:
    def reach(x: float, y: float) -> float:
        if math.isinf(x) or math.isinf(y):
            return math.inf
        return math.sqrt(max(x * x + y * y - 2 * correlation * x * y, 0.0))

    value = a - c
    return Bounds(
        value - reach(a - of_a.low, of_c.high - c), value + reach(of_a.high - a, c - of_c.low)
    )


def _log_odds(share: float) -> float:
    if share <= 0:
        return -math.inf
    return math.inf if share >= 1 else math.log(share / (1 - share))


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
        return min(max(clear(bounds(1 - math.exp(log_p))), -_FAR), _FAR)

    ends = math.log(LEAST_P), math.log1p(-_LEAST_CONFIDENCE)
    return math.exp(brentq(at, *ends, xtol=1e-6))
