"""Labels of tokens as tasks, and logistic probes for all of them at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from sae_placebo.audits.base import Case
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import numpy_generator
from sae_placebo.data.labels.truth import NO_LABELS
from sae_placebo.data.tokenizing import NO_WORDS, is_numbered
from sae_placebo.latents.base import TokenTable
from sae_placebo.stats.fits import Logistic, fit_logistic
from sae_placebo.stats.ranking import auroc

MIN_POSITIVE = 50
"""Tokens with a label, and tokens without it, that a probe needs, both to fit on and to score on."""
MOST_LETTERS = 64
"""The most first letters that are probed: some scripts have thousands."""
_RIDGE = 1e-4
_MARKS = " \tĠ▁\n\rĊ"
"""White space, and the signs that tokenizers put in its place."""


@dataclass(frozen=True, eq=False)
class Tasks:
    """Yes-or-no questions about tokens, each of which is whether a label holds.

    Attributes:
        names: Names of the labels.
        present: Whether each label holds at each token.
        known: Tokens whose labels are known.
    """

    names: tuple[str, ...]
    present: Bool[np.ndarray, "token task"]
    known: Bool[np.ndarray, " token"]

    def permuted(self, documents: np.ndarray, random: np.random.Generator) -> Tasks:
        """Return the tasks with the known labels moved to other documents; `known` stays as it is.

        Tokens whose labels are known are lined up, document by document in a random order, and labels move
        on along the line by about half of its length, from the start of one document to that of another.
        The labels' rates, and how labels follow each other, stay as they are; what labels have to do with
        the tokens is lost. Only a document that holds more than about half of the tokens can keep some of
        its own labels.

        Args:
            documents: The document of each token.
            random: The generator that the order of documents is drawn from.

        Raises:
            NotEstimable: labels are known in fewer than two documents.
        """
        known = np.flatnonzero(self.known)
        owners = documents[known]
        order = random.permutation(np.unique(owners))
        if len(order) < 2:
            raise NotEstimable(
                f"labels are known in {len(order)} documents: labels change places among 2 or more"
            )
        parts = [known[owners == document] for document in order]
        place = np.concatenate(parts)
        starts = np.cumsum([len(part) for part in parts])[:-1]
        move = int(starts[np.argmin(np.abs(starts - len(place) / 2))])
        present = self.present.copy()
        present[place] = self.present[np.roll(place, -move)]
        return Tasks(self.names, present, self.known)

    def of(self, columns: Int64[np.ndarray, " chosen"]) -> Tasks:
        """Return the tasks in these columns, in this order."""
        return Tasks(tuple(self.names[i] for i in columns), self.present[:, columns], self.known)


def label_tasks(case: Case) -> Tasks:
    """Return the labels of the text that can be probed: those with the most tokens, up to `spec.labels`.

    Raises:
        NotEstimable: the text has no labels, or none has enough tokens.
    """
    if case.labels is None:
        raise NotEstimable(NO_LABELS)
    every = Tasks(case.labels.names, case.labels.present, case.labels.known)
    return _chosen(every, case, "label")


def letter_tasks(case: Case) -> Tasks:
    """Return first letters of tokens as labels, which are known for tokens that begin with a letter.

    Letters are those of any script. Marks of white space in front do not count, and neither does case.

    Raises:
        NotEstimable: no letter begins enough tokens, or no tokenizer says with what they begin.
    """
    if is_numbered(case.reading.tokens.vocabulary):
        raise NotEstimable(NO_WORDS)
    return _chosen(first_letters(case.reading.tokens), case, "first letter")


def first_letters(tokens: TokenTable) -> Tasks:
    """Return which letter each token begins with, out of the `MOST_LETTERS` that begin the most tokens."""
    firsts = np.array([_letter(text) for text in tokens.vocabulary], dtype=np.int64)
    letters = firsts[tokens.ids]
    known = letters >= 0
    codes, counts = np.unique(letters[known], return_counts=True)
    frequent = np.sort(codes[np.argsort(-counts, kind="stable")[:MOST_LETTERS]])
    names = tuple(f"begins with {chr(code)}" for code in frequent)
    return Tasks(names, letters[:, None] == frequent, known)


def _letter(text: str) -> int:
    """Return the code point of a token's first letter in lower case; -1 where it begins with none."""
    first = text.lstrip(_MARKS)[:1].lower()[:1]
    return ord(first) if first.isalpha() else -1


