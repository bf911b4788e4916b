"""A screen: how sensitive predictions are to each direction, by gradients, and to random ones in its place.

A screen ranks directions and never decides about one. Where an attention is saturated, an MLP is a step,
or a prediction is certain, gradients are flat, and a direction that is used looks unused. Where a slope is
steep, the screen overrates what an edit of finite size does.
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
    """The settings of a screen."""

    tokens: int = Field(default=20_000, gt=0)
    """At most this many held-out tokens are read, in whole rows."""
    samples: int = Field(default=2, gt=0)
    """How many labels are drawn for each prediction; each takes one backward pass."""
    nulls: int = Field(default=500, gt=1)
    """How many random directions there are; all directions share them."""
    fewest: int = Field(default=5, gt=0)
    """A direction is scored if at least this many of the tokens read hold it."""


@dataclass(frozen=True, eq=False)
class Screen:
    """The scores of directions by a screen; NaN for directions that too few tokens hold.

    Attributes:
        phi: The mean of a^2 (g . d)^2 over the tokens that hold the direction, in nats, doubled: half of
            it is the predicted cost of ablating the direction at one token, summed over all later
            predictions.
        null_mean: The mean of phi over random directions that have, at each token, the direction's angle to
            the activation and its amount.
        p: The rank of phi among those of the random directions, (1 + how many are at least as large) /
            (1 + how many there are). Where none is as large, it is the tail of a gamma distribution with
            their mean and variance, if that is smaller.
        ratio: phi divided by `null_mean`.
        n: How many of the tokens read hold the direction.
        split: The smaller of phi in even and in odd documents divided by the larger; 1 means that both are
            equal.
        halves: phi in even documents, and in odd ones.
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
        """Spearman's correlation over directions of phi in even documents with phi in odd ones.

        It is NaN where fewer than three directions are scored in both halves.
        """
        from scipy.stats import spearmanr

        both = np.isfinite(self.halves).all(0)
        if both.sum() < 3:
            return float("nan")
        return float(spearmanr(*self.halves[:, both]).statistic)


def screen(subject: Subject, directions: Directions, spec: ScreenSpec, seed: int) -> Screen:
    """Return the Fisher sensitivity of predictions to each direction, and to matched random ones.

    It ranks directions and never decides about one, for the reasons in the module's docstring.

    Let g be the gradient, at a token's activation, of the log probabilities of labels that are drawn from
    the model, summed over the row. Products of the scores of different positions vanish in expectation,
    so E (g . d)^2 = d' F d, with F the Fisher information of all later predictions about the activation.
    At second order the divergence that an edit -a d causes is a^2 d' F d / 2, which is half of phi.

    Args:
        subject: The model and its held-out tokens.
        directions: The directions that are scored.
        spec: How many tokens, labels and random directions are used.
        seed: The seed of all draws.
    """
    tally = ScreenTally(subject, directions, spec, seed)
    rows = drawn_rows(subject, spec.tokens, seed)
    for gradients in sampled_gradients(subject, rows, spec.samples, seed):
        tally.add(gradients)
    return tally.finish()


class ScreenTally:
    """A screen in progress, fed with gradients that others may read as well.

    Args:
        subject: The model and its held-out tokens.
        directions: The directions that are scored.
        spec: How many random directions there are, and how many tokens a score takes.
        seed: The seed of the random directions.
    """

    def __init__(
        self, subject: Subject, directions: Directions, spec: ScreenSpec, seed: int
    ) -> None:
        width = directions.vectors.shape[1]
        nulls = shared_nulls(seed, spec.nulls, width).to(subject.downstream.device)
        self._subject = subject
        self._spec = spec
        self._tally = MatchedSums(directions, nulls)

    def add(self, gradients: Gradients) -> None:
        """Add the gradients at some tokens to the sums."""
        halves = self._subject.tokens.documents[gradients.tokens].astype(np.int64) % 2
        self._tally.add(gradients.tokens, halves, gradients.site, gradients.sampled[:, :, None])

    def finish(self) -> Screen:
        """Return the scores from the sums over all tokens added."""
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
    """Return rank p-values, and tails of a gamma distribution where no null is as large.

    Source: the tail is Satterthwaite's (1946): a quadratic form in random directions is taken to be gamma
    distributed, with the mean and variance of its draws.
    """
    from scipy.special import gammaincc

    larger = (nulls >= phi[:, None]).sum(1)
    p: Any = (1 + larger) / (1 + nulls.shape[1])
    mean, variance = nulls.mean(1, dtype=np.float64), nulls.var(1, dtype=np.float64)
    beyond = np.flatnonzero((larger == 0) & (variance > 0))
    shape, scale = mean[beyond] ** 2 / variance[beyond], variance[beyond] / mean[beyond]
    p[beyond] = np.minimum(p[beyond], gammaincc(shape, phi[beyond] / scale))
    return np.asarray(p, dtype=np.float64)
