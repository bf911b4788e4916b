"""How well verdicts of use, and simpler statistics, agree with what a world's model does.

Truth is a matter of the site: a variable counts as used where swapping it costs a share of a full swap
there, whatever the model was trained for, since deep in a model most variables have been read already.
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
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.lab.worlds.base import World, truth
from sae_placebo.lab.worlds.baselines import BASELINES, baselines
from sae_placebo.lab.worlds.compiled import CompiledWorld
from sae_placebo.lab.worlds.dictionaries import train_sae
from sae_placebo.lab.worlds.resampling import variable_truth
from sae_placebo.lab.worlds.units import held_often, latent_units, value_units, world_subject
from sae_placebo.stats.bootstrap import percentile_interval, resampled_counts
from sae_placebo.stats.proportions import wilson
from sae_placebo.stats.ranking import auroc

USED_SHARE = 0.01
"""A variable is truly used at a site where swapping it surely costs this share of a full swap."""
PASSENGER_SHARE = 0.005
"""It is truly a passenger where it surely costs less than this; between them it is neither."""
CARRIED = 0.5
"""A latent has the truth of its variable where it holds at least this share of what the value adds to the
activation. What holds less may be dispensable though the variable is not."""
IS_USED, IS_PASSENGER, IS_NEITHER = 1, 0, -1
OURS = ("effect / null", "effect", "effect or beside", "1 - p")
"""Names of our statistics: the cost of ablating a direction over that of null directions, which does not
depend on how much of it tokens hold; the cost itself; the larger of that and of its removal among others;
and the rank among null directions."""
STATISTICS = (*OURS, *BASELINES)
"""Names of all statistics: the higher, the more used."""
_RESAMPLES = 1000


# --- truth -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SiteTruth:
    """What swapping a variable costs at one site, as a share of a full swap, with its 95% interval.

    `high` takes in the swap with a row's start, of a compiled world; see `CompiledTruth`.
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
    """Return the truth of every variable that has one at a site, by name.

    A duplicate has that of the whole that it carries: either carrier suffices, so that swapping one
    alone says little, and a model that lost both would notice. Of a compiled world, the larger of both
    kinds of swap with a token counts; what is noticed only when it takes the value of a row's start is
    no passenger either.

    Args:
        world: The model and its variables.
        hookpoint: The site.
        seed: Names the swaps.
    """
    found = {}
    for variable in world.variables:
        asked = variable.whole or variable.name
        try:
            if isinstance(world, CompiledWorld):
                both = variable_truth(world, hookpoint, asked, seed=seed)
                parts, most = [both.within, both.across], both.start.share_interval[1]
            else:
                parts, most = [truth(world, hookpoint, asked, per_row=2, seed=seed)], 0.0
        except NotEstimable:
            continue
        shares = np.array([[x.share_of_full_swap, *x.share_interval] for x in parts])
        share, low, high = np.fmax.reduce(shares, axis=0)
        high = np.fmax(high, most)
        found[variable.name] = SiteTruth(variable.name, float(share), float(low), float(high))
    return found


# --- scores ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredValue:
    """A number with its 95% interval and what it is of; NaN with a reason where there is none."""

    value: float
    low: float
    high: float
    n: int
    reason: str = ""


