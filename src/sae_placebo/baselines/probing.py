"""Sparse probes: how well a label is read off a few atoms, beside labels that mean nothing."""

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
    """Means over labels of one method's probes with k atoms.

    Attributes:
        k: Atoms read.
        auc: Mean area under the curve on documents that were not fitted on.
        selectivity: `auc` less that of the control tasks.
        accuracy: Mean share of tokens answered right, at even odds.
        n_labels: Labels that could be probed.
    """

    k: int
    auc: float
    selectivity: float
    accuracy: float
    n_labels: int


@dataclass(frozen=True, eq=False)
class ProbeTasks:
    """What is asked of each token: labels, and for each a control task.

    Attributes:
        names: Labels.
        fit: [token, 2 label] labels, then control tasks, where probes are fitted.
        score: The same where they are scored.
        fit_known: Tokens whose labels are known.
        score_known: The same where probes are scored.
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
    """Return the most frequent labels, and one random answer per word type for each.

    A control task says yes for random token ids, until they make up the label's share of the tokens;
    so it can be learned by remembering tokens, and by nothing else. Labels that hold for more
    than half of the tokens are left out.

    Source: Hewitt and Liang 2019 (control tasks); that the share agrees is ours.

    Raises:
        NotEstimable: no label holds often enough, and fails often enough, in both sets.
    """
    counts = [part[there].sum(axis=0) for part, there in zip(labels, known, strict=True)]
    totals = [int(there.sum()) for there in known]
    usable = np.ones(len(names), dtype=bool)
    for count, total in zip(counts, totals, strict=True):
        usable &= (count >= _LEAST) & (total - count >= _LEAST) & (2 * count <= total)
    if not usable.any():
        raise NotEstimable(f"no label holds for {_LEAST} tokens to fit on and {_LEAST} to score on")
    order = np.argsort(-(counts[0] + counts[1]), kind="stable")
    chosen = np.array([i for i in order if usable[i]][:n_labels])
    ids, seen = np.unique(
        np.concatenate([part[there] for part, there in zip(token_ids, known, strict=True)]),
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
    """Return how well k atoms tell the labels, and how much of it is more than remembering tokens.

    For each task the k atoms with the largest difference of class means, in absolute value, are read
    by logistic regression with a small ridge.

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
    """Return the k atoms of each task with the largest difference of class means."""
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
    found: Int64[np.ndarray, "task k"] = used[np.argsort(-gap, axis=0, kind="stable")[:k].T].astype(
        np.int64
    )
    return found


def _columns(x: Any, atoms: Int64[np.ndarray, "task k"]) -> Float[np.ndarray, "task token k"]:
    distinct, place = np.unique(atoms, return_inverse=True)
    columns = np.asarray(x[:, distinct].todense(), dtype=np.float64)
    found: Float[np.ndarray, "task token k"] = columns[:, place.reshape(atoms.shape)].transpose(
        1, 0, 2
    )
    return found
