"""Whether a model uses directions: the measurements in their order, and the verdicts.

1. Each direction is ablated alone, at some of its firings: its effect, with bounds (`ablation`, `effects`).
2. Each is removed while others are removed at random (`masks`).
3. Ordered by these two costs, as many as possible are removed at once (`joint`), and an adversary looks for
   the worst that removing some of them can do (`worst`).
4. Null directions are ablated at some of the same firings (`null_directions`).
5. The rule turns these measurements into verdicts (`rule`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from sae_placebo.causal.use.ablation import Ablations, ablate
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.effects import Effects, effects_of
from sae_placebo.causal.use.firings import choose_firings
from sae_placebo.causal.use.joint import JointCurve, joint_removal
from sae_placebo.causal.use.masks import MaskedUse, random_masks
from sae_placebo.causal.use.null_directions import NullTest, against_nulls, n_alike
from sae_placebo.causal.use.removal import discovery_documents
from sae_placebo.causal.use.rule import DirectionEvidence, UseVerdicts, use_verdicts
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.causal.use.worst import WorstCase, worst_case
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.progress import Track, untracked

_HIGH = 2.326
_LOW = 1.645
"""Normal quantiles of the upper bound (99%) and lower bound (95%) of removal among others; the levels are
those of `effects`."""

_NOTHING = 1e-9
"""A full swap that costs no more nats than this changes predictions by rounding alone."""


@dataclass(frozen=True, eq=False)
class Asked:
    """The evidence on each direction alone.

    Attributes:
        ablated: The costs of single ablations, by firing.
        effect: The effect of zero ablation by direction, as a share of a full swap.
        resampled: The effect of resample ablation, likewise.
        nulls: The test of each direction's cost against null directions.
    """

    ablated: Ablations
    effect: Effects
    resampled: Effects
    nulls: NullTest


@dataclass(frozen=True, eq=False)
class Answer:
    """The verdicts on some directions, with all the evidence.

    Attributes:
        which: The directions that have a verdict, ascending.
        asked: The evidence on each alone; arrays are over all directions of the hookpoint.
        masked: The cost of each when others are removed at random; None where it is not estimable.
        joint: The cost of removing many at once; None where it is not estimable.
        worst: The worst masks over what survives joint removal; None where it is not estimable.
        measured: The measurements that the rule read.
        verdicts: The verdicts that it gave.
        reasons: By attribute that is None, the reason.
    """

    which: Int64[np.ndarray, " asked"]
    asked: Asked
    masked: MaskedUse | None
    joint: JointCurve | None
    worst: WorstCase | None
    measured: DirectionEvidence
    verdicts: UseVerdicts
    reasons: dict[str, str]


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
    """
    reasons: dict[str, str] = {}
    ablated, effect, resampled = _ablated(subject, directions, which, spec, seed, track)
    masked, joint, worst = _together(
        subject, directions, which, ablated, spec, seed, reasons, track
    )
    nulls = _null_test(subject, directions, ablated, which, spec, seed, track)
    survives = np.zeros(len(directions), dtype=bool)
    if worst is not None and worst.holds:
        survives[worst.s_star] = True
    beside = _beside(masked, len(directions), ablated.full_swap)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = nulls.cost / nulls.null
    null = nulls.null / ablated.full_swap
    measured = DirectionEvidence(effect, beside, nulls.p, null, ratio, survives, which)
    return Answer(
        which=which,
        asked=Asked(ablated, effect, resampled, nulls),
        masked=masked,
        joint=joint,
        worst=worst,
        measured=measured,
        verdicts=use_verdicts(measured, spec),
        reasons=reasons,
    )


def ask_alone(
    subject: Subject, directions: Directions, spec: UseSpec, seed: int, track: Track = untracked
) -> Asked:
    """Return the evidence on each direction alone, with no verdict.

    Nearly every direction is compared with all null directions: `give_up` is set to 1, so that only one
    that costs no more than any of the first nulls goes without the rest. Arguments are those of `ask`.
    """
    which = np.arange(len(directions))
    ablated, effect, resampled = _ablated(subject, directions, which, spec, seed, track)
    every = spec.model_copy(update={"give_up": 1.0})
    nulls = _null_test(subject, directions, ablated, which, every, seed, track)
    return Asked(ablated, effect, resampled, nulls)


