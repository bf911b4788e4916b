"""Code lengths in bits, under probabilities that were fitted on other documents.

A token is sent in four parts: how many atoms it uses, which ones, their quantized coefficients, and the
quantized residual. Every model in this module is a table of probabilities, and the length of a symbol is
-log2 of its probability. Module `coder` writes the same symbols by the same tables with a range coder.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64, Integer, Num

from sae_placebo.baselines.pursuit import AtomCodes

LIMIT = 255
"""Largest absolute integer with a symbol of its own. Larger ones are sent as an escape symbol, a sign, and
the Elias gamma code of the excess."""
ESCAPE = 2 * LIMIT + 1
"""Column of the escape symbol in a table of probabilities."""
_PRIOR = 4.0
"""Symbols that the parametric prior of a histogram counts for."""
_FLOOR = 1e-3
"""Share of the prior that is spread evenly over symbols, so that none is impossible."""
_SMOOTHING = (0.01, 0.05, 0.2, 0.5)
"""Occurrences that may be added to each atom's; the number that codes half of the tokens best is taken."""
_CONTEXTS = 40
"""Classes of scale, half an octave each; the first and the last also take what is smaller or larger."""
_LOWEST = -16
"""The first class's scale, in half octaves."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """A sparse code in integers. A token's atoms are in ascending order; those at 0 are left out.

    Attributes:
        counts: How many atoms each token uses.
        atoms: The atoms of all tokens, one token after the other.
        levels: The coefficient of each of these atoms, in steps of the quantizer; never 0.
        n_atoms: How many atoms the dictionary has.
    """

    counts: Int64[np.ndarray, " token"]
    atoms: Int64[np.ndarray, " entry"]
    levels: Int64[np.ndarray, " entry"]
    n_atoms: int

    @property
    def owners(self) -> Int64[np.ndarray, " entry"]:
        """The token that each entry of `atoms` and `levels` belongs to."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def first(self, n: int) -> Quantized:
        """Return the code of the first n tokens."""
        end = int(self.counts[:n].sum())
        return Quantized(self.counts[:n], self.atoms[:end], self.levels[:end], self.n_atoms)

    def decode(
        self, directions: Float[np.ndarray, "atom d_in"], step: float
    ) -> Float[np.ndarray, "token d_in"]:
        """Return what the receiver rebuilds from the code, with coefficients of `step` times their level."""
        from scipy.sparse import csr_matrix

        if not self.n_atoms:
            return np.zeros((len(self.counts), directions.shape[1]), dtype=np.float32)
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        values = (self.levels * step).astype(np.float32)
        shape = (len(self.counts), self.n_atoms)
        matrix = csr_matrix((values, self.atoms, ends), shape=shape)
        decoded: Float[np.ndarray, "token d_in"] = matrix @ directions
        return decoded


def quantize(codes: AtomCodes, step: float) -> Quantized:
    """Return the code with its coefficients rounded to whole steps; those that round to 0 are not sent."""
    levels = np.rint(codes.values / step).astype(np.int64)
    token, slot = np.nonzero(levels)
    atoms = codes.atoms[token, slot].astype(np.int64)
    order = np.lexsort((atoms, token))
    counts = np.bincount(token, minlength=len(levels)).astype(np.int64)
    return Quantized(counts, atoms[order], levels[token, slot][order], codes.n_atoms)


