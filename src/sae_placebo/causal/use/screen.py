"""How sensitive predictions are to each direction, at first order, and to random ones in its place.

A screen ranks directions and never decides about one. Where an attention is saturated, an MLP is a step,
or a prediction is certain, gradients are flat and a direction that is used looks unused; where a slope
is steep, what an edit of finite size does is overrated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64
from pydantic import Field

from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.gradients import Gradients, drawn_rows, sampled_gradients
from sae_placebo.causal.use.matched import MatchedSums, shared_nulls
from sae_placebo.core.spec import Spec


class ScreenSpec(Spec):
    """Settings of a screen."""

    tokens: int = Field(default=20_000, gt=0)
    """Most held-out tokens, in whole rows."""
    samples: int = Field(default=2, gt=0)
    """Labels drawn per prediction: one backward pass each."""
    nulls: int = Field(default=500, gt=1)
    """Random directions, shared by all that are asked about."""
    fewest: int = Field(default=5, gt=0)
    """Tokens that must hold a direction for it to be scored."""


@dataclass(frozen=True, eq=False)
class Screen:
    """What a screen says of each direction; NaN for those that too few tokens hold.

    Attributes:
        phi: Mean over the tokens that hold the direction of a^2 (g . d)^2; half of it is what ablating
            it at one token is predicted to cost, in nats, summed over all later predictions.
        null_mean: The same, mean over random directions of the same angle to each activation.
        p: Rank of phi among these, (1 + those at least as large) / (1 + all). Where none is as large, the
            tail of a gamma distribution with their mean and variance, if that is smaller.
        ratio: phi over `null_mean`.
        n: Tokens that hold it.
        split: The smaller over the larger of phi in odd and in even documents; 1 means the same.
        halves: [2, direction] phi in even and in odd documents.
    """

    phi: Float64[np.ndarray, " direction"]
    null_mean: Float64[np.ndarray, " direction"]
    p: Float64[np.ndarray, " direction"]
    ratio: Float64[np.ndarray, " direction"]
    n: Int64[np.ndarray, " direction"]
    split: Float64[np.ndarray, " direction"]
    halves: Float64[np.ndarray, "two direction"]

    @property
    def stability(self) -> float:
        """Spearman's correlation of phi between the halves; NaN with fewer than 3 directions in both."""
        from scipy.stats import spearmanr

        both = np.isfinite(self.halves).all(0)
        if both.sum() < 3:
            return float("nan")
        return float(spearmanr(*self.halves[:, both]).statistic)


def screen(subject: Subject, directions: Directions, spec: ScreenSpec, seed: int) -> Screen:
    """Return the Fisher sensitivity of predictions to each direction, against matched random ones.

    Ranks and never decides: see the module.

    With g the gradient at a token of the log probabilities of labels drawn from the model, summed over
    the row, E (g . d)^2 is d' F d, F the Fisher information of all later predictions about the
    activation, since products of different positions' scores vanish in expectation. The divergence of
    an edit -a d is a^2 d' F d / 2 at second order.

    Args:
        subject: The model and its held-out tokens.
        directions: Asked about.
        spec: Tokens, samples, nulls.
        seed: Names all draws.
    """
    counter = ScreenTally(subject, directions, spec, seed)
    rows = drawn_rows(subject, spec.tokens, seed)
    for found in sampled_gradients(subject, rows, spec.samples, seed):
        counter.add(found)
    return counter.finish()


class ScreenTally:
    """A screen in progress, fed with gradients that others may read as well."""

    def __init__(
        self, subject: Subject, directions: Directions, spec: ScreenSpec, seed: int
    ) -> None:
        width = directions.vectors.shape[1]
        nulls = shared_nulls(seed, spec.nulls, width).to(subject.downstream.device)
        self._subject = subject
        self._spec = spec
        self._tally = MatchedSums(directions, nulls)

    def add(self, found: Gradients) -> None:
        """Take in some tokens."""
        halves = self._subject.tokens.documents[found.tokens].astype(np.int64) % 2
        self._tally.add(found.tokens, halves, found.site, found.sampled[:, :, None])

    def finish(self) -> Screen:
        """Return what was found."""
        tally, fewest = self._tally, self._spec.fewest
        counts = tally.n
        n = counts.sum(0)
        enough = n >= fewest
        score = tally.score[:, :, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            phi = np.where(enough, score.sum(0) / n, np.nan)
            nulls = tally.null[:, 0] / n[:, None]
            null_mean = np.where(enough, nulls.mean(1, dtype=np.float64), np.nan)
            ratio = phi / np.where(null_mean > 0, null_mean, np.nan)
            halves = np.where(enough & (counts > 0).all(0), score / counts, np.nan)
            split = halves.min(0) / np.where(halves.max(0) > 0, halves.max(0), np.nan)
        p = np.where(enough, _p_values(phi, nulls), np.nan)
        return Screen(phi, null_mean, p, ratio, n, split, halves)


def _p_values(
    phi: Float[np.ndarray, " direction"], nulls: Float[np.ndarray, "direction null"]
) -> Float64[np.ndarray, " direction"]:
    """Return rank p-values, and gamma tails where no null is as large.

    Source: Satterthwaite (1946) for the tail: a quadratic form in random directions is taken to be
    gamma distributed, with the mean and variance of its draws.
    """
    from scipy.special import gammaincc

    larger = (nulls >= phi[:, None]).sum(1)
    p: Any = (1 + larger) / (1 + nulls.shape[1])
    mean, variance = nulls.mean(1, dtype=np.float64), nulls.var(1, dtype=np.float64)
    beyond = np.flatnonzero((larger == 0) & (variance > 0))
    shape, scale = mean[beyond] ** 2 / variance[beyond], variance[beyond] / mean[beyond]
    p[beyond] = np.minimum(p[beyond], gammaincc(shape, phi[beyond] / scale))
    return np.asarray(p, dtype=np.float64)
