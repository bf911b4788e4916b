"""Whether what came before decides on which occurrences of its token a latent fires."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from sae_placebo.latents.base import Columns, Encoded, Folds
from sae_placebo.latents.columns.bags import decayed_bags, standardized
from sae_placebo.latents.latent_blocks import on_every_fold
from sae_placebo.stats.fits import choose_ridge

FEWEST = 20
"""Occurrences of the token that are needed to fit on, to choose on and to score on, each."""
_MOST = 1_024
_PENALTIES = (0.01, 0.1, 1.0, math.inf)
"""With the last one the bag is not read, and the mean is left, where no other does better."""


def in_context(
    reading: Encoded,
    folds: Folds,
    embeddings: Float[np.ndarray, "vocabulary d_embed"] | None = None,
    least_mass: float = 0.5,
) -> Columns:
    """Return how much more of a latent a bag of previous tokens explains on the latent's own token.

    Columns:
        context_gain: The sum of squares that the mean activation on the token leaves, less the sum that a
            ridge regression on decayed bags of previous tokens leaves, as a share of the sum of squares of
            a around its mean over all tokens. The first two sums are over the occurrences of the token that
            most of the activation is on, and all are over the documents that serve to score. It is
            R2(w, context) - R2(w) of a predictor whose context works on that token alone; a sum of a lookup
            and a bag, as in the ladder, cannot be selective for both. Null 0, and somewhat below it, since
            nothing is gained by fitting noise. NaN for latents with less than `least_mass` of their
            activation on one token, and for tokens that occur fewer than 20 times in a part of the
            documents. It is repeated on every fold, not estimated again.

    Args:
        reading: The SAE and its tokens.
        folds: Which documents are fitted, chosen and scored on.
        embeddings: Row of each token id, for the bag; None for fixed random rows.
        least_mass: Share of a latent's activation that one token must hold.

    Source: the definition is ours; bags are those of `decayed_bags`.
    """
    tops, mass = _top_tokens(reading)
    gain = np.full(reading.d_sae, np.nan)
    wanted = np.flatnonzero(mass >= least_mass)
    purposes = folds.purposes[reading.tokens.documents]
    places = _occurrences(reading, purposes, np.unique(tops[wanted]))
    if places:
        needed = np.unique(np.concatenate([part for parts, _ in places.values() for part in parts]))
        bags = decayed_bags(reading.tokens, needed, embeddings)
    for token, (parts, each) in places.items():
        read = [bags[np.searchsorted(needed, part)].astype(np.float64) for part in parts]
        latents = wanted[tops[wanted] == token]
        gain[latents] = each * _gains(parts, read, reading.by_latent[:, latents], purposes)
    return {"context_gain": on_every_fold(gain, folds)}


def _occurrences(
    reading: Encoded, purposes: Int64[np.ndarray, " token"], wanted: Int64[np.ndarray, " id"]
) -> dict[int, tuple[list[Int64[np.ndarray, " _"]], float]]:
    """Return where each token id that occurs often enough occurs, by purpose, and a weight.

    At most 1,024 occurrences of each purpose are taken, at even steps; the weight is the number of
    occurrences that each of the scored ones stands for.
    """
    by_id = np.argsort(reading.tokens.ids, kind="stable")
    ids = reading.tokens.ids[by_id]
    places = {}
    for token in wanted:
        begin, end = np.searchsorted(ids, [token, token + 1])
        at = by_id[begin:end]
        parts = [at[purposes[at] == purpose] for purpose in range(3)]
        if min(len(part) for part in parts) >= FEWEST:
            kept = [np.sort(part[:: -(-len(part) // _MOST)]) for part in parts]
            places[int(token)] = (kept, len(parts[2]) / len(kept[2]))
    return places


def _top_tokens(
    reading: Encoded,
) -> tuple[Int64[np.ndarray, " latent"], Float64[np.ndarray, " latent"]]:
    """Return the token id that holds most of each latent's activation, and the share that it holds."""
    codes = reading.by_latent
    ids = reading.tokens.ids
    top = np.full(reading.d_sae, -1, dtype=np.int64)
    mass = np.zeros(reading.d_sae)
    for latent in np.flatnonzero(np.diff(codes.indptr)):
        part = slice(codes.indptr[latent], codes.indptr[latent + 1])
        sums = np.bincount(ids[codes.indices[part]], codes.data[part])
        top[latent] = sums.argmax()
        mass[latent] = sums[top[latent]] / sums.sum()
    return top, mass


def _gains(
    parts: list[Int64[np.ndarray, " _"]],
    bags: list[Float64[np.ndarray, "_ feature"]],
    columns: Any,
    purposes: Int64[np.ndarray, " token"],
) -> Float[np.ndarray, " candidate"]:
    """Return what the bag takes off each latent's squared error, as a share of its sum of squares."""
    features = standardized(bags)
    y = [columns[part].toarray().astype(np.float64) for part in parts]
    means = y[0].mean(0)
    gram = features[0].T @ features[0]
    target = features[0].T @ (y[0] - means)
    weights = choose_ridge(
        gram,
        target,
        _PENALTIES,
        lambda tried: ((y[1] - means - features[1] @ tried) ** 2).sum(0),
        unit=len(y[0]),
    ).weights
    left = ((y[2] - means) ** 2).sum(0) - ((y[2] - means - features[2] @ weights) ** 2).sum(0)
    # on one token a sample may stand for all its occurrences; the rest of the text may not
    spread = _sum_of_squares(columns, purposes)
    return np.where(spread > 0, left / np.where(spread > 0, spread, 1), np.nan)


def _sum_of_squares(
    columns: Any, purposes: Int64[np.ndarray, " token"]
) -> Float64[np.ndarray, " candidate"]:
    """Return the sum of squares around the mean over the tokens that serve to score."""
    n = int((purposes == 2).sum())
    owners = np.repeat(np.arange(columns.shape[1]), np.diff(columns.indptr))
    values = np.where(purposes[columns.indices] == 2, columns.data, 0).astype(np.float64)
    sums = np.bincount(owners, values, minlength=columns.shape[1])
    squares = np.bincount(owners, values**2, minlength=columns.shape[1])
    return np.asarray(squares - sums**2 / n)
