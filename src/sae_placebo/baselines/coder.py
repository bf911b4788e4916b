"""A range coder that writes the symbols of `bits`, and reads them back.

The lengths that are reported are -log2 of probabilities. A range coder reaches them except for the rounding
of probabilities to 24 bits and for the last word. This module is the proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Integer, UInt32

from sae_placebo.baselines.bits import (
    ESCAPE,
    LIMIT,
    CodeModel,
    Histograms,
    IndexModel,
    Quantized,
    slots,
)
from sae_placebo.core.errors import NotEstimable

_SURE = 1e-7
"""Distance that probabilities keep from 0 and 1, since the coder's own resolution is 2^-24."""


def _stream() -> Any:
    """Return constriction's module of stream codes.

    Raises:
        NotEstimable: constriction is not installed.
    """
    try:
        import constriction
    except ImportError:
        raise NotEstimable(
            "the range coder needs constriction; install it with: pip install 'sae-placebo[baselines]'"
        ) from None
    return constriction.stream


@dataclass(frozen=True, eq=False)
class Message:
    """A message that holds tokens.

    Attributes:
        words: The words that the range coder wrote.
        n_tokens: How many tokens the message holds.
        n_components: How many components a token's residual has.
    """

    words: UInt32[np.ndarray, " word"]
    n_tokens: int
    n_components: int

    @property
    def bits(self) -> int:
        """The length of the message in bits."""
        return 32 * len(self.words)


def encode(
    model: CodeModel, codes: Quantized, residual: Integer[np.ndarray, "token component"]
) -> Message:
    """Return the message that holds these tokens.

    Args:
        model: The probabilities that sender and receiver share.
        codes: The tokens' sparse codes.
        residual: The tokens' residuals in whole steps.

    Raises:
        NotEstimable: constriction is not installed.
    """
    stream = _stream()
    coder = stream.queue.RangeEncoder()
    n = len(codes.counts)
    _write(coder, stream, model.counts, codes.counts, np.zeros(n, dtype=np.int64))
    if codes.n_atoms:
        included, chances = _inclusions(model.index, codes)
        coder.encode(included.astype(np.int32), stream.model.Bernoulli(perfect=False), chances)
    _write(coder, stream, model.values, codes.levels, model.value_context[codes.atoms])
    contexts = np.tile(model.residual_context, n)
    _write(coder, stream, model.residual, residual.ravel().astype(np.int64), contexts)
    return Message(coder.get_compressed(), n, residual.shape[1])


def decode(
    model: CodeModel, message: Message
) -> tuple[Quantized, Int64[np.ndarray, "token component"]]:
    """Return the sparse codes and the residuals of the tokens that a message holds.

    Raises:
        NotEstimable: constriction is not installed.
    """
    stream = _stream()
    coder = stream.queue.RangeDecoder(message.words)
    n = message.n_tokens
    counts = _read(coder, stream, model.counts, np.zeros(n, dtype=np.int64))
    atoms = _read_atoms(coder, stream, model.index, counts)
    levels = _read(coder, stream, model.values, model.value_context[atoms])
    contexts = np.tile(model.residual_context, n)
    residual = _read(coder, stream, model.residual, contexts)
    codes = Quantized(counts, atoms, levels, len(model.index.log_odds))
    return codes, residual.reshape(n, message.n_components)


def _inclusions(
    model: IndexModel, codes: Quantized
) -> tuple[Int64[np.ndarray, " decision"], Float[np.ndarray, " decision"]]:
    """Return for each token and atom, in order, whether the atom is used and how likely that was.

    Atoms behind a token's last one are left out, since the receiver knows how many atoms there are.
    """
    n, n_atoms = len(codes.counts), codes.n_atoms
    used = np.zeros((n, n_atoms), dtype=np.int64)
    used[codes.owners, codes.atoms] = 1
    to_come = codes.counts[:, None] - np.cumsum(used, axis=1) + used
    token, atom = np.nonzero(to_come > 0)
    chances = _chances(model, int(codes.counts.max(initial=0)))
    return used[token, atom], chances[atom, to_come[token, atom]]


def _chances(model: IndexModel, largest: int) -> Float[np.ndarray, "atom size_plus_one"]:
    """Return at [j, r] the probability that atom j is used, given that r of atom j and later ones are.

    Sender and receiver compute the whole table in the same way, so that its last bits agree.
    """
    sums = model.suffix_sums(largest)
    with np.errstate(invalid="ignore"):  # more atoms to come than there are
        log = model.log_odds[:, None] + sums[1:, :-1] - sums[:-1, 1:]
    found = np.zeros((len(model.log_odds), largest + 1))
    found[:, 1:] = np.exp(np.minimum(np.nan_to_num(log), 0))
    return np.clip(found, _SURE, 1 - _SURE)


def _read_atoms(
    coder: Any, stream: Any, model: IndexModel, counts: Int64[np.ndarray, " token"]
) -> Int64[np.ndarray, " entry"]:
    """Return the atoms of all tokens, which have as many as `counts` says."""
    chances = _chances(model, int(counts.max(initial=0)))
    atoms = []
    for count in counts:
        left, j = int(count), 0
        while left:
            used = stream.model.Bernoulli(float(chances[j, left]), perfect=False)
            if coder.decode(used):
                atoms.append(j)
                left -= 1
            j += 1
    return np.array(atoms, dtype=np.int64)


def _write(
    coder: Any,
    stream: Any,
    model: Histograms,
    symbols: Int64[np.ndarray, " entry"],
    contexts: Int64[np.ndarray, " entry"],
) -> None:
    """Write integers context by context, each context followed by what was escaped in it."""
    for context in np.unique(contexts).tolist():
        part = symbols[contexts == context]
        columns = slots(part).astype(np.int32)
        table = stream.model.Categorical(_probabilities(model, context), perfect=False)
        coder.encode(columns, table)
        fair = stream.model.Uniform(2)
        for symbol in part[columns == ESCAPE]:
            excess = abs(int(symbol)) - LIMIT
            # Elias gamma: as many zeros as there are digits behind the first, then the digits
            digits = [int(digit) for digit in f"{excess:b}"]
            bits = [int(symbol < 0), *[0] * (len(digits) - 1), *digits]
            coder.encode(np.array(bits, dtype=np.int32), fair)


def _read(
    coder: Any, stream: Any, model: Histograms, contexts: Int64[np.ndarray, " entry"]
) -> Int64[np.ndarray, " entry"]:
    """Return the integers that `_write` wrote in these contexts."""
    integers = np.zeros(len(contexts), dtype=np.int64)
    fair = stream.model.Uniform(2)
    for context in np.unique(contexts).tolist():
        places = np.flatnonzero(contexts == context)
        table = stream.model.Categorical(_probabilities(model, context), perfect=False)
        columns = coder.decode(table, len(places)).astype(np.int64)
        symbols = columns - LIMIT
        for i in np.flatnonzero(columns == ESCAPE):
            sign = -1 if coder.decode(fair) else 1
            n_digits = 1
            while not coder.decode(fair):
                n_digits += 1
            excess = 1
            for _ in range(n_digits - 1):
                excess = 2 * excess + int(coder.decode(fair))
            symbols[i] = sign * (excess + LIMIT)
        integers[places] = symbols
    return integers


def _probabilities(model: Histograms, context: int) -> Float[np.ndarray, " symbol"]:
    row: Float[np.ndarray, " symbol"] = model.table[context].astype(np.float32)
    return row