@dataclass(frozen=True, eq=False)
class Histograms:
    """Probabilities of integers in each context.

    Attributes:
        table: Probabilities of the integers from -255 to 255 and, in the last column, of the escape.
    """

    table: Float[np.ndarray, "context symbol"]

    @classmethod
    def fit(
        cls,
        symbols: Integer[np.ndarray, " entry"],
        contexts: Integer[np.ndarray, " entry"],
        n_contexts: int,
        zero: bool = True,
    ) -> Histograms:
        """Return the integers' frequencies, shrunk towards a two-sided geometric distribution.

        The prior of a context has the mean absolute value of the integers there.

        Args:
            symbols: The integers that frequencies are taken from.
            contexts: The context of each.
            n_contexts: How many contexts there are. One without any integer keeps the prior, with a mean
                absolute value of 1.
            zero: Whether 0 can occur.
        """
        n = 2 * LIMIT + 2
        flat = contexts.astype(np.int64) * n + slots(symbols)
        counts = np.bincount(flat, minlength=n_contexts * n).reshape(n_contexts, n)
        size = np.bincount(contexts, weights=np.abs(symbols), minlength=n_contexts)
        return cls.of_counts(counts, size, zero)

    @classmethod
    def of_counts(
        cls,
        counts: Num[np.ndarray, "context symbol"],
        size: Num[np.ndarray, " context"],
        zero: bool = True,
    ) -> Histograms:
        """Return what `fit` does, from how often each integer occurs and their summed absolute values."""
        seen = counts.sum(axis=1)
        mean = np.where(seen > 0, (size + 0.1) / np.maximum(seen, 1), 1.0)
        decay = mean / (1 + mean)
        values = np.abs(np.arange(-LIMIT, LIMIT + 1))
        prior = np.concatenate([decay[:, None] ** values, decay[:, None] ** (LIMIT + 1)], axis=1)
        prior = prior / prior.sum(axis=1, keepdims=True) * (1 - _FLOOR) + _FLOOR / counts.shape[1]
        if not zero:
            prior[:, LIMIT] = 0
            prior /= prior.sum(axis=1, keepdims=True)
        return cls((counts + _PRIOR * prior) / (seen + _PRIOR)[:, None])

    def lengths(
        self, symbols: Integer[np.ndarray, " entry"], contexts: Integer[np.ndarray, " entry"]
    ) -> Float[np.ndarray, " entry"]:
        """Return the length of each integer in bits."""
        columns = slots(symbols)
        with np.errstate(divide="ignore"):  # 0 where it cannot occur
            table = -np.log2(self.table)
        bits: Float[np.ndarray, " entry"] = table[contexts, columns]
        escaped = columns == ESCAPE
        if escaped.any():
            excess = np.abs(symbols[escaped]) - LIMIT
            bits[escaped] += 2 + 2 * np.floor(np.log2(excess))
        return bits


