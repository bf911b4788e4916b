"""The tokens of a domain that predictions of its latents are fitted, chosen and scored on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64, Integer

from sae_placebo.latents.base import Encoded, Folds, TokenTable
from sae_placebo.latents.columns.bags import decayed_bags, standardized
from sae_placebo.latents.columns.domains import Domains
from sae_placebo.latents.columns.positions import position_bins
from sae_placebo.stats.ranking import auroc

FEWEST_POSITIVES = 20
"""Active tokens below which an AUC is not given, since its standard error would be above .065."""
_MOST_FITTED = 16_384
_MOST_SCORED = 16_384
_NEGATIVES = 512
_POSITIVES = 200

Entries = tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]
"""Pairs of a token and a candidate latent that is active there, as two arrays of one length."""


@dataclass(frozen=True, eq=False)
class Scene:
    """The tokens of one domain that predictors see, and what the predictors read there.

    Attributes:
        tokens: [purpose] the tokens that are fitted on, chosen on and scored on.
        places: [token] where a token is in `tokens` of its purpose; -1 where it is in none.
        purposes: [token] the purpose that the token serves.
        lookups: [purpose] [predictor, token] codes of the token's id, its previous id and its position.
        bags: [purpose] [token, feature] decayed bags, standardized on the fitted tokens, then a column
            of ones.
    """

    tokens: tuple[Int64[np.ndarray, " _"], ...]
    places: Integer[np.ndarray, " token"]
    purposes: Integer[np.ndarray, " token"]
    lookups: tuple[Int64[np.ndarray, "predictor _"], ...]
    bags: tuple[Float32[np.ndarray, "_ feature"], ...]


def scenes_of(
    tokens: TokenTable,
    folds: Folds,
    domains: Domains,
    wanted: Int64[np.ndarray, " domain"],
    embeddings: Float[np.ndarray, "vocabulary d_embed"] | None,
) -> dict[int, Scene]:
    """Return the scene of each wanted domain, by the domain's index.

    At most 16,384 tokens of a domain are fitted on, 8,192 chosen on and 16,384 scored, at even steps.
    """
    purposes = folds.purposes[tokens.documents].astype(np.int8)
    most = (_MOST_FITTED, _MOST_FITTED // 2, _MOST_SCORED)
    chosen = {
        int(domain): tuple(
            _even_steps(np.flatnonzero(domains.members[:, domain] & (purposes == purpose)), n)
            for purpose, n in enumerate(most)
        )
        for domain in wanted
    }
    if not chosen:
        return {}
    needed = np.unique(np.concatenate([part for parts in chosen.values() for part in parts]))
    bags = decayed_bags(tokens, needed, embeddings)
    codes = np.stack(
        [
            np.unique(tokens.ids, return_inverse=True)[1],
            np.unique(tokens.previous, return_inverse=True)[1],
            position_bins(tokens.positions),
        ]
    ).astype(np.int64)
    return {
        domain: _scene(parts, purposes, codes, needed, bags) for domain, parts in chosen.items()
    }


def _even_steps(tokens: Int64[np.ndarray, " all"], most: int) -> Int64[np.ndarray, " kept"]:
    if len(tokens) <= most:
        return tokens
    return tokens[np.linspace(0, len(tokens) - 1, most).astype(np.int64)]


def _scene(
    parts: tuple[Int64[np.ndarray, " _"], ...],
    purposes: Integer[np.ndarray, " token"],
    codes: Int64[np.ndarray, "predictor token"],
    needed: Int64[np.ndarray, " needed"],
    bags: Float32[np.ndarray, "needed feature"],
) -> Scene:
    places = np.full(len(purposes), -1, dtype=np.int32)
    for part in parts:
        places[part] = np.arange(len(part))
    features = tuple(
        np.hstack([bag, np.ones((len(bag), 1), np.float32)])
        for bag in standardized([bags[np.searchsorted(needed, part)] for part in parts])
    )
    return Scene(parts, places, purposes, tuple(codes[:, part] for part in parts), features)


def entries_of(
    reading: Encoded, scene: Scene, latents: Int64[np.ndarray, " candidate"], purpose: int
) -> Entries:
    """Return where candidates are active among a scene's tokens of one purpose.

    Tokens are counted in `Scene.tokens` of that purpose, candidates in `latents`.
    """
    codes = reading.by_latent
    bounds = codes.indptr.astype(np.int64)
    tokens = np.concatenate([codes.indices[bounds[i] : bounds[i + 1]] for i in latents])
    owners = np.repeat(np.arange(len(latents)), bounds[latents + 1] - bounds[latents])
    kept = (scene.places[tokens] >= 0) & (scene.purposes[tokens] == purpose)
    return scene.places[tokens[kept]].astype(np.int64), owners[kept]


@dataclass(frozen=True, eq=False)
class Judged:
    """The scored tokens of a scene at which predictions about its latents are judged.

    Attributes:
        positives: Token and candidate: at most 200 active tokens of each candidate, one candidate after
            the other.
        negatives: Tokens, the same for all candidates.
        taken: Place among the negatives and candidate, where the candidate is active and the token is
            therefore no negative of it.
    """

    positives: Entries
    negatives: Int64[np.ndarray, " negative"]
    taken: Entries


def judged_on(reading: Encoded, scene: Scene, latents: Int64[np.ndarray, " candidate"]) -> Judged:
    """Return the tokens that every predictor of these latents is judged on, whatever it reads."""
    active = entries_of(reading, scene, latents, 2)
    negatives = _even_steps(np.arange(len(scene.tokens[2])), _NEGATIVES)
    # an active token is no negative
    spot = np.full(len(scene.tokens[2]), -1, dtype=np.int64)
    spot[negatives] = np.arange(len(negatives))
    drawn = spot[active[0]] >= 0
    taken = (spot[active[0][drawn]], active[1][drawn])
    return Judged(_fewer(active, len(latents)), negatives, taken)


def _fewer(entries: Entries, n: int) -> Entries:
    """Return at most 200 entries of each candidate, at even steps, one candidate after the other."""
    tokens, owners = entries
    counts = np.bincount(owners, minlength=n)
    firsts = np.cumsum(counts) - counts
    rank = np.arange(len(owners)) - firsts[owners]
    share = np.minimum(1, _POSITIVES / np.maximum(counts, 1))[owners]
    kept = np.floor((rank + 1) * share) > np.floor(rank * share)
    return tokens[kept], owners[kept]


def auc_by_column(
    negatives: Float32[np.ndarray, "negative candidate"],
    positives: Float32[np.ndarray, " entry"],
    taken: Entries,
    owners: Int64[np.ndarray, " entry"],
    n: int,
) -> Float[np.ndarray, " candidate"]:
    """Return the AUROC of each candidate's own positives against negatives that all candidates share.

    It is NaN for a candidate with fewer than 20 positives or 20 negatives.

    Args:
        negatives: Scores of a sample of tokens.
        positives: Scores of the candidates' active tokens.
        taken: Which of the sample, by candidate, are active and so no negatives.
        owners: Candidate of each positive, ascending.
        n: Number of candidates.
    """
    kept = np.ones(negatives.shape, dtype=bool)
    kept[taken] = False
    # candidate after candidate
    low = negatives.T[kept.T]
    ends = np.cumsum(kept.sum(axis=0))
    bounds = np.searchsorted(owners, np.arange(n + 1))
    places = np.arange(len(negatives) + np.diff(bounds).max(initial=0))
    aucs = np.full(n, np.nan)
    for candidate in range(n):
        above = positives[bounds[candidate] : bounds[candidate + 1]]
        below = low[ends[candidate - 1] if candidate else 0 : ends[candidate]]
        if min(len(above), len(below)) >= FEWEST_POSITIVES:
            scores = np.concatenate([below, above])
            aucs[candidate] = auroc(scores, places[: len(scores)] >= len(below))
    return aucs
