"""Fits that many questions share: logistic regression, and ridge with a penalty chosen on held-out tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64

from sae_placebo.core.lazy import torch

_STEPS, _HALVINGS = 50, 30
_SETTLED = 1e-10
_FLAT = 1e-9
"""What keeps a curvature that vanishes invertible; the relative spread below which a feature is constant."""
_GRADIENT_STEPS, _ROUNDS, _NEWTON_STEPS = 120, 3, 8


# --- logistic regression -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Logistic:
    """Logistic regressions, one per task, in the units of the features that they were fitted on.

    Attributes:
        weights: Log odds per unit of each feature.
        bias: Log odds where all features are 0.
    """

    weights: Float[np.ndarray, "task feature"]
    bias: Float[np.ndarray, " task"]

    def logits(self, x: Float[np.ndarray, "token feature"]) -> Float[np.ndarray, "token task"]:
        """Return the log odds of every task on features that all tasks share."""
        logits: Float[np.ndarray, "token task"] = x @ self.weights.T + self.bias
        return logits


def fit_logistic(
    x: Float[np.ndarray, "*task token feature"],
    present: Bool[np.ndarray, "token task"],
    ridge: float,
    *,
    scaling: Literal["standardized", "given", "white"] = "standardized",
    intercept_ridge: float = 0.0,
) -> Logistic:
    """Return the logistic regression of each task with the least penalized loss.

    The loss is the mean over tokens of -log P(what is there), plus `ridge` / 2 times the sum of squared
    weights; scikit-learn's `C` is 1 / (tokens x `ridge`). The penalty keeps weights finite where a label is
    separable. A constant feature gets weight 0. A task whose tokens all have the same answer gets a finite
    intercept, of about 20 where it is not penalized.

    The solver follows from `scaling`. Newton's method costs tokens x features^2 for each task and step,
    which suits the few features of "standardized" and "given". Where features are white the curvature has a
    known bound, and accelerated gradient, at tokens x features, fits all tasks together in single precision;
    its log odds are then off by about 1e-5 on average, of labels that 3% of 25,000 tokens have by 4e-5.

    Args:
        x: Features that all tasks share, [token, feature], or each task's own, [task, token, feature];
            white ones are shared.
        present: Whether each task's label holds.
        ridge: Weight of the penalty beside the mean loss, above 0.
        scaling: Units of the weights that are penalized: standard deviations of each feature, the units
            in which the features are given, or white coordinates, in which rotating x changes nothing.
            Directions with less than 1e-6 of the largest variance have no white coordinate and no weight.
        intercept_ridge: The same penalty on the intercept, at the mean of the features where they are
            standardized; always 0 in white coordinates.
    """
    if scaling == "white":
        return _white(x, present, ridge)
    mean, scale = np.zeros((1, x.shape[-1])), np.ones((1, x.shape[-1]))
    if scaling == "standardized":
        mean, scale = x.mean(axis=-2, keepdims=True), x.std(axis=-2, keepdims=True)
        # the spread of a constant is the rounding of its mean
        scale = np.where(scale > _FLAT * np.abs(mean), scale, np.inf)
    design = np.concatenate([np.ones((*x.shape[:-1], 1)), (x - mean) / scale], axis=-1)
    penalties = np.array([intercept_ridge, *[ridge] * x.shape[-1]])
    found = _newton(design, present.T.astype(np.float64), penalties)
    weights, bias = found[:, 1:] / scale[..., 0, :], found[:, 0]
    return Logistic(weights, bias - (weights * mean[..., 0, :]).sum(axis=1))


def _newton(
    design: Float64[np.ndarray, "*task token weight"],
    truth: Float64[np.ndarray, "task token"],
    penalties: Float64[np.ndarray, " weight"],
) -> Float64[np.ndarray, "task weight"]:
    """Return the weights of each task by Newton's method from 0, where the curvature is largest.

    A step is halved until the penalized loss does not rise: where a label is rare and well told, the
    curvature at the start says little about where the minimum lies, and whole steps can miss it for good.
    """
    n, n_weights = design.shape[-2:]
    design = np.broadcast_to(design, (len(truth), n, n_weights))
    turned = design.transpose(0, 2, 1)
    added = np.diag(np.where(penalties > 0, penalties, _FLAT))
    weights = np.zeros((len(truth), n_weights))
    chance, loss = np.full(truth.shape, 0.5), np.full(len(truth), np.log(2))
    for _ in range(_STEPS):
        slope = np.matmul(turned, (truth - chance)[:, :, None])[:, :, 0] / n
        bend = np.matmul(turned * (chance * (1 - chance))[:, None], design) / n
        move = np.linalg.solve(bend + added, (slope - penalties * weights)[:, :, None])[:, :, 0]
        for _ in range(_HALVINGS):
            following = weights + move
            logits = np.matmul(design, following[:, :, None])[:, :, 0]
            odds = np.exp(-np.abs(logits))
            left = (np.maximum(logits, 0) - truth * logits + np.log(1 + odds)).mean(axis=1)
            left += (penalties * following * following).sum(axis=1) / 2
            # what rounding adds is no rise
            worse = left > loss + 1e-12
            if not worse.any():
                break
            move[worse] /= 2
        weights, loss = following, left
        if np.abs(move).max(initial=0) < _SETTLED:
            break
        chance = np.where(logits > 0, 1, odds) / (1 + odds)
    return weights


def _white(
    x: Float[np.ndarray, "token feature"], present: Bool[np.ndarray, "token task"], ridge: float
) -> Logistic:
    """Return the regressions whose penalty is on weights of white coordinates, in single precision."""
    data = torch.from_numpy(np.ascontiguousarray(x))
    center = data.mean(0)
    data = data - center
    values, vectors = torch.linalg.eigh((data.t() @ data / len(data)).double())
    kept = values > values[-1].clamp_min(1e-30) * 1e-6
    whiten = (vectors[:, kept] / values[kept].sqrt()).to(data.dtype)
    y = torch.from_numpy(present.astype(x.dtype))
    weights, bias = _accelerated(data @ whiten, y, ridge)
    outer = (whiten @ weights).t()
    return Logistic(outer.numpy(), (bias - outer @ center).numpy())


def _accelerated(
    z: torch.Tensor, y: torch.Tensor, ridge: float
) -> tuple[Float[torch.Tensor, "feature task"], Float[torch.Tensor, " task"]]:
    """Return about the minimum of mean logistic loss plus ridge, for white features z.

    The start is the linear discriminant. Nesterov's steps find the direction; length and intercept, along
    which they are slow for rare labels, are found by Newton's method in between.
    """
    n, rate = len(z), y.mean(0).clamp(1e-6, 1 - 1e-6)
    # white features, so the discriminant is the difference of means
    weights = z.t() @ (y - rate) / n / (rate * (1 - rate))
    weights, bias = _calibrated(z, y, weights, torch.log(rate / (1 - rate)), ridge)
    # curvature is at most 1/4 times the largest eigenvalue of the features' second moments, which is 1
    step = 1 / (0.25 + ridge)
    for _ in range(_ROUNDS):
        look, speed = weights.clone(), 1.0
        for _ in range(_GRADIENT_STEPS // _ROUNDS):
            residual = torch.addmm(bias, z, look).sigmoid_().sub_(y)
            bias = bias - step * residual.mean(0)
            following = look - step * (z.t() @ residual / n + ridge * look)
            faster = (1 + (1 + 4 * speed * speed) ** 0.5) / 2
            look = following + (speed - 1) / faster * (following - weights)
            weights, speed = following, faster
        weights, bias = _calibrated(z, y, weights, bias, ridge)
    return weights, bias


def _calibrated(
    z: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights times their best positive factor, and the best intercept, of each task."""
    length = weights.norm(dim=0).clamp_min(1e-12)
    along = z @ (weights / length)
    scale, bias = length.clone(), bias.clone()
    for _ in range(_NEWTON_STEPS):
        chance = torch.sigmoid(along * scale + bias)
        residual, bend = chance - y, chance * (1 - chance)
        slope = (residual * along).mean(0) + ridge * scale
        slope_bias = residual.mean(0)
        aa = (bend * along * along).mean(0) + ridge
        ab, bb = (bend * along).mean(0), bend.mean(0) + _FLAT
        determinant = (aa * bb - ab * ab).clamp_min(1e-12)
        move = (bb * slope - ab * slope_bias) / determinant
        move_bias = (aa * slope_bias - ab * slope) / determinant
        # no farther than logits stay near where the curvature was taken
        shrink = (move.abs() + move_bias.abs()).clamp_min(2) / 2
        scale = (scale - move / shrink).clamp_min(1e-6)
        bias = bias - move_bias / shrink
    return weights / length * scale, bias


