"""Latents that fire on a subset of a recognizable context, and whether anything simple says which."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.latents.base import Columns, Encoded, Folds
from sae_placebo.latents.classes.classification import ClassThresholds
from sae_placebo.latents.columns.domain_tokens import (
    Entries,
    Scene,
    auc_by_column,
    entries_of,
    judged_on,
    scenes_of,
)
from sae_placebo.latents.columns.domains import Domains
from sae_placebo.latents.latent_blocks import (
    latent_blocks,
    leave_out,
    on_every_fold,
    token_groups,
)
from sae_placebo.stats.fits import choose_ridge, squares_left

_PENALTIES = (0.003, 0.03, 0.3)
_CHUNK = 256


def subsets(
    reading: Encoded,
    folds: Folds,
    domains: Domains,
    thresholds: ClassThresholds | None = None,
    embeddings: Float[np.ndarray, "vocabulary d_embed"] | None = None,
) -> Columns:
    """Return how much of each latent lies in one domain, and how predictable its tokens are there.

    Columns:
        domain_precision: P(C | a > 0). C is the domain with the highest recall among those whose
            precision is at least the threshold `domain_precision`, or the domain with the highest precision
            where there is none of these. Null: C's share of the tokens, which is 0.4 at most.
        domain_recall: P(a > 0 | C). Null: the latent's density.
        domain_auc: The highest AUC, inside C, with which a > 0 is predicted by one of four predictors: a
            lookup of the current token, of the previous token, or of the position, and a ridge regression
            on a decayed bag of previous tokens. Predictors are fitted on the documents that serve to fit,
            the penalty is chosen on those that serve to choose, and the AUC is taken on those that serve
            to score. Null .5; the highest of four is somewhat above it, .56 or so for 20 active tokens,
            which keeps latents out of the class. It is given only for latents within the limits on
            precision and recall that are active on at least 20 of the scored tokens, and is NaN for
            others. It is repeated on every fold, not estimated again.

    The domain is chosen on all documents. At most 16,384 of a domain's tokens are fitted on and as many
    scored, at even steps; at most 200 active ones are scored against 512 others. The bag is that of
    `decayed_bags`.

    Args:
        reading: The SAE and its tokens.
        folds: Groups of documents, and the purpose that each document serves.
        domains: Recognizable contexts; without any, all columns are NaN.
        thresholds: Limits on precision and recall.
        embeddings: Row of each token id, for the bag; None for fixed random rows.

    Source: arbitrary subsets of contexts are what Bricken et al. (2023) saw by eye in a model with random
    weights; the definition is ours.
    """
    limits = thresholds or ClassThresholds()
    n_folds = 1 + folds.n_groups
    shape = (reading.d_sae, n_folds)
    if not domains.names:
        return {
            name: np.full(shape, np.nan)
            for name in ("domain_precision", "domain_recall", "domain_auc")
        }
    chosen = domain_of_each(reading, domains, limits.domain_precision)
    precision, recall = _shares(reading, folds, domains, chosen)
    candidates = np.flatnonzero(
        (precision[:, 0] >= limits.domain_precision) & (recall[:, 0] < limits.domain_recall)
    )
    auc = np.full(reading.d_sae, np.nan)
    wanted = np.unique(chosen[candidates])
    scenes = scenes_of(reading.tokens, folds, domains, wanted, embeddings)
    for domain, scene in scenes.items():
        latents = candidates[chosen[candidates] == domain]
        for begin in range(0, len(latents), _CHUNK):
            chunk = latents[begin : begin + _CHUNK]
            auc[chunk] = _best_of_predictors(reading, scene, chunk)
    return {
        "domain_precision": precision,
        "domain_recall": recall,
        "domain_auc": on_every_fold(auc, folds),
    }


def domain_of_each(
    reading: Encoded, domains: Domains, least: float
) -> Int64[np.ndarray, " latent"]:
    """Return each latent's domain: the one with the highest recall among those precise enough.

    Where no domain has a precision of at least `least`, it is the one with the highest precision.
    """
    # tokens that lie in the same domains are counted together, so that each entry is counted once
    packed = np.packbits(domains.members, axis=1)
    kinds, kind = np.unique(packed, axis=0, return_inverse=True)
    kind = kind.reshape(-1).astype(np.int64)
    inside = np.unpackbits(kinds, axis=1, count=len(domains.names)).astype(np.float64)
    sizes = np.maximum(domains.members.sum(0), 1)
    chosen = np.zeros(reading.d_sae, dtype=np.int64)
    for block in latent_blocks(reading):
        counts = block.sums(kind[block.tokens], len(kinds))
        n_inside = counts @ inside
        precision = n_inside / np.maximum(counts.sum(1, keepdims=True), 1)
        fits = precision >= least
        ranked = np.where(fits, 1 + n_inside / sizes, precision * 0.5)
        chosen[block.latents] = ranked.argmax(1)
    return chosen


def _shares(
    reading: Encoded, folds: Folds, domains: Domains, chosen: Int64[np.ndarray, " latent"]
) -> tuple[Float[np.ndarray, "latent fold"], Float[np.ndarray, "latent fold"]]:
    """Return the precision and the recall of each latent for its chosen domain."""
    groups = token_groups(reading, folds)
    n_groups, n_domains = folds.n_groups, len(domains.names)
    sizes = np.stack(
        [
            np.bincount(groups[domains.members[:, domain]], minlength=n_groups)
            for domain in range(n_domains)
        ]
    )
    size_of = leave_out(sizes.astype(np.float64))
    precision = np.full((reading.d_sae, 1 + n_groups), np.nan)
    recall = np.full(precision.shape, np.nan)
    flat = domains.members.ravel()
    for block in latent_blocks(reading):
        domain = chosen[block.latents]
        member = flat[block.tokens.astype(np.int64) * n_domains + domain[block.owners]]
        cells = groups[block.tokens] + n_groups * member
        counts = block.sums(cells, 2 * n_groups).reshape(-1, 2, n_groups)
        inside, total = leave_out(counts[:, 1]), leave_out(counts.sum(1))
        size, fires = size_of[domain], total > 0
        np.divide(inside, total, out=precision[block.latents], where=fires)
        np.divide(inside, size, out=recall[block.latents], where=fires & (size > 0))
    return precision, recall


def _best_of_predictors(
    reading: Encoded, scene: Scene, latents: Int64[np.ndarray, " candidate"]
) -> Float[np.ndarray, " candidate"]:
    """Return the highest AUC of the four predictors for each candidate; NaN for too few positives."""
    fit, choose = (entries_of(reading, scene, latents, purpose) for purpose in range(2))
    n = len(latents)
    if min(len(part) for part in scene.tokens) == 0:
        return np.full(n, np.nan)
    judged = judged_on(reading, scene, latents)
    negatives, (token, owner) = judged.negatives, judged.positives
    scores = []
    for predictor in range(len(scene.lookups[0])):
        size = 1 + max(int(codes[predictor].max(initial=0)) for codes in scene.lookups)
        table = _lookup(scene.lookups[0][predictor], fit, n, size)
        read = scene.lookups[2][predictor]
        scores.append((table[read[negatives]], table[read[token], owner]))
    weights, bags = _ridge(scene, fit, choose, n), scene.bags[2]
    linear = np.einsum("ef,ef->e", bags[token], weights.T[owner])
    scores.append((bags[negatives] @ weights, linear))
    aucs = [auc_by_column(low, high, judged.taken, owner, n) for low, high in scores]
    highest: Float[np.ndarray, " candidate"] = np.max(aucs, axis=0)
    return highest


def _lookup(
    codes: Int64[np.ndarray, " fitted"], fit: Entries, n: int, size: int
) -> Float32[np.ndarray, "code candidate"]:
    """Return the share of fitted tokens with each code that are active, and one more at the base rate."""
    active = np.bincount(codes[fit[0]] * n + fit[1], minlength=size * n).reshape(size, n)
    seen = np.bincount(codes, minlength=size)[:, None]
    base = np.bincount(fit[1], minlength=n) / len(codes)
    return ((active + base) / (seen + 1)).astype(np.float32)


def _ridge(
    scene: Scene, fit: Entries, choose: Entries, n: int
) -> Float32[np.ndarray, "feature candidate"]:
    """Return each candidate's weights of the bag, with the best penalty on the choosing documents."""
    fitted, chosen = scene.bags[0].astype(np.float64), scene.bags[1].astype(np.float64)
    gram = fitted.T @ fitted
    # the last column is one of ones, and the least bit keeps columns that repeat each other apart
    best = choose_ridge(
        gram + 1e-9 * np.eye(len(gram)),
        _sums(fitted, fit, n),
        _PENALTIES,
        squares_left(chosen.T @ chosen, _sums(chosen, choose, n)),
        unit=len(fitted),
        free=(len(gram) - 1,),
    )
    return best.weights.astype(np.float32)


def _sums(
    features: Float[np.ndarray, "token feature"], entries: Entries, n: int
) -> Float[np.ndarray, "feature candidate"]:
    """Return the sums of the features over the tokens on which each candidate is active."""
    from scipy.sparse import csr_matrix

    token, owner = entries
    ones = csr_matrix((np.ones(len(token)), (owner, token)), shape=(n, len(features)))
    return np.asarray((ones @ features).T)
