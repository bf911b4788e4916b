"""How well single latents detect what is known to be true of the text.

For every label, the best latent and threshold are chosen on one half of the held-out documents and scored on
the other half, then the other way round, and the counts of both are added. No document has a part in the
choice that is scored on it. The choice counts every document once, whatever the weights: a resample weights
the documents that are scored, so that an interval is conditional on the choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Integer

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.tables import KEYS
from sae_placebo.core.tables.labels import COVERAGE
from sae_placebo.data.labels.truth import (
    NO_LABELS,
    TokenLabels,
    best_threshold,
    count_outcomes,
    f1_scores,
)
from sae_placebo.latents.metrics.base import METRICS, Evidence, Metric, Values, ratio

BASELINES = ("lookup", "bigram", "window")
COLUMNS = COVERAGE.without(KEYS)
# a latent is tried as a detector with the strongest 1, 0.84, 0.71, ... 0.0012 of its activations
_SHARES: Float64[np.ndarray, " level"] = 2.0 ** (-np.arange(40) / 4)
_LATENTS_AT_ONCE = 4_096


@dataclass(frozen=True, eq=False)
class Choice:
    """For every label, the latent and threshold with the best F1 on the documents that are chosen on.

    Attributes:
        latents: The latent; it means nothing where `f1` is 0, since no latent is ever active on the label.
        thresholds: Activation above which the latent predicts the label, in the unit of the activations.
        f1: F1 on the documents that are chosen on, which is optimistic.
    """

    latents: Int64[np.ndarray, " label"]
    thresholds: Float64[np.ndarray, " label"]
    f1: Float64[np.ndarray, " label"]


@dataclass(frozen=True, eq=False)
class Coverage:
    """How well one SAE's latents detect the labels.

    Attributes:
        counts: True positives, false positives and false negatives in each document of the latent that was
            chosen on the half without the document.
        whole: The choice on all documents, to be shown to people; no score is computed from it.
    """

    counts: Int64[np.ndarray, "label document three"]
    whole: Choice


@dataclass(frozen=True, eq=False)
class _Codes:
    """Codes on known tokens, sorted by latent and within it by activation, the strongest first."""

    latents: Integer[np.ndarray, " active"]
    values: Float32[np.ndarray, " active"]
    tokens: Integer[np.ndarray, " active"]
    d_sae: int

    def where(self, tokens: Bool[np.ndarray, " token"]) -> _Codes:
        """Return the codes on the tokens that a mask selects, in the same order."""
        kept = tokens[self.tokens]
        return _Codes(self.latents[kept], self.values[kept], self.tokens[kept], self.d_sae)

    @property
    def starts(self) -> Int64[np.ndarray, " latent_plus_one"]:
        """Where each latent's codes begin, and where the last ones end."""
        counts = np.bincount(self.latents, minlength=self.d_sae)
        return np.append(0, np.cumsum(counts)).astype(np.int64)


def coverage(evidence: Evidence) -> Coverage:
    """Return the choice of latents and its counts on documents that it was not made on.

    Raises:
        NotEstimable: the text has no labels.
    """
    truth = _truth(evidence)
    unit = np.ones((evidence.n_documents, 1))
    return evidence.shared("coverage", unit, lambda: _coverage(evidence, truth))


def _truth(evidence: Evidence) -> TokenLabels:
    if evidence.truth is None:
        raise NotEstimable(NO_LABELS)
    return evidence.truth


def _coverage(evidence: Evidence, truth: TokenLabels) -> Coverage:
    codes = _sorted_codes(evidence)
    second = truth.second_half[evidence.documents]
    counts = np.zeros((len(truth.names), evidence.n_documents, 3), dtype=np.int64)
    for chosen_on, scored_on in ((~second, second), (second, ~second)):
        choice = choose(codes, truth.present, truth.known & chosen_on)
        counts += _score(choice, codes, evidence, truth.known & scored_on)
    return Coverage(counts, choose(codes, truth.present, truth.known))


def _sorted_codes(evidence: Evidence) -> _Codes:
    tokens = evidence.code_tokens
    known = np.flatnonzero(_truth(evidence).known[tokens])
    # bits of positive floats are ordered like the floats, so that one key holds latent and value
    keys = evidence.latents[known].astype(np.int64) << 32
    keys -= evidence.values[known].view(np.int32)
    # equal values of a latent may come in any order: no threshold lies between them
    order = known[np.argsort(keys)]
    return _Codes(evidence.latents[order], evidence.values[order], tokens[order], evidence.d_sae)


