"""The examination of one SAE: does the model use its latents, and which parts write and read them.

A sample of latents gets a verdict on use. Readers and writers are measured of every latent. The main
directions of what the SAE misses are ablated as well, and so are directions of no trained dictionary: random
ones as a check of the tests, and those of the activations' covariance, which latents have to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from sae_placebo.causal.circuits.patching import confirm_reader
from sae_placebo.causal.circuits.readers import Readers, survey
from sae_placebo.causal.circuits.spec import CircuitSpec
from sae_placebo.causal.circuits.traces import ReaderTrace
from sae_placebo.causal.circuits.writers import Writers, writers
from sae_placebo.causal.use.base import (
    Directions,
    Subject,
    error_directions,
    latent_directions,
    pseudo_latents,
)
from sae_placebo.causal.use.control_directions import (
    COVARIANCE,
    PSEUDO,
    UNTRAINED,
    covariance_directions,
    untrained_directions,
)
from sae_placebo.causal.use.evidence import Answer, Asked, ask, ask_alone
from sae_placebo.causal.use.sampling import draw
from sae_placebo.causal.use.screen import Screen
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.errors import ModelError, NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.progress import Advance, Track, unheard, untracked
from sae_placebo.core.tables import KEYS
from sae_placebo.core.tables.use import PATCHED
from sae_placebo.latents.base import Encoded

_PATCHED = 8
"""A top reader is patched at no more than this many firings."""


@dataclass(frozen=True, eq=False)
class Examination:
    """All that was found about one SAE.

    Attributes:
        answer: The verdicts on the sampled latents, with the evidence.
        weights: How many latents each of these stands for.
        n_tokens: How many held-out tokens there are.
        errors: The evidence on the main directions of what the SAE misses; None where none are wanted.
        error_variance: The share of the error's variance that each of these has.
        controls: The evidence on directions of no trained dictionary, by kind (`use.control_directions`); a
            kind of which none are wanted is not there.
        screen: The Fisher sensitivity of predictions to all latents; None where it is not available.
        readers: The parts of the model that read each latent; None where they are not available.
        writers: The parts of the model that write each latent; None where they are not available.
        reasons: By name of what is None, the reason.
    """

    answer: Answer
    weights: Float64[np.ndarray, " drawn"]
    n_tokens: int
    errors: Asked | None
    error_variance: Float64[np.ndarray, " component"]
    controls: dict[str, Asked]
    screen: Screen | None
    readers: Readers | None
    writers: Writers | None
    reasons: dict[str, str]

    @property
    def latents(self) -> Int64[np.ndarray, " drawn"]:
        """The latents that have a verdict, ascending."""
        return self.answer.which


def examine(
    subject: Subject,
    reading: Encoded,
    strata: Shaped[np.ndarray, " latent"],
    spec: UseSpec,
    circuits: CircuitSpec,
    seed: int,
    track: Track = untracked,
) -> Examination:
    """Return whether the model uses latents of one SAE, and which of its parts write and read them.

    Args:
        subject: The model behind the SAE's hookpoint, and the held-out tokens.
        reading: The SAE on the same tokens.
        strata: The kind of each latent. Those that get a verdict are drawn evenly from all kinds; a latent
            of the empty kind gets none.
        spec: How use is measured.
        circuits: How readers and writers are found.
        seed: The trial's seed.
        track: It shows the progress of each step.

    Raises:
        NotEstimable: no latent fires on enough tokens.
    """
    directions = latent_directions(reading)
    able = np.flatnonzero((directions.n_active >= 2) & (strata != ""))
    if not len(able):
        raise NotEstimable("no latent fires on enough held-out tokens to be tested")
    wanted = None if spec.latents == "all" else spec.latents
    which, weights = draw(strata, able, wanted, seed)
    answer = ask(subject, directions, which, spec, seed, track)
    reasons = dict(answer.reasons)
    screened, read, written = _circuits(
        subject, reading, directions, circuits, seed, reasons, track
    )
    errors, variance = _errors(subject, reading, spec, seed, track)
    like = Directions(directions.vectors[able], directions.amounts[:, able])
    return Examination(
        answer=answer,
        weights=weights,
        n_tokens=len(subject.tokens),
        errors=errors,
        error_variance=variance,
        controls=_controls(subject, like, answer.asked, spec, seed, track),
        screen=screened,
        readers=read,
        writers=written,
        reasons=reasons,
    )


def _circuits(
    subject: Subject,
    reading: Encoded,
    directions: Directions,
    spec: CircuitSpec,
    seed: int,
    reasons: dict[str, str],
    track: Track,
) -> tuple[Screen | None, Readers | None, Writers | None]:
    """Return screen, readers and writers of all latents, or None with an entry in `reasons`."""
    screened, read, written = None, None, None
    try:
        screened, read = survey(subject, directions, spec.readers, seed, track)
    except (ModelError, NotEstimable) as refusal:
        reasons["readers"] = str(refusal)
    try:
        encoder = reading.sae.params["W_enc"].detach().float()
        written = writers(subject, encoder, directions, spec.writers, seed, track)
    except (ModelError, NotEstimable) as refusal:
        reasons["writers"] = str(refusal)
    return screened, read, written


def _errors(
    subject: Subject, reading: Encoded, spec: UseSpec, seed: int, track: Track
) -> tuple[Asked | None, Float64[np.ndarray, " component"]]:
    """Return the evidence on the error's principal components, and the share of its variance of each."""
    if not spec.error_directions:
        return None, np.zeros(0)
    directions = error_directions(reading, spec.error_directions)
    squares = directions.amounts.multiply(directions.amounts)
    energy = np.asarray(squares.sum(0, dtype=np.float64)).ravel()
    total = _error_energy(reading)
    return ask_alone(subject, directions, spec, seed, track), energy / total


