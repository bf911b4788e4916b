"""The rule by which a direction is called used, not used, or undetermined.

A direction is **used** if two hypotheses fall together:

1. Ablating it costs no more than ablating null directions.
2. Its effect is below the smallest effect of interest.

The larger of their p-values is the direction's. It is divided by a weight that tells at how many directions
an effect of interest can be expected at all, and passes Benjamini-Hochberg, with Storey's share of true
hypotheses, over all directions that get a verdict.

**Not used** is a claim of its own and not what is left over. It takes all of these, and what is measured for
it is measured at firings drawn uniformly:

1. The direction was ablated at enough firings, in enough documents.
2. Its effect is negligible: the upper bound is below `negligible`, a share of a full swap, or the upper bound
   of its ratio to null directions is below `negligible_of_null`.
3. The upper bound of its ratio to null directions is below 1: it costs less than they do. For a small part
   of something that is used has a small effect as well, but a larger one than they.
4. It is in a set of directions whose removal at once, from all tokens, costs next to nothing, on
   documents that had no say in choosing the set, and under the worst masks that were found.
5. As the last of that set to go, at its own firings, where related directions are gone as well, it costs next
   to nothing: its last-in marginal is negligible as its effect is.
6. It is not redundant: removing it while others are removed at random does not surely cost an effect of
   interest.

**Undetermined** is every other direction, with the reason.

A verdict is about one hookpoint, about the tokens read, and about predictions a few tokens ahead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int64, Shaped

from sae_placebo.causal.use.absence import Absence
from sae_placebo.causal.use.effects import Effects
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.stats.multiplicity import adjusted, share_of_true_nulls
from sae_placebo.stats.quantiles import normal_quantile

USES = ("used", "not_used", "undetermined")
USED, NOT_USED, UNDETERMINED = range(3)

FEW = "too few firings to claim that it is not used"
UNSHOWN = "not shown to cost more than null directions"
SMALL = "costlier than null directions, but perhaps by less than the smallest effect of interest"
BETWEEN = "its effect may be larger than what is negligible"
REDUNDANT = "negligible alone, but not when others are removed as well"
PART = "negligible, but perhaps costlier than null directions: a small part of something used"
JOINT = "negligible alone, but removing all such directions at once is not"
REASONS = (FEW, UNSHOWN, SMALL, BETWEEN, PART, REDUNDANT, JOINT)
"""The reasons for which a verdict is undetermined."""


@dataclass(frozen=True, eq=False)
class DirectionEvidence:
    """The measurements that the rule reads. Effects are shares of a full swap.

    Attributes:
        effect: The effect of zero ablation at firings drawn by importance, with bounds.
        beside: The effect of removing the direction while others are removed at random, with bounds; NaN
            where it was not measured. It serves to tell that a direction is redundant.
        p: The p-value of the direction's cost among those of null directions; NaN where it was not tested
            against them, which counts as 1.
        null: The mean effect of its null directions; NaN where it was not tested against them.
        expected: The mean effect that the screen expects of null directions at all of its firings; NaN where
            no firing was screened.
        ratio: The direction's mean cost divided by that of its null directions, at the same firings.
        survives: Whether the direction is in the set whose joint removal is negligible.
        absence: The evidence at firings drawn uniformly.
        n_active: How many tokens hold the direction.
        asked: The directions that get a verdict.
    """

    effect: Effects
    beside: Effects
    p: Float64[np.ndarray, " direction"]
    null: Float64[np.ndarray, " direction"]
    expected: Float64[np.ndarray, " direction"]
    ratio: Float64[np.ndarray, " direction"]
    survives: Bool[np.ndarray, " direction"]
    absence: Absence
    n_active: Int64[np.ndarray, " direction"]
    asked: Int64[np.ndarray, " asked"]


@dataclass(frozen=True, eq=False)
class UseVerdicts:
    """The verdicts on the directions in `DirectionEvidence.asked`, in their order.

    Attributes:
        verdict: The verdict, as an index into `USES`.
        reason: One of `REASONS` where the verdict is undetermined, else an empty string.
        beats_nulls: Whether it costs more than null directions, by its p-value against these alone.
        q: The smallest false discovery rate at which it would be called used.
    """

    verdict: Int8[np.ndarray, " asked"]
    reason: Shaped[np.ndarray, " asked"]
    beats_nulls: Bool[np.ndarray, " asked"]
    q: Float64[np.ndarray, " asked"]


def use_verdicts(measured: DirectionEvidence, spec: UseSpec) -> UseVerdicts:
    """Return a verdict on each direction, by the rule in the module's docstring.

    A comparison with a missing number (NaN) does not hold, so missing evidence leads to no claim.

    Args:
        measured: The effects, the p-values, and what survives joint removal.
        spec: The limits.
    """
    at, level = measured.asked, spec.false_discovery_rate
    p_null = _or_one(measured.p[at])
    weights = screen_weights(measured.expected[at], spec.least_effect)
    q = false_discovery(_of_both(measured.p, measured.effect, spec)[at], weights)
    beats = false_discovery(p_null, np.ones(len(at))) <= level
    used = q <= level
    absence = measured.absence
    with np.errstate(invalid="ignore"):
        large = measured.effect.low[at] >= spec.least_effect
        enough = absence.n_firings[at] >= spec.uniform_firings
        enough &= absence.effect.n[at] >= spec.documents
        alone = _negligible(absence.effect, absence.ratio, spec)[at]
        below_nulls = absence.ratio.high[at] < 1
        last = _negligible(absence.last, absence.last_ratio, spec)[at]
        small = measured.effect.high[at] < spec.negligible
        may_cost_less = measured.ratio[at] <= 1
    redundant = is_redundant(measured.beside, spec)[at]
    survives = measured.survives[at]
    unused = ~used & enough & alone & below_nulls & survives & last & ~redundant
    verdict = np.full(len(at), UNDETERMINED, dtype=np.int8)
    verdict[used], verdict[unused] = USED, NOT_USED
    reason = np.full(len(at), "", dtype=object)
    left = ~used & ~unused
    small |= alone
    # where several reasons hold, the last of them is given
    for why, holds in (
        (UNSHOWN, ~beats),
        (BETWEEN, ~beats & (large | (enough & ~alone))),
        (SMALL, beats),
        (PART, ~beats & small & (~may_cost_less | (enough & ~below_nulls))),
        (JOINT, small & may_cost_less & ~survives),
        (REDUNDANT, small & may_cost_less & (redundant | (enough & ~last))),
        (FEW, ~beats & (measured.n_active[at] < spec.uniform_firings)),
        (FEW, ~beats & (absence.n_firings[at] > 0) & ~enough),
    ):
        reason[left & holds] = why
    return UseVerdicts(verdict, reason, beats, q)


def used_beside(
    measured: DirectionEvidence,
    p: Float64[np.ndarray, " other"],
    effect: Effects,
    expected: Float64[np.ndarray, " other"],
    spec: UseSpec,
) -> Bool[np.ndarray, " other"]:
    """Return which further directions would be called used at the cut-off of those that have a verdict.

    The cut-off is the largest p over weight among those called used; where none is, no other is either. The
    weight of a further direction is on the scale of theirs. So it is called used just where one of
    them with its p-value, and with the same effect expected of null directions, is. How many further
    directions there are, and of what kind, does not matter.

    Args:
        measured: The measurements of the directions that have a verdict.
        p: The p-values of the others against null directions.
        effect: Their effects.
        expected: The mean effect that the screen expects of null directions at their firings.
        spec: The limits.
    """
    at, least = measured.asked, spec.least_effect
    used = use_verdicts(measured, spec).verdict == USED
    if not used.any():
        return np.zeros(len(p), dtype=bool)
    known = measured.expected[at]
    own = _of_both(measured.p, measured.effect, spec)[at] / screen_weights(known, least)
    others = _of_both(p, effect, spec) / screen_weights(expected, least, known)
    return np.asarray(others <= own[used].max())


def is_redundant(beside: Effects, spec: UseSpec) -> Bool[np.ndarray, " direction"]:
    """Return which directions surely cost an effect of interest when others are removed at random.

    It is sure at 99%, so that chance takes the verdict from about one in a hundred that are not redundant.
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(beside.mean - normal_quantile(0.98) * beside.se >= spec.least_effect)


