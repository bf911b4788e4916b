"""Latents that are tied to circuitry: a head or an MLP writes them, and something reads them.

Both claims have a p-value of their own: the writers' is against random encoders that pick their own tokens,
the readers' against random directions at the same angle to each activation. A latent is tied where the larger
of the two is at most the level. So one that is not written is called tied at most at that rate however much
it is read, and the other way round (an intersection-union test, Berger 1982, Technometrics 24:295).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from sae_placebo.causal.circuits.readers import Readers, readers
from sae_placebo.causal.circuits.spec import CircuitSpec
from sae_placebo.causal.circuits.writers import Writers, writers
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Track, untracked


@dataclass(frozen=True, eq=False)
class Ties:
    """The two p-values of each latent, and whether it is tied; NaN for latents that are not judged.

    Attributes:
        written_p: Of the claim that some head or MLP writes it more than random encoders.
        read_p: Of the claim that something reads it more than random directions.
        tied: 1 where both are at most the level, 0 where they are not.
    """

    written_p: Float64[np.ndarray, " direction"]
    read_p: Float64[np.ndarray, " direction"]
    tied: Float64[np.ndarray, " direction"]


def tied(written: Writers, read: Readers, level: float) -> Ties:
    """Return which latents are tied, from their writers and readers.

    A latent is judged where it has both p-values.
    """
    larger = np.maximum(written.made_p, read.any_p)
    found = np.where(np.isfinite(larger), (larger <= level).astype(np.float64), np.nan)
    return Ties(written.made_p, read.any_p, found)


def ties(
    subject: Subject,
    encoder: Float[torch.Tensor, "d_in direction"],
    directions: Directions,
    spec: CircuitSpec,
    seed: int,
    track: Track = untracked,
) -> Ties:
    """Return which directions are tied to circuitry.

    Args:
        subject: The model behind the hookpoint, and its tokens.
        encoder: What reads each direction from the activation, such as W_enc of an SAE.
        directions: The directions, with the amounts that tokens hold.
        spec: How writers and readers are found.
        seed: The seed of all draws.
        track: It shows the progress.

    Raises:
        ModelError: the model's layers are not understood.
        NotEstimable: as in `writers`.
    """
    written = writers(subject, encoder, directions, spec.writers, seed, track)
    read = readers(subject, directions, spec.readers, seed, track)
    return tied(written, read, spec.level)
