"""Every clause that a rule may be made of: one literal, or two that hold together often enough."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from sae_placebo.latents.rules.literals import (
    AFTER_LABEL,
    AFTER_SPELLED,
    AFTER_TOKEN,
    KINDS,
    SPELLED,
    TOKEN,
    Clause,
    Literal,
    LiteralTable,
)

_IMPLIED = 0.98
"""Two literals that hold together at this share of one of them say no more than that one."""
_ONE_FROM_THE_OTHER = {
    *((SPELLED, SPELLED), (TOKEN, SPELLED), (AFTER_SPELLED, AFTER_SPELLED)),
    *((AFTER_TOKEN, AFTER_SPELLED), (TOKEN, TOKEN), (AFTER_TOKEN, AFTER_TOKEN)),
    *((AFTER_LABEL, AFTER_LABEL), (AFTER_SPELLED, AFTER_LABEL), (AFTER_TOKEN, AFTER_LABEL)),
}
"""Kinds of literals of which no pair is a candidate: both are about the spelling of one token, or both about
the token before, of which one question is enough."""


@dataclass(frozen=True, eq=False, repr=False)
class Candidates:
    """The clauses that rules are made of, and the tokens of one text at which each holds.

    Attributes:
        clauses: The clauses; those of one literal come first.
        matrix: CSC [token, clause] of ones.
        counts: [clause] number of tokens at which it holds.
        bits: [clause] what it takes to name the clause: one bit for its number of literals, and the logarithm
            of how many clauses have as many.
    """

    clauses: tuple[Clause, ...]
    matrix: Any
    counts: Int64[np.ndarray, " clause"]
    bits: Float64[np.ndarray, " clause"]

    @classmethod
    def of(cls, table: LiteralTable, least: int) -> Candidates:
        """Return the clauses that hold at `least` tokens or more, and at half of them or fewer."""
        from scipy.sparse import hstack

        literals, single = _literals(table, least)
        counts = np.asarray(single.sum(axis=0), dtype=np.int64).ravel()
        kinds = np.array([literal.kind for literal in literals], dtype=np.int64)
        clauses: list[Clause] = [(literal,) for literal in literals]
        parts, numbers = [single.tocsc()], [counts]
        for pair in combinations_with_replacement(range(KINDS), 2):
            of = [np.flatnonzero(kinds == kind) for kind in pair]
            if pair in _ONE_FROM_THE_OTHER or not len(of[0]) or not len(of[1]):
                continue
            first, second, both = _together(single, of[0], of[1], counts, least)
            parts.append(both)
            numbers.append(np.diff(both.indptr).astype(np.int64))
            clauses += [(literals[i], literals[j]) for i, j in zip(first, second, strict=True)]
        n_single, n_pairs = len(literals), len(clauses) - len(literals)
        sizes = np.repeat([n_single, n_pairs], [n_single, n_pairs])
        matrix = hstack(parts, format="csc")
        return cls(tuple(clauses), matrix, np.concatenate(numbers), 1 + np.log2(sizes))


def _literals(table: LiteralTable, least: int) -> tuple[list[Literal], Any]:
    """Return the literals that hold often enough, and the tokens at which they hold: CSR [token, literal]."""
    from scipy.sparse import csr_matrix

    literals: list[Literal] = []
    tokens, columns = [], []
    for kind in range(KINDS):
        token, value = table.true(kind)
        values, which, counts = np.unique(value, return_inverse=True, return_counts=True)
        kept = (counts >= least) & (counts <= len(table) // 2)
        number = np.where(kept, len(literals) + np.cumsum(kept) - 1, -1)[which]
        literals += [Literal(kind, int(value)) for value in values[kept]]
        tokens.append(token[number >= 0])
        columns.append(number[number >= 0])
    place = np.concatenate(tokens), np.concatenate(columns)
    ones = np.ones(len(place[0]), dtype=np.int32)
    single = csr_matrix((ones, place), shape=(len(table), len(literals)))
    single.sort_indices()
    return literals, single


def _together(
    single: Any,
    first: Int64[np.ndarray, " left"],
    second: Int64[np.ndarray, " right"],
    counts: Int64[np.ndarray, " literal"],
    least: int,
) -> tuple[Int64[np.ndarray, " pair"], Int64[np.ndarray, " pair"], Any]:
    """Return the pairs of literals of two kinds that hold together, and where: CSC [token, pair]."""
    from scipy.sparse import csc_matrix

    left, right = single[:, first], single[:, second]
    n_left, n_right = np.diff(left.indptr), np.diff(right.indptr)
    token = np.repeat(np.arange(single.shape[0]), n_left * n_right)
    i = np.repeat(left.indices, np.repeat(n_right, n_left)).astype(np.int64)
    run, start = np.repeat(n_right, n_left), np.repeat(right.indptr[:-1], n_left)
    j = right.indices[np.repeat(start - np.cumsum(run) + run, run) + np.arange(run.sum())]
    key = i * len(second) + j
    if first is second or np.array_equal(first, second):
        token, key = token[i < j], key[i < j]
    together = np.bincount(key, minlength=len(first) * len(second))
    pairs = np.flatnonzero(together >= least)
    a, b = first[pairs // len(second)], second[pairs % len(second)]
    says_more = together[pairs] < _IMPLIED * np.minimum(counts[a], counts[b])
    pairs, a, b = pairs[says_more], a[says_more], b[says_more]
    column = np.full(len(together), -1)
    column[pairs] = np.arange(len(pairs))
    column = column[key]
    token, column = token[column >= 0], column[column >= 0]
    ones = np.ones(len(token), dtype=np.int32)
    return a, b, csc_matrix((ones, (token, column)), shape=(single.shape[0], len(pairs)))
