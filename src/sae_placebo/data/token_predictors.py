"""Predictors of labels from tokens alone: two tables and a small network over the last tokens.

They are baselines, so each is given what it needs to do well: tables are shrunk towards the next
shorter context, and the network starts from the second table's log-odds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator, numpy_generator
from sae_placebo.data.labels.base import Labels
from sae_placebo.data.labels.truth import best_threshold
from sae_placebo.data.text import Rows

WINDOW_TOKENS = 8
# occurrences that a table's next shorter context is worth
_PRIOR = 1.0
# a token id seen less often in training is one unknown id to the network
_LEAST_OCCURRENCES = 3
_D_EMBEDDING, _D_HIDDEN = 24, 128
_EPOCHS, _BATCH, _STEP_SIZE = 4, 512, 3e-3


@dataclass(frozen=True, eq=False)
class Labeled:
    """Tokens whose labels are known.

    Attributes:
        places: Row and position.
        recent: Token ids: the current one, the one before it, and so on; the size of the vocabulary
            where the row had not begun.
        documents: Document of each.
        present: Whether each label holds.
    """

    places: Int64[np.ndarray, "token two"]
    recent: Int64[np.ndarray, "token window"]
    documents: Int64[np.ndarray, " token"]
    present: Bool[np.ndarray, "token label"]


def labeled(rows: Rows, labels: Labels, vocabulary_size: int, limit: int | None = None) -> Labeled:
    """Return the first `limit` usable tokens whose labels are known, or all of them."""
    places = np.argwhere(rows.usable() & labels.known)[:limit].astype(np.int64)
    row, position = places.T
    recent = np.full((len(places), WINDOW_TOKENS), vocabulary_size, dtype=np.int64)
    for back in range(WINDOW_TOKENS):
        there = position >= back
        recent[there, back] = rows.token_ids[row[there], position[there] - back]
    documents = rows.documents[row].astype(np.int64)
    return Labeled(places, recent, documents, labels.at(places))


def predict(
    fit: Labeled, held: Labeled, vocabulary_size: int, seed: int
) -> Iterator[tuple[Bool[np.ndarray, "token label"], Float64[np.ndarray, " label"]]]:
    """Yield for each predictor its answers on the held-out tokens, and its thresholds.

    A threshold is the one of the best F1 on training documents that had no part in the fit: each
    document is left out in turn for the tables, a fifth of the documents for the network.

    Args:
        fit: Training tokens, of at least two documents.
        held: Held-out tokens.
        vocabulary_size: Token ids are below it.
        seed: Of the network's start, its order of tokens, and the documents set aside.
    """
    ids = vocabulary_size + 1
    prior = np.broadcast_to(fit.present.mean(0, dtype=np.float32), fit.present.shape)
    here = np.broadcast_to(prior[0], held.present.shape)
    keys, held_keys = fit.recent[:, 0], held.recent[:, 0]
    for back in (0, 1):
        if back:
            keys, held_keys = keys + ids * fit.recent[:, 1], held_keys + ids * held.recent[:, 1]
        prior, here = _table(keys, fit, prior, held_keys, here)
        thresholds = _thresholds(prior, fit.present)
        yield here > thresholds, thresholds
    seen, here, aside = _network(fit, held, prior, here, seed)
    thresholds = _thresholds(seen, fit.present[aside])
    yield here > thresholds, thresholds


def _table(
    keys: Int64[np.ndarray, " fitted"],
    fit: Labeled,
    prior: Float32[np.ndarray, "fitted label"],
    held_keys: Int64[np.ndarray, " token"],
    held_prior: Float32[np.ndarray, "token label"],
) -> tuple[Float32[np.ndarray, "fitted label"], Float32[np.ndarray, "token label"]]:
    """Return P(label | key) on the training tokens without their own document, and on held-out ones.

    A key's frequencies count beside `_PRIOR` tokens with the frequencies of the shorter context.
    """
    known, index = np.unique(keys, return_inverse=True)
    n, hits = _totals(index, fit.present, len(known))
    own, own_index = np.unique(index + len(known) * fit.documents, return_inverse=True)
    own_n, own_hits = _totals(own_index, fit.present, len(own))
    others = hits[index] - own_hits[own_index] + _PRIOR * prior
    left_out = others / (n[index] - own_n[own_index] + _PRIOR)[:, None]
    at = np.minimum(np.searchsorted(known, held_keys), len(known) - 1)
    there = (known[at] == held_keys).astype(np.float32)
    held = (hits[at] * there[:, None] + _PRIOR * held_prior) / (n[at] * there + _PRIOR)[:, None]
    return left_out.astype(np.float32), held.astype(np.float32)


def _totals(
    index: Int64[np.ndarray, " token"], present: Bool[np.ndarray, "token label"], n_keys: int
) -> tuple[Float32[np.ndarray, " key"], Float32[np.ndarray, "key label"]]:
    from scipy.sparse import csc_matrix

    n = len(index)
    ones = np.ones(n, dtype=np.float32)
    of_key = csc_matrix((ones, index, np.arange(n + 1)), shape=(n_keys, n))
    counts = np.bincount(index, minlength=n_keys).astype(np.float32)
    return counts, of_key @ present.astype(np.float32)


def _thresholds(
    scores: Float32[np.ndarray, "token label"], present: Bool[np.ndarray, "token label"]
) -> Float64[np.ndarray, " label"]:
    """Return for each label the threshold of the best F1; 1, never exceeded, where it is absent."""
    found = np.ones(scores.shape[1])
    for label in range(scores.shape[1]):
        values, holds = scores[:, label].copy(), present[:, label].copy()
        if holds.any():
            order = np.argsort(-values)
            found[label] = best_threshold(values[order], holds[order], int(holds.sum()))[1]
    return found


def _network(
    fit: Labeled,
    held: Labeled,
    fit_prior: Float32[np.ndarray, "fitted label"],
    held_prior: Float32[np.ndarray, "token label"],
    seed: int,
) -> tuple[
    Float32[np.ndarray, "aside label"],
    Float32[np.ndarray, "token label"],
    Bool[np.ndarray, " fitted"],
]:
    """Return probabilities on the documents set aside and on held-out tokens, and what is aside.

    One hidden layer reads the embeddings of the last tokens, by position; it adds to the log-odds of
    the bigram table, which on training tokens leave out their own document. Of the epochs, the one
    with the lowest loss on the documents set aside is kept.
    """
    owners = np.unique(fit.documents)
    mixed = numpy_generator(seed, "documents set aside").permutation(owners)
    aside = np.isin(fit.documents, mixed[: max(1, len(owners) // 5)])
    largest = int(max(fit.recent.max(), held.recent.max()))
    occurrences = np.bincount(fit.recent[~aside].ravel(), minlength=largest + 1)
    common = np.flatnonzero(occurrences >= _LEAST_OCCURRENCES)
    index = np.zeros(largest + 1, dtype=np.int64)
    index[common] = np.arange(1, len(common) + 1)
    ids, odds = torch.from_numpy(index[fit.recent]), _log_odds(fit_prior)
    present = torch.from_numpy(fit.present).float()
    learned, left = (torch.from_numpy(np.flatnonzero(part)) for part in (~aside, aside))
    random = generator(seed, "window network")
    parameters = _parameters(len(common) + 1, fit.present.shape[1], random)
    steps = _EPOCHS * (len(learned) // _BATCH + 1)
    optimizer = torch.optim.Adam(parameters, lr=_STEP_SIZE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=steps)
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits
    lowest, best = np.inf, torch.zeros(0)
    for _ in range(_EPOCHS):
        order = torch.randperm(len(learned), generator=random)
        for batch in torch.split(learned[order], _BATCH):
            optimizer.zero_grad()
            loss = loss_of(_logits(parameters, ids[batch], odds[batch]), present[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        logits = _in_parts(parameters, ids[left], odds[left])
        now = float(loss_of(logits, present[left]))
        if now < lowest:
            lowest, best = now, logits
            held_logits = _in_parts(
                parameters, torch.from_numpy(index[held.recent]), _log_odds(held_prior)
            )
    return best.sigmoid().numpy(), held_logits.sigmoid().numpy(), aside


def _parameters(n_ids: int, n_labels: int, random: torch.Generator) -> list[torch.Tensor]:
    width = WINDOW_TOKENS * _D_EMBEDDING
    start = [
        torch.randn(n_ids, _D_EMBEDDING, generator=random),
        torch.randn(width, _D_HIDDEN, generator=random) / width**0.5,
        torch.zeros(_D_HIDDEN),
        torch.zeros(_D_HIDDEN, n_labels),
        torch.zeros(n_labels),
        torch.ones(n_labels),
    ]
    return [one.requires_grad_() for one in start]


def _logits(
    parameters: list[torch.Tensor],
    ids: Int64[torch.Tensor, "token window"],
    odds: Float32[torch.Tensor, "token label"],
) -> Float32[torch.Tensor, "token label"]:
    embeddings, mix, mix_bias, out, out_bias, trust = parameters
    # not embeddings[ids]: its gradient is summed in an order that differs from run to run
    looked_up = torch.nn.functional.embedding(ids, embeddings)
    hidden = torch.relu(looked_up.flatten(1) @ mix + mix_bias)
    return hidden @ out + out_bias + trust * odds


def _in_parts(
    parameters: list[torch.Tensor],
    ids: Int64[torch.Tensor, "token window"],
    odds: Float32[torch.Tensor, "token label"],
) -> Float32[torch.Tensor, "token label"]:
    with torch.no_grad():
        parts = zip(torch.split(ids, 8_192), torch.split(odds, 8_192), strict=True)
        return torch.cat([_logits(parameters, *part) for part in parts])


def _log_odds(
    probabilities: Float32[np.ndarray, "token label"],
) -> Float32[torch.Tensor, "token label"]:
    clipped = torch.from_numpy(probabilities).clamp(1e-4, 1 - 1e-4)
    return clipped.log() - (-clipped).log1p()
