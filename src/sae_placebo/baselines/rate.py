"""Bits per token of one dictionary at a stated distortion.

The scheme is the same for every baseline:

1. A token, less the dictionary's center, is written with at most k' atoms. Their coefficients are
   rounded to whole steps of one size, and the receiver rebuilds a part of the token from them.
2. What is left, less its mean, is turned into the basis of its own principal components, rounded to
   whole steps of one size (away from 0 from .62 of a step on), and coded. So every baseline reaches every
   distortion, and one whose sparse code is poor pays for it in the residual.
3. The residual's step is set on the scored tokens so that their squared error is exactly the stated
   share of their variance. k' and the coefficients' step are free: those are taken that need the
   fewest bits on the documents to choose on, and every baseline has the same choice.
4. All probabilities come from the documents to choose on; bits are counted on the documents to score on.

A receiver must know the basis and the means, as well as the directions; see `dictionary_bits`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.baselines.base import BaselinesSpec, Dictionary
from sae_placebo.baselines.bits import CodeModel, Quantized, quantize
from sae_placebo.baselines.coder import encode
from sae_placebo.baselines.pursuit import AtomCodes
from sae_placebo.core.errors import NotEstimable

BITS_PER_ENTRY = 16
"""Bits for each number that a receiver must know of a dictionary."""
_ROUND_UP = 0.38
"""Added to a component's size in steps before it is rounded down; .5 would be plain rounding. With less,
fewer small components cost bits: on Gaussians, .36 to .4 is shortest at shares left of .05 to .3."""
_TRIED = 3
"""Ways to code that are tried before one is taken."""
PARTS = ("indices", "values", "residual")
"""Parts of a token's code; the first holds the number of atoms as well."""


