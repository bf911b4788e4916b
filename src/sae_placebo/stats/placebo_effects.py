"""A/A: the difference between two halves of a control's own re-draws, which is 0 but for chance.

The variance between re-draws must come from elsewhere than the difference itself, which would be covered by
construction. It comes from within the halves where there are three re-draws or more, moderated by the
re-draws of the other arms of the control's family (`stats.spreads`). With two, it is the pooled mean square
of those others at the same place, with their own degrees of freedom: a prior made of the same squares has
nothing to add to them. A share of latents is moderated there too, for its prior is of all shares of a trial.

A mean over SAE seeds of a re-draw holds all that depends on it and on the seeds jointly, and what depends on
the seed alone cancels, so SAE seeds add no part of their own; nor do documents, for what a document and a
re-draw do together is in the re-draws' spread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable
from sae_placebo.stats.components import MODEL_SEEDS, Component
from sae_placebo.stats.inference import ArmNumber, Difference, DifferenceOfShares
from sae_placebo.stats.replicates import ReplicateKey
from sae_placebo.stats.scales import CountScale, Scale
from sae_placebo.stats.spreads import ONE, MeanSquare, Spread, Spreads

_NO_OTHERS = (
    "two re-draws, and no other control of its family: the variation between "
    "re-draws cannot be estimated apart from this difference; give at least three model_seeds"
)


def placebo_against_placebo(
    spreads: Spreads, cell: ReplicateKey, confidence: float
) -> dict[str, Any]:
    """Return the A/A columns: the first half of a control's re-draws minus the second half."""
    try:
        control = spreads.table[cell]
        if not control.drawn:
            raise NotEstimable(f"{cell.arm}: its model is given, not drawn")
        n = len(control.model_seeds)
        if n < 2:
            raise NotEstimable(ONE[MODEL_SEEDS])
    except NotEstimable as refusal:
        return {"aa_reason": str(refusal)}
    means = control.by_model
    halves = means[: n // 2], means[n // 2 :]
    names = [str(seed) for seed in control.model_seeds]
    effect = float(halves[0].mean() - halves[1].mean())
    found: dict[str, Any] = {
        "aa_effect": effect,
        "aa_control": f"{cell.arm}: model_seed {', '.join(names[: n // 2])} minus "
        f"{', '.join(names[n // 2 :])}",
    }
    scale = spreads.scale(control)
    y = scale.forward(control.values[:, :, 0])
    try:
        square = _between_redraws(spreads, cell, scale, y)
    except NotEstimable as refusal:
        return found | {"aa_reason": str(refusal)}
    sides = []
    for value, of_half in zip(halves, (y[: n // 2], y[n // 2 :]), strict=True):
        part = Component(
            MODEL_SEEDS, max(square.value, scale.least_variance) / of_half.size, square.df
        )
        spread = Spread(scale, float(of_half.mean()), np.empty(0), 0.0, (part,), part.variance)
        sides.append(ArmNumber(float(value.mean()), spread, (part,)))
    both = (Component(MODEL_SEEDS, sides[0].variance + sides[1].variance, square.df),)
    made: Difference | DifferenceOfShares = Difference(effect, both)
    if isinstance(scale, CountScale):
        made = DifferenceOfShares(sides[0], sides[1], both)
    around = made.bounds(confidence)
    return found | {"aa_low": around.low, "aa_high": around.high}


def _between_redraws(
    spreads: Spreads, cell: ReplicateKey, scale: Scale, y: Float[np.ndarray, "model sae_seed"]
) -> MeanSquare:
    """Return the mean square of re-draws, without the difference between the two halves.

    Raises:
        NotEstimable: two re-draws, and no other arm to take it from.
    """
    n, n_seeds = y.shape
    halves = [half.mean(axis=1) for half in (y[: n // 2], y[n // 2 :])]
    df = sum(len(half) - 1 for half in halves)
    squares = sum(float(((half - half.mean()) ** 2).sum()) for half in halves)
    own = MeanSquare(n_seeds * squares / df if df else 0.0, df)
    if not df:
        own = spreads.others(cell, MODEL_SEEDS)
        if not own.df:
            raise NotEstimable(_NO_OTHERS)
        if not isinstance(scale, CountScale):
            return own
    return spreads.moderated(cell, MODEL_SEEDS, own, without_own_arm=True)
