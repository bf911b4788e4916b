"""The choice of a code's two free settings: the atoms that a token may use, and their coefficients' step.

The grid has 1, 2, 3, 4, 6, 8, 11, ... atoms, and steps of ..., .7, 1, 1.4, 2, ... times the step that would
spend the error evenly: `settings_per_octave` values for each doubling. A cell is tried by coding half of the
documents to choose on under probabilities, means and a basis from the other half, as scored documents are
coded later. The search begins at the best of 1, 2 and 4 atoms at a step of 1, and goes on to the first of the
eight cells around that is shorter, with the next numbers of atoms or the next steps, until none is. So the
best cell has tried neighbors on every side, and no code is long because its grid ended there. Three ends of
the grid are none of its own: no token can use more atoms than there are; without atoms, and with a step so
coarse that nothing is sent, the code is that of the residual alone (dense PCA), which is tried as well, and
taken where it is the shortest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from sae_placebo.baselines.base import Dictionary
from sae_placebo.baselines.bits import CodeModel, Quantized, quantize
from sae_placebo.baselines.pursuit import AtomCodes
from sae_placebo.baselines.residual import principal, rounded, step_for
from sae_placebo.core.errors import NotEstimable

FEWEST_TOKENS = 8_000
"""Tokens that settings should be chosen on; on fewer, the noise of the choice can be as large as effects."""
_FINEST, _COARSEST = -4, 10
"""Octaves between which the coefficients' step is sought, about the step that spends the error evenly."""
_FIRST_ATOMS = (1, 2, 4)

Coder = Callable[[int], AtomCodes]
"""A function from a number of atoms to the codes of tokens with at most so many."""


@dataclass(frozen=True)
class Settings:
    """The settings of a code that need the fewest bits.

    Attributes:
        n_atoms: The most atoms that a token's code may use; 0 where the residual alone is coded.
        step: Step of the quantizer of coefficients, in steps that would spend the error evenly.
        bits: Bits per token of the documents that were coded to choose.
    """

    n_atoms: int
    step: float
    bits: float


@dataclass(frozen=True, eq=False)
class Choosing:
    """The tokens that settings are chosen on.

    Attributes:
        x: Activations, less the dictionary's center.
        learn: The tokens that give probabilities.
        judge: The tokens that are coded, of other documents where there are two.
        error: The squared error of a token that is allowed on average.
    """

    x: Float32[np.ndarray, "token d_in"]
    learn: Int64[np.ndarray, " learned"]
    judge: Int64[np.ndarray, " judged"]
    error: float

    @classmethod
    def of(
        cls,
        x: Float32[np.ndarray, "token d_in"],
        documents: Int64[np.ndarray, " token"],
        error: float,
    ) -> Choosing:
        """Return the tokens with every second document, by size, to learn from; one document is parted."""
        there, index, sizes = np.unique(documents, return_inverse=True, return_counts=True)
        # dealt out forth and back, so that both halves have about as many tokens
        deal = np.isin(np.arange(len(there)) % 4, (0, 3))
        of_document = np.empty(len(there), dtype=bool)
        of_document[np.argsort(-sizes, kind="stable")] = deal
        learns = of_document[index] if len(there) > 1 else np.arange(len(x)) % 2 == 0
        return cls(x, np.flatnonzero(learns), np.flatnonzero(~learns), error)

    @property
    def even_step(self) -> float:
        """The step that would spend the error evenly over all dimensions, in activation units."""
        return float(np.sqrt(12 * self.error / self.x.shape[1]))

    def bits(self, dictionary: Dictionary, codes: AtomCodes, step: float) -> float:
        """Return the bits per token with these codes and this step, in activation units."""
        learned, judged = (
            sparse(dictionary, self.x[part], codes.of_tokens(part), step)
            for part in (self.learn, self.judge)
        )
        turned = principal(learned[1])
        left, judged_left = turned(learned[1]), turned(judged[1])
        width = step_for(judged_left, self.error * len(judged_left))
        model = CodeModel.fit(learned[0], rounded(left, width))
        return model.total(judged[0], rounded(judged_left, width)) / len(judged_left)


def sparse(
    dictionary: Dictionary, x: Float32[np.ndarray, "token d_in"], codes: AtomCodes, step: float
) -> tuple[Quantized, Float32[np.ndarray, "token d_in"]]:
    """Return the quantized code, and what it leaves of the tokens."""
    quantized = quantize(codes, step)
    return quantized, x - quantized.decode(dictionary.directions, step)


def no_atoms(n_tokens: int) -> AtomCodes:
    """Return the code that has no atom for any token."""
    none = np.zeros((n_tokens, 0))
    return AtomCodes(none.astype(np.int32), none.astype(np.float32), 0)


def choose(
    dictionary: Dictionary, tokens: Choosing, coder: Coder, largest: int, cap: int, per_octave: int
) -> Settings:
    """Return the settings with which the tokens take the fewest bits.

    Args:
        dictionary: The directions that codes are of.
        tokens: The tokens to choose on.
        coder: Codes all of them.
        largest: The most atoms that any code of them can have; 0 where there are none.
        cap: The most atoms that are tried.
        per_octave: Values of each setting for a doubling.

    Raises:
        NotEstimable: the best settings lie on the edge of the largest grid that is allowed.
    """
    base, cap = tokens.even_step, min(largest, cap)
    dense = Settings(0, 1.0, tokens.bits(dictionary, no_atoms(len(tokens.x)), base))
    if not largest:
        return dense
    octaves = np.arange(per_octave * 40) / per_octave
    atoms = sorted({min(round(2**octave), cap) for octave in octaves.tolist()})
    steps = range(_FINEST * per_octave, _COARSEST * per_octave + 1)
    tried: dict[tuple[int, int], float] = {}
    codes = functools.cache(coder)

    def bits(cell: tuple[int, int]) -> float:
        if cell not in tried:
            step = base * 2 ** (cell[1] / per_octave)
            tried[cell] = tokens.bits(dictionary, codes(atoms[cell[0]]), step)
        return tried[cell]

    first = {atoms.index(min(n, cap)) for n in _FIRST_ATOMS}
    best = min(((i, 0) for i in sorted(first, reverse=True)), key=bits)
    while True:
        i, j = best
        around = [(i + 1, j), (i, j + 1), (i - 1, j), (i, j - 1)]
        around += [(a, b) for a in (i + 1, i - 1) for b in (j + 1, j - 1)]
        allowed = [(a, b) for a, b in around if 0 <= a < len(atoms) and b in steps]
        shorter = next((cell for cell in allowed if bits(cell) < tried[best]), None)
        if shorter is None:
            break
        best = shorter
    found = Settings(atoms[best[0]], 2 ** (best[1] / per_octave), tried[best])
    if found.n_atoms == cap < largest or best[1] == steps[0]:
        raise NotEstimable(
            f"its shortest code has {found.n_atoms} atoms and a step of {found.step:g}, on the edge of the "
            "largest grid that is allowed, so that a shorter one may lie outside: raise baselines.most_atoms"
        )
    return min(dense, found, key=lambda one: one.bits)
