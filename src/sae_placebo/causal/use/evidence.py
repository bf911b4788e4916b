"""Whether a model uses directions: the measurements in their order, and the verdicts.

1. Each direction is ablated alone, at firings drawn by importance: its effect, with bounds (`ablation`,
   `effects`). Null directions are ablated at some of the same firings (`null_directions`, `null_test`).
2. Groups of related directions are asked in the same way, each as one (`groups`).
3. Each direction is removed while others are removed at random; ordered by both costs, as many as possible
   are removed at once, and an adversary looks for the worst that removing some of them can do (`together`).
4. Those that may still turn out not to be used are ablated at firings drawn uniformly, alone and as the last
   of all that can be removed (`absence`).
5. The rule turns these measurements into verdicts (`rule`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from sae_placebo.causal.use.ablation import Ablations, ablate, full_swap
from sae_placebo.causal.use.absence import ask_absence, no_absence
from sae_placebo.causal.use.base import (
    Directions,
    DirectionSets,
    Subject,
    direction_sets,
    single_sets,
)
from sae_placebo.causal.use.effects import HIGH_LEVEL, LOW_LEVEL, Effects, effects_of
from sae_placebo.causal.use.firing_screen import screen_firings
from sae_placebo.causal.use.firings import Firings, important_firings
from sae_placebo.causal.use.groups import group_of, related_groups
from sae_placebo.causal.use.joint import JointCurve
from sae_placebo.causal.use.masks import MaskedUse
from sae_placebo.causal.use.null_directions import NullCosts, null_costs
from sae_placebo.causal.use.null_test import ROUNDING, PooledTest, pooled_test
from sae_placebo.causal.use.rule import (
    USED,
    DirectionEvidence,
    UseVerdicts,
    false_discovery,
    is_redundant,
    use_verdicts,
)
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.causal.use.together import Together, remove_together
from sae_placebo.causal.use.worst import WorstCase
from sae_placebo.core.progress import Track, untracked
from sae_placebo.stats.quantiles import normal_quantile


@dataclass(frozen=True, eq=False)
class Asked:
    """The evidence on sets of directions, each by itself; arrays are over all sets but where it says so.

    Attributes:
        which: The sets that were asked.
        unit: What a full swap costs, in nats.
        ablated: The costs of single ablations, by firing.
        effect: The effect of zero ablation, as a share of a full swap.
        resampled: The effect of resample ablation, likewise.
        null_costs: The costs of null directions, by firing.
        ratio: The cost over the mean cost of null directions, at the same firings, with bounds.
        own: The mean cost at these firings, in nats.
        null: The mean cost of null directions, in nats.
        expected: The mean cost that the screen expects of null directions at all firings, in nats.
        p: The p-value against null directions.
        test: The test that it comes from; its arrays are over `which`, then over sets asked beside them.
    """

    which: Int64[np.ndarray, " asked"]
    unit: float
    ablated: Ablations
    effect: Effects
    resampled: Effects
    null_costs: NullCosts
    ratio: Effects
    own: Float64[np.ndarray, " set"]
    null: Float64[np.ndarray, " set"]
    expected: Float64[np.ndarray, " set"]
    p: Float64[np.ndarray, " set"]
    test: PooledTest


@dataclass(frozen=True, eq=False)
class AskedGroups:
    """The evidence on groups of related directions, each removed as one.

    Attributes:
        members: The members of each group.
        asked: The evidence; None where there is no group.
        used: Whether each group is used, by the rule's two hypotheses.
        of_direction: The index of each direction's group; -1 where it is in none.
    """

    members: list[Int64[np.ndarray, "_"]]
    asked: Asked | None
    used: Bool[np.ndarray, " group"]
    of_direction: Int64[np.ndarray, " direction"]

    def related(self) -> dict[int, Int64[np.ndarray, "_"]]:
        """Return the group of each direction that is in one."""
        return {int(i): members for members in self.members for i in members}


@dataclass(frozen=True, eq=False)
class Answer:
    """The verdicts on some directions, with all the evidence.

    Attributes:
        which: The directions that have a verdict, ascending.
        asked: The evidence on each alone; arrays are over all directions of the hookpoint.
        groups: The evidence on groups of related directions.
        together: What removing many of them costs.
        measured: The measurements that the rule read.
        verdicts: The verdicts that it gave.
    """

    which: Int64[np.ndarray, " asked"]
    asked: Asked
    groups: AskedGroups
    together: Together
    measured: DirectionEvidence
    verdicts: UseVerdicts

    @property
    def masked(self) -> MaskedUse | None:
        """The cost of each when others are removed at random; None where it is not estimable."""
        return self.together.masked

    @property
    def joint(self) -> JointCurve | None:
        """The cost of removing many at once; None where it is not estimable."""
        return self.together.joint

    @property
    def worst(self) -> WorstCase | None:
        """The worst masks over what survives joint removal; None where it is not estimable."""
        return self.together.worst

    @property
    def reasons(self) -> dict[str, str]:
        """By attribute that is None, the reason."""
        return self.together.reasons


def ask(
    subject: Subject,
    directions: Directions,
    which: Int64[np.ndarray, " asked"],
    spec: UseSpec,
    seed: int,
    track: Track = untracked,
) -> Answer:
    """Return whether the model uses each of some directions, with the evidence.

    The steps are those of the module's docstring.

    Args:
        subject: The model behind the hookpoint, and the held-out tokens.
        directions: All directions at the hookpoint.
        which: The directions that get a verdict.
        spec: How much is measured, and the limits of the rule.
        seed: The seed of all draws.
        track: It shows the progress of each step.

    Raises:
        NotEstimable: a full swap costs nothing.
    """
    which = np.unique(which).astype(np.int64)
    sets, unit = single_sets(directions), full_swap(subject, spec.window, spec.swap_tokens, seed)
    asked = _ask_sets(subject, sets, which, unit, spec, seed, track)
    groups = _ask_groups(subject, directions, asked, spec, seed, track)
    together = remove_together(subject, directions, which, asked.ablated, spec, seed, track)
    survives = np.zeros(len(directions), dtype=bool)
    survives[together.s_star] = True
    measured = DirectionEvidence(
        effect=asked.effect,
        beside=_beside(together.masked, len(directions), unit),
        p=asked.p,
        null=asked.null / unit,
        expected=asked.expected / unit,
        ratio=asked.ratio.mean,
        survives=survives,
        absence=no_absence(len(directions)),
        n_active=directions.n_active,
        asked=which,
    )
    candidates = _may_be_unused(measured, spec)
    absence = ask_absence(
        subject, sets, candidates, together.s_star, groups.related(), spec, seed, track
    )
    measured = replace(measured, absence=absence)
    return Answer(which, asked, groups, together, measured, use_verdicts(measured, spec))


def ask_alone(
    subject: Subject,
    directions: Directions,
    spec: UseSpec,
    seed: int,
    track: Track = untracked,
    kind: str = "direction",
    beside: Asked | None = None,
) -> Asked:
    """Return the evidence on each direction alone, with no verdict.

    Args:
        subject: The model behind the hookpoint, and the held-out tokens.
        directions: The directions.
        spec: How much is measured.
        seed: The seed of all draws.
        track: It shows the progress of each step.
        kind: What the directions are. Draws are named by it, so that those of two kinds are independent.
        beside: The evidence on others. Their null costs join the null distribution, so that p-values are
            against the same nulls and reach as far down.
    """
    unit = full_swap(subject, spec.window, spec.swap_tokens, seed)
    which = np.arange(len(directions))
    sets = replace(single_sets(directions), kind=kind)
    return _ask_sets(subject, sets, which, unit, spec, seed, track, beside)


def effect_alone(
    subject: Subject,
    sets: DirectionSets,
    which: Int64[np.ndarray, " asked"],
    spec: UseSpec,
    seed: int,
) -> Effects:
    """Return the effect of zero ablation of sets of directions, without null directions.

    Args:
        subject: The model behind the hookpoint, and the held-out tokens.
        sets: All sets.
        which: The sets that are ablated.
        spec: How many firings there are.
        seed: The seed of all draws.
    """
    screened = screen_firings(subject, sets, which, spec.screen_tokens, seed)
    firings = important_firings(sets, which, screened, spec.firings, seed)
    cost = ablate(subject, sets, firings, spec.window, seed).zero
    return _weighted(
        subject,
        firings,
        cost,
        full_swap(subject, spec.window, spec.swap_tokens, seed),
        len(sets),
        seed,
    )


def _ask_sets(
    subject: Subject,
    sets: DirectionSets,
    which: Int64[np.ndarray, " asked"],
    unit: float,
    spec: UseSpec,
    seed: int,
    track: Track,
    beside: Asked | None = None,
) -> Asked:
    """Return the evidence on sets of directions, each by itself.

    Where few sets are asked, the null costs of others, `beside`, help to tell how null costs spread.
    """
    screened = screen_firings(subject, sets, which, spec.screen_tokens, seed, track)
    firings = important_firings(sets, which, screened, spec.firings, seed)
    with track("ablate", 2 * len(firings), "edits") as advance:
        ablated = ablate(subject, sets, firings, spec.window, seed, advance)
    # the first of these draws
    few = important_firings(sets, which, screened, min(spec.null_firings, spec.firings), seed)
    with track("hold against null directions", len(few) * spec.nulls, "edits") as advance:
        nulls = null_costs(subject, sets, ablated, few, spec.nulls, spec.window, seed, advance)
    means = nulls.means(which)
    pool = (
        means if beside is None else np.concatenate([means, beside.null_costs.means(beside.which)])
    )
    test = pooled_test(pool, unit)
    n = len(sets)
    effect, resampled = (
        _weighted(subject, firings, costs, unit, n, seed)
        for costs in (ablated.zero, ablated.resample)
    )
    ratio = effects_of(
        few.draws * few.weights * np.maximum(nulls.own, ROUNDING * unit),
        few.draws * few.weights * np.maximum(nulls.nulls.mean(1), ROUNDING * unit),
        few.sets,
        subject.tokens.documents[few.tokens],
        n,
        seed,
    )
    expected = np.full(n, np.nan)
    expected[which] = [screened.expected_null(int(i)) for i in which]
    return Asked(
        which=which,
        unit=unit,
        ablated=ablated,
        effect=effect,
        resampled=resampled,
        null_costs=nulls,
        ratio=ratio,
        own=_spread(means[:, 0], which, n),
        null=_spread(means[:, 1:].mean(1), which, n),
        expected=expected,
        p=_spread(test.p[: len(which)], which, n),
        test=test,
    )


def _weighted(
    subject: Subject,
    firings: Firings,
    costs: Float64[np.ndarray, " firing"],
    unit: float,
    n: int,
    seed: int,
) -> Effects:
    """Return the mean over all firings of each set as a share of `unit`, from costs at some, with bounds."""
    documents = subject.tokens.documents[firings.tokens]
    weighted = firings.draws * firings.weights * np.maximum(costs / unit, ROUNDING)
    return effects_of(weighted, firings.draws, firings.sets, documents, n, seed)


def _spread(
    values: Float64[np.ndarray, " asked"], which: Int64[np.ndarray, " asked"], n: int
) -> Float64[np.ndarray, " set"]:
    """Return values of the asked in an array of all, NaN elsewhere."""
    found = np.full(n, np.nan)
    found[which] = values
    return found


def _ask_groups(
    subject: Subject,
    directions: Directions,
    asked: Asked,
    spec: UseSpec,
    seed: int,
    track: Track,
) -> AskedGroups:
    """Return the evidence on groups of directions related to the asked ones, each removed as one."""
    members = related_groups(directions, asked.which, spec)
    of_direction = group_of(members, len(directions))
    if not members:
        return AskedGroups(members, None, np.zeros(0, dtype=bool), of_direction)
    sets = direction_sets(directions, members)

    def named(what: str, total: int, unit: str) -> Any:
        return track(f"{what}, groups", total, unit)

    which = np.arange(len(members))
    found = _ask_sets(subject, sets, which, asked.unit, spec, seed, named, asked)
    p = np.maximum(found.p, found.effect.p_below(spec.least_effect))
    p = np.where(np.isfinite(p), p, 1.0)
    used = false_discovery(p, np.ones(len(p))) <= spec.false_discovery_rate
    return AskedGroups(members, found, used, of_direction)


def _may_be_unused(measured: DirectionEvidence, spec: UseSpec) -> Int64[np.ndarray, " candidate"]:
    """Return the asked directions that may still be called not used, before any draw for it is made."""
    at = measured.asked
    used = use_verdicts(measured, spec).verdict == USED
    with np.errstate(invalid="ignore"):
        may = ~used & measured.survives[at] & (measured.ratio[at] <= 1)
    may &= ~is_redundant(measured.beside, spec)[at]
    may &= measured.n_active[at] >= spec.uniform_firings
    return np.asarray(at[may])


def _beside(masked: MaskedUse | None, n: int, unit: float) -> Effects:
    """Return the effect of removal among others, as a share of a full swap, by direction.

    The bounds are normal ones from the standard error; all are NaN where nothing was measured.
    """
    mean, se = np.full(n, np.nan), np.full(n, np.nan)
    count = np.zeros(n, dtype=np.int64)
    if masked is not None:
        mean[masked.which], se[masked.which] = masked.beta / unit, masked.se / unit
        count[masked.which] = masked.n_documents
    low, high = (2 * level - 1 for level in (LOW_LEVEL, HIGH_LEVEL))
    return Effects(
        mean, se, mean - normal_quantile(low) * se, mean + normal_quantile(high) * se, count
    )