@dataclass(frozen=True, eq=False)
class WorldScore:
    """Verdicts and statistics of the directions of one site beside the truth.

    Arrays are by unit: a direction that was asked about.

    Attributes:
        world, hookpoint: Which.
        names, variables: What each unit stands for.
        carried: Share of what the value adds to the activation that the unit holds.
        labeled: `IS_USED` or `IS_PASSENGER` as the variable is at the site, or `IS_NEITHER` where its truth
            is between or the unit stands for none.
        kinds: The same, and `IS_NEITHER` also where the unit holds less than `CARRIED`.
        truths: By variable.
        verdict: Index into `causal.use.rule.USES`.
        reason: Why it is undetermined, else empty.
        statistics: By name, those of `STATISTICS`.
        joint_share: What removing all units called not used at once costs, as a share of giving every token
            another one's activation; NaN where there are none.
        joint_limit: The share up to which that is negligible.
        answer: All evidence.
        spec: How use was asked about.
        reasons: Why a statistic is missing.
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
        """Return how often a used unit's statistic is above a passenger's; the interval is over units."""
        values = self.statistics[statistic]
        known = np.isfinite(values)
        used, passenger = (values[known & (self.kinds == k)] for k in (IS_USED, IS_PASSENGER))
        return separation(used, passenger, seed)

    def judged(self, least_effect: float, negligible: float) -> WorldScore:
        """Return the same with other limits of the verdicts; the set that survives removal stays.

        Null directions were asked of what may reach `spec.least_effect`; so lower limits than that miss p.
        """
        limits = {"least_effect": least_effect, "negligible": negligible}
        spec = self.spec.model_copy(update=limits)
        found = use_verdicts(self.answer.measured, spec)
        return replace(self, verdict=found.verdict, reason=found.reason, spec=spec)

    @property
    def false_not_used(self) -> tuple[int, int]:
        """How many truly used units are called not used, and how many truly used ones there are."""
        return self._count(IS_USED, NOT_USED)

    @property
    def false_not_used_jointly(self) -> tuple[int, int]:
        """The same, but none where removing all units called not used at once is negligible.

        A variable may be split over units of which the model can do without some.
        """
        wrong, n = self.false_not_used
        return (wrong if self.joint_share > self.joint_limit else 0), n

    @property
    def false_used(self) -> tuple[int, int]:
        """How many true passengers are called used, and how many true passengers there are."""
        return self._count(IS_PASSENGER, USED)

    @property
    def undetermined(self) -> tuple[int, int]:
        """How many units of known truth get no verdict, and how many there are."""
        known = self.kinds != IS_NEITHER
        return int((known & (self.verdict == UNDETERMINED)).sum()), int(known.sum())

    def _count(self, kind: int, verdict: int) -> tuple[int, int]:
        here: Bool[np.ndarray, " unit"] = self.kinds == kind
        return int((here & (self.verdict == verdict)).sum()), int(here.sum())


def score_world(
    world: World,
    hookpoint: str,
    seed: int,
    spec: UseSpec | None = None,
    units: Literal["latents", "values"] = "latents",
) -> WorldScore:
    """Return how verdicts and statistics of a site's directions agree with its truth.

    Asked about are all directions that enough documents hold.

    Args:
        world: The model and its variables.
        hookpoint: The site.
        seed: Names the SAE, the swaps and all draws.
        spec: How use is asked about; None: the defaults.
        units: `latents` of an SAE that is trained on the world, or the `values` of its variables
            (`value_units`), which test the verdicts and leave the dictionary out.

    Raises:
        NotEstimable: no direction is held by enough documents.
    """
    spec = spec or UseSpec()
    subject = world_subject(world, hookpoint)
    if units == "latents":
        asked = latent_units(world, subject, train_sae(world, hookpoint, seed))
    else:
        asked = value_units(world, subject)
    which = held_often(subject, asked.directions, spec.documents)
    if not len(which):
        raise NotEstimable(f"no direction at {hookpoint} is held by {spec.documents} rows")
    answer = ask(subject, asked.directions, which, spec, seed)
    simple = baselines(subject, asked.directions, seed)
    truths = site_truths(world, hookpoint, seed)
    variables = np.array(asked.variables, dtype=object)[which]
    carried = asked.carried[which].astype(np.float64)
    labeled = [truths[v].kind if v in truths else IS_NEITHER for v in variables]
    unused = which[answer.verdicts.verdict == NOT_USED]
    return WorldScore(
        world=world.name,
        hookpoint=hookpoint,
        names=np.array(asked.names, dtype=object)[which],
        variables=variables,
        carried=carried,
        labeled=np.array(labeled, dtype=np.int8),
        kinds=np.where(carried >= CARRIED, labeled, IS_NEITHER).astype(np.int8),
        truths=truths,
        verdict=answer.verdicts.verdict,
        reason=answer.verdicts.reason,
        statistics=_ours(answer) | {name: x[which] for name, x in simple.values.items()},
        joint_share=joint_share(subject, asked.directions, unused, seed),
        joint_limit=spec.joint.share,
        answer=answer,
        spec=spec,
        reasons=simple.reasons,
    )


def joint_share(
    subject: Subject, directions: Directions, which: Int64[np.ndarray, " some"], seed: int
) -> float:
    """Return what removing directions at once from all tokens costs, as a share of full swaps there."""
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
    """Return the AUROC of used units against passengers: how often the used one's number is larger.

    The interval is a bootstrap of both groups, each on its own. Units of one variable go together more
    than that knows; worlds of other seeds are what tells.
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
    """Return a share with Wilson's 95% interval."""
    wrong, n = counted
    if not n:
        return ScoredValue(float("nan"), float("nan"), float("nan"), 0, "there are none")
    return ScoredValue(wrong / n, *wilson(wrong, n), n)


def _ours(answer: Answer) -> dict[str, Float64[np.ndarray, " unit"]]:
    at = answer.which
    effect = answer.measured.effect.mean[at]
    p = answer.measured.p[at]
    return {
        "effect": effect,
        "effect / null": np.nan_to_num(answer.measured.ratio[at]),
        "effect or beside": np.fmax(effect, answer.measured.beside.mean[at]),
        # what cannot be large enough to count was not held against null directions
        "1 - p": np.where(np.isfinite(p), 1 - p, 0.0),
    }
