"""Bits per token of one dictionary at a stated distortion.

The scheme is the same for every dictionary:

1. A token, less the dictionary's center, is written with at most k' atoms. Their coefficients are
   rounded to whole steps of one size, and the receiver rebuilds a part of the token from them.
2. What is left, less its mean, is turned into the basis of its own principal components, rounded to
   whole steps of one size (away from 0 from .62 of a step on), and coded. So every dictionary reaches every
   distortion, and one whose sparse code is poor pays for it in the residual.
3. The residual's step is set on the scored tokens so that their squared error is exactly the stated
   share of their variance. k' and the coefficients' step are free: module `settings` takes those that need
   the fewest bits on the documents to choose on.
4. All probabilities come from the documents to choose on; bits are counted on the documents to score on.

A receiver must know the basis and the means, as well as the directions; see `dictionary_bits`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from sae_placebo.baselines.base import BaselinesSpec, Dictionary
from sae_placebo.baselines.bits import CodeModel, Quantized
from sae_placebo.baselines.coder import encode
from sae_placebo.baselines.pursuit import AtomCodes, Pursuit
from sae_placebo.baselines.residual import principal, rounded, squared, step_for
from sae_placebo.baselines.sampling import Vectors
from sae_placebo.baselines.settings import Choosing, Coder, Settings, choose, no_atoms, sparse
from sae_placebo.core.errors import NotEstimable

BITS_PER_ENTRY = 16
"""Bits for each number that a receiver must know of a dictionary."""
PARTS = ("indices", "values", "residual")
"""Parts of a token's code; the first holds the number of atoms as well."""


@dataclass(frozen=True, eq=False)
class CodedVectors:
    """Vectors, and how they are coded with one dictionary.

    Attributes:
        vectors: What is coded, less the dictionary's center.
        choose: A function from a number of atoms to the code, with so many at most, of the vectors to
            choose on.
        score: The same for those to score on.
        largest: The most atoms that any of these codes can have.
        cap: The most atoms that are tried.
    """

    vectors: Vectors
    choose: Coder
    score: Coder
    largest: int
    cap: int

    @classmethod
    def pursued(cls, dictionary: Dictionary, vectors: Vectors, most_atoms: int) -> CodedVectors:
        """Return the codes by orthogonal matching pursuit, which may have up to `most_atoms` atoms."""
        rows = dictionary.directions
        codes = Pursuit(vectors.choose, rows), Pursuit(vectors.score, rows)
        return cls(vectors, *codes, min(rows.shape), most_atoms)


@dataclass(frozen=True, eq=False)
class TokenBits:
    """The bits that one dictionary needs at one distortion.

    Attributes:
        parts: Bits of each scored token in each of `PARTS`.
        error: Squared error of each token as the receiver rebuilds it.
        energy: Squared distance of each token's activation from the mean of all.
        slope: Bits that one more unit of squared error saves, at this point of the curve.
        distortion: Share of the variance that was to be left.
        reached: Share of the variance that is left; below `distortion` only where the sparse code alone,
            without any residual, does better.
        settings: The atoms that a token's code may use and the step of coefficients, as they were chosen.
        coder_ratio: Length of the range coder's message over the sum of counted lengths, on the tokens that
            it wrote; NaN where it wrote none.
    """

    parts: Float[np.ndarray, "part token"]
    error: Float[np.ndarray, " token"]
    energy: Float[np.ndarray, " token"]
    slope: float
    distortion: float
    reached: float
    settings: Settings
    coder_ratio: float

    @property
    def adjusted(self) -> Float[np.ndarray, " token"]:
        """Bits of each token, with a charge for the error by which it misses its share of the distortion.

        The sum over all tokens is unchanged by this, since together they miss nothing. Under other weights
        of the documents it is, to first order, what the tokens would cost at the stated distortion.
        """
        missed = self.error - self.reached * self.energy
        bits: Float[np.ndarray, " token"] = self.parts.sum(axis=0) + self.slope * missed
        return bits


def dictionary_bits(dictionary: Dictionary) -> int:
    """Return the bits of all that a receiver must know of a dictionary.

    They are 16 bits for each number of its directions, of the residual's basis and of the two means.
    Probabilities are left out, since they are a few thousand numbers for every baseline.
    """
    d_in = int(dictionary.directions.shape[1])
    return BITS_PER_ENTRY * (dictionary.entries + d_in * d_in + 2 * d_in)


def token_bits(
    dictionary: Dictionary, coded: CodedVectors, distortion: float, spec: BaselinesSpec
) -> TokenBits:
    """Return the bits of each scored token at a share of variance that is left unexplained.

    Args:
        dictionary: The dictionary that tokens are written with.
        coded: The tokens and their codes.
        distortion: The share of variance that is left.
        spec: The settings.

    Raises:
        NotEstimable: the best settings lie on the edge of the largest grid that is allowed.
    """
    vectors, energy = coded.vectors, coded.vectors.energy
    tokens = Choosing.of(vectors.choose, vectors.documents, distortion * vectors.choose_energy)
    grid = coded.choose, coded.largest, coded.cap, spec.settings_per_octave
    settings = choose(dictionary, tokens, *grid)
    step = settings.step * tokens.even_step
    learned, scored = (
        _Coded(*sparse(dictionary, x, _code(coder, settings.n_atoms, len(x)), step))
        for x, coder in ((vectors.choose, coded.choose), (vectors.score, coded.score))
    )
    turned = principal(learned.left)
    learned, scored = (_Coded(one.codes, turned(one.left)) for one in (learned, scored))
    width = step_for(scored.left, distortion * float(energy.sum()))
    parts, error = _lengths(learned, scored, width)
    coarser, more_error = _lengths(learned, scored, 1.1 * width)
    gained = float(more_error.sum() - error.sum())
    slope = float(parts.sum() - coarser.sum()) / gained if gained > 0 else 0.0
    return TokenBits(
        parts=parts,
        error=error,
        energy=energy,
        slope=slope,
        distortion=distortion,
        reached=float(error.sum() / energy.sum()),
        settings=settings,
        coder_ratio=_coder_ratio(learned, scored, width, spec.coded_tokens),
    )


def _code(coder: Coder, n_atoms: int, n_tokens: int) -> AtomCodes:
    return coder(n_atoms) if n_atoms else no_atoms(n_tokens)


@dataclass(frozen=True, eq=False)
class _Coded:
    """A quantized code, and what it leaves of the tokens."""

    codes: Quantized
    left: Float32[np.ndarray, "token component"]


def _lengths(
    learned: _Coded, scored: _Coded, width: float
) -> tuple[Float[np.ndarray, "part token"], Float[np.ndarray, " token"]]:
    """Return the bits by part and the squared error of each token, at one step of the residual."""
    levels = rounded(scored.left, width)
    model = CodeModel.fit(learned.codes, rounded(learned.left, width))
    error = squared(scored.left - (levels * width).astype(np.float32))
    return model.lengths(scored.codes, levels), error


def _coder_ratio(learned: _Coded, scored: _Coded, width: float, n: int) -> float:
    """Return the length of the range coder's message over the sum of lengths, on the first n tokens."""
    if n < 1:
        return float("nan")
    model = CodeModel.fit(learned.codes, rounded(learned.left, width))
    some, levels = scored.codes.first(n), rounded(scored.left[:n], width)
    expected = float(model.lengths(some, levels).sum())
    try:
        return encode(model, some, levels).bits / expected if expected > 0 else float("nan")
    except NotEstimable:
        return float("nan")
