"""Who reads a direction: exact at first order, from the backward passes that the screen takes anyway.

Like the screen this ranks and never decides: what is read through a saturated attention or a step has no
gradient. `patching.confirm_reader` makes a finite edit of what one reader reads.
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
    """Settings of a screen with readers."""

    reader_nulls: int = Field(default=99, gt=1)
    """Random directions that each reader's score is ranked among."""


@dataclass(frozen=True, eq=False)
class Readers:
    """What reads each direction, at first order; NaN for those that too few tokens hold.

    Attributes:
        names: Of the readers, such as q.3.0 (query of head 0 in layer 3), mlp.3, unembedding.
        kinds: `unembedding`, `qk`, `ov` or `mlp` of each.
        score: Mean of a^2 (g_m . d)^2, g_m the gradient through reader m of log probabilities of labels
            drawn from the model; nats, doubled, as `Screen.phi`.
        signed: Mean of a (g_m . d) with the text's own next tokens as labels, in nats: what the direction
            adds to their log probability. Sums over readers to that of the hookpoint.
        percentile: Share of random directions, at the same angle to each activation, with a lower score.
        any_p: Rank of the largest score among the readers, in standard deviations of the logarithms of their
            nulls, among the largest of each random direction: whether anything reads it more than those.
        path_split: Shares of the summed scores by kind, in the order of `KINDS`. Scores are squares, so
            what readers do together or against one another is in no share.
        n: Tokens that hold each direction.
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
        """Return the readers with the largest scores among those at `least` this percentile."""
        order = np.argsort(-np.nan_to_num(self.score[direction], nan=-1), kind="stable")
        good = [int(m) for m in order if self.percentile[direction, m] >= least]
        return good[:n]


def readers(subject: Subject, directions: Directions, spec: ReadersSpec, seed: int) -> Readers:
    """Return who reads each direction; `survey` gives the screen as well, in one pass.

    Args:
        subject: The model and its held-out tokens.
        directions: Asked about. Nulls take 4 bytes by direction, reader and null.
        spec: Tokens, samples, nulls.
        seed: Names all draws.

    Raises:
        ModelError: the model's layers are not understood.
    """
    return _pass(subject, directions, spec, seed, with_screen=False)[1]


def survey(
    subject: Subject,
    directions: Directions,
    spec: ReadersSpec,
    seed: int,
    track: Track = untracked,
) -> tuple[Screen, Readers]:
    """Return `screen` and `readers` of the same gradients, shown; arguments and errors as theirs."""
    found, read = _pass(subject, directions, spec, seed, with_screen=True, track=track)
    assert found is not None
    return found, read


def _pass(
    subject: Subject,
    directions: Directions,
    spec: ReadersSpec,
    seed: int,
    with_screen: bool,
    track: Track = untracked,
) -> tuple[Screen | None, Readers]:
    trace = ReaderTrace(subject.downstream)
    counter = _ReaderTally(subject, directions, trace, spec, seed)
    screen = ScreenTally(subject, directions, spec, seed) if with_screen else None
    rows = drawn_rows(subject, spec.tokens, seed)
    n = int(np.isin(subject.tokens.places[:, 0], rows).sum())
    with track("find readers", n, "tokens") as advance:
        for i, found in enumerate(sampled_gradients(subject, rows, spec.samples, seed, trace)):
            if i == 0 and found.readers is not None:
                check_sum(found.readers, found.sampled)
            counter.add(found)
            if screen is not None:
                screen.add(found)
            advance(len(found.tokens))
    return (None if screen is None else screen.finish()), counter.finish()


class _ReaderTally:
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

    def add(self, found: Gradients) -> None:
        assert found.readers is not None
        halves = np.zeros(len(found.tokens), dtype=np.int64)
        self.tally.add(found.tokens, halves, found.site, found.readers, found.observed)

    def finish(self) -> Readers:
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
    """Return the rank of each direction's largest score over readers among those of its nulls."""
    found = np.ones(len(score))
    for i in range(len(score)):
        with np.errstate(divide="ignore", invalid="ignore"):
            logs, own = np.log(nulls[i].astype(np.float64)), np.log(score[i])
            spread = logs.std(axis=1)
        # readers that no random direction reaches, or all alike, tell nothing
        usable = np.isfinite(own) & np.isfinite(spread) & (spread > 0)
        if usable.any():
            center = logs[usable].mean(axis=1)
            z = ((own[usable] - center) / spread[usable]).max()
            of_nulls = ((logs[usable] - center[:, None]) / spread[usable, None]).max(axis=0)
            found[i] = (1 + (of_nulls >= z).sum()) / (1 + len(of_nulls))
    return found