def _error_energy(reading: Encoded) -> float:
    """Return the sum of squares of what the SAE misses, less its mean, over tokens and entries."""
    decoder = reading.sae.params["W_dec"].detach().float().cpu().numpy()
    error = reading.activations.float().cpu().numpy() - reading.codes @ decoder
    return float(((error - error.mean(0)) ** 2).sum())


def _controls(
    subject: Subject, like: Directions, latents: Asked, spec: UseSpec, seed: int, track: Track
) -> dict[str, Asked]:
    """Return the evidence on directions of no trained dictionary, by kind, by the test that latents have.

    Their tokens and amounts, or how many tokens there are, are those of the latents `like`.
    """
    drawn = {}
    if spec.pseudo:
        drawn[PSEUDO] = pseudo_latents(like, seed, spec.pseudo)
    if spec.covariance_directions:
        n = spec.covariance_directions
        drawn[COVARIANCE] = covariance_directions(subject, like, seed, n)
    if spec.untrained_directions:
        drawn[UNTRAINED] = untrained_directions(subject, like, seed, spec.untrained_directions)
    return {
        kind: ask_alone(subject, directions, spec, seed, track, kind, latents)
        for kind, directions in drawn.items()
    }


def confirmed(
    subject: Subject,
    reading: Encoded,
    found: Examination,
    shown: Sequence[int],
    spec: CircuitSpec,
    seed: int,
    advance: Advance = unheard,
) -> pandas.DataFrame:
    """Return, for some latents, what a finite edit of what their top reader is given does to predictions.

    The top reader is the one with the largest score among heads and MLPs. A latent without one, or without
    firings, has no row.

    Args:
        subject: The model behind the SAE's hookpoint, and the held-out tokens.
        reading: The SAE on the same tokens.
        found: The examination of the SAE.
        shown: The latents whose top reader is patched.
        spec: How many null directions there are, and how many later predictions are compared.
        seed: The trial's seed.
        advance: It is called with 1 for each latent.

    Returns:
        One row per latent: latent, reader, kl (mean over firings, nats), null (the same, mean over null
        directions), p, n_nulls, n_firings.
    """
    names = list(PATCHED.without(KEYS))
    if found.readers is None:
        return pandas.DataFrame(columns=names)
    directions, firings = latent_directions(reading), found.answer.asked.ablated.firings
    trace, rows = ReaderTrace(subject.downstream), []
    for latent in shown:
        advance(1)
        # the unembedding is left out: it reads nearly everything, so it tells latents apart least
        order = found.readers.top(latent, len(found.readers.names), least=0.0)
        top = [m for m in order if found.readers.kinds[m] != "unembedding"]
        tokens = firings.tokens[firings.sets == latent][:_PATCHED]
        if not top or not len(tokens):
            continue
        name = found.readers.names[top[0]]
        patch = confirm_reader(subject, directions, latent, name, tokens, spec.patch, seed, trace)
        kl, null = float(patch.kl.mean()), float(patch.null.mean())
        rows.append([latent, name, kl, null, patch.p, patch.null.shape[1], len(tokens)])
    return pandas.DataFrame(rows, columns=names)