# --- ridge regression ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ChosenRidge:
    """Ridge regressions with the penalty that left the least on held-out tokens.

    Attributes:
        weights: Of each target, before any offset.
        penalties: The penalty that each target chose, in the unit that penalties were given in.
    """

    weights: Float[np.ndarray, "feature target"]
    penalties: Float64[np.ndarray, " target"]


def choose_ridge(
    gram: Float[np.ndarray, "*feature feature"],
    cross: Float[np.ndarray, "feature target"],
    penalties: Sequence[float],
    loss: Callable[[Float[np.ndarray, "feature target"]], Float[np.ndarray, "*target"]],
    *,
    unit: int | float,
    free: Sequence[int] = (),
) -> ChosenRidge:
    """Return each target's ridge weights at the penalty with the least loss on held-out tokens.

    Of penalties that do equally well the strongest is chosen. The weights are those of the fitted tokens;
    `solve_ridge` fits again on all tokens with the penalty chosen.

    Args:
        gram: X'X on the fitted tokens; its diagonal alone where X is in the basis of its eigenvectors.
        cross: X'y on the fitted tokens.
        penalties: What is added to the diagonal of X'X, in `unit`; infinity stands for weights of 0.
        loss: What weights leave on held-out tokens: one number per target, so that each chooses its own
            penalty, or one number for all, which then share one. `squares_left` is the sum of squares
            from sufficient statistics.
        unit: The number of tokens, so that the penalty is beside a mean loss, or a mean eigenvalue.
        free: Features that are not penalized, such as a column of ones.
    """
    best = np.full(cross.shape[1], np.inf)
    chosen, weights = np.full(cross.shape[1], np.nan), np.zeros_like(cross)
    # the strongest first: kept where no weaker one is better
    for penalty in sorted(penalties, reverse=True):
        solved = solve_ridge(gram, cross, penalty, unit=unit, free=free)
        left = np.broadcast_to(loss(solved), best.shape)
        better = left < best
        best[better], chosen[better] = left[better], penalty
        weights[:, better] = solved[:, better]
    return ChosenRidge(weights, chosen)


