"""What would have to be seen if a direction were used: ablations at firings that are drawn uniformly.

Draws by importance show that something is used. That something is *not* used can only be shown by draws that
favor no firing. At each of them three things are compared, all for one direction:

- its ablation alone, with what a full swap costs and with the ablation of null directions, new ones at each;
- its **last-in marginal**: all of a joint set S* is removed from every token of the row, and the direction is
  put back at this one firing. What it costs that it is gone as well is the cost of S* less the cost of S*
  without it. Where either of two directions suffices and both are in S*, this is the cost of both.

Firings that were not drawn may still be critical. With n draws and none of them critical, the share of
critical firings is surely below 1 - .01^(1/n), the **unseen share**.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sae_placebo.causal.use.base import DirectionSets, Subject
from sae_placebo.causal.use.edits import costs_of_edits
from sae_placebo.causal.use.effects import Effects, effects_of
from sae_placebo.causal.use.firings import Firings, uniform_firings
from sae_placebo.causal.use.null_directions import null_edits
from sae_placebo.causal.use.null_test import ROUNDING
from sae_placebo.causal.use.removal import only, removed, subset
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Track, untracked

_SURE = 0.99
"""The confidence of the largest unseen share of critical firings."""


@dataclass(frozen=True, eq=False)
class Absence:
    """The evidence at firings drawn uniformly, by direction; NaN where a direction was not asked.

    Attributes:
        effect: The effect of ablating the direction alone, as a share of a full swap.
        ratio: Its cost over that of null directions.
        last: The last-in marginal, as a share of a full swap. A firing at which it is below 0 counts as 0,
            so that no firing makes up for another.
        last_ratio: The last-in marginal over the cost of null directions.
        n_firings: At how many firings this was measured.
    """

    effect: Effects
    ratio: Effects
    last: Effects
    last_ratio: Effects
    n_firings: Int64[np.ndarray, " direction"]

    @property
    def unseen(self) -> Float64[np.ndarray, " direction"]:
        """The largest share of critical firings that may have gone unseen; NaN without draws."""
        n = np.where(self.n_firings > 0, self.n_firings, np.nan)
        return np.asarray(1 - (1 - _SURE) ** (1 / n))


def no_absence(n_directions: int) -> Absence:
    """Return the evidence where no direction was asked."""
    nan, zero = np.full(n_directions, np.nan), np.zeros(n_directions, dtype=np.int64)
    nothing = Effects(nan, nan, nan, nan, zero)
    return Absence(nothing, nothing, nothing, nothing, zero)


def ask_absence(
    subject: Subject,
    sets: DirectionSets,
    which: Int64[np.ndarray, " candidate"],
    joint: Int64[np.ndarray, " subset"],
    unit: float,
    spec: UseSpec,
    seed: int,
    track: Track = untracked,
) -> Absence:
    """Return what ablating directions costs at firings drawn uniformly, alone and as the last of a joint set.

    Args:
        subject: The model behind the hookpoint, and the tokens.
        sets: All directions at the hookpoint, as sets of one.
        which: The directions that are asked, all of them in the joint set.
        joint: The joint set S*.
        unit: What a full swap costs, in nats.
        spec: How many firings and null directions there are.
        seed: The seed of the draws and of the null directions.
        track: It shows the progress.
    """
    n = len(sets)
    if not len(which):
        return no_absence(n)
    firings = uniform_firings(sets, which, spec.uniform_firings, seed)
    with track("ablate at uniform firings", len(firings) * (3 + spec.uniform_nulls), "edits") as on:
        alone = costs_of_edits(
            subject,
            firings.tokens,
            lambda i: _alone(subject, sets, firings, i, spec.uniform_nulls, seed),
            1 + spec.uniform_nulls,
            spec.window,
            on,
        )
        last = costs_of_edits(
            subject,
            firings.tokens,
            lambda i: _put_back(sets, firings, i),
            2,
            spec.window,
            on,
            lambda row: _without(subject, sets, subset(sets.directions, joint), row),
        )
    floor = ROUNDING * unit
    own, null = np.maximum(alone[:, 0], floor), np.maximum(alone[:, 1:].mean(1), floor)
    marginal = np.maximum(last[:, 0] - last[:, 1], floor)
    documents = subject.tokens.documents[firings.tokens]

    def bounded(
        values: Float64[np.ndarray, " firing"], counts: Float64[np.ndarray, " firing"]
    ) -> Effects:
        return effects_of(values, counts, firings.sets, documents, n, seed)

    ones = np.ones(len(firings))
    return Absence(
        effect=bounded(own / unit, ones),
        ratio=bounded(own, null),
        last=bounded(marginal / unit, ones),
        last_ratio=bounded(marginal, null),
        n_firings=np.bincount(firings.sets, minlength=n).astype(np.int64),
    )


def _alone(
    subject: Subject, sets: DirectionSets, firings: Firings, i: int, n_nulls: int, seed: int
) -> Float[torch.Tensor, "edit d_in"]:
    """Return the ablation at the i-th firing, and those of null directions there."""
    one, token = int(firings.sets[i]), int(firings.tokens[i])
    taken = torch.from_numpy(sets.taken_away(firings.sets[i : i + 1], firings.tokens[i : i + 1]))
    named = (seed, "null directions at uniform firings", one, token)
    return torch.cat([-taken, null_edits(subject, sets, one, token, n_nulls, named)])


def _put_back(sets: DirectionSets, firings: Firings, i: int) -> Float[torch.Tensor, "edit d_in"]:
    """Return two edits on top of the removal of S*: none, and putting the i-th firing back."""
    taken = sets.taken_away(firings.sets[i : i + 1], firings.tokens[i : i + 1])
    return torch.from_numpy(np.concatenate([np.zeros_like(taken), taken]))


def _without(
    subject: Subject, sets: DirectionSets, wanted: Bool[np.ndarray, " direction"], row: int
) -> Float[torch.Tensor, "pos d_in"]:
    """Return the change of a row's activations that removes some directions from all its tokens."""
    rows = subject.tokens.places[:, 0]
    tokens = np.arange(np.searchsorted(rows, row), np.searchsorted(rows, row, side="right"))
    change = removed(only(sets.directions, wanted, tokens), sets.directions.vectors)
    base = np.zeros((int(subject.tokens.rows.lengths[row]), change.shape[1]), dtype=np.float32)
    base[subject.tokens.places[tokens, 1]] = change
    return torch.from_numpy(base)
