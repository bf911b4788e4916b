"""The labels of held-out tokens are known here, and a yes or no about them is scored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Num

GROUPS = ("token", "window", "context", "rare")
NO_LABELS = (
    "the text has no labels: it is not from .py files, or a control of the data rewrote it, or the "
    "tokenizer does not tell which characters a token covers"
)
"""This sentence says why nothing can be said about labels."""


@dataclass(frozen=True, eq=False)
class TokenLabels:
    """Labels of the held-out tokens, in the order of the evidence's tokens.

    Attributes:
        names: Names of the labels.
        groups: Per label, how far it can be read off without a model: from the `token`, from a short
            `window`, only from longer `context`; or `rare`: too few to score. See `readability`.
        present: Whether the label holds; meaningless where `known` is False.
        known: Where labels are known. Other tokens count in nothing that is said about labels.
        baselines: Predictor ("lookup", "bigram", "window") -> its true positives, false positives and
            false negatives in each document, over known tokens.
        second_half: Which documents are in the second of two halves drawn at random; what is chosen
            on one half is scored on the other.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    present: Bool[np.ndarray, "token label"]
    known: Bool[np.ndarray, " token"]
    baselines: dict[str, Int64[np.ndarray, "label document three"]]
    second_half: Bool[np.ndarray, " document"]

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        n_labels, n_documents = len(self.names), len(self.second_half)
        if len(self.groups) != n_labels or not set(self.groups) <= set(GROUPS):
            raise ValueError(f"groups must give one of {', '.join(GROUPS)} for each label")
        if self.present.shape != (len(self.known), n_labels):
            raise ValueError("present must be [token, label]")
        for name, counts in self.baselines.items():
            if counts.shape != (n_labels, n_documents, 3):
                raise ValueError(f"baseline {name!r} must be [label, document, 3]")

    def of_group(self, group: str) -> Int64[np.ndarray, " label"]:
        """Return the indices of the labels in a group."""
        return np.flatnonzero(np.array(self.groups, dtype=object) == group).astype(np.int64)


def count_outcomes(
    predicted: Bool[np.ndarray, "token label"],
    present: Bool[np.ndarray, "token label"],
    documents: Num[np.ndarray, " token"],
    n_documents: int,
) -> Int64[np.ndarray, "label document three"]:
    """Return true positives, false positives and false negatives of each label and document."""
    from scipy.sparse import csr_matrix

    n = len(documents)
    # below 2^24 tokens in a document, single precision counts them exactly
    ones = np.ones(n, dtype=np.float32)
    owner = csr_matrix((ones, (documents, np.arange(n))), shape=(n_documents, n))
    kinds = (predicted & present, predicted & ~present, ~predicted & present)
    counts = [np.rint(owner @ kind.astype(np.float32)).astype(np.int64).T for kind in kinds]
    return np.stack(counts, axis=2)


def f1_scores(
    counts: Int64[np.ndarray, "label document three"],
    weights: Num[np.ndarray, "document replicate"],
) -> Float64[np.ndarray, "label replicate"]:
    """Return F1 = 2 TP / (2 TP + FP + FN), counts summed over weighted documents.

    NaN where the label does not occur: whatever is found then is found wrongly, and 0 would say that
    it was missed.
    """
    sums = np.einsum("ldc,dr->clr", counts.astype(np.float64), weights.astype(np.float64))
    hits, false, missed = sums
    out = np.full(hits.shape, np.nan)
    np.divide(2 * hits, 2 * hits + false + missed, out=out, where=hits + missed > 0)
    return out


def best_threshold(
    values: Float[np.ndarray, " active"], present: Bool[np.ndarray, " active"], n_positive: int
) -> tuple[float, float]:
    """Return the best F1 of "value > threshold", and that threshold.

    The threshold lies midway between two neighboring values, or is 0 where every value above 0
    should count. Of equal F1, the highest threshold.

    Args:
        values: Values above 0, descending; tokens without a value are 0.
        present: Whether the label holds at each of them.
        n_positive: Tokens where the label holds, those without a value included.
    """
    if len(values) == 0 or n_positive == 0:
        return 0.0, 0.0
    f1 = 2 * np.cumsum(present) / (np.arange(1, len(values) + 1) + n_positive)
    following = np.append(values[1:], 0).astype(np.float64)
    f1[values == following] = -1  # no threshold separates equal values
    best = int(np.argmax(f1))
    is_last = best == len(values) - 1
    middle = 0.0 if is_last else (float(values[best]) + float(following[best])) / 2
    return float(f1[best]), middle
