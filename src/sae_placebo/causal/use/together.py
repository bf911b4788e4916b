"""What can be removed together: removal among others, joint removal, and the worst masks over its set."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64

from sae_placebo.causal.use.ablation import Ablations
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.joint import JointCurve, joint_removal
from sae_placebo.causal.use.masks import MaskedUse, random_masks
from sae_placebo.causal.use.removal import discovery_documents
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.causal.use.worst import WorstCase, worst_case
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.progress import Track, untracked


@dataclass(frozen=True, eq=False)
class Together:
    """The costs of removing many directions.

    Attributes:
        masked: The cost of each when others are removed at random; None where it is not estimable.
        joint: The cost of removing many at once; None where it is not estimable.
        worst: The worst masks over what survives joint removal; None where it is not estimable.
        reasons: By attribute that is None, the reason.
    """

    masked: MaskedUse | None = None
    joint: JointCurve | None = None
    worst: WorstCase | None = None
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def s_star(self) -> Int64[np.ndarray, " subset"]:
        """The directions that can all be removed, under the worst masks found as well."""
        if self.worst is None or not self.worst.holds:
            return np.zeros(0, dtype=np.int64)
        return self.worst.s_star


def remove_together(
    subject: Subject,
    directions: Directions,
    which: Int64[np.ndarray, " asked"],
    ablated: Ablations,
    spec: UseSpec,
    seed: int,
    track: Track = untracked,
) -> Together:
    """Return what it costs to remove many of the asked directions.

    Directions are ordered for joint removal by the larger of two costs: that of their ablation alone and
    that of their removal among others, both on discovery documents. So the documents on which joint
    removal is measured have no say in the order. A direction without a finite cost stays out of it.

    Args:
        subject: The model behind the hookpoint, and the tokens.
        directions: All directions at the hookpoint.
        which: The directions that may be removed.
        ablated: The costs of single ablations.
        spec: How much is measured.
        seed: The seed of all draws.
        track: It shows the progress of each step.
    """
    masks = spec.masks.model_copy(update={"window": spec.window})
    try:
        masked = random_masks(subject, directions, which, masks, seed, track)
    except NotEstimable as refusal:
        return Together(reasons=dict.fromkeys(("masked", "joint", "worst"), str(refusal)))
    alone = _alone_in_discovery(subject, ablated, which, seed)
    larger = np.fmax(alone, masked.beta)
    by_cost = np.argsort(larger, kind="stable")
    order = which[by_cost[np.isfinite(larger[by_cost])]]
    try:
        joint = joint_removal(subject, directions, order, spec.joint, seed, track)
        worst = worst_case(subject, directions, joint.s_star, spec.worst, seed, track)
    except NotEstimable as refusal:
        return Together(masked, reasons=dict.fromkeys(("joint", "worst"), str(refusal)))
    return Together(masked, joint, worst)


def _alone_in_discovery(
    subject: Subject, ablated: Ablations, which: Int64[np.ndarray, " asked"], seed: int
) -> Float64[np.ndarray, " asked"]:
    """Return the mean cost of each direction's ablation in discovery documents; inf where it has none."""
    discovered = discovery_documents(subject.tokens, seed)
    here = discovered[subject.tokens.documents[ablated.firings.tokens]]
    firings = ablated.firings.kept(here)
    at, counts = np.searchsorted(which, firings.sets), firings.draws * firings.weights
    total = np.bincount(at, counts, minlength=len(which))
    sums = np.bincount(at, counts * ablated.zero[here], minlength=len(which))
    return np.asarray(np.where(total > 0, sums / np.maximum(total, 1e-300), np.inf))
