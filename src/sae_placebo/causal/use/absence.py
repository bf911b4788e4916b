"""What would have to be seen if a direction were used: ablations at firings that are drawn uniformly.

Draws by importance show that something is used. That something is *not* used can only be shown by draws that
favor no firing. At each of them three things are compared, all for one direction:

- its ablation alone, with what a full swap costs and with the ablation of null directions, new ones at each;
- its **last-in marginal**: all of a joint set S* is removed from every token of the row, what is related to
  the direction is removed from its token, and the direction is put back at this one firing. What it costs
  that it is gone as well is the cost of all less the cost of all without it. Where either of two
  directions suffices, and both are in S* or they are related, this is the cost of both.

Firings that were not drawn may still be critical. With n draws and none of them critical, the share of
critical firings is surely below 1 - .01^(1/n), the **unseen share**.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from sae_placebo.causal.use.ablation import full_swap
from sae_placebo.causal.use.base import DirectionSets, Subject, direction_sets
from sae_placebo.causal.use.edits import costs_of_edits
from sae_placebo.causal.use.effects import Effects, effects_of
from sae_placebo.causal.use.firings import Firings, uniform_firings
from sae_placebo.causal.use.null_directions import NullEdits
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
    related: Mapping[int, Int64[np.ndarray, "_"]],
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
        related: The directions related to each, itself among them or not; none where it has no entry.
        spec: How many firings and null directions there are.
        seed: The seed of the draws and of the null directions.
        track: It shows the progress.
    """
    n = len(sets)
    if not len(which):
        return no_absence(n)
    unit = full_swap(subject, spec.window, spec.swap_tokens, seed)
    firings = uniform_firings(sets, which, spec.uniform_firings, seed)
    edits, n_nulls = NullEdits.of(subject, sets, firings), spec.uniform_nulls
    taken = torch.from_numpy(edits.taken)
    rest = torch.from_numpy(_rest(sets, firings, joint, related))
    wanted = subset(sets.directions, joint)

    def alone_and_nulls(i: int) -> Float[torch.Tensor, "edit d_in"]:
        one, token = int(firings.sets[i]), int(firings.tokens[i])
        named = (seed, "null directions at uniform firings", one, token)
        return torch.cat([-taken[i : i + 1], edits.at(i, n_nulls, named)])

    def gone_and_put_back(i: int) -> Float[torch.Tensor, "edit d_in"]:
        return torch.stack([-rest[i], taken[i] - rest[i]])

    def without(row: int) -> Float[torch.Tensor, "pos d_in"]:
        return _without(subject, sets, wanted, row)

    tokens, window = firings.tokens, spec.window
    with track("ablate at uniform firings", len(firings) * (3 + n_nulls), "edits") as on:
        alone = costs_of_edits(subject, tokens, alone_and_nulls, 1 + n_nulls, window, on)
        last = costs_of_edits(subject, tokens, gone_and_put_back, 2, window, on, without)
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


def _rest(
    sets: DirectionSets,
    firings: Firings,
    joint: Int64[np.ndarray, " subset"],
    related: Mapping[int, Int64[np.ndarray, "_"]],
) -> Float32[np.ndarray, "firing d_in"]:
    """Return what the related directions outside the joint set add to each firing's token."""
    which, at = np.unique(firings.sets, return_inverse=True)
    none = np.zeros(0, dtype=np.int64)
    others = [np.setdiff1d(related.get(int(i), none), np.append(joint, i)) for i in which]
    return direction_sets(sets.directions, others).taken_away(at.astype(np.int64), firings.tokens)


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
