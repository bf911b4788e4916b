"""Whether the model uses a direction: used, not used, or undetermined, each with its reason.

**Used**: ablating it costs more than ablating null directions (Benjamini-Hochberg over the directions
asked about), and surely at least the smallest effect of interest.
**Not used** is a claim of its own, not what is left. Its effect is surely negligible: below a share of a full
swap, and no larger than that of null directions, since a small part of something used has a small effect
as well; or below a tenth of that of null directions. And removing all such directions at once, everywhere,
costs next to nothing, on documents that had no say in choosing them and under the worst masks found.
**Undetermined**: everything else.

All of it is about one hookpoint, these tokens, and predictions a few tokens ahead.
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
"""Why a verdict is undetermined."""


@dataclass(frozen=True, eq=False)
class DirectionEvidence:
    """What is known of every direction; effects are shares of a full swap.

    Attributes:
        effect: Of zero ablation.
        beside: Of removal among others removed at random; NaN where it was not measured. It decides nothing
            (with half of all directions gone, any direction costs more), but tells redundancy by its name.
        p: Rank p-value against null directions; NaN where it was not asked, which counts as 1.
        null: Mean effect of null directions; NaN where it was not asked.
        ratio: Cost over that of null directions at the same firings.
        survives: Whether it is in the set whose joint removal is negligible.
        asked: Directions that verdicts are wanted on.
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
    """What is said of the directions asked about.

    Attributes:
        verdict: [asked] index into `USES`.
        reason: [asked] of `REASONS` where undetermined, else empty.
        beats_nulls: [asked] whether its p-value passes.
    """

    verdict: Int8[np.ndarray, " asked"]
    reason: Shaped[np.ndarray, " asked"]
    beats_nulls: Bool[np.ndarray, " asked"]


def use_verdicts(measured: DirectionEvidence, spec: UseSpec) -> UseVerdicts:
    """Return the verdicts.

    Args:
        measured: Effects, p-values, joint removal.
        spec: Limits.
    """
    at = measured.asked
    p = np.where(np.isfinite(measured.p[at]), measured.p[at], 1.0)
    beats = adjusted(p) <= spec.false_discovery_rate
    effect, beside = measured.effect, measured.beside
    with np.errstate(invalid="ignore"):
        large = effect.low[at] >= spec.least_effect
        alone = effect.high[at] < spec.negligible
        redundant = beside.low[at] >= spec.least_effect
        enough = effect.n[at] >= spec.documents
    used = beats & large
    with np.errstate(invalid="ignore"):
        beside_nulls = effect.high[at] < spec.negligible_of_null * measured.null[at]
        below_nulls = measured.ratio[at] <= 1
    alone |= beside_nulls
    negligible = enough & alone
    unused = ~used & negligible & below_nulls & measured.survives[at]
    verdict = np.full(len(at), UNDETERMINED, dtype=np.int8)
    verdict[used], verdict[unused] = USED, NOT_USED
    reason = np.full(len(at), "", dtype=object)
    left = ~used & ~unused
    # the last that holds is told
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
    """Return the share of each verdict as the smallest effect of interest moves.

    What is negligible moves in proportion; the set that survives joint removal stays.
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
