"""What a method is: something simpler than an SAE that gives directions to write activations with.

Every method is fitted on the same tokens of the same arm, and leaves a `Dictionary`: unit directions
and a center. How an activation is then written with few of them is `pursuit`; what that costs in bits
is `rate`.
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


class MethodsSpec(Spec):
    """Settings of the comparison with existing methods.

    Tokens are drawn at random from the documents that serve each purpose; where there are fewer, all
    of them are taken.
    """

    k: int | None = Field(default=None, ge=1)
    """Atoms per token; None: what the SAEs use on average, or d_in / 8 without an SAE."""
    n_atoms: int = Field(default=1024, ge=2)
    """Atoms of methods whose size is free; capped at d_sae, and at a fifth of the tokens for k-means."""
    nmf_atoms: int = Field(default=128, ge=2)
    """Atoms of the non-negative dictionary: its fit is the slowest."""
    fit_tokens: int = Field(default=20_000, ge=100)
    """Tokens that dictionaries are fitted on."""
    ica_tokens: int = Field(default=6_000, ge=100)
    """Tokens that ICA is fitted on."""
    nmf_tokens: int = Field(default=3_000, ge=100)
    """Tokens that the non-negative dictionary is fitted on."""
    iterations: int = Field(default=20, ge=1)
    """Iterations of ICA and of the non-negative dictionary; both stop before they have settled."""
    choose_tokens: int = Field(default=2_000, ge=50)
    """Tokens that the coder's models are fitted on, and the probes."""
    score_tokens: int = Field(default=2_000, ge=50)
    """Tokens that are coded and scored."""
    sae_pursuit_tokens: int = Field(default=250, ge=0)
    """Scored tokens on which SAE decoders are pursued, for their explained variance; 0: none."""
    coded_tokens: int = Field(default=128, ge=0)
    """Scored tokens that are really written by the range coder, to check the lengths; 0: none."""
    distortions: Distinct[Annotated[float, Field(gt=0, lt=1)]] = (0.2, 0.05)
    """Shares of variance left unexplained at which bits are counted; the first is the headline."""
    shares_of_k: Distinct[Annotated[float, Field(gt=0, le=1)]] = (0.03125, 0.125, 0.5, 1.0)
    """Of k: numbers of atoms that a code may use; the cheapest is chosen for each distortion."""
    coefficient_steps: Distinct[Annotated[float, Field(gt=0)]] = (1.0, 3.0)
    """Steps of the coefficients' quantizer, in steps of the residual's where all of it is coded."""
    stream_tokens: int | None = Field(default=None, ge=1)
    """Tokens that a dictionary's own bits are spread over; None: those of the documents to fit on."""
    n_labels: int = Field(default=20, ge=1)
    """Labels probed at most, the most frequent ones."""


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Directions of one method.

    Attributes:
        name: Of the method.
        directions: Unit rows.
        center: Subtracted before coding and added afterwards.
        entries: Numbers that a receiver must be sent to know the directions. 0 where a seed, or
            nothing, tells them.
        native: The method's own code of centered activations with at most k atoms; None: it has none
            other than pursuit.
    """

    name: str
    directions: Float32[np.ndarray, "atom d_in"]
    center: Float32[np.ndarray, " d_in"]
    entries: int
    native: Callable[[Float32[np.ndarray, "token d_in"], int], AtomCodes] | None = None


@dataclass(frozen=True, eq=False)
class Material:
    """What every method is fitted on.

    Attributes:
        activations: Of the documents to fit on, less `center`.
        center: Mean activation of these documents.
        token_ids: Token at each.
        embeddings: Rows of W_E; None where the arm has none of this width.
        n_atoms: Atoms for methods whose size is free.
        seed: Names every draw.
        spec: Settings.
    """

    activations: Float32[np.ndarray, "token d_in"]
    center: Float32[np.ndarray, " d_in"]
    token_ids: Int64[np.ndarray, " token"]
    embeddings: Float32[np.ndarray, "vocabulary d_in"] | None
    n_atoms: int
    seed: int
    spec: MethodsSpec

    def random(self, name: str) -> np.random.Generator:
        """Return the generator of one method, the same one for every arm."""
        return numpy_generator(self.seed, "methods", name, self.activations.shape[1])

    def random_state(self, name: str) -> int:
        """Return a seed for libraries that take a 32-bit number."""
        return int(self.random(name).integers(2**31 - 1))


@dataclass(frozen=True)
class Method:
    """A way to get a dictionary that is simpler than training an SAE.

    Attributes:
        name: How tables name it.
        title: For people.
        definition: What its directions are, in words.
        source: Paper or library, and every deviation.
        fit: Material to dictionary; raises NotEstimable where it cannot.
    """

    name: str
    title: str
    definition: str
    source: str
    fit: Callable[[Material], Dictionary]


METHODS: Registry[Method] = Registry("method")


def unit_rows(
    rows: Float32[np.ndarray, "atom d_in"], name: str
) -> Float32[np.ndarray, "atom d_in"]:
    """Return the rows scaled to length 1, without those of length 0.

    Raises:
        NotEstimable: none is left.
    """
    lengths = np.linalg.norm(rows, axis=1)
    kept = lengths > 1e-6 * max(float(lengths.max(initial=0.0)), 1e-30)
    if not kept.any():
        raise NotEstimable(f"{name} found no direction: all of its rows have length 0")
    found: Float32[np.ndarray, "atom d_in"] = rows[kept] / lengths[kept, None]
    return found.astype(np.float32)