def choose(
    codes: _Codes, present: Bool[np.ndarray, "token label"], tokens: Bool[np.ndarray, " token"]
) -> Choice:
    """Return, for every label, the latent and threshold with the best F1 on the given tokens.

    Latents are compared at 40 thresholds each, which keep the strongest 2^(-i/4) of their activations. The
    threshold of the best latent is then chosen among all its values. Of latents with the same F1, the one
    with the strongest activation is taken, so that their order does not matter.

    Args:
        codes: Codes on known tokens.
        present: Which labels each token has.
        tokens: Which tokens are chosen on.
    """
    codes = codes.where(tokens)
    starts = codes.starts
    n_positive = present[tokens].sum(0)
    best = _best_f1(codes, present.astype(np.float32), n_positive)
    strongest = np.zeros(codes.d_sae)
    alive = np.diff(starts) > 0
    strongest[alive] = codes.values[starts[:-1][alive]]
    tied = best == best.max(0)
    latents = np.where(tied, strongest[:, None], -1).argmax(0).astype(np.int64)
    f1, thresholds = np.zeros(len(latents)), np.zeros(len(latents))
    for label, latent in enumerate(latents):
        part = slice(starts[latent], starts[latent + 1])
        holds = present[codes.tokens[part], label]
        f1[label], thresholds[label] = best_threshold(
            codes.values[part], holds, int(n_positive[label])
        )
    return Choice(latents, thresholds, f1)


def _best_f1(
    codes: _Codes,
    present: Float32[np.ndarray, "token label"],
    n_positive: Integer[np.ndarray, " label"],
) -> Float32[np.ndarray, "latent label"]:
    """Return each latent's best F1 over the thresholds of `_SHARES`."""
    from scipy.sparse import csr_matrix

    starts, n_levels, edges = codes.starts, len(_SHARES), _edges(codes)
    best = np.zeros((codes.d_sae, present.shape[1]), dtype=np.float32)
    for first in range(0, codes.d_sae, _LATENTS_AT_ONCE):
        last = min(first + _LATENTS_AT_ONCE, codes.d_sae)
        part = slice(starts[first], starts[last])
        shape = (last - first, n_levels, -1)
        offsets = np.append(edges[first:last].ravel(), starts[last]) - starts[first]
        active = np.diff(offsets).astype(np.float32).reshape(shape)
        ones = np.ones(offsets[-1], dtype=np.float32)
        of_bin = csr_matrix(
            (ones, codes.tokens[part], offsets), shape=(len(offsets) - 1, len(present))
        )
        hits = (of_bin @ present).reshape(shape)
        for level in range(1, n_levels):  # a lower threshold keeps all that a higher one keeps
            hits[:, level] += hits[:, level - 1]
            active[:, level] += active[:, level - 1]
        hits *= 2
        active = np.maximum(active + n_positive.astype(np.float32), 1)
        best[first:last] = np.divide(hits, active, out=hits).max(1)
    return best


def _edges(codes: _Codes) -> Int64[np.ndarray, "latent level"]:
    """Return where the codes begin that pass one threshold and no higher one, the highest first.

    At share s of n codes, those of rank 0 to below s n pass. Codes of equal value pass together, and only
    if all of them are within that rank.
    """
    starts = codes.starts
    kept = np.ceil(np.diff(starts)[:, None] * _SHARES[::-1]).astype(np.int64)
    begins = np.ones(len(codes.latents) + 1, dtype=bool)
    begins[1:-1] = (codes.latents[1:] != codes.latents[:-1]) | (
        codes.values[1:] != codes.values[:-1]
    )
    runs = np.flatnonzero(begins)
    ends = runs[np.searchsorted(runs, starts[:-1, None] + kept, side="right") - 1]
    return np.concatenate([starts[:-1, None], ends[:, :-1]], axis=1)


def _score(
    choice: Choice, codes: _Codes, evidence: Evidence, tokens: Bool[np.ndarray, " token"]
) -> Int64[np.ndarray, "label document three"]:
    """Return the counts of `Coverage` for a choice on the given tokens."""
    starts, present = codes.starts, _truth(evidence).present
    says = np.zeros((evidence.n_tokens, len(choice.latents)), dtype=bool)
    for label in np.flatnonzero(choice.f1 > 0):
        latent = choice.latents[label]
        part = slice(starts[latent], starts[latent + 1])
        says[codes.tokens[part][codes.values[part] > choice.thresholds[label]], label] = True
    return count_outcomes(
        says[tokens], present[tokens], evidence.documents[tokens], evidence.n_documents
    )


