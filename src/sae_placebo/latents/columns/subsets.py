"""Latents that fire on a subset of a recognizable context, and whether anything simple says which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64, Integer

from sae_placebo.core.spec import numpy_generator
from sae_placebo.latents.base import Columns, Encoded, Folds, TokenTable
from sae_placebo.latents.classes.classification import ClassThresholds
from sae_placebo.latents.columns.domains import Domains
from sae_placebo.latents.columns.positions import position_bins
from sae_placebo.latents.latent_blocks import (
    latent_blocks,
    leave_out,
    on_every_fold,
    token_groups,
)
from sae_placebo.stats.fits import choose_ridge, squares_left
from sae_placebo.stats.ranking import auroc

FEWEST_POSITIVES = 20
"""Active tokens below which an AUC is not given: its standard error would be above .065."""
DECAYS = (0.8, 0.97)
_WIDTH = 48
_MOST_FITTED = 16_384
_MOST_SCORED = 16_384
_NEGATIVES = 512
_POSITIVES = 200
_PENALTIES = (0.003, 0.03, 0.3)
_CHUNK = 256

Entries = tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]


def subsets(
    reading: Encoded,
    folds: Folds,
    domains: Domains,
    thresholds: ClassThresholds | None = None,
    embeddings: Float[np.ndarray, "vocabulary d_embed"] | None = None,
) -> Columns:
    """Return, of each latent's domain, how much of the latent it holds and how predictable that is.

    Columns:
        domain_precision: P(C | a > 0). C is the domain with the highest recall among those whose
            precision is at least domain_precision, and the one with the highest precision where
            none is. Null: C's share of the tokens, 0.4 at most.
        domain_recall: P(a > 0 | C). Null: the latent's density.
        domain_auc: Inside C, the highest AUC with which a > 0 is predicted by a lookup of the current
            token, of the previous token, of the position, or by a ridge regression on a decayed bag of
            previous tokens. Fitted on documents that serve to fit, the penalty chosen on those that
            serve to choose, scored on those that serve to score. Null .5; the highest of four is
            somewhat above it, .56 or so for 20 active tokens, which keeps latents out of the class. Only
            for latents within the limits on precision and recall that are active on at least 20 of the
            tokens scored, NaN for others. Repeated on every fold, not estimated again.

    The domain is chosen on all documents. At most 16,384 of a domain's tokens are fitted on and
    scored, at even steps, and at most 200 active ones are scored against 512 others. The bag
    is that of `decayed_bags`.

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
            some = latents[begin : begin + _CHUNK]
            auc[some] = _best_of_predictors(reading, scene, some)
    return {
        "domain_precision": precision,
        "domain_recall": recall,
        "domain_auc": on_every_fold(auc, folds),
    }


def domain_of_each(
    reading: Encoded, domains: Domains, least: float
) -> Int64[np.ndarray, " latent"]:
    """Return the domain with the highest recall among those of that precision, else the most precise."""
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
        own = chosen[block.latents]
        member = flat[block.tokens.astype(np.int64) * n_domains + own[block.owners]]
        cells = groups[block.tokens] + n_groups * member
        counts = block.sums(cells, 2 * n_groups).reshape(-1, 2, n_groups)
        inside, total = leave_out(counts[:, 1]), leave_out(counts.sum(1))
        some = total > 0
        np.divide(inside, total, out=precision[block.latents], where=some)
        np.divide(inside, size_of[own], out=recall[block.latents], where=some & (size_of[own] > 0))
    return precision, recall


