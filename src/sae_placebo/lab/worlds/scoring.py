"""Verdicts of use and simpler statistics are scored by how well they agree with what a world's model does.

The truth depends on the site: a variable counts as used where swapping it there costs a share of a full swap,
whatever the model was trained for, since deep in a model most variables have been read already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int8, Int64, Shaped

from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.evidence import Answer, ask
from sae_placebo.causal.use.removal import batches, costs, only, partners, removed, subset, swapped
from sae_placebo.causal.use.rule import NOT_USED, UNDETERMINED, USED, use_verdicts
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.lab.worlds.base import World, truth
from sae_placebo.lab.worlds.baselines import BASELINES, baselines
from sae_placebo.lab.worlds.compiled import CompiledWorld
from sae_placebo.lab.worlds.resampling import variable_truth
from sae_placebo.lab.worlds.units import JudgedSite, Statistic, judged_site
from sae_placebo.stats.bootstrap import percentile_interval, resampled_counts
from sae_placebo.stats.proportions import wilson
from sae_placebo.stats.ranking import auroc

USED_SHARE = 0.01
"""A variable is truly used at a site if a swap surely costs this share of a full swap, or more."""
PASSENGER_SHARE = 0.005
"""A variable is truly a passenger if a swap surely costs less than this; between the two it is neither."""
CARRIED = 0.5
"""A latent has the truth of its variable if it holds at least this share of what the value adds to the
activation. A latent that holds less may be dispensable though the variable is not."""
IS_USED, IS_PASSENGER, IS_NEITHER = 1, 0, -1
"""The truth of a unit."""
OURS = ("effect / null", "effect", "effect or beside", "1 - p")
"""Names of our statistics. `effect` is the cost of ablating a direction, and `effect / null` is the cost over
that of null directions, which does not depend on how much of the direction tokens hold. `effect or beside` is
the larger of `effect` and of the cost of removing the direction among others that are removed at random, and
`1 - p` is the rank of the cost among the null directions of all units."""
STATISTICS = (*OURS, *BASELINES)
"""Names of all statistics; a higher value says more use."""
_RESAMPLES = 1000


# --- truth -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SiteTruth:
    """What swapping a variable costs at one site, as a share of a full swap, with its 95% interval.

    In a compiled world, `high` is not below the upper end for a swap with a row's start; see `CompiledTruth`.
    """

    variable: str
    share: float
    low: float
    high: float

    @property
    def kind(self) -> int:
        """`IS_USED`, `IS_PASSENGER` or `IS_NEITHER`."""
        if self.low >= USED_SHARE:
            return IS_USED
        return IS_PASSENGER if self.high < PASSENGER_SHARE else IS_NEITHER


def site_truths(world: World, hookpoint: str, seed: int) -> dict[str, SiteTruth]:
    """Return the truth of every variable that has one at a site, by the variable's name.

    A duplicate has the truth of the variable that it carries: either carrier suffices, so that swapping one
    of them says little, and a model that lost both would notice. In a compiled world the larger share of the
    swaps within and across positions counts. A variable whose swap the model notices only where the value is
    that of a row's start is no passenger either.

    Args:
        world: The model and its variables.
        hookpoint: Name of the site's hookpoint.
        seed: Seed of the swaps.
    """
    truths = {}
    for variable in world.variables:
        name = variable.whole or variable.name
        try:
            if isinstance(world, CompiledWorld):
                both = variable_truth(world, hookpoint, name, seed=seed)
                parts, most = [both.within, both.across], both.start.share_interval[1]
            else:
                parts, most = [truth(world, hookpoint, name, per_row=2, seed=seed)], 0.0
        except NotEstimable:
            continue
        shares = np.array([[x.share_of_full_swap, *x.share_interval] for x in parts])
        share, low, high = np.fmax.reduce(shares, axis=0)
        high = np.fmax(high, most)
        truths[variable.name] = SiteTruth(variable.name, float(share), float(low), float(high))
    return truths


# --- scores ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredValue:
    """A number with its 95% interval and the count n behind it; NaN and a reason where there is no number."""

    value: float
    low: float
    high: float
    n: int
    reason: str = ""


@dataclass(frozen=True, eq=False)
class WorldScore:
    """Verdicts and statistics of the directions at one site, with the truth of each.

    Arrays are over units; a unit is a direction whose use was judged.

    Attributes:
        world: Name of the world.
        hookpoint: Name of the site's hookpoint.
        names: The value that each unit stands for, as `variable=value`, or `none`.
        variables: The variable that each unit stands for; empty where it stands for none.
        carried: Share that the unit holds of what its value adds to the activation.
        labeled: Truth of the unit's variable at the site: `IS_USED`, `IS_PASSENGER`, or `IS_NEITHER` where it
            is between them or unknown, or where the unit stands for none.
        kinds: Truth of the unit: that of its variable, but `IS_NEITHER` where the unit holds less than
            `CARRIED`.
        truths: Truth of each variable at the site, by its name.
        verdict: Index of the verdict in `causal.use.rule.USES`.
        reason: Why the verdict is undetermined, else empty.
        statistics: Values of each of `STATISTICS`, and of others that were asked for, by name.
        joint_share: What removing all units called not used at once costs, as a share of what giving every
            token another one's activation costs; NaN where no unit is called not used.
        joint_limit: The largest `joint_share` that is negligible.
        answer: All evidence behind the verdicts.
        spec: Settings of the verdicts.
        reasons: Why a statistic is missing, by its name.
    """

    world: str
    hookpoint: str
    names: Shaped[np.ndarray, " unit"]
    variables: Shaped[np.ndarray, " unit"]
    carried: Float64[np.ndarray, " unit"]
    labeled: Int8[np.ndarray, " unit"]
    kinds: Int8[np.ndarray, " unit"]
    truths: Mapping[str, SiteTruth]
    verdict: Int8[np.ndarray, " unit"]
    reason: Shaped[np.ndarray, " unit"]
    statistics: Mapping[str, Float64[np.ndarray, " unit"]]
    joint_share: float
    joint_limit: float
    answer: Answer
    spec: UseSpec
    reasons: Mapping[str, str] = field(default_factory=dict)

    def separation(self, statistic: str, seed: int = 0) -> ScoredValue:
        """Return the AUROC of a statistic: how often a used unit's is above a passenger's.

        The interval is over units; see `scoring.separation`. Units without a finite value are left out.

        Args:
            statistic: Name of the statistic, one of `statistics`.
            seed: Seed of the bootstrap.
        """
        values = self.statistics[statistic]
        known = np.isfinite(values)
        used, passenger = (values[known & (self.kinds == k)] for k in (IS_USED, IS_PASSENGER))
        return separation(used, passenger, seed)

    def judged(self, least_effect: float, negligible: float) -> WorldScore:
        """Return the score with verdicts by other limits; `joint_share` stays as it is.

        What was asked at firings drawn uniformly stays as it was: those that might not have been used by the
        limits of `spec`.

        Args:
            least_effect: Takes the place of `spec.least_effect`.
            negligible: Takes the place of `spec.negligible`.
        """
        limits = {"least_effect": least_effect, "negligible": negligible}
        spec = self.spec.model_copy(update=limits)
        verdicts = use_verdicts(self.answer.measured, spec)
        return replace(self, verdict=verdicts.verdict, reason=verdicts.reason, spec=spec)

    @property
    def false_not_used(self) -> tuple[int, int]:
        """Number of truly used units that are called not used, and number of truly used units."""
        return self._count(IS_USED, NOT_USED)

    @property
    def false_not_used_jointly(self) -> tuple[int, int]:
        """`false_not_used`, but with 0 errors where removing all units called not used at once is negligible.

        A variable may be split over units, some of which the model can do without.
        """
        wrong, n = self.false_not_used
        return (wrong if self.joint_share > self.joint_limit else 0), n

    @property
    def false_used(self) -> tuple[int, int]:
        """Number of true passengers that are called used, and number of true passengers."""
        return self._count(IS_PASSENGER, USED)

    @property
    def undetermined(self) -> tuple[int, int]:
        """Number of units of known truth whose verdict is undetermined, and number of all those units."""
        known = self.kinds != IS_NEITHER
        return int((known & (self.verdict == UNDETERMINED)).sum()), int(known.sum())

    def _count(self, kind: int, verdict: int) -> tuple[int, int]:
        units: Bool[np.ndarray, " unit"] = self.kinds == kind
        return int((units & (self.verdict == verdict)).sum()), int(units.sum())


def score_world(
    world: World,
    hookpoint: str,
    seed: int,
    spec: UseSpec | None = None,
    units: Literal["latents", "values"] = "latents",
    statistics: Mapping[str, Statistic] | None = None,
) -> WorldScore:
    """Judge the use of a site's directions, and return verdicts and statistics with the site's truth.

    All directions are judged that at least `spec.documents` rows hold.

    Args:
        world: The model and its variables.
        hookpoint: Name of the site's hookpoint.
        seed: Seed of the SAE, of the swaps and of all draws.
        spec: Settings of the verdicts; None takes the defaults.
        units: The directions: `latents` of an SAE that is trained on the world, or the `values` of its
            variables (`value_units`), which test the verdicts without a dictionary.
        statistics: Other statistics that are scored beside ours, by name.

    Raises:
        NotEstimable: no direction is held by enough rows.
        SpecError: one of `statistics` has the name of one of ours.
    """
    spec = spec or UseSpec()
    others = dict(statistics or {})
    if twice := sorted(set(others) & set(STATISTICS)):
        raise SpecError(f"a statistic is called {twice[0]!r}, as one of ours is: rename it")
    site = judged_site(world, hookpoint, seed, spec, units)
    # a function that fails does so before the long part
    extra = {name: site.judged(function) for name, function in others.items()}
    score = score_site(world, site, seed, spec)
    return replace(score, statistics={**score.statistics, **extra})


def score_site(world: World, site: JudgedSite, seed: int, spec: UseSpec) -> WorldScore:
    """Return verdicts, our statistics and the simpler ones at a site; see `score_world`."""
    subject, judged, which, hookpoint = site.subject, site.units, site.which, site.hookpoint
    answer = ask(subject, judged.directions, which, spec, seed)
    simple = baselines(subject, judged.directions, seed)
    truths = site_truths(world, hookpoint, seed)
    variables = np.array(judged.variables, dtype=object)[which]
    carried = judged.carried[which].astype(np.float64)
    labeled = [truths[v].kind if v in truths else IS_NEITHER for v in variables]
    unused = which[answer.verdicts.verdict == NOT_USED]
    return WorldScore(
        world=world.name,
        hookpoint=hookpoint,
        names=np.array(judged.names, dtype=object)[which],
        variables=variables,
        carried=carried,
        labeled=np.array(labeled, dtype=np.int8),
        kinds=np.where(carried >= CARRIED, labeled, IS_NEITHER).astype(np.int8),
        truths=truths,
        verdict=answer.verdicts.verdict,
        reason=answer.verdicts.reason,
        statistics=_ours(answer) | {name: x[which] for name, x in simple.values.items()},
        joint_share=joint_share(subject, judged.directions, unused, seed),
        joint_limit=spec.joint.share,
        answer=answer,
        spec=spec,
        reasons=simple.reasons,
    )


def joint_share(
    subject: Subject, directions: Directions, which: Int64[np.ndarray, " chosen"], seed: int
) -> float:
    """Return what removing directions from all tokens at once costs, as a share of full swaps.

    A full swap gives every token another token's activation. Without directions the share is NaN.

    Args:
        subject: The model and its held-out tokens.
        directions: All directions at the site.
        which: Indices of the directions that are removed.
        seed: Seed of the full swaps.
    """
    if not len(which):
        return float("nan")
    rows = np.arange(len(subject.tokens.rows.lengths))
    partner, wanted = partners(subject, rows, seed), subset(directions, which)
    cost = full = 0.0
    with torch.no_grad():
        for batch in batches(subject, rows):
            change = removed(only(directions, wanted, batch.tokens), directions.vectors)
            cost += float(costs(subject, batch, batch.placed(change)).double().sum())
            full += float(costs(subject, batch, swapped(subject, batch, partner)).double().sum())
    return cost / full


def separation(
    used: Float[np.ndarray, " used"], passenger: Float[np.ndarray, " passenger"], seed: int = 0
) -> ScoredValue:
    """Return the AUROC of used units against passengers: how often the used unit's number is larger.

    The interval comes from a bootstrap of units, drawn from each group by itself. It takes units as
    independent, though those of one variable are alike; the spread over worlds of other seeds is the better
    measure.

    Args:
        used: The statistic of each used unit.
        passenger: The statistic of each passenger.
        seed: Seed of the bootstrap.
    """
    n = len(used) + len(passenger)
    if min(len(used), len(passenger)) < 2:
        few = f"{len(used)} used and {len(passenger)} passengers; 2 of each are needed"
        return ScoredValue(float("nan"), float("nan"), float("nan"), n, few)
    scores = np.concatenate([used, passenger])
    is_used = np.arange(n) < len(used)
    random = numpy_generator(seed, "auroc", len(used), len(passenger))
    drawn = [resampled_counts(random, len(group), _RESAMPLES) for group in (used, passenger)]
    replicates = auroc(scores, is_used, np.concatenate(drawn, axis=1).T)
    return ScoredValue(float(auroc(scores, is_used)), *percentile_interval(replicates), n)


def rate(counted: tuple[int, int]) -> ScoredValue:
    """Return the share of a count with Wilson's 95% interval; `counted` is the count and the total."""
    wrong, n = counted
    if not n:
        return ScoredValue(float("nan"), float("nan"), float("nan"), 0, "there are none")
    return ScoredValue(wrong / n, *wilson(wrong, n), n)


def _ours(answer: Answer) -> dict[str, Float64[np.ndarray, " unit"]]:
    """Return the statistics of `OURS`, by name."""
    judged, evidence = answer.which, answer.measured
    effect, p = evidence.effect.mean[judged], evidence.p[judged]
    return {
        "effect": effect,
        "effect / null": np.nan_to_num(evidence.ratio[judged]),
        "effect or beside": np.fmax(effect, evidence.beside.mean[judged]),
        "1 - p": np.where(np.isfinite(p), 1 - p, 0.0),
    }
