"""Sparse probes: how well a label is read off a few atoms, compared with labels that mean nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from sae_placebo.baselines.pursuit import AtomCodes
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.fits import fit_logistic
from sae_placebo.stats.ranking import auroc

_LEAST = 20
"""Tokens with and without a label that a probe needs, to fit on and to score on."""
_RIDGE = 1e-3


@dataclass(frozen=True)
class Probe:
    """Means over labels of one baseline's probes, each of which reads k atoms.

    Attributes:
        k: Atoms that a probe reads.
        auc: Mean area under the ROC curve, on documents that were not fitted on.
        selectivity: `auc` less the mean area of the control tasks.
        accuracy: Mean share of the tokens that are answered right, where a probe says yes from a
            probability of one half on.
        n_labels: Labels that the means are over.
    """

    k: int
    auc: float
    selectivity: float
    accuracy: float
    n_labels: int


@dataclass(frozen=True, eq=False)
class ProbeTasks:
    """Yes-or-no tasks at each token: labels, and a control task for each label.

    Attributes:
        names: Names of the labels.
        fit: Answers at the tokens that probes are fitted on: one column for each label, then one for the
            control task of each.
        score: The same at the tokens that probes are scored on.
        fit_known: Which tokens to fit on have known labels.
        score_known: Which tokens to score on have known labels.
    """

    names: tuple[str, ...]
    fit: Bool[np.ndarray, "chosen task"]
    score: Bool[np.ndarray, "token task"]
    fit_known: Bool[np.ndarray, " chosen"]
    score_known: Bool[np.ndarray, " token"]


def probe_tasks(
    labels: tuple[Bool[np.ndarray, "chosen label"], Bool[np.ndarray, "token label"]],
    known: tuple[Bool[np.ndarray, " chosen"], Bool[np.ndarray, " token"]],
    token_ids: tuple[Int64[np.ndarray, " chosen"], Int64[np.ndarray, " token"]],
    names: tuple[str, ...],
    n_labels: int,
    seed: int,
) -> ProbeTasks:
    """Return the most frequent labels as tasks, with a control task of random answers for each.

    The answer of a control task is yes for token ids that are drawn at random until they make up the label's
    share of the tokens. So it can be learned by remembering tokens, and in no other way. Labels that hold for
    more than half of the tokens are left out.

    Args:
        labels: Whether each label holds, at the tokens to fit on and at those to score on.
        known: Whether labels are known, at the same tokens.
        token_ids: Token ids, at the same tokens.
        names: Names of the labels.
        n_labels: The most labels that are taken.
        seed: The seed that control tasks are named by.

    Source: Hewitt and Liang 2019 (control tasks); that the share agrees is ours.

    Raises:
        NotEstimable: no label holds often enough, and fails often enough, in both sets.
    """
    counts = [part[kept].sum(axis=0) for part, kept in zip(labels, known, strict=True)]
    totals = [int(kept.sum()) for kept in known]
    usable = np.ones(len(names), dtype=bool)
    for count, total in zip(counts, totals, strict=True):
        usable &= (count >= _LEAST) & (total - count >= _LEAST) & (2 * count <= total)
    if not usable.any():
        raise NotEstimable(f"no label holds for {_LEAST} tokens to fit on and {_LEAST} to score on")
    order = np.argsort(-(counts[0] + counts[1]), kind="stable")
    chosen = np.array([i for i in order if usable[i]][:n_labels])
    ids, seen = np.unique(
        np.concatenate([part[kept] for part, kept in zip(token_ids, known, strict=True)]),
        return_counts=True,
    )
    answers = np.zeros((int(max(part.max() for part in token_ids)) + 1, len(chosen)), dtype=bool)
    for column, label in enumerate(chosen):
        random = numpy_generator(seed, "control task", names[label])
        mixed = random.permutation(len(ids))
        wanted = sum(int(count[label]) for count in counts)
        yes = mixed[np.cumsum(seen[mixed]) <= wanted]
        answers[ids[yes], column] = True
    fit, score = (
        np.concatenate([part[:, chosen], answers[ids_]], axis=1)
        for part, ids_ in zip(labels, token_ids, strict=True)
    )
    return ProbeTasks(tuple(names[i] for i in chosen), fit, score, known[0], known[1])


def probe(fit: AtomCodes, score: AtomCodes, tasks: ProbeTasks, k: int) -> Probe:
    """Return how well k atoms predict the labels, and how much of that is more than remembering tokens.

    For each task, the k atoms with the largest absolute difference of class means are read by logistic
    regression with a small ridge.

    Args:
        fit: Codes of the tokens that probes are fitted on.
        score: Codes of the tokens that they are scored on.
        tasks: The tasks.
        k: Atoms that a probe reads.

    Raises:
        NotEstimable: the code uses no atom, or no control task has both answers where probes are scored.

    Source: the choice of atoms as in Kantamneni et al. 2025 (arXiv 2502.16681); selectivity as in Hewitt
    and Liang 2019, of areas under the curve instead of accuracies, since most labels are rare.
    """
    x, held = fit.matrix[tasks.fit_known], score.matrix[tasks.score_known]
    y, truth = tasks.fit[tasks.fit_known], tasks.score[tasks.score_known]
    atoms = _atoms(x, y, k)
    features, held_features = _columns(x, atoms), _columns(held, atoms)
    probes = fit_logistic(features, y, _RIDGE, intercept_ridge=_RIDGE)
    answers = np.einsum("atf,af->ta", held_features, probes.weights) + probes.bias
    areas = np.array([auroc(answers[:, i], truth[:, i]) for i in range(truth.shape[1])])
    n = len(tasks.names)
    usable = np.isfinite(areas[:n]) & np.isfinite(areas[n:])
    if not usable.any():
        raise NotEstimable("no control task has both answers where probes are scored")
    right = ((answers > 0) == truth)[:, :n].mean(axis=0)
    return Probe(
        k=k,
        auc=float(areas[:n][usable].mean()),
        selectivity=float((areas[:n] - areas[n:])[usable].mean()),
        accuracy=float(right[usable].mean()),
        n_labels=int(usable.sum()),
    )


def _atoms(x: Any, y: Bool[np.ndarray, "token task"], k: int) -> Int64[np.ndarray, "task k"]:
    """Return the k atoms of each task with the largest absolute difference of class means."""
    positive = y.sum(axis=0)
    # only atoms that are used at all: the dictionary may have very many
    used = np.unique(x.indices)
    inside = np.asarray(x[:, used].T @ y.astype(np.float32))
    overall = np.asarray(x[:, used].sum(axis=0)).ravel()
    outside = (overall[:, None] - inside) / np.maximum(len(y) - positive, 1)
    gap = np.abs(inside / np.maximum(positive, 1) - outside)
    k = min(k, len(used))
    if k < 1:
        raise NotEstimable("the code uses no atom at all: there is nothing to probe")
    order = np.argsort(-gap, axis=0, kind="stable")[:k].T
    atoms: Int64[np.ndarray, "task k"] = used[order].astype(np.int64)
    return atoms


def _columns(x: Any, atoms: Int64[np.ndarray, "task k"]) -> Float[np.ndarray, "task token k"]:
    """Return the coefficients of each task's atoms at every token."""
    distinct, place = np.unique(atoms, return_inverse=True)
    dense = np.asarray(x[:, distinct].todense(), dtype=np.float64)
    columns: Float[np.ndarray, "token task k"] = dense[:, place.reshape(atoms.shape)]
    return columns.transpose(1, 0, 2)