@dataclass(frozen=True, eq=False)
class ChosenAndScored:
    """The tokens to choose and to score on, and how a baseline codes them.

    Attributes:
        choose: Activations at the tokens to choose on, less the baseline's center.
        score: Activations at the tokens to score on, which are of other documents, less the center.
        choose_codes: A function from a number of atoms to the code of `choose` with at most so many.
        score_codes: The same for `score`.
    """

    choose: Float32[np.ndarray, "chosen d_in"]
    score: Float32[np.ndarray, "token d_in"]
    choose_codes: Callable[[int], AtomCodes]
    score_codes: Callable[[int], AtomCodes]


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
        n_atoms: The most atoms that a token's code may use.
        coefficient_step: Step of the quantizer of coefficients, in activation units.
        coder_ratio: Length of the range coder's message over the sum of counted lengths, on the tokens that
            it wrote; NaN where it wrote none.
    """

    parts: Float[np.ndarray, "part token"]
    error: Float[np.ndarray, " token"]
    energy: Float[np.ndarray, " token"]
    slope: float
    distortion: float
    reached: float
    n_atoms: int
    coefficient_step: float
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
    dictionary: Dictionary, split: ChosenAndScored, k: int, distortion: float, spec: BaselinesSpec
) -> TokenBits:
    """Return the bits of each scored token at a share of variance that is left unexplained.

    Args:
        dictionary: The dictionary that tokens are written with.
        split: The tokens and their codes.
        k: Atoms per token at which baselines are compared.
        distortion: The share of variance that is left.
        spec: The settings.

    Raises:
        NotEstimable: the scored activations do not vary.
    """
    energy = _squared(split.score - split.score.mean(axis=0))
    if not energy.sum() > 0:
        raise NotEstimable("the scored activations do not vary: there is nothing to code")
    k_used, step = _choose(dictionary, split, k, distortion, spec)
    learn = _sparse(dictionary, split.choose, split.choose_codes(k_used), step)
    coded = _sparse(dictionary, split.score, split.score_codes(k_used), step)
    learn, coded = _rotated(learn, coded)
    width = _step_for(coded.left, distortion * float(energy.sum()))
    parts, error = _lengths(learn, coded, width)
    coarser, more_error = _lengths(learn, coded, 1.1 * width)
    gained = float(more_error.sum() - error.sum())
    slope = float(parts.sum() - coarser.sum()) / gained if gained > 0 else 0.0
    return TokenBits(
        parts=parts,
        error=error,
        energy=energy,
        slope=slope,
        distortion=distortion,
        reached=float(error.sum() / energy.sum()),
        n_atoms=k_used,
        coefficient_step=step,
        coder_ratio=_coder_ratio(learn, coded, width, spec.coded_tokens),
    )


def _squared(x: Float[np.ndarray, "token d_in"]) -> Float[np.ndarray, " token"]:
    """Return the squared length of each row."""
    return np.asarray(np.einsum("td,td->t", x, x, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class _Coded:
    """A quantized code, and what it leaves of the tokens."""

    codes: Quantized
    left: Float32[np.ndarray, "token d_in"]


def _sparse(
    dictionary: Dictionary, x: Float32[np.ndarray, "token d_in"], codes: AtomCodes, step: float
) -> _Coded:
    """Return the quantized code, and what it leaves of the tokens."""
    quantized = quantize(codes, step)
    return _Coded(quantized, x - quantized.decode(dictionary.directions, step))


def _rotated(learn: _Coded, coded: _Coded) -> tuple[_Coded, _Coded]:
    """Return both with what is left of them turned into the principal components of the first."""
    mean = learn.left.mean(axis=0)
    _, basis = np.linalg.eigh(_covariance(learn.left - mean))
    return (
        _Coded(learn.codes, (learn.left - mean) @ basis),
        _Coded(coded.codes, (coded.left - mean) @ basis),
    )


def _covariance(x: Float32[np.ndarray, "token d_in"]) -> Float32[np.ndarray, "d_in d_in"]:
    """Return the covariance of rows whose mean is 0."""
    return np.asarray((x.T @ x) / np.float32(len(x)))


def _choose(
    dictionary: Dictionary, split: ChosenAndScored, k: int, distortion: float, spec: BaselinesSpec
) -> tuple[int, float]:
    """Return the number of atoms and the coefficients' step that need the fewest bits.

    The three pairs with the shortest estimates are tried: probabilities from three quarters of the tokens to
    choose on code the fourth quarter. The estimate adds up the entropies of atoms and of coefficients at
    their frequencies and, for the residual, the rate of a Gaussian with its covariance, by reverse
    water-filling.
    """
    x = split.choose
    total = distortion * float(_squared(x - x.mean(axis=0)).mean())
    base = float(np.sqrt(12 * total / x.shape[1]))
    if not len(dictionary.directions):
        return 0, base
    estimates = []
    for k_used in sorted({max(1, round(k * share)) for share in spec.shares_of_k}):
        codes = split.choose_codes(k_used)
        for step in (base * steps for steps in spec.coefficient_steps):
            coded = _sparse(dictionary, x, codes, step)
            values = np.linalg.eigvalsh(_covariance(coded.left - coded.left.mean(axis=0)))
            rest = water_filling(values.astype(np.float64), total)
            estimates.append((_plain_entropy(coded.codes) + rest, k_used, step))
    tried = []
    for _, k_used, step in sorted(estimates)[:_TRIED]:
        bits = _tried(dictionary, x, split.choose_codes(k_used), step, total)
        tried.append((bits, k_used, step))
    return min(tried)[1:]


def _tried(
    dictionary: Dictionary,
    x: Float32[np.ndarray, "token d_in"],
    codes: AtomCodes,
    step: float,
    total: float,
) -> float:
    """Return the bits per token of every fourth token, under probabilities from the other tokens.

    The two sets share their documents: if whole documents were left out, and there are few, it would depend
    on which ones they are.
    """
    apart = np.arange(len(x)) % 4 == 0
    parts = [
        _sparse(
            dictionary,
            x[part],
            AtomCodes(codes.atoms[part], codes.values[part], codes.n_atoms),
            step,
        )
        for part in (~apart, apart)
    ]
    learn, coded = _rotated(parts[0], parts[1])
    width = _step_for(coded.left, total * len(coded.left))
    return float(_lengths(learn, coded, width)[0].sum()) / len(coded.left)


def _plain_entropy(codes: Quantized) -> float:
    """Return the bits per token of independent atoms and of coefficients, at their own frequencies."""
    n = len(codes.counts)
    rate = np.bincount(codes.atoms, minlength=codes.n_atoms) / n
    inside = rate[(rate > 0) & (rate < 1)]
    index = -(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside)).sum()
    _, seen = np.unique(codes.levels, return_counts=True)
    share = seen / max(seen.sum(), 1)
    return float(index - (len(codes.levels) / n) * (share * np.log2(share)).sum())


def water_filling(variances: Float[np.ndarray, " component"], total: float) -> float:
    """Return the bits that independent Gaussian components need for a summed squared error of `total`.

    Args:
        variances: The variance of each component.
        total: The squared error that is allowed, summed over components.

    Source: reverse water-filling (Cover and Thomas, section 10.3.3).
    """
    ascending = np.sort(np.maximum(variances, 0))
    if ascending.sum() <= total:
        return 0.0
    # with the level between two variances, the smaller ones are dropped whole
    below = np.concatenate([[0], np.cumsum(ascending)[:-1]])
    levels = (total - below) / np.arange(len(ascending), 0, -1)
    level = levels[int(np.argmax(levels <= ascending))]
    return float(0.5 * np.log2(np.maximum(ascending / level, 1)).sum())


def _step_for(left: Float32[np.ndarray, "token component"], error: float) -> float:
    """Return the step whose rounding leaves the squared error `error`.

    Where even rounding everything to 0 leaves less, it is a step that does so.
    """
    largest = 4 * float(np.abs(left).max(initial=1e-12)) + 1e-12
    if float(_squared(left).sum()) <= error:
        return largest
    low, high = np.log(largest) - 16, np.log(largest)
    for _ in range(18):
        middle = (low + high) / 2
        step = np.float32(np.exp(middle))
        missed = float(_squared(left - _whole(left / step) * step).sum())
        low, high = (middle, high) if missed < error else (low, middle)
    return float(np.exp(low))


def _rounded(
    left: Float32[np.ndarray, "token component"], width: float
) -> Int64[np.ndarray, "token component"]:
    """Return the components in whole steps of this width."""
    return _whole(left / np.float32(width)).astype(np.int64)


def _whole(steps: Float32[np.ndarray, "token component"]) -> Float32[np.ndarray, "token component"]:
    """Return the steps rounded to whole numbers, by the rule of `_ROUND_UP`; signs are kept."""
    return np.asarray(np.copysign(np.floor(np.abs(steps) + np.float32(_ROUND_UP)), steps))


def _lengths(
    learn: _Coded, coded: _Coded, width: float
) -> tuple[Float[np.ndarray, "part token"], Float[np.ndarray, " token"]]:
    """Return the bits by part and the squared error of each token, at one step of the residual."""
    levels = _rounded(coded.left, width)
    model = CodeModel.fit(learn.codes, _rounded(learn.left, width))
    error = _squared(coded.left - (levels * width).astype(np.float32))
    return model.lengths(coded.codes, levels), error


def _coder_ratio(learn: _Coded, coded: _Coded, width: float, n: int) -> float:
    """Return the length of the range coder's message over the sum of lengths, on the first n tokens."""
    if n < 1:
        return float("nan")
    model = CodeModel.fit(learn.codes, _rounded(learn.left, width))
    some, levels = coded.codes.first(n), _rounded(coded.left[:n], width)
    expected = float(model.lengths(some, levels).sum())
    try:
        return encode(model, some, levels).bits / expected if expected > 0 else float("nan")
    except NotEstimable:
        return float("nan")


def by_document(
    values: Float[np.ndarray, " token"], documents: Int64[np.ndarray, " token"], n_documents: int
) -> Float[np.ndarray, " document"]:
    """Return the sum of values over each document's tokens."""
    return np.bincount(documents, weights=values, minlength=n_documents)