def coverage_table(evidence: Evidence) -> pandas.DataFrame:
    """Return one row per label, with the columns `COLUMNS`; there are none where the text has no labels.

    `f1` is scored on documents that had no part in the choice; `latent`, `threshold` and `fit_f1` are the
    choice on all documents and its F1 on the same documents. `lookup_f1`, `bigram_f1` and `window_f1` are
    the F1 of predictors that read tokens alone, and `base_rate` is the share of known tokens with the label.
    A label that cannot be scored has a reason in place of `f1`, `latent`, `threshold` and `fit_f1`.
    """
    if evidence.truth is None:
        return pandas.DataFrame({name: [] for name in COLUMNS})
    truth, covered = evidence.truth, coverage(evidence)
    weights = np.ones((evidence.n_documents, 1))
    scores = {"f1": f1_scores(covered.counts, weights)[:, 0]} | {
        f"{name}_f1": f1_scores(truth.baselines[name], weights)[:, 0] for name in BASELINES
    }
    n_tokens = int(truth.known.sum())
    n_positive = truth.present[truth.known].sum(0)
    reasons = [_reason(group, int(n)) for group, n in zip(truth.groups, n_positive, strict=True)]
    scored = np.array([reason is None for reason in reasons], dtype=bool)
    scores["f1"] = np.where(scored, scores["f1"], np.nan)
    usable = scored & (covered.whole.f1 > 0)
    latents = pandas.array(covered.whole.latents, dtype="Int64")
    latents[~usable] = None
    columns = {
        "label": list(truth.names),
        "group": list(truth.groups),
        "latent": latents,
        "threshold": np.where(usable, covered.whole.thresholds, np.nan),
        "fit_f1": np.where(scored, covered.whole.f1, np.nan),
        "base_rate": n_positive / max(n_tokens, 1),
        "n_positive": n_positive,
        "n_tokens": np.full(len(reasons), n_tokens),
        "reason": pandas.array(reasons, dtype="string"),
    }
    return pandas.DataFrame(columns | scores)[list(COLUMNS)]


def _reason(group: str, n_positive: int) -> str | None:
    if n_positive == 0:
        return "no held-out token has the label"
    if group == "rare":
        return "too few tokens or documents with or without the label to score it"
    return None


def _mean(scores: Float64[np.ndarray, "label replicate"]) -> Float64[np.ndarray, " replicate"]:
    """Return the mean over the labels that occur in a replicate; NaN where no label does."""
    occurs = ~np.isnan(scores)
    return ratio(np.where(occurs, scores, 0).sum(0), occurs.sum(0, dtype=np.float64))


def _of_group(group: str) -> Values:
    def compute(
        evidence: Evidence, weights: Float[np.ndarray, "document replicate"]
    ) -> Float[np.ndarray, " replicate"]:
        labels = _truth(evidence).of_group(group)
        if len(labels) == 0:
            raise NotEstimable(f"no label of the text is in the group {group!r}")
        return _mean(f1_scores(coverage(evidence).counts[labels], weights))

    return compute


def _lookup_of_group(group: str) -> Callable[[Evidence], float | None]:
    def null(evidence: Evidence) -> float | None:
        truth = evidence.truth
        if truth is None or len(truth.of_group(group)) == 0:
            return None
        counts = truth.baselines["lookup"][truth.of_group(group)]
        value = float(_mean(f1_scores(counts, np.ones((evidence.n_documents, 1))))[0])
        return value if np.isfinite(value) else None

    return null


def _known_tokens(evidence: Evidence) -> int:
    return 0 if evidence.truth is None else int(evidence.truth.known.sum())


_READ_FROM = {
    "token": "can be read off the current token",
    "window": "can be read off the last few tokens, not off the current one",
    "context": "can be read off neither the current token nor the last few",
}
for _group, _words in _READ_FROM.items():
    METRICS.add(
        Metric(
            name=f"coverage_{_group}",
            unit="F1",
            better="higher",
            null="the mean F1 of the best table from token id to label on the same labels and "
            "tokens; not 0",
            definition=f"mean, over the labels that {_words}, of the F1 of the best (latent, "
            "threshold), chosen on one half of the held-out documents and scored on the other, both "
            "ways round, counts added",
            source="Coverage of Karvonen et al. 2024 (arXiv 2408.00113), there of board states, "
            "carried over to labels of text. Deviations: the choice is scored on other documents, "
            "latents are not scaled by their maximum, and labels are averaged by how far they can "
            "be read off tokens. The interval is conditional on the choice.",
            compute=_of_group(_group),
            null_number=_lookup_of_group(_group),
            counted=_known_tokens,
        ),
    )
