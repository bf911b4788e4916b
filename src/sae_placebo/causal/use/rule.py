"""The rule by which a direction is called used, not used, or undetermined.

A direction is **used** if both of these hold:

1. Ablating it costs more than ablating null directions: its p-value passes Benjamini-Hochberg over all
   directions that get a verdict.
2. The lower bound of its effect is at least the smallest effect of interest.

**Not used** is a claim of its own and not what is left over. It takes all of these:

1. The direction was ablated in enough documents.
2. Its effect is negligible: the upper bound is below `negligible`, a share of a full swap, or below
   `negligible_of_null` times the mean effect of null directions.
3. At the firings at which both were ablated, it costs no more than null directions do on average. For a
   small part of something that is used has a small effect as well, but a larger one than they.
4. It is in a set of directions whose removal at once, from all tokens, costs next to nothing, on
   documents that had no say in choosing the set, and under the worst masks that were found.

**Undetermined** is every other direction, with the reason.

A verdict is about one hookpoint, about the tokens read, and about predictions a few tokens ahead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64, Shaped

from sae_placebo.causal.use.effects import Effects
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.stats.multiplicity import adjusted

USES = ("used", "not_used", "undetermined")
USED, NOT_USED, UNDETERMINED = range(3)

FEW = "too few documents hold it"
LIKE_NULLS = "no costlier than null directions"
SMALL = "costlier than null directions, but perhaps by less than the smallest effect of interest"
BETWEEN = "its effect may be larger than what is negligible"
REDUNDANT = "negligible alone, but not when others are removed as well"
PART = "negligible, but costlier than null directions: perhaps a small part of something used"
JOINT = "negligible alone, but removing all such directions at once is not"
REASONS = (FEW, LIKE_NULLS, SMALL, BETWEEN, PART, REDUNDANT, JOINT)
"""The reasons for which a verdict is undetermined."""


@dataclass(frozen=True, eq=False)
class DirectionEvidence:
    """The measurements that the rule reads. Effects are shares of a full swap.

    Attributes:
        effect: The effect of zero ablation, with bounds.
        beside: The effect of removing the direction while others are removed at random, with bounds; NaN
            where it was not measured. It decides nothing, since any direction costs more when half of the
            others are gone. It serves to tell that a direction is redundant.
        p: The p-value of the direction's cost among those of null directions; NaN where it was not tested
            against them, which counts as 1.
        null: The mean effect of its null directions; NaN where it was not tested against them.
        ratio: The direction's mean cost divided by that of its null directions, at the same firings.
        survives: Whether the direction is in the set whose joint removal is negligible.
        asked: The directions that get a verdict.
    """

    effect: Effects
    beside: Effects
    p: Float64[np.ndarray, " direction"]
    null: Float64[np.ndarray, " direction"]
    ratio: Float64[np.ndarray, " direction"]
    survives: Bool[np.ndarray, " direction"]
    asked: Int64[np.ndarray, " asked"]


@dataclass(frozen=True, eq=False)
class UseVerdicts:
    """The verdicts on the directions in `DirectionEvidence.asked`, in their order.

    Attributes:
        verdict: The verdict, as an index into `USES`.
        reason: One of `REASONS` where the verdict is undetermined, else an empty string.
        beats_nulls: Whether the p-value passes Benjamini-Hochberg.
    """

    verdict: Int8[np.ndarray, " asked"]
    reason: Shaped[np.ndarray, " asked"]
    beats_nulls: Bool[np.ndarray, " asked"]


def use_verdicts(measured: DirectionEvidence, spec: UseSpec) -> UseVerdicts:
    """Return a verdict on each direction, by the rule in the module's docstring.

    A comparison with a missing number (NaN) does not hold, so missing evidence leads to no claim.

    Args:
        measured: The effects, the p-values, and what survives joint removal.
        spec: The limits.
    """
    at = measured.asked
    p = np.where(np.isfinite(measured.p[at]), measured.p[at], 1.0)
    beats = adjusted(p) <= spec.false_discovery_rate
    effect, beside = measured.effect, measured.beside
    with np.errstate(invalid="ignore"):
        large = effect.low[at] >= spec.least_effect
        alone = effect.high[at] < spec.negligible
        alone |= effect.high[at] < spec.negligible_of_null * measured.null[at]
        below_nulls = measured.ratio[at] <= 1
        redundant = beside.low[at] >= spec.least_effect
    enough = effect.n[at] >= spec.documents
    used = beats & large
    negligible = enough & alone
    unused = ~used & negligible & below_nulls & measured.survives[at]
    verdict = np.full(len(at), UNDETERMINED, dtype=np.int8)
    verdict[used], verdict[unused] = USED, NOT_USED
    reason = np.full(len(at), "", dtype=object)
    left = ~used & ~unused
    # where several reasons hold, the last of them is given
    for why, holds in (
        (LIKE_NULLS, ~beats),
        (BETWEEN, ~beats & ~alone & large),
        (SMALL, beats & ~large),
        (PART, negligible & ~below_nulls),
        (JOINT, negligible & ~redundant & below_nulls),
        (REDUNDANT, negligible & redundant & below_nulls),
        (FEW, ~enough & ~beats),
    ):
        reason[left & holds] = why
    return UseVerdicts(verdict, reason, beats)


def sensitivity(
    measured: DirectionEvidence,
    spec: UseSpec,
    limits: Float64[np.ndarray, " limit"],
) -> Float64[np.ndarray, "limit verdict"]:
    """Return the share of each verdict, in the order of `USES`, at other smallest effects of interest.

    `negligible` is moved in proportion to `least_effect`. The set that survives joint removal stays as it
    was measured, and so do the p-values.

    Args:
        measured: The measurements.
        spec: The limits, of which these two are moved.
        limits: Values of `least_effect`.
    """
    ratio = spec.negligible / spec.least_effect
    shares = []
    for limit in limits:
        moved = spec.model_copy(
            update={"least_effect": float(limit), "negligible": float(limit * ratio)}
        )
        verdict = use_verdicts(measured, moved).verdict
        shares.append(np.bincount(verdict, minlength=len(USES)) / max(len(verdict), 1))
    return np.array(shares)
