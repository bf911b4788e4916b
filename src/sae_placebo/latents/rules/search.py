"""The search for a rule: clauses are added as long as each saves more bits than it takes to name it."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from sae_placebo.latents.rules.candidates import Candidates

Packed = UInt64[np.ndarray, "... word"]
"""It says which tokens are meant, 64 to a word."""


def packed(tokens: np.ndarray) -> Packed:
    """Return booleans [..., token] as words; what is left of the last word is False."""
    n = tokens.shape[-1]
    room = [(0, 0)] * (tokens.ndim - 1) + [(0, -n % 64)]
    return np.packbits(np.pad(tokens, room), axis=-1).view(np.uint64)


def count(tokens: Packed) -> Any:
    """Return how many tokens are True."""
    return np.bitwise_count(tokens).sum(axis=-1, dtype=np.int64)


def code_length(n: Any, fires: Any) -> Any:
    """Return the bits that it takes to say at which `fires` of `n` tokens a latent fires.

    It is n times the entropy of the share, which is the code length of independent draws at that rate.
    """
    n, fires = np.asarray(n, dtype=np.float64), np.asarray(fires, dtype=np.float64)
    silent = n - fires
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -fires * np.log2(fires / n) - silent * np.log2(silent / n)
    return np.where((fires > 0) & (silent > 0), bits, 0.0)


def shortlist(
    candidates: Candidates, fires: Any, size: int
) -> list[tuple[Int64[np.ndarray, " clause"], int]]:
    """Return, for each latent, the clauses that save most bits alone, and how often the latent fires.

    Args:
        candidates: The clauses.
        fires: CSC [token, latent] of ones: where each latent fires.
        size: The most clauses of a latent.
    """
    both = (candidates.matrix.T.tocsr() @ fires.tocsr()).tocsc()
    n, totals = fires.shape[0], np.diff(fires.indptr)
    found = []
    for latent, total in enumerate(totals):
        part = slice(both.indptr[latent], both.indptr[latent + 1])
        clause, hits = both.indices[part].astype(np.int64), both.data[part]
        held = candidates.counts[clause]
        saved = code_length(n, total) - candidates.bits[clause] - code_length(held, hits)
        saved -= code_length(n - held, total - hits)
        saved[hits * n <= held * total] = (
            0  # where it fires less than elsewhere, it is no sign of firing
        )
        best = np.argsort(-saved, kind="stable")[:size]
        found.append((clause[best[saved[best] > 0]], int(total)))
    return found


def greedy(
    where: UInt64[np.ndarray, "clause word"],
    bits: Float64[np.ndarray, " clause"],
    fires: UInt64[np.ndarray, " word"],
    n_tokens: int,
    most: int,
) -> list[int]:
    """Return the clauses whose union is the shortest description of where a latent fires, in order.

    Tokens in the union are told from those outside; within each of both a latent fires at one rate. The next
    clause is the one with which the code of the firings, and its own name, are shortest; it is taken as long
    as that is shorter than without it.

    Args:
        where: Tokens at which each clause holds.
        bits: What it takes to name each.
        fires: Tokens at which the latent fires.
        n_tokens: Number of tokens.
        most: The most clauses.
    """
    total = int(count(fires))
    outside = ~np.zeros(where.shape[1], dtype=np.uint64)
    chosen: list[int] = []
    named, hits = 0, 0
    shortest = float(code_length(n_tokens, total))
    while len(chosen) < most:
        new = where & outside
        with_it, hits_with = named + count(new), hits + count(new & fires)
        lengths = code_length(with_it, hits_with) + bits
        lengths += code_length(n_tokens - with_it, total - hits_with)
        best = int(np.argmin(lengths))
        if lengths[best] >= shortest:
            break
        chosen.append(best)
        named, hits = int(with_it[best]), int(hits_with[best])
        shortest = float(lengths[best] - bits[best])
        outside &= ~where[best]
    return chosen