def solve_ridge(
    gram: Float[np.ndarray, "*feature feature"],
    cross: Float[np.ndarray, "feature target"],
    penalty: float,
    *,
    unit: int | float,
    free: Sequence[int] = (),
) -> Float[np.ndarray, "feature target"]:
    """Return the weights with the least |y - X w|^2 + penalty x unit x |w|^2 of each target.

    Args:
        gram: X'X; its diagonal alone where X is in the basis of its eigenvectors.
        cross: X'y.
        penalty: In `unit`; infinity gives weights of 0.
        unit: What a penalty of 1 adds to the diagonal.
        free: Features that are not penalized.
    """
    if np.isinf(penalty):
        return np.zeros_like(cross)
    added = np.full(len(gram), penalty * unit)
    added[list(free)] = 0
    if gram.ndim == 1:
        divided: Float[np.ndarray, "feature target"] = (
            cross / (gram + added).astype(cross.dtype)[:, None]
        )
        return divided
    solved: Float[np.ndarray, "feature target"] = np.linalg.solve(gram + np.diag(added), cross)
    return solved


def squares_left(
    gram: Float64[np.ndarray, "feature feature"], cross: Float64[np.ndarray, "feature target"]
) -> Callable[[Float[np.ndarray, "feature target"]], Float64[np.ndarray, " target"]]:
    """Return the function from weights to |y - X w|^2 - |y|^2 of each target.

    Args:
        gram: X'X on held-out tokens.
        cross: X'y there.
    """

    def left(weights: Float[np.ndarray, "feature target"]) -> Float64[np.ndarray, " target"]:
        explained = 2 * np.einsum("fc,fc->c", weights, cross)
        return np.asarray(np.einsum("fc,fc->c", weights, gram @ weights) - explained)

    return left