def screen_weights(
    expected: Float64[np.ndarray, " asked"],
    least_effect: float,
    among: Float64[np.ndarray, " other"] | None = None,
) -> Float64[np.ndarray, " asked"]:
    """Return weights of p-values, of mean 1, by what effect the screen expects of *null* directions there.

    Where even they are expected to cost far less than an effect of interest, few directions will have one.
    The weight is r / (r + least_effect), r the expected effect, and at least a tenth before it is scaled. A
    direction without an expected effect has the mean weight.

    The screen of the direction itself would tell more, but it would hang on the p-value where the direction
    is a null one: a random direction that happens to matter has a large screen and a small p. What is
    expected of null directions is the same whichever of them the direction is.

    Args:
        expected: The effect that the screen expects of null directions at each direction's firings.
        least_effect: The smallest effect of interest.
        among: The same of the directions whose weights have mean 1; without them, of these.
    """
    weights, others = (
        np.maximum(r / (r + least_effect), 0.1)
        for r in (expected, expected if among is None else among)
    )
    known = np.isfinite(others)
    if not known.any():
        return np.ones(len(expected))
    mean = others[known].mean()
    return np.asarray(np.where(np.isfinite(weights), weights, mean) / mean)


def false_discovery(
    p: Float64[np.ndarray, " test"], weights: Float64[np.ndarray, " test"]
) -> Float64[np.ndarray, " test"]:
    """Return the smallest false discovery rate at which each test is a discovery.

    Source: Benjamini and Hochberg 1995, with weights of mean 1 (Genovese, Roeder and Wasserman 2006) and
    Storey's share of true hypotheses (`stats.multiplicity`).
    """
    if not len(p):
        return p.copy()
    q = adjusted(np.minimum(p / weights, 1.0)) * share_of_true_nulls(p, weights=weights)
    return np.asarray(np.minimum(q, 1.0))


def _of_both(
    p: Float64[np.ndarray, " direction"], effect: Effects, spec: UseSpec
) -> Float64[np.ndarray, " direction"]:
    """Return the larger p-value of the two hypotheses that fall where a direction is used."""
    return np.asarray(np.maximum(_or_one(p), _or_one(effect.p_below(spec.least_effect))))


def _or_one(p: Float64[np.ndarray, " test"]) -> Float64[np.ndarray, " test"]:
    return np.where(np.isfinite(p), p, 1.0)


def _negligible(effect: Effects, ratio: Effects, spec: UseSpec) -> Bool[np.ndarray, " direction"]:
    """Return where an effect is surely negligible, by itself or beside that of null directions."""
    return np.asarray((effect.high < spec.negligible) | (ratio.high < spec.negligible_of_null))


def sensitivity(
    measured: DirectionEvidence,
    spec: UseSpec,
    limits: Float64[np.ndarray, " limit"],
) -> Float64[np.ndarray, "limit verdict"]:
    """Return the share of each verdict, in the order of `USES`, at other smallest effects of interest.

    `negligible` is moved in proportion to `least_effect`. The set that survives joint removal stays as it
    was measured, and so do the p-values against null directions, the groups that are used, and the
    directions that were asked at firings drawn uniformly.

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
