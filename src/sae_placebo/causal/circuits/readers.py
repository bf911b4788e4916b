"""Which parts of a model read a direction, at first order.

The score of a reader is that of the screen (`causal.use.screen`) with only the part of the gradient that
comes through this reader; it takes the same backward passes. Like the screen it ranks and never decides:
what is read through a saturated attention or a step has no gradient. `patching.confirm_reader` makes a
finite edit of what one reader reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64
from pydantic import Field

from sae_placebo.causal.circuits.traces import KINDS, ReaderTrace, check_sum
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.gradients import Gradients, drawn_rows, sampled_gradients
from sae_placebo.causal.use.matched import MatchedSums, shared_nulls
from sae_placebo.causal.use.screen import Screen, ScreenSpec, ScreenTally
from sae_placebo.core.progress import Track, untracked


class ReadersSpec(ScreenSpec):
    """The settings of a screen with readers."""

    reader_nulls: int = Field(default=99, gt=1)
    """Each reader's score is ranked among those of this many random directions."""


@dataclass(frozen=True, eq=False)
class Readers:
    """What reads each direction, at first order; NaN for directions that too few tokens hold.

    Attributes:
        names: The readers, such as q.3.0 (the query of head 0 in layer 3), mlp.3, unembedding.
        kinds: The kind of each: `unembedding`, `qk`, `ov` or `mlp`.
        score: The mean of a^2 (g_m . d)^2 over the tokens that hold the direction, where g_m is the
            gradient, through reader m, of log probabilities of labels drawn from the model. In nats, doubled,
            as `Screen.phi`.
        signed: The mean of a (g_m . d) with the next tokens of the text as labels, in nats: what the
            direction adds to their log probability through the reader, to first order. Its sum over
            readers is what the direction adds altogether.
        percentile: The share, 0 to 1, of random directions at the same angle to each activation that have a
            lower score.
        any_p: The p-value of the claim that something reads the direction more than it reads random ones.
            Each score is put in standard deviations of the logarithms of its nulls; the largest over the
            readers is ranked among the largest of each random direction.
        path_split: The share of each kind, in the order of `KINDS`, in the sum of all scores. Scores are
            squares, so what readers do together or against one another is in no share.
        n: How many of the tokens read hold each direction.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    score: Float64[np.ndarray, "direction reader"]
    signed: Float64[np.ndarray, "direction reader"]
    percentile: Float64[np.ndarray, "direction reader"]
    any_p: Float64[np.ndarray, " direction"]
    path_split: Float64[np.ndarray, "direction four"]
    n: Int64[np.ndarray, " direction"]

    def top(self, direction: int, n: int, least: float = 0.95) -> list[int]:
        """Return the `n` readers of a direction with the largest scores, largest first, as indices.

        Readers whose percentile is below `least` are left out.
        """
        order = np.argsort(-np.nan_to_num(self.score[direction], nan=-1), kind="stable")
        return [int(m) for m in order if self.percentile[direction, m] >= least][:n]


def readers(
    subject: Subject,
    directions: Directions,
    spec: ReadersSpec,
    seed: int,
    track: Track = untracked,
) -> Readers:
    """Return which parts of the model read each direction. `survey` returns the screen as well.

    Args:
        subject: The model and its held-out tokens.
        directions: The directions that are scored. Their nulls take 4 bytes of memory for each direction,
            reader and random direction.
        spec: How many tokens, labels and random directions are used.
        seed: The seed of all draws.
        track: It shows how many tokens are read.

    Raises:
        ModelError: the model's layers are not understood.
    """
    return _pass(subject, directions, spec, seed, with_screen=False, track=track)[1]


def survey(
    subject: Subject,
    directions: Directions,
    spec: ReadersSpec,
    seed: int,
    track: Track = untracked,
) -> tuple[Screen, Readers]:
    """Return what `screen` and `readers` do, from the same gradients, and show the progress.

    Arguments and errors are those of `readers`.
    """
    screened, read = _pass(subject, directions, spec, seed, with_screen=True, track=track)
    assert screened is not None
    return screened, read


def _pass(
    subject: Subject,
    directions: Directions,
    spec: ReadersSpec,
    seed: int,
    with_screen: bool,
    track: Track = untracked,
) -> tuple[Screen | None, Readers]:
    """Return the screen, if wanted, and the readers, from one pass over the tokens."""
    trace = ReaderTrace(subject.downstream)
    tally = _ReaderTally(subject, directions, trace, spec, seed)
    screen = ScreenTally(subject, directions, spec, seed) if with_screen else None
    rows = drawn_rows(subject, spec.tokens, seed)
    with track("find readers", len(subject.tokens_in(rows)), "tokens") as advance:
        for i, part in enumerate(sampled_gradients(subject, rows, spec.samples, seed, trace)):
            if i == 0 and part.readers is not None:
                check_sum(part.readers, part.sampled)
            tally.add(part)
            if screen is not None:
                screen.add(part)
            advance(len(part.tokens))
    return (None if screen is None else screen.finish()), tally.finish()


class _ReaderTally:
    """The scores of readers in progress."""

    def __init__(
        self,
        subject: Subject,
        directions: Directions,
        trace: ReaderTrace,
        spec: ReadersSpec,
        seed: int,
    ) -> None:
        width = directions.vectors.shape[1]
        nulls = shared_nulls(seed, spec.reader_nulls, width).to(subject.downstream.device)
        self.trace, self.spec = trace, spec
        self.tally = MatchedSums(directions, nulls, trace.n_readers)

    def add(self, part: Gradients) -> None:
        """Add the gradients at some tokens to the sums."""
        assert part.readers is not None
        halves = np.zeros(len(part.tokens), dtype=np.int64)
        self.tally.add(part.tokens, halves, part.site, part.readers, part.observed)

    def finish(self) -> Readers:
        """Return the scores from the sums over all tokens added."""
        tally = self.tally
        n = tally.n.sum(0)
        enough = (n >= self.spec.fewest)[:, None]
        total = tally.score.sum(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.where(enough, total / n[:, None], np.nan)
            signed = np.where(enough, tally.linear / n[:, None], np.nan)
            kinds = np.array(self.trace.kinds)
            shares = np.stack([score[:, kinds == kind].sum(1) for kind in KINDS], 1)
            whole = shares.sum(1, keepdims=True)
            path_split = shares / np.where(whole > 0, whole, np.nan)
        below = (tally.null < total.astype(np.float32)[..., None]).mean(-1)
        return Readers(
            names=tuple(self.trace.names),
            kinds=tuple(self.trace.kinds),
            score=score,
            signed=signed,
            percentile=np.where(enough, below, np.nan),
            any_p=np.where(enough[:, 0], _largest(total, tally.null), np.nan),
            path_split=path_split,
            n=n,
        )


def _largest(
    score: Float64[np.ndarray, "direction reader"],
    nulls: Float32[np.ndarray, "direction reader null"],
) -> Float64[np.ndarray, " direction"]:
    """Return the p-value of each direction's largest score over readers, among those of its nulls.

    Scores of different readers are made comparable by the mean and standard deviation of the logarithms of
    their nulls.
    """
    p = np.ones(len(score))
    for i in range(len(score)):
        with np.errstate(divide="ignore", invalid="ignore"):
            of_nulls, of_direction = np.log(nulls[i].astype(np.float64)), np.log(score[i])
            spread = of_nulls.std(axis=1)
        # a reader that no random direction reaches, or that all of them reach alike, cannot rank anything
        usable = np.isfinite(of_direction) & np.isfinite(spread) & (spread > 0)
        if usable.any():
            center = of_nulls[usable].mean(axis=1)
            z = ((of_direction[usable] - center) / spread[usable]).max()
            largest = ((of_nulls[usable] - center[:, None]) / spread[usable, None]).max(axis=0)
            p[i] = (1 + (largest >= z).sum()) / (1 + len(largest))
    return p