@dataclass(frozen=True, eq=False)
class Scene:
    """The tokens of one domain that predictors see, with what they read.

    Attributes:
        tokens: [purpose] the tokens fitted on, chosen on and scored on.
        places: [token] where in `tokens` of its purpose a token is; -1 where in none.
        purposes: [token] the purpose that it serves.
        lookups: [purpose] [predictor, token] the code of its id, its previous id, its position.
        bags: [purpose] [token, feature] decayed bags, standardized on the fitted ones, with ones.
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
    """Return what predictors see of each of the wanted domains."""
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


def _even_steps(found: Int64[np.ndarray, " some"], most: int) -> Int64[np.ndarray, " fewer"]:
    if len(found) <= most:
        return found
    return found[np.linspace(0, len(found) - 1, most).astype(np.int64)]


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
    read = [bags[np.searchsorted(needed, part)] for part in parts]
    center = read[0].mean(0) if len(read[0]) else np.zeros(bags.shape[1], np.float32)
    scale = read[0].std(0) if len(read[0]) else np.ones(bags.shape[1], np.float32)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    features = tuple(
        np.hstack([(one - center) / scale, np.ones((len(one), 1), np.float32)]) for one in read
    )
    return Scene(parts, places, purposes, tuple(codes[:, part] for part in parts), features)


def decayed_bags(
    tokens: TokenTable,
    needed: Int64[np.ndarray, " needed"],
    embeddings: Float[np.ndarray, "vocabulary d_embed"] | None = None,
) -> Float32[np.ndarray, "needed feature"]:
    """Return exponentially decayed sums (.8 and .97 per token) over the tokens before, in their row.

    What is summed is a vector of 48 numbers per token id: the leading principal components of its
    embedding where embeddings are given, else fixed random numbers.

    Args:
        tokens: What was read.
        needed: Which of the tokens the sums are wanted for, ascending.
        embeddings: Row of each token id, such as the trained model's W_E.
    """
    vectors = token_vectors(len(tokens.vocabulary), embeddings)
    rows, positions = tokens.places[needed, 0], tokens.places[needed, 1]
    used, row_of = np.unique(rows, return_inverse=True)
    ids = tokens.rows.token_ids[used]
    width = vectors.shape[1]
    state = np.zeros((len(used), len(DECAYS), width), dtype=np.float32)
    found = np.empty((len(needed), len(DECAYS), width), dtype=np.float32)
    decays = np.array(DECAYS, dtype=np.float32)[:, None]
    by_position = np.argsort(positions, kind="stable")
    bounds = np.searchsorted(positions[by_position], np.arange(ids.shape[1] + 1))
    for position in range(ids.shape[1]):
        here = by_position[bounds[position] : bounds[position + 1]]
        found[here] = state[row_of[here]]
        state = decays * (state + vectors[ids[:, position]][:, None])
    return found.reshape(len(needed), len(DECAYS) * width)


def token_vectors(
    n: int, embeddings: Float[np.ndarray, "vocabulary d_embed"] | None
) -> Float32[np.ndarray, "vocabulary feature"]:
    """Return 48 numbers per token id: principal components of its embedding, or random ones."""
    if embeddings is None:
        draw = numpy_generator(0, "random vector of each token id")
        return draw.standard_normal((n, _WIDTH)).astype(np.float32)
    rows = embeddings.astype(np.float64)
    rows = rows - rows.mean(0)
    leading = np.linalg.eigh(rows.T @ rows)[1][:, -_WIDTH:]
    return np.asarray(rows @ leading, dtype=np.float32)


def entries_of(
    reading: Encoded, scene: Scene, latents: Int64[np.ndarray, " candidate"], purpose: int
) -> Entries:
    """Return where candidates are active among a scene's tokens of one purpose: token, candidate."""
    codes = reading.by_latent
    bounds = codes.indptr.astype(np.int64)
    tokens = np.concatenate([codes.indices[bounds[i] : bounds[i + 1]] for i in latents])
    owners = np.repeat(np.arange(len(latents)), bounds[latents + 1] - bounds[latents])
    kept = (scene.places[tokens] >= 0) & (scene.purposes[tokens] == purpose)
    return scene.places[tokens[kept]].astype(np.int64), owners[kept]


def _best_of_predictors(
    reading: Encoded, scene: Scene, latents: Int64[np.ndarray, " candidate"]
) -> Float[np.ndarray, " candidate"]:
    """Return the highest AUC of the four predictors for each candidate; NaN for too few positives."""
    fit, choose = (entries_of(reading, scene, latents, purpose) for purpose in range(2))
    n = len(latents)
    if min(len(part) for part in scene.tokens) == 0:
        return np.full(n, np.nan)
    asked = judged_on(reading, scene, latents)
    negatives, score = asked.negatives, asked.positives
    scores = []
    for predictor in range(len(scene.lookups[0])):
        table = _lookup(scene.lookups[0][predictor], fit, n, int(_size(scene, predictor)))
        read = scene.lookups[2][predictor]
        scores.append((table[read[negatives]], table[read[score[0]], score[1]]))
    weights = _ridge(scene, fit, choose, n)
    bags = scene.bags[2]
    scores.append(
        (
            bags[negatives] @ weights,
            np.einsum("ef,ef->e", bags[score[0]], weights.T[score[1]]),
        )
    )
    found = [auc_by_column(*one, asked.taken, score[1], n) for one in scores]
    highest: Float[np.ndarray, " candidate"] = np.max(found, axis=0)
    return highest


