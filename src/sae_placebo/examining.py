"""What is asked about one SAE's latents once it is known what they are: use, readers, writers.

The order is that of the evidence: single ablations, removal among others, removal of all at once, null
directions for those that matter, and then verdicts. Readers and writers are asked of every latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from sae_placebo.circuits.readers import Readers, survey
from sae_placebo.circuits.spec import CircuitSpec
from sae_placebo.circuits.writers import Writers, writers
from sae_placebo.errors import ModelError, NotEstimable
from sae_placebo.structure.base import Reading
from sae_placebo.use.ablation import Ablations, ablate
from sae_placebo.use.base import (
    Directions,
    Subject,
    error_directions,
    latent_directions,
    pseudo_latents,
)
from sae_placebo.use.effects import Effects, effects_of
from sae_placebo.use.firings import choose_firings
from sae_placebo.use.joint import JointCurve, joint_removal
from sae_placebo.use.masks import MaskedUse, random_masks
from sae_placebo.use.null_directions import NullTest, against_nulls
from sae_placebo.use.removal import discovery_documents
from sae_placebo.use.sampling import draw
from sae_placebo.use.screen import Screen
from sae_placebo.use.spec import UseSpec
from sae_placebo.use.verdicts import Measured, UseVerdicts, use_verdicts
from sae_placebo.use.worst import WorstCase, worst_case

Note = Callable[[str], None]
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
class Examination:
    """All that was found about one SAE.

    Attributes:
        latents: Latents that have a verdict, ascending.
        weights: Latents that each stands for.
        asked: Evidence on them, arrays by latent of the SAE.
        masked: Removal among others; None with a reason.
        joint: Removal of all at once; None with a reason.
        worst: The worst masks over what survives; None with a reason.
        measured, verdicts: What the rule read, and what it said.
        errors: The main directions of what the SAE misses; None where none were asked about.
        error_variance: Share of the error's variance that each of these has.
        pseudo: Directions that mean nothing; None where none were asked about.
        screen, readers: Of all latents; None with a reason.
        writers: Of all latents; None with a reason.
        reasons: Why something is None.
    """

    latents: Int64[np.ndarray, " drawn"]
    weights: Float64[np.ndarray, " drawn"]
    asked: Asked
    masked: MaskedUse | None
    joint: JointCurve | None
    worst: WorstCase | None
    measured: Measured
    verdicts: UseVerdicts
    errors: Asked | None
    error_variance: Float64[np.ndarray, " component"]
    pseudo: Asked | None
    screen: Screen | None
    readers: Readers | None
    writers: Writers | None
    reasons: dict[str, str]


def examine(
    subject: Subject,
    reading: Reading,
    strata: Shaped[np.ndarray, " latent"],
    spec: UseSpec,
    circuits: CircuitSpec,
    seed: int,
    note: Note = lambda text: None,
) -> Examination:
    """Return what the model does with the latents of one SAE, and which of its parts write and read them.

    Args:
        subject: The model behind the SAE's hookpoint, and the held-out tokens.
        reading: The SAE on the same tokens.
        strata: Kind of each latent; those with a verdict are drawn evenly from all kinds. Latents of the
            empty kind are left out.
        spec: How use is asked about.
        circuits: How readers and writers are.
        seed: The trial's.
        note: Told what is being done.

    Raises:
        NotEstimable: no latent fires on enough tokens.
    """
    directions, reasons = latent_directions(reading), dict[str, str]()
    able = np.flatnonzero((directions.n_active >= 2) & (strata != ""))
    if not len(able):
        raise NotEstimable("no latent fires on enough held-out tokens to be asked about")
    which, weights = draw(strata, able, spec.latents, seed)
    note(f"ablating {len(which)} latents")
    ablated, effect, resampled = _ablated(subject, directions, which, spec, seed)
    note("removing latents together")
    masked, joint, worst = _together(subject, directions, which, ablated, spec, seed, reasons)
    # what cannot be large enough to count as used needs no p-value
    high = effect.high[which]
    candidates = which[~(high < spec.least_effect)]
    note(f"holding {len(candidates)} latents against null directions")
    nulls = against_nulls(subject, directions, ablated, candidates, spec, seed)
    survives = np.zeros(len(directions), dtype=bool)
    if worst is not None and worst.holds:
        survives[worst.s_star] = True
    beside = _beside(masked, len(directions), ablated.full_swap)
    measured = Measured(effect, beside, nulls.p, survives, which)
    note("reading readers and writers")
    screened, read, written = _circuits(subject, reading, directions, circuits, seed, reasons)
    errors = _errors(subject, reading, spec, seed)
    return Examination(
        latents=which,
        weights=weights,
        asked=Asked(ablated, effect, resampled, nulls),
        masked=masked,
        joint=joint,
        worst=worst,
        measured=measured,
        verdicts=use_verdicts(measured, spec),
        errors=errors[0],
        error_variance=errors[1],
        pseudo=_pseudo(subject, directions, spec, seed),
        screen=screened,
        readers=read,
        writers=written,
        reasons=reasons,
    )


def _ablated(
    subject: Subject,
    directions: Directions,
    which: Int64[np.ndarray, " asked"],
    spec: UseSpec,
    seed: int,
) -> tuple[Ablations, Effects, Effects]:
    documents = subject.tokens.documents
    firings = choose_firings(directions, which, documents, spec.firings, seed)
    found = ablate(subject, directions, firings, spec.window, seed)
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
) -> tuple[MaskedUse | None, JointCurve | None, WorstCase | None]:
    """Return removal among others, of all at once, and at its worst; the order is of discovery alone."""
    masks = spec.masks.model_copy(update={"window": spec.window})
    try:
        masked = random_masks(subject, directions, which, masks, seed)
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
        joint = joint_removal(subject, directions, order, spec.joint, seed)
        worst = worst_case(subject, directions, joint.s_star, spec.worst, seed)
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


def _circuits(
    subject: Subject,
    reading: Reading,
    directions: Directions,
    spec: CircuitSpec,
    seed: int,
    reasons: dict[str, str],
) -> tuple[Screen | None, Readers | None, Writers | None]:
    screened, read, written = None, None, None
    try:
        screened, read = survey(subject, directions, spec.readers, seed)
    except (ModelError, NotEstimable) as refusal:
        reasons["readers"] = str(refusal)
    try:
        encoder = reading.sae.params["W_enc"].detach().float()
        written = writers(subject, encoder, directions, spec.writers, seed)
    except (ModelError, NotEstimable) as refusal:
        reasons["writers"] = str(refusal)
    return screened, read, written


def _errors(
    subject: Subject, reading: Reading, spec: UseSpec, seed: int
) -> tuple[Asked | None, Float64[np.ndarray, " component"]]:
    """Return the use of what the SAE misses, by its principal components."""
    if not spec.error_directions:
        return None, np.zeros(0)
    directions = error_directions(reading, spec.error_directions)
    squares = directions.amounts.multiply(directions.amounts)
    energy = np.asarray(squares.sum(0, dtype=np.float64)).ravel()
    total = _error_energy(reading)
    return _whole(subject, directions, spec, seed), energy / total


def _error_energy(reading: Reading) -> float:
    decoder = reading.sae.params["W_dec"].detach().float().cpu().numpy()
    error = reading.activations.float().cpu().numpy() - reading.codes @ decoder
    return float(((error - error.mean(0)) ** 2).sum())


def _pseudo(subject: Subject, directions: Directions, spec: UseSpec, seed: int) -> Asked | None:
    if not spec.pseudo:
        return None
    return _whole(subject, pseudo_latents(directions, seed, spec.pseudo), spec, seed)


def _whole(subject: Subject, directions: Directions, spec: UseSpec, seed: int) -> Asked:
    """Return the evidence on all of some directions, every one held against all null directions."""
    which = np.arange(len(directions))
    ablated, effect, resampled = _ablated(subject, directions, which, spec, seed)
    every = spec.model_copy(update={"give_up": 1.0})
    nulls = against_nulls(subject, directions, ablated, which, every, seed)
    return Asked(ablated, effect, resampled, nulls)
