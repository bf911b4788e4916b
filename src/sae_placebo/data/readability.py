"""The readability of a label, how far it can be read off tokens alone, is measured and not guessed.

Three predictors are fitted on training tokens and scored on held-out documents: a table from the
current token (`lookup`), one from the previous and the current token (`bigram`), and a small network
over the last eight tokens (`window`). None sees past its window or the start of its row. A label that
the first reaches is in group `token`, one that any of them reaches in `window`, every other in
`context`, if there is enough of it to tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, UInt8

from sae_placebo.core.progress import Advance, unheard
from sae_placebo.core.spec import numpy_generator
from sae_placebo.data.labels.base import Labels
from sae_placebo.data.labels.truth import TokenLabels, count_outcomes, f1_scores
from sae_placebo.data.text import Rows
from sae_placebo.data.token_predictors import WINDOW_TOKENS, Labeled, labeled, predict

PREDICTORS = ("lookup", "bigram", "window")
# share of the way from the F1 of "always yes" to 1 that a predictor goes where it reads a label
READS = 0.75
# below these, in either half of the held-out documents or in training, a label is `rare`
LEAST_TOKENS = 50
LEAST_DOCUMENTS = 5
# training tokens are taken from the head of the stream, whose documents are in random order
MOST_TRAINING_TOKENS = 300_000


@dataclass(frozen=True, eq=False)
class Readability:
    """The readability of labels from tokens alone, with the predictions that tell it.

    Attributes:
        names: Names of the labels.
        groups: Per label `token`, `window`, `context` or `rare`.
        f1: Held-out F1 of each predictor, in the order of `PREDICTORS`; NaN where the label does not
            occur. The window predictor's own; groups use the best of it and the shorter ones.
        thresholds: Probability above which each predictor says yes.
        n_positive: Held-out tokens with the label.
        n_tokens: Held-out tokens whose labels are known.
        predictions: [predictor, row, pos, byte] yes or no on held-out rows, packed over labels like
            those of `Labels`; 0 where labels are not known.
        documents: [row] document of each held-out row.
        second_half: Which held-out documents are in the second half; see `TokenLabels`.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    f1: Float64[np.ndarray, "predictor label"]
    thresholds: Float64[np.ndarray, "predictor label"]
    n_positive: Int64[np.ndarray, " label"]
    n_tokens: int
    predictions: UInt8[np.ndarray, "predictor row pos byte"]
    documents: Int32[np.ndarray, " row"]
    second_half: Bool[np.ndarray, " document"]

    @property
    def base_rate(self) -> Float64[np.ndarray, " label"]:
        """Return the share of held-out tokens with the label."""
        rate: Float64[np.ndarray, " label"] = self.n_positive / max(self.n_tokens, 1)
        return rate

    @property
    def always_f1(self) -> Float64[np.ndarray, " label"]:
        """Return the F1 of "always yes", 2p / (1 + p) at base rate p: it needs no predictor."""
        f1: Float64[np.ndarray, " label"] = 2 * self.base_rate / (1 + self.base_rate)
        return f1

    def record(self) -> dict[str, Any]:
        """Return the facts as JSON; F1 is null where the label does not occur."""
        scores = self.f1.astype(object)
        scores[np.isnan(self.f1)] = None
        return {
            "rule": {
                "reads": READS,
                "least_tokens": LEAST_TOKENS,
                "least_documents": LEAST_DOCUMENTS,
                "window_tokens": WINDOW_TOKENS,
            },
            "n_tokens": self.n_tokens,
            "labels": [
                {
                    "label": name,
                    "group": self.groups[i],
                    "base_rate": float(self.base_rate[i]),
                    "always_f1": float(self.always_f1[i]),
                    "n_positive": int(self.n_positive[i]),
                }
                | {f"{p}_f1": scores[j, i] for j, p in enumerate(PREDICTORS)}
                | {f"{p}_threshold": float(self.thresholds[j, i]) for j, p in enumerate(PREDICTORS)}
                for i, name in enumerate(self.names)
            ],
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays, which JSON is too small for."""
        return {
            "predictions": self.predictions,
            "documents": self.documents,
            "second_half": self.second_half,
        }

    @classmethod
    def load(cls, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Readability:
        """Return what `record` and `arrays` were made from."""
        labels = record["labels"]

        def column(name: str) -> list[Float64[np.ndarray, " label"]]:
            keys = [f"{predictor}_{name}" for predictor in PREDICTORS]
            return [np.array([one[key] for one in labels], dtype=np.float64) for key in keys]

        return cls(
            names=tuple(one["label"] for one in labels),
            groups=tuple(one["group"] for one in labels),
            f1=np.stack(column("f1")),
            thresholds=np.stack(column("threshold")),
            n_positive=np.array([one["n_positive"] for one in labels], dtype=np.int64),
            n_tokens=int(record["n_tokens"]),
            predictions=arrays["predictions"],
            documents=arrays["documents"],
            second_half=arrays["second_half"].astype(bool),
        )

    def truth(self, labels: Labels, places: Int64[np.ndarray, "token two"]) -> TokenLabels:
        """Return the labels of the held-out tokens at `places`, and how the predictors do on them.

        Args:
            labels: Of the held-out rows.
            places: Row and position of each token.
        """
        row, position = places.T
        known, present = labels.known[row, position], labels.at(places)
        owners, n_documents = self.documents[row[known]], len(self.second_half)
        baselines = {}
        for predictor, packed in zip(PREDICTORS, self.predictions, strict=True):
            says = _unpack(packed[row[known], position[known]], len(self.names))
            baselines[predictor] = count_outcomes(says, present[known], owners, n_documents)
        return TokenLabels(self.names, self.groups, present, known, baselines, self.second_half)


def readability(
    train: Rows,
    heldout: Rows,
    vocabulary_size: int,
    seed: int,
    advance: Advance = unheard,
) -> Readability:
    """Return how well tokens alone tell each label on held-out documents.

    The first 300,000 training tokens are used. Thresholds are those of the best F1 on training
    documents that had no part in the fit: each document is left out in turn for the tables, a fifth
    of them for the window. `advance` is told of each predictor.

    Raises:
        ValueError: the rows have no labels.

    Source: this package; Karvonen et al. 2024 (arXiv 2408.00113) compare with linear probes, which
    read the model, where these read the text.
    """
    if train.labels is None or heldout.labels is None:
        raise ValueError("readability is of rows that have labels")
    fit = labeled(train, train.labels, vocabulary_size, MOST_TRAINING_TOKENS)
    held = labeled(heldout, heldout.labels, vocabulary_size)
    n_documents = len(heldout.names)
    second = np.zeros(n_documents, dtype=bool)
    order = numpy_generator(seed, "halves of held-out documents").permutation(n_documents)
    second[order[: n_documents // 2]] = True
    says = np.zeros((len(PREDICTORS), *held.present.shape), dtype=bool)
    thresholds = np.ones((len(PREDICTORS), held.present.shape[1]))
    if len(np.unique(fit.documents)) >= LEAST_DOCUMENTS and len(held.places):
        for i, found in enumerate(predict(fit, held, vocabulary_size, seed)):
            says[i], thresholds[i] = found
            advance(1)
    counts = [count_outcomes(one, held.present, held.documents, n_documents) for one in says]
    f1 = np.stack([f1_scores(one, np.ones((n_documents, 1)))[:, 0] for one in counts])
    packed = np.packbits(says, axis=-1, bitorder="little")
    predictions = np.zeros((len(says), *heldout.token_ids.shape, packed.shape[-1]), dtype=np.uint8)
    predictions[:, held.places[:, 0], held.places[:, 1]] = packed
    base_rate = held.present.sum(0) / max(len(held.places), 1)
    return Readability(
        names=tuple(heldout.labels.names),
        groups=_groups(f1, base_rate, _rare(fit, held, second)),
        f1=f1,
        thresholds=thresholds,
        n_positive=held.present.sum(0).astype(np.int64),
        n_tokens=len(held.places),
        predictions=predictions,
        documents=heldout.documents.astype(np.int32),
        second_half=second,
    )


def _rare(
    fit: Labeled, held: Labeled, second: Bool[np.ndarray, " document"]
) -> Bool[np.ndarray, " label"]:
    """Return which labels are too few, or too common, in training or in a half of the held out."""
    in_second = second[held.documents]
    rare = np.zeros(held.present.shape[1], dtype=bool)
    for present, documents in (
        (fit.present, fit.documents),
        (held.present[~in_second], held.documents[~in_second]),
        (held.present[in_second], held.documents[in_second]),
    ):
        n_positive = present.sum(0)
        n_documents = np.array([len(np.unique(documents[one])) for one in present.T])
        rare |= np.minimum(n_positive, len(present) - n_positive) < LEAST_TOKENS
        rare |= n_documents < LEAST_DOCUMENTS
    return rare


def _groups(
    f1: Float64[np.ndarray, "predictor label"],
    base_rate: Float64[np.ndarray, " label"],
    rare: Bool[np.ndarray, " label"],
) -> tuple[str, ...]:
    """Return each label's group: the shortest reach with which some predictor reads it."""
    always = 2 * base_rate / (1 + base_rate)
    reads = f1 >= always + READS * (1 - always)  # NaN reads nothing
    by_lookup, by_any = reads[0], reads.any(0)
    group = np.where(by_lookup, "token", np.where(by_any, "window", "context"))
    return tuple(str(one) for one in np.where(rare, "rare", group))


def _unpack(
    packed: UInt8[np.ndarray, "token byte"], n_labels: int
) -> Bool[np.ndarray, "token label"]:
    return np.unpackbits(packed, axis=-1, count=n_labels, bitorder="little").astype(bool)
