"""Whether a model uses some directions: all the evidence, in its order, and the verdicts."""

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
"""Normal quantiles of the bounds of removal among others: 99% above, 95% below, as `effects` has them."""


@dataclass(frozen=True, eq=False)
class Asked:
    """Directions whose use was asked about, with the evidence.

    Attributes:
        ablated: Single ablations.
        effect: Of zero ablation, as a share of a full swap.
        resampled: Of resample ablation, likewise.
        nulls: Against null directions.
    """

    ablated: Ablations
    effect: Effects
    resampled: Effects
    nulls: NullTest


@dataclass(frozen=True, eq=False)
class Answer:
    """What was found about the use of some directions.

    Attributes:
        which: The directions asked about, ascending.
        asked: Evidence on each alone, arrays by direction.
        masked: Removal among others; None with a reason.
        joint: Removal of all at once; None with a reason.
        worst: The worst masks over what survives; None with a reason.
        measured, verdicts: What the rule read, and what it said.
        reasons: Why something is None.
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

    In the order of the evidence: single ablations; removal among others, of all at once, and at its worst;
    null directions; verdicts.

    Args:
        subject: The model behind the hookpoint, and the held-out tokens.
        directions: All directions at the hookpoint.
        which: Those asked about.
        spec: Firings, nulls, limits.
        seed: Names all draws.
        track: Shows what is being done.
    """
    reasons: dict[str, str] = {}
    ablated, effect, resampled = _ablated(subject, directions, which, spec, seed, track)
    masked, joint, worst = _together(
        subject, directions, which, ablated, spec, seed, reasons, track
    )
    nulls = _held(subject, directions, ablated, which, spec, seed, track)
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
    """Return the evidence on each direction alone, every one held against all null directions."""
    which = np.arange(len(directions))
    ablated, effect, resampled = _ablated(subject, directions, which, spec, seed, track)
    every = spec.model_copy(update={"give_up": 1.0})
    nulls = _held(subject, directions, ablated, which, every, seed, track)
    return Asked(ablated, effect, resampled, nulls)


def _held(
    subject: Subject,
    directions: Directions,
    ablated: Ablations,
    candidates: Int64[np.ndarray, " candidate"],
    spec: UseSpec,
    seed: int,
    track: Track,
) -> NullTest:
    """Return `against_nulls`, shown."""
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
    documents = subject.tokens.documents
    firings = choose_firings(directions, which, documents, spec.firings, seed)
    with track("ablate", len(firings), "firings") as advance:
        found = ablate(subject, directions, firings, spec.window, seed, advance)
    n, unit = len(directions), found.full_swap
    effect, resampled = (
        effects_of(values / unit, firings.directions, n, seed)
        for values in (found.zero, found.resample)
    )
    return found, effect, resampled


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
    """Return removal among others, of all at once, and at its worst; the order is of discovery alone."""
    masks = spec.masks.model_copy(update={"window": spec.window})
    try:
        masked = random_masks(subject, directions, which, masks, seed, track)
    except NotEstimable as refusal:
        reasons["masked"] = reasons["joint"] = reasons["worst"] = str(refusal)
        return None, None, None
    discovered = discovery_documents(subject.tokens, seed)
    firings = ablated.firings
    mine = discovered[subject.tokens.documents[firings.tokens]]
    n = len(directions)
    counts = np.bincount(firings.directions[mine], minlength=n)
    sums = np.bincount(firings.directions[mine], ablated.zero[mine], minlength=n)
    alone = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)[which]
    order = which[np.argsort(np.fmax(alone, masked.beta), kind="stable")]
    order = order[np.isfinite(np.sort(np.fmax(alone, masked.beta), kind="stable"))]
    try:
        joint = joint_removal(subject, directions, order, spec.joint, seed, track)
        worst = worst_case(subject, directions, joint.s_star, spec.worst, seed, track)
    except NotEstimable as refusal:
        reasons["joint"] = reasons["worst"] = str(refusal)
        return masked, None, None
    return masked, joint, worst


def _beside(masked: MaskedUse | None, n: int, unit: float) -> Effects:
    """Return removal among others as a share of a full swap, by direction."""
    mean, se = np.full(n, np.nan), np.full(n, np.nan)
    count = np.zeros(n, dtype=np.int64)
    if masked is not None:
        mean[masked.which], se[masked.which] = masked.beta / unit, masked.se / unit
        count[masked.which] = masked.n_documents
    return Effects(mean, mean - _LOW * se, mean + _HIGH * se, count)