def _null_test(
    subject: Subject,
    directions: Directions,
    ablated: Ablations,
    candidates: Int64[np.ndarray, " candidate"],
    spec: UseSpec,
    seed: int,
    track: Track,
) -> NullTest:
    """Return what `against_nulls` does, and show its progress."""
    counts = np.bincount(ablated.firings.directions, minlength=len(directions))[candidates]
    firings = int(np.minimum(counts, spec.null_firings).sum())
    total = firings * (spec.nulls + n_alike(directions, spec))
    with track("hold against null directions", total, "edits, at most,") as advance:
        return against_nulls(subject, directions, ablated, candidates, spec, seed, advance)


def _ablated(
    subject: Subject,
    directions: Directions,
    which: Int64[np.ndarray, " asked"],
    spec: UseSpec,
    seed: int,
    track: Track,
) -> tuple[Ablations, Effects, Effects]:
    """Return single ablations, and the effects of zero and of resample ablation, by direction.

    Raises:
        NotEstimable: a full swap costs nothing.
    """
    documents = subject.tokens.documents
    firings = choose_firings(directions, which, documents, spec.firings, seed)
    with track("ablate", len(firings), "firings") as advance:
        ablated = ablate(subject, directions, firings, spec.window, seed, advance)
    n, unit = len(directions), ablated.full_swap
    if not unit > _NOTHING:  # nor is a number that is none
        raise NotEstimable(
            f"the swap of a token's whole activation costs {unit:.1g} nats, so predictions do not depend "
            "on this hookpoint in a way that effects could be shares of"
        )
    effect, resampled = (
        effects_of(values / unit, firings.directions, n, seed)
        for values in (ablated.zero, ablated.resample)
    )
    return ablated, effect, resampled


def _together(
    subject: Subject,
    directions: Directions,
    which: Int64[np.ndarray, " asked"],
    ablated: Ablations,
    spec: UseSpec,
    seed: int,
    reasons: dict[str, str],
    track: Track,
) -> tuple[MaskedUse | None, JointCurve | None, WorstCase | None]:
    """Return removal among others, joint removal, and the worst masks over what survives that.

    Directions are ordered for joint removal by the larger of two costs: that of their ablation alone, on
    discovery documents, and that of their removal among others, which reads only these. So the documents
    on which joint removal is measured have no say in the order. A direction without a finite cost stays
    out of it. A missing number is written to `reasons`.
    """
    masks = spec.masks.model_copy(update={"window": spec.window})
    try:
        masked = random_masks(subject, directions, which, masks, seed, track)
    except NotEstimable as refusal:
        reasons["masked"] = reasons["joint"] = reasons["worst"] = str(refusal)
        return None, None, None
    discovered = discovery_documents(subject.tokens, seed)
    firings = ablated.firings
    at = discovered[subject.tokens.documents[firings.tokens]]
    n = len(directions)
    counts = np.bincount(firings.directions[at], minlength=n)
    sums = np.bincount(firings.directions[at], ablated.zero[at], minlength=n)
    alone = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)[which]
    larger = np.fmax(alone, masked.beta)
    by_cost = np.argsort(larger, kind="stable")
    order = which[by_cost[np.isfinite(larger[by_cost])]]
    try:
        joint = joint_removal(subject, directions, order, spec.joint, seed, track)
        worst = worst_case(subject, directions, joint.s_star, spec.worst, seed, track)
    except NotEstimable as refusal:
        reasons["joint"] = reasons["worst"] = str(refusal)
        return masked, None, None
    return masked, joint, worst


def _beside(masked: MaskedUse | None, n: int, unit: float) -> Effects:
    """Return the effect of removal among others, as a share of a full swap, by direction.

    The bounds are normal ones from the standard error; all are NaN where nothing was measured.
    """
    mean, se = np.full(n, np.nan), np.full(n, np.nan)
    count = np.zeros(n, dtype=np.int64)
    if masked is not None:
        mean[masked.which], se[masked.which] = masked.beta / unit, masked.se / unit
        count[masked.which] = masked.n_documents
    return Effects(mean, mean - _LOW * se, mean + _HIGH * se, count)
