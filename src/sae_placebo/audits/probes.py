"""Labels of tokens as tasks, and logistic probes for all of them at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from sae_placebo.audits.base import Case
from sae_placebo.errors import NotEstimable
from sae_placebo.lazy import torch
from sae_placebo.spec import numpy_generator
from sae_placebo.structure.base import TokenTable

MIN_POSITIVE = 50
"""Tokens with, and tokens without a label that a probe needs, to fit on and to score on."""
_RIDGE = 1e-4
_STEPS = 120
_ROUNDS = 3
_NEWTON = 8
_MARKS = " \tĠ▁\n\rĊ"


@dataclass(frozen=True, eq=False)
class Tasks:
    """Yes-or-no questions about tokens.

    Attributes:
        names: Of the labels.
        present: Whether each label holds.
        known: Where labels are known.
    """

    names: tuple[str, ...]
    present: Bool[np.ndarray, "token task"]
    known: Bool[np.ndarray, " token"]

    def permuted(self, documents: np.ndarray, random: np.random.Generator) -> Tasks:
        """Return the same labels on other documents: whole documents change places.

        Rates, and how labels follow each other, stay; what they have to do with the tokens goes.
        """
        order = random.permutation(np.unique(documents))
        place = np.concatenate([np.flatnonzero(documents == one) for one in order])
        return Tasks(self.names, self.present[place], self.known[place])


@dataclass(frozen=True, eq=False)
class Probes:
    """Logistic probes, one per task, in the units of what they read.

    Attributes:
        weights: [task, d_in].
        bias: [task].
    """

    weights: Float32[np.ndarray, "task d_in"]
    bias: Float32[np.ndarray, " task"]

    def logits(self, x: Float32[np.ndarray, "token d_in"]) -> Float32[np.ndarray, "token task"]:
        """Return the log odds that the probes give."""
        found: Float32[np.ndarray, "token task"] = x @ self.weights.T + self.bias
        return found


def label_tasks(case: Case) -> Tasks:
    """Return the labels with the most tokens, at most `spec.labels`.

    Raises:
        NotEstimable: nothing is known of the tokens, or no label has tokens enough.
    """
    if case.labels is None:
        raise NotEstimable("the text has no labels: name some, or use text that comes with them")
    every = Tasks(case.labels.names, case.labels.present, case.labels.known)
    return _chosen(every, case)


def letter_tasks(case: Case) -> Tasks:
    """Return first letters of tokens as labels, known for tokens that begin with a letter.

    Marks of white space in front do not count, and neither does case.

    Raises:
        NotEstimable: no letter begins tokens enough.
    """
    return _chosen(first_letters(case.reading.tokens), case)


def first_letters(tokens: TokenTable) -> Tasks:
    """Return which of a to z each token begins with."""
    firsts = np.array([_letter(text) for text in tokens.vocabulary], dtype=np.int64)
    letters = firsts[tokens.ids]
    names = tuple(f"begins with {chr(97 + i)}" for i in range(26))
    return Tasks(names, letters[:, None] == np.arange(26), letters >= 0)


def _letter(text: str) -> int:
    first = text.lstrip(_MARKS)[:1].lower()
    return ord(first) - 97 if first and "a" <= first <= "z" else -1


def _chosen(tasks: Tasks, case: Case) -> Tasks:
    """Return the tasks that can be probed on both halves, the most frequent first."""
    usable = np.ones(len(tasks.names), dtype=bool)
    for half in case.halves():
        part = tasks.present[half & tasks.known]
        positive = part.sum(0)
        usable &= (positive >= MIN_POSITIVE) & (len(part) - positive >= MIN_POSITIVE)
    if not usable.any():
        raise NotEstimable(
            f"no label holds for {MIN_POSITIVE} tokens of either half of the documents: hold out "
            f"more"
        )
    order = np.argsort(-tasks.present[tasks.known].sum(0), kind="stable")
    kept = np.array([i for i in order if usable[i]][: case.spec.labels])
    return Tasks(tuple(tasks.names[i] for i in kept), tasks.present[:, kept], tasks.known)


def sample(
    tokens: Bool[np.ndarray, " token"], at_most: int, seed: int, *names: str
) -> Int64[np.ndarray, " chosen"]:
    """Return some of the tokens that are marked, ascending."""
    found = np.flatnonzero(tokens)
    if len(found) > at_most:
        random = numpy_generator(seed, "audit", "sample", *names)
        found = np.sort(random.choice(found, at_most, replace=False))
    return found.astype(np.int64)


def fit_probes(
    x: Float32[np.ndarray, "token d_in"], present: Bool[np.ndarray, "token task"]
) -> Probes:
    """Return logistic probes of all tasks: accelerated gradient in whitened coordinates.

    The start is the linear discriminant. Directions in which x varies by less than 1e-6 of the largest
    variance are left out; a ridge of 1e-4 on whitened weights keeps separable labels finite.

    Scaling x changes nothing, and neither does turning it.
    """
    data = torch.from_numpy(np.ascontiguousarray(x))
    center = data.mean(0)
    data = data - center
    values, vectors = torch.linalg.eigh((data.t() @ data / len(data)).double())
    kept = values > values[-1].clamp_min(1e-30) * 1e-6
    whiten = (vectors[:, kept] / values[kept].sqrt()).float()
    z, y = data @ whiten, torch.from_numpy(present.astype(np.float32))
    weights, bias = _accelerated(z, y)
    outer = (whiten @ weights).t()
    return Probes(outer.numpy(), (bias - outer @ center).numpy())


def _accelerated(
    z: torch.Tensor, y: torch.Tensor
) -> tuple[Float[torch.Tensor, "feature task"], Float[torch.Tensor, " task"]]:
    """Return about the minimum of mean logistic loss plus ridge, for white features z.

    Nesterov's steps for the direction; length and intercept, along which they are slow for rare labels,
    by Newton's method in between.
    """
    n, rate = len(z), y.mean(0).clamp(1e-6, 1 - 1e-6)
    # white features, so the discriminant is the difference of means
    weights = z.t() @ (y - rate) / n / (rate * (1 - rate))
    weights, bias = _calibrated(z, y, weights, torch.log(rate / (1 - rate)))
    # curvature is at most 1/4 times the largest eigenvalue of the features' second moments, which is 1
    step = 1 / (0.25 + _RIDGE)
    for _ in range(_ROUNDS):
        look, speed = weights.clone(), 1.0
        for _ in range(_STEPS // _ROUNDS):
            residual = torch.addmm(bias, z, look).sigmoid_().sub_(y)
            bias = bias - step * residual.mean(0)
            following = look - step * (z.t() @ residual / n + _RIDGE * look)
            faster = (1 + (1 + 4 * speed * speed) ** 0.5) / 2
            look = following + (speed - 1) / faster * (following - weights)
            weights, speed = following, faster
        weights, bias = _calibrated(z, y, weights, bias)
    return weights, bias


def _calibrated(
    z: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights times their best positive factor, and the best intercept, of each task."""
    length = weights.norm(dim=0).clamp_min(1e-12)
    along = z @ (weights / length)
    scale, bias = length.clone(), bias.clone()
    for _ in range(_NEWTON):
        chance = torch.sigmoid(along * scale + bias)
        residual, bend = chance - y, chance * (1 - chance)
        slope = (residual * along).mean(0) + _RIDGE * scale
        slope_bias = residual.mean(0)
        aa = (bend * along * along).mean(0) + _RIDGE
        ab, bb = (bend * along).mean(0), bend.mean(0) + 1e-9
        determinant = (aa * bb - ab * ab).clamp_min(1e-12)
        move = (bb * slope - ab * slope_bias) / determinant
        move_bias = (aa * slope_bias - ab * slope) / determinant
        # no farther than logits stay near where the curvature was taken
        shrink = (move.abs() + move_bias.abs()).clamp_min(2) / 2
        scale = (scale - move / shrink).clamp_min(1e-6)
        bias = bias - move_bias / shrink
    return weights / length * scale, bias


def best_f1(
    scores: Float[np.ndarray, " token"], present: Bool[np.ndarray, " token"]
) -> tuple[float, float]:
    """Return the best F1 of "score > threshold" and that threshold; equal scores stay together."""
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
    """Return F1 = 2 TP / (2 TP + FP + FN); 0 where the label never holds."""
    both = int(says.sum()) + int(present.sum())
    return 2 * int((says & present).sum()) / both if both else 0.0


def areas(
    logits: Float[np.ndarray, "token task"], present: Bool[np.ndarray, "token task"]
) -> Float64[np.ndarray, " task"]:
    """Return areas under the curve, ties counted half; NaN with one class alone."""
    from scipy.stats import rankdata

    out = np.full(present.shape[1], np.nan)
    for task in range(len(out)):
        yes = present[:, task]
        n = int(yes.sum())
        if 0 < n < len(yes):
            ranks = rankdata(logits[:, task])
            out[task] = (ranks[yes].sum() - n * (n + 1) / 2) / (n * (len(yes) - n))
    return out