def slots(symbols: Integer[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
    """Return the column of each integer in a table of probabilities."""
    plain = np.clip(symbols, -LIMIT, LIMIT) + LIMIT
    columns: Int64[np.ndarray, "*shape"] = np.where(np.abs(symbols) > LIMIT, ESCAPE, plain).astype(
        np.int64
    )
    return columns


def context_counts(
    residual: Int64[np.ndarray, "token component"], contexts: Int64[np.ndarray, " component"]
) -> Int64[np.ndarray, "context symbol"]:
    """Return how often each integer occurs in each context; the last column counts the escapes."""
    n = 2 * LIMIT + 2
    if residual.size and max(residual.max(), -residual.min()) > LIMIT:
        columns = slots(residual) + n * contexts
    else:
        columns = residual + (LIMIT + n * contexts)
    return np.bincount(columns.ravel(), minlength=n * _CONTEXTS).reshape(_CONTEXTS, n)


def scale_context(scale: Float[np.ndarray, " item"]) -> Int64[np.ndarray, " item"]:
    """Return the class that each scale falls into, which is its context; classes are half an octave wide.

    Args:
        scale: Sizes in steps of the quantizer.
    """
    octave = np.rint(2 * np.log2(np.maximum(scale, 1e-9))).astype(np.int64)
    classes: Int64[np.ndarray, " item"] = np.clip(octave - _LOWEST, 0, _CONTEXTS - 1)
    return classes


@dataclass(frozen=True, eq=False)
class IndexModel:
    """The probability of the set of atoms that a token uses, given how many it uses.

    Atoms are taken to be drawn independently, under the condition that there are s of them. The probability
    of a set is then the product of its atoms' odds over the sum of such products over all sets of s atoms.
    So no bits are spent on an order of the atoms.

    Attributes:
        log_odds: Natural logarithm of each atom's odds.
    """

    log_odds: Float[np.ndarray, " atom"]

    @classmethod
    def fit(cls, codes: Quantized) -> IndexModel:
        """Return the model with the odds of the atoms' smoothed frequencies.

        The smoothing is the one that gives every second token the shortest code under the frequencies of
        the others. The frequencies that are used in the end are those of all tokens.
        """
        if not codes.n_atoms:
            return cls(np.zeros(0))
        even = codes.owners % 2 == 0
        n_even, n_odd = (len(codes.counts) + 1) // 2, len(codes.counts) // 2
        learn = np.bincount(codes.atoms[even], minlength=codes.n_atoms)
        check = np.bincount(codes.atoms[~even], minlength=codes.n_atoms)
        lengths = []
        for extra in _SMOOTHING:
            rate = _rates(learn, n_even, extra)
            lengths.append(-(check * np.log(rate) + (n_odd - check) * np.log1p(-rate)).sum())
        extra = _SMOOTHING[int(np.argmin(lengths))]
        rate = _rates(learn + check, len(codes.counts), extra)
        return cls(np.log(rate) - np.log1p(-rate))

    def suffix_sums(self, largest: int) -> Float[np.ndarray, "atom_plus_one size_plus_one"]:
        """Return at [j, r] the log of the summed odds of all sets of r atoms among atom j and later ones.

        Args:
            largest: The largest r.
        """
        sums = np.full((len(self.log_odds) + 1, largest + 1), -np.inf)
        sums[:, 0] = 0
        for j in range(len(self.log_odds) - 1, -1, -1):
            np.logaddexp(sums[j + 1, 1:], self.log_odds[j] + sums[j + 1, :-1], out=sums[j, 1:])
        return sums

    def lengths(self, codes: Quantized) -> Float[np.ndarray, " token"]:
        """Return the length in bits of each token's set of atoms, given its size."""
        if not codes.n_atoms:
            return np.zeros(len(codes.counts))
        largest = int(codes.counts.max(initial=0))
        sums = np.full(largest + 1, -np.inf)
        sums[0] = 0
        # as in `suffix_sums`, of which the first row alone is needed
        for log_odds in self.log_odds[::-1]:
            sums[1:] = np.logaddexp(sums[1:], log_odds + sums[:-1])
        log_odds_of_set = np.bincount(
            codes.owners, weights=self.log_odds[codes.atoms], minlength=len(codes.counts)
        )
        bits: Float[np.ndarray, " token"] = (sums[codes.counts] - log_odds_of_set) / np.log(2)
        return bits


def _rates(
    counts: Integer[np.ndarray, " atom"], n_tokens: int, extra: float
) -> Float[np.ndarray, " atom"]:
    return (counts + extra) / (n_tokens + 2 * extra)


@dataclass(frozen=True, eq=False)
class CodeModel:
    """All that sender and receiver agree on beforehand, except for the directions.

    Attributes:
        counts: Probabilities of the number of a token's atoms, in one context.
        index: Probabilities of the set of atoms.
        value_context: Context of each atom's coefficient.
        values: Probabilities of coefficients, in steps.
        residual_context: Context of each component of the residual.
        residual: Probabilities of the residual's components, in steps.
    """

    counts: Histograms
    index: IndexModel
    value_context: Int64[np.ndarray, " atom"]
    values: Histograms
    residual_context: Int64[np.ndarray, " component"]
    residual: Histograms

    @classmethod
    def fit(cls, codes: Quantized, residual: Integer[np.ndarray, "token component"]) -> CodeModel:
        """Return the model that is fitted on tokens.

        The context of a coefficient is the class of its atom's mean size, shrunk towards that of all atoms
        by two tokens. The context of a component of the residual is the class of its root mean square.

        Args:
            codes: The tokens' sparse codes.
            residual: The tokens' residuals in whole steps.
        """
        sizes = np.abs(codes.levels)
        seen = np.bincount(codes.atoms, minlength=codes.n_atoms)
        total = np.bincount(codes.atoms, weights=sizes, minlength=codes.n_atoms)
        overall = float(sizes.mean()) if len(sizes) else 1.0
        value_context = scale_context((total + 2 * overall) / (seen + 2))
        squares = np.einsum("tc,tc->c", residual, residual, dtype=np.float64)
        residual_context = scale_context(np.sqrt(squares / max(len(residual), 1) + 1e-9))
        table = context_counts(residual, residual_context)
        integers = np.append(np.arange(-LIMIT, LIMIT + 1), LIMIT + 1)
        none = np.zeros(len(codes.counts), dtype=np.int64)
        return cls(
            Histograms.fit(codes.counts, none, 1),
            IndexModel.fit(codes),
            value_context,
            Histograms.fit(codes.levels, value_context[codes.atoms], _CONTEXTS, zero=False),
            residual_context,
            Histograms.of_counts(table, table @ np.abs(integers)),
        )

    def total(self, codes: Quantized, residual: Integer[np.ndarray, "token component"]) -> float:
        """Return the bits of all tokens together, less what tells the size of escaped residuals."""
        n = len(codes.counts)
        indices = self.counts.lengths(codes.counts, np.zeros(n, dtype=np.int64)).sum()
        indices += self.index.lengths(codes).sum()
        values = self.values.lengths(codes.levels, self.value_context[codes.atoms]).sum()
        rest = context_counts(residual, self.residual_context) * -np.log2(self.residual.table)
        return float(indices + values + rest.sum())

    def lengths(
        self, codes: Quantized, residual: Integer[np.ndarray, "token component"]
    ) -> Float[np.ndarray, "part token"]:
        """Return the bits of each token in three parts: indices with their number, values, residual."""
        n = len(codes.counts)
        indices = self.counts.lengths(codes.counts, np.zeros(n, dtype=np.int64))
        values = self.values.lengths(codes.levels, self.value_context[codes.atoms])
        contexts = np.tile(self.residual_context, n)
        rest = self.residual.lengths(residual.ravel(), contexts).reshape(n, -1).sum(axis=1)
        return np.stack(
            [
                indices + self.index.lengths(codes),
                np.bincount(codes.owners, weights=values, minlength=n),
                rest,
            ]
        )
