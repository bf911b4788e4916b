"""Find the penalty weight at which a training ends at a wanted number of active latents."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Training = dict[str, Any]
"""What `training_worker` prints."""


@dataclass(frozen=True)
class Match:
    """The weight that was found, its training, and every try.

    Attributes:
        sparsity: Weight of the penalty, in the side's own unit.
        training: The training with that weight.
        matched: Whether its final L0 is within the tolerance.
        tries: Weight and final L0 of every training.
    """

    sparsity: float
    training: Training
    matched: bool
    tries: list[dict[str, float]]


def final(training: Training, column: str) -> float:
    return float(training["curve"][-1][column])


def match_l0(
    train: Callable[[float], Training],
    target: float,
    first: float,
    most_tries: int = 7,
    tolerance: float = 0.1,
) -> Match:
    """Search the weight on a log scale; L0 falls as the weight rises.

    Args:
        train: Trains to the end with a weight.
        target: Wanted final L0 on held-out tokens.
        first: The first guess.
        most_tries: Trainings at most; then the nearest counts, as not matched.
        tolerance: Allowed relative distance.
    """
    found: list[tuple[float, float, Training]] = []
    weight = first
    for _ in range(most_tries):
        training = train(weight)
        l0 = max(final(training, "l0"), 1e-3)
        found.append((math.log(weight), math.log(l0 / target), training))
        if abs(l0 / target - 1) <= tolerance:
            break
        weight = math.exp(_next(found))
    log_weight, distance, training = min(found, key=lambda one: abs(one[1]))
    return Match(
        math.exp(log_weight),
        training,
        abs(math.exp(distance) - 1) <= tolerance,
        [{"sparsity": math.exp(w), "l0": target * math.exp(d)} for w, d, _ in found],
    )


def _next(found: list[tuple[float, float, Training]]) -> float:
    """Return the log weight to try next: between the nearest ones on both sides, or farther out."""
    above = max((one for one in found if one[1] > 0), key=lambda one: one[0], default=None)
    below = min((one for one in found if one[1] <= 0), key=lambda one: one[0], default=None)
    if above is None or below is None:
        nearest = min(found, key=lambda one: abs(one[1]))
        step = min(max(abs(nearest[1]), 0.3), math.log(5))
        return nearest[0] + math.copysign(step, nearest[1])
    if below[0] <= above[0]:  # noise: the order is not the expected one
        return (above[0] + below[0]) / 2
    share = above[1] / (above[1] - below[1])
    return above[0] + min(max(share, 0.1), 0.9) * (below[0] - above[0])
