"""What a baseline is: something simpler than an SAE that gives directions to write activations with.

Every baseline is fitted on tokens of the text that the arm's SAEs were trained on, and gives a `Dictionary`:
unit directions and a center.
Module `pursuit` writes an activation with few of the directions, and `rate` counts what that costs in bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float32, Int64
from pydantic import Field

from sae_placebo.baselines.pursuit import AtomCodes
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import Distinct, Registry, Spec, numpy_generator


class BaselinesSpec(Spec):
    """Settings of the comparison with baselines.

    Tokens are drawn at random from the text or the documents that serve each purpose. Where there are fewer
    than wanted, all of them are taken.
    """

    k: int | None = Field(default=None, ge=1)
    """Atoms per token; what the SAEs use on average unless given, or d_in / 8 without an SAE."""
    n_atoms: int = Field(default=1024, ge=2)
    """Atoms of baselines whose size is free; at most d_sae, and for k-means a fifth of the tokens. Marginal
    structure also needs them with twice as many."""
    nmf_atoms: int = Field(default=128, ge=2)
    """Atoms of the non-negative dictionary, which is the slowest to fit."""
    fit_tokens: int = Field(default=2**17, ge=100)
    """The most tokens that dictionaries are fitted on, of the text that the SAEs were trained on
    (`structure.ladder.fit_tokens` of it are kept)."""
    ica_tokens: int = Field(default=6_000, ge=100)
    """Tokens that ICA is fitted on."""
    nmf_tokens: int = Field(default=3_000, ge=100)
    """Tokens that the non-negative dictionary is fitted on."""
    iterations: int = Field(default=20, ge=1)
    """Iterations of ICA and of the non-negative dictionary; both stop before they have converged."""
    choose_tokens: int = Field(default=8_000, ge=50)
    """Tokens that the coder's settings are chosen and its probabilities are fitted on."""
    probe_tokens: int = Field(default=2_000, ge=50)
    """Those of them that probes are fitted on."""
    score_tokens: int = Field(default=2_000, ge=50)
    """Tokens that are coded and scored."""
    sae_pursuit_tokens: int = Field(default=250, ge=0)
    """Scored tokens that are written by pursuit on SAE decoders, for their explained variance; 0 for none."""
    coded_tokens: int = Field(default=128, ge=0)
    """Scored tokens that the range coder writes, to check the counted lengths; 0 for none."""
    distortions: Distinct[Annotated[float, Field(gt=0, lt=1)]] = (0.2,)
    """Shares of variance left unexplained at which bits are counted; the first is the headline."""
    most_atoms: int = Field(default=64, ge=1)
    """The most atoms per token that a code by pursuit may use. Where the shortest code has as many, and could
    have more, its bits are not estimable."""
    settings_per_octave: int = Field(default=2, ge=1, le=8)
    """Numbers of atoms, and steps of their coefficients, that are tried for each doubling."""
    stream_tokens: int | None = Field(default=None, ge=1)
    """Tokens that a dictionary's own bits are spread over; unless given, those of the text to fit on."""
    n_labels: int = Field(default=20, ge=1)
    """The most labels that are probed; the most frequent ones are taken."""


@dataclass(frozen=True, eq=False)
class Dictionary:
    """The directions that one baseline writes activations with.

    Attributes:
        name: Name of the baseline.
        directions: Rows of length 1, the atoms.
        center: A vector that is subtracted before coding and added afterwards.
        entries: How many numbers a receiver must be sent to know the directions; 0 where they follow from a
            seed, or from nothing at all.
        native: The baseline's own way to code centered activations with at most k atoms; None where it has
            none, so that only pursuit can code with it.
    """

    name: str
    directions: Float32[np.ndarray, "atom d_in"]
    center: Float32[np.ndarray, " d_in"]
    entries: int
    native: Callable[[Float32[np.ndarray, "token d_in"], int], AtomCodes] | None = None


@dataclass(frozen=True, eq=False)
class Material:
    """What every baseline is fitted on.

    Attributes:
        activations: Activations at the tokens to fit on, less `center`.
        center: Mean activation of these tokens.
        token_ids: Token id of each.
        embeddings: Rows of W_E; None where they are not known.
        n_atoms: Atoms of baselines whose size is free.
        seed: The seed that every draw is named by.
        spec: The settings.
    """

    activations: Float32[np.ndarray, "token d_in"]
    center: Float32[np.ndarray, " d_in"]
    token_ids: Int64[np.ndarray, " token"]
    embeddings: Float32[np.ndarray, "vocabulary d_in"] | None
    n_atoms: int
    seed: int
    spec: BaselinesSpec

    def random(self, name: str) -> np.random.Generator:
        """Return the random generator of one baseline, which is the same for every arm of this width."""
        return numpy_generator(self.seed, "methods", name, self.activations.shape[1])

    def random_state(self, name: str) -> int:
        """Return a seed for libraries that take a 32-bit number."""
        return int(self.random(name).integers(2**31 - 1))


@dataclass(frozen=True)
class Baseline:
    """A way to get a dictionary that is simpler than training an SAE.

    Attributes:
        name: The baseline's name in tables.
        title: Its name in the report.
        definition: What its directions are, in words.
        source: The paper or library that it is taken from, and every deviation.
        fit: A function from material to a dictionary, which raises `NotEstimable` where there is none.
    """

    name: str
    title: str
    definition: str
    source: str
    fit: Callable[[Material], Dictionary]


BASELINES: Registry[Baseline] = Registry("baseline")
"""Every baseline that is no SAE, by name."""


def unit_rows(
    rows: Float32[np.ndarray, "atom d_in"], name: str
) -> Float32[np.ndarray, "atom d_in"]:
    """Return the rows scaled to length 1, without those of length 0.

    Args:
        rows: Rows of any length.
        name: What an error calls the baseline that found them.

    Raises:
        NotEstimable: all rows have length 0.
    """
    lengths = np.linalg.norm(rows, axis=1)
    kept = lengths > 1e-6 * max(float(lengths.max(initial=0.0)), 1e-30)
    if not kept.any():
        raise NotEstimable(f"{name} found no direction: all of its rows have length 0")
    unit: Float32[np.ndarray, "atom d_in"] = rows[kept] / lengths[kept, None]
    return unit.astype(np.float32)