def _chosen(tasks: Tasks, case: Case, what: str) -> Tasks:
    """Return the tasks that can be probed on both halves of the documents, the most frequent first."""
    usable = np.ones(len(tasks.names), dtype=bool)
    for half in case.halves():
        part = tasks.present[half & tasks.known]
        positive = part.sum(0)
        usable &= (positive >= MIN_POSITIVE) & (len(part) - positive >= MIN_POSITIVE)
    if not usable.any():
        raise NotEstimable(
            f"no {what} holds for {MIN_POSITIVE} tokens, and fails for as many, in both halves of the "
            "documents: hold out more"
        )
    order = np.argsort(-tasks.present[tasks.known].sum(0), kind="stable")
    kept = np.array([i for i in order if usable[i]][: case.spec.labels], dtype=np.int64)
    return tasks.of(kept)


def with_null(
    case: Case, tasks: Tasks, random: np.random.Generator, *names: str
) -> tuple[tuple[Tasks, Tasks], tuple[Int64[np.ndarray, " fitted"], Int64[np.ndarray, " scored"]]]:
    """Return tasks with their null, and the tokens to fit on with those to score on.

    The null is the same labels moved to other documents. Tasks and null are read at the same tokens and have
    the same labels: those that some of the tokens have and others lack, among the tokens to fit on and among
    those to score on, both as the labels are and as they were moved.

    Args:
        case: The SAE under audit.
        tasks: The labels.
        random: The generator that the order of documents is drawn from.
        names: Names that tell this draw of tokens from those of other audits.

    Raises:
        NotEstimable: there is no such label.
    """
    fit, score = (
        sample(half & tasks.known, case.spec.ridge_tokens, case.seed, *names, str(i))
        for i, half in enumerate(case.halves())
    )
    moved = tasks.permuted(case.documents, random)
    usable = np.ones(len(tasks.names), dtype=bool)
    for labels in (tasks, moved):
        for part in (fit, score):
            rate = labels.present[part].mean(0)
            usable &= (rate > 0) & (rate < 1)
    if not usable.any():
        raise NotEstimable(
            f"no label is found both present and absent among {len(fit)} tokens to fit on and "
            f"{len(score)} to score on: raise ridge_tokens or hold out more documents"
        )
    kept = np.flatnonzero(usable).astype(np.int64)
    return (tasks.of(kept), moved.of(kept)), (fit, score)


def sample(
    tokens: Bool[np.ndarray, " token"], at_most: int, seed: int, *names: str
) -> Int64[np.ndarray, " chosen"]:
    """Return the marked tokens, ascending; where there are more than `at_most`, so many drawn at random.

    Args:
        tokens: Which tokens are marked.
        at_most: The most tokens that are returned.
        seed: The seed that the draw is named by.
        names: Names that tell this draw from others of the seed.
    """
    marked = np.flatnonzero(tokens)
    if len(marked) > at_most:
        random = numpy_generator(seed, "audit", "sample", *names)
        marked = np.sort(random.choice(marked, at_most, replace=False))
    return marked.astype(np.int64)


def fit_probes(
    x: Float32[np.ndarray, "token d_in"], present: Bool[np.ndarray, "token task"]
) -> Logistic:
    """Return logistic probes for all tasks, with a ridge of 1e-4 on the weights of whitened x.

    Scaling x or rotating it therefore changes no answer of the probes.
    """
    return fit_logistic(x, present, _RIDGE, scaling="white")


def best_f1(
    scores: Float[np.ndarray, " token"], present: Bool[np.ndarray, " token"]
) -> tuple[float, float]:
    """Return the best F1 that "score > threshold" reaches, and that threshold.

    Equal scores are never parted. Without a positive token F1 is 0 and the threshold infinite.
    """
    positive = int(present.sum())
    if positive == 0:
        return 0.0, float("inf")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    f1 = 2 * np.cumsum(present[order]) / (np.arange(1, len(order) + 1) + positive)
    following = np.append(ranked[1:], -np.inf)
    f1[ranked == following] = -1
    best = int(np.argmax(f1))
    low = following[best]
    return float(f1[best]), float((ranked[best] + low) / 2 if np.isfinite(low) else -np.inf)


def f1_of(says: Bool[np.ndarray, " token"], present: Bool[np.ndarray, " token"]) -> float:
    """Return F1 = 2 TP / (2 TP + FP + FN); 0 where the label neither holds nor is said to hold."""
    both = int(says.sum()) + int(present.sum())
    return 2 * int((says & present).sum()) / both if both else 0.0


def areas(
    logits: Float[np.ndarray, "token task"], present: Bool[np.ndarray, "token task"]
) -> Float64[np.ndarray, " task"]:
    """Return the AUROC of each task; ties count half. It is NaN where a label always or never holds."""
    return np.array([auroc(logits[:, task], yes) for task, yes in enumerate(present.T)])