@dataclass(frozen=True, eq=False)
class Judged:
    """At which of a scene's scored tokens predictions about some latents are judged.

    Attributes:
        positives: Token and candidate: at most 200 active tokens of each, candidate by candidate.
        negatives: Tokens, the same for all candidates.
        taken: Which of the negatives, by candidate, are active and so no negatives of it.
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
    """Return at most 200 entries of each candidate, at even steps; they come candidate by candidate."""
    tokens, owners = entries
    counts = np.bincount(owners, minlength=n)
    firsts = np.cumsum(counts) - counts
    rank = np.arange(len(owners)) - firsts[owners]
    share = np.minimum(1, _POSITIVES / np.maximum(counts, 1))[owners]
    kept = np.floor((rank + 1) * share) > np.floor(rank * share)
    return tokens[kept], owners[kept]


def _size(scene: Scene, predictor: int) -> int:
    return 1 + max(int(codes[predictor].max(initial=0)) for codes in scene.lookups)


def _lookup(
    codes: Int64[np.ndarray, " some"], fit: Entries, n: int, size: int
) -> Float32[np.ndarray, "code candidate"]:
    """Return the share of fitted tokens with each code that are active, beside one of the base rate."""
    active = np.bincount(codes[fit[0]] * n + fit[1], minlength=size * n).reshape(size, n)
    seen = np.bincount(codes, minlength=size)[:, None]
    base = np.bincount(fit[1], minlength=n) / len(codes)
    return ((active + base) / (seen + 1)).astype(np.float32)


def _ridge(
    scene: Scene, fit: Entries, choose: Entries, n: int
) -> Float32[np.ndarray, "feature candidate"]:
    """Return weights of the bag for each candidate, its penalty the best on the choosing documents."""
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
    features: Float[np.ndarray, "some feature"], entries: Entries, n: int
) -> Float[np.ndarray, "feature candidate"]:
    from scipy.sparse import csr_matrix

    ones = csr_matrix(
        (np.ones(len(entries[0])), (entries[1], entries[0])), shape=(n, len(features))
    )
    return np.asarray((ones @ features).T)


def auc_by_column(
    negatives: Float32[np.ndarray, "negative candidate"],
    positives: Float32[np.ndarray, " entry"],
    taken: Entries,
    owners: Int64[np.ndarray, " entry"],
    n: int,
) -> Float[np.ndarray, " candidate"]:
    """Return the AUROC of each candidate's own positives against negatives that all candidates share.

    NaN for a candidate with fewer than 20 positives or 20 negatives.

    Args:
        negatives: Scores of a sample of tokens.
        positives: Scores of the candidates' active tokens.
        taken: Which of the sample, by candidate, are active and so no negatives.
        owners: Candidate of each positive, ascending.
        n: Candidates.
    """
    kept = np.ones(negatives.shape, dtype=bool)
    kept[taken] = False
    # candidate after candidate
    low = negatives.T[kept.T]
    ends = np.cumsum(kept.sum(axis=0))
    bounds = np.searchsorted(owners, np.arange(n + 1))
    places = np.arange(len(negatives) + np.diff(bounds).max(initial=0))
    found = np.full(n, np.nan)
    for candidate in range(n):
        high = positives[bounds[candidate] : bounds[candidate + 1]]
        begin = ends[candidate - 1] if candidate else 0
        own = low[begin : ends[candidate]]
        if min(len(high), len(own)) >= FEWEST_POSITIVES:
            scores = np.concatenate([own, high])
            found[candidate] = auroc(scores, places[: len(scores)] >= len(own))
    return found
