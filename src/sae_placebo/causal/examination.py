"""What is asked about one SAE's latents once it is known what they are: use, readers, writers.

The order is that of the evidence: single ablations, removal among others, removal of all at once, null
directions for those that matter, and then verdicts. Readers and writers are asked of every latent.
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
from sae_placebo.causal.use.evidence import Answer, Asked, ask, ask_alone
from sae_placebo.causal.use.sampling import draw
from sae_placebo.causal.use.screen import Screen
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.errors import ModelError, NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.progress import Advance, Track, unheard, untracked
from sae_placebo.latents.base import Encoded

_PATCHED = 8
"""Firings at which a top reader is patched, at most."""


@dataclass(frozen=True, eq=False)
class Examination:
    """All that was found about one SAE.

    Attributes:
        answer: Whether the model uses the latents that have a verdict.
        weights: Latents that each of these stands for.
        errors: The main directions of what the SAE misses; None where none were asked about.
        error_variance: Share of the error's variance that each of these has.
        pseudo: Directions that mean nothing; None where none were asked about.
        screen, readers: Of all latents; None with a reason.
        writers: Of all latents; None with a reason.
        reasons: Why something is None.
    """

    answer: Answer
    weights: Float64[np.ndarray, " drawn"]
    errors: Asked | None
    error_variance: Float64[np.ndarray, " component"]
    pseudo: Asked | None
    screen: Screen | None
    readers: Readers | None
    writers: Writers | None
    reasons: dict[str, str]

    @property
    def latents(self) -> Int64[np.ndarray, " drawn"]:
        """Latents that have a verdict, ascending."""
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
    """Return what the model does with the latents of one SAE, and which of its parts write and read them.

    Args:
        subject: The model behind the SAE's hookpoint, and the held-out tokens.
        reading: The SAE on the same tokens.
        strata: Kind of each latent; those with a verdict are drawn evenly from all kinds. Latents of the
            empty kind are left out.
        spec: How use is asked about.
        circuits: How readers and writers are.
        seed: The trial's.
        track: Shows what is being done.

    Raises:
        NotEstimable: no latent fires on enough tokens.
    """
    directions = latent_directions(reading)
    able = np.flatnonzero((directions.n_active >= 2) & (strata != ""))
    if not len(able):
        raise NotEstimable("no latent fires on enough held-out tokens to be asked about")
    wanted = None if spec.latents == "all" else spec.latents
    which, weights = draw(strata, able, wanted, seed)
    answer = ask(subject, directions, which, spec, seed, track)
    reasons = dict(answer.reasons)
    screened, read, written = _circuits(
        subject, reading, directions, circuits, seed, reasons, track
    )
    errors, variance = _errors(subject, reading, spec, seed, track)
    return Examination(
        answer=answer,
        weights=weights,
        errors=errors,
        error_variance=variance,
        pseudo=_pseudo(subject, directions, spec, seed, track),
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
    """Return the use of what the SAE misses, by its principal components."""
    if not spec.error_directions:
        return None, np.zeros(0)
    directions = error_directions(reading, spec.error_directions)
    squares = directions.amounts.multiply(directions.amounts)
    energy = np.asarray(squares.sum(0, dtype=np.float64)).ravel()
    total = _error_energy(reading)
    return ask_alone(subject, directions, spec, seed, track), energy / total


def _error_energy(reading: Encoded) -> float:
    decoder = reading.sae.params["W_dec"].detach().float().cpu().numpy()
    error = reading.activations.float().cpu().numpy() - reading.codes @ decoder
    return float(((error - error.mean(0)) ** 2).sum())


def _pseudo(
    subject: Subject, directions: Directions, spec: UseSpec, seed: int, track: Track
) -> Asked | None:
    if not spec.pseudo:
        return None
    return ask_alone(subject, pseudo_latents(directions, seed, spec.pseudo), spec, seed, track)


def confirmed(
    subject: Subject,
    reading: Encoded,
    found: Examination,
    shown: Sequence[int],
    spec: CircuitSpec,
    seed: int,
    advance: Advance = unheard,
) -> pandas.DataFrame:
    """Return, for some latents, whether a finite edit of what their top reader reads is felt.

    The top reader of attention and MLPs: that of the unembedding is left out. `advance` is told of each
    latent.

    Columns: latent, reader, kl (nats per firing), null (mean of null directions), p, n_nulls, n_firings.
    """
    names = ["latent", "reader", "kl", "null", "p", "n_nulls", "n_firings"]
    if found.readers is None:
        return pandas.DataFrame(columns=names)
    directions, firings = latent_directions(reading), found.answer.asked.ablated.firings
    trace, rows = ReaderTrace(subject.downstream), []
    for latent in shown:
        advance(1)
        # the unembedding reads nearly everything, so that it tells latents apart least
        order = found.readers.top(latent, len(found.readers.names), least=0.0)
        top = [m for m in order if found.readers.kinds[m] != "unembedding"]
        tokens = firings.tokens[firings.directions == latent][:_PATCHED]
        if not top or not len(tokens):
            continue
        name = found.readers.names[top[0]]
        one = confirm_reader(subject, directions, latent, name, tokens, spec.patch, seed, trace)
        null = np.asarray(one.null)
        rows.append(
            [
                latent,
                name,
                float(one.kl.mean()),
                float(null.mean()),
                one.p,
                null.shape[1],
                len(tokens),
            ]
        )
    return pandas.DataFrame(rows, columns=names)
