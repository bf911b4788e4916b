"""The worst that removing a part of S* can do, and what must leave S* because of it.

S* is the set of directions that could be removed together (`joint`). Removing two of them at once may cost
nothing because one undoes the other. So an adversary chooses, row by row, how much of each direction is
removed, by gradient ascent on the cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64
from pydantic import Field

from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.removal import (
    Batch,
    along,
    batches,
    costs,
    discovery_documents,
    only,
    partners,
    removed,
    rows_of,
    subset,
    swapped,
)
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance, Track, unheard, untracked
from sae_placebo.core.spec import Spec, numpy_generator


class WorstSpec(Spec):
    """How hard the adversary looks for bad masks, and how S* is made smaller where it finds them.

    Attributes:
        limit: The worst masks found may cost at most this share of a full swap of every token.
        n_tokens: About how many tokens of confirmation documents are read.
        steps: How many steps of projected gradient ascent are made.
        drop: The share of S* that leaves it in one round.
        rounds: After at most this many rounds of dropping the search ends without success.
    """

    limit: float = Field(default=0.02, gt=0, lt=1)
    n_tokens: int = Field(default=2_000, ge=1)
    steps: int = Field(default=8, ge=1)
    drop: float = Field(default=0.1, gt=0, le=1)
    rounds: int = Field(default=10, ge=0)


@dataclass(frozen=True, eq=False)
class WorstCase:
    """What the worst masks found cost, in each round of dropping directions from S*.

    Attributes:
        s_star: What is left of S*, as indices of directions, in the order given.
        sizes: The size of S* in each round; the first is that of the set given.
        worst: The cost of the worst masks found in each round, in nats per token.
        joint: The cost of removing all of S* in each round, in nats per token.
        full_joint_nats: The cost of giving every token another one's activation, in nats per token.
        holds: Whether the worst cost of the last round is within the limit.
        n_tokens: How many confirmation tokens were read.
        n_passes: How many positions ran behind the hookpoint. A position of a pass with gradients counts
            as three.
    """

    s_star: Int64[np.ndarray, " subset"]
    sizes: Int64[np.ndarray, " round"]
    worst: Float64[np.ndarray, " round"]
    joint: Float64[np.ndarray, " round"]
    full_joint_nats: float
    holds: bool
    n_tokens: int
    n_passes: int

    @property
    def shares(self) -> Float64[np.ndarray, " round"]:
        """The worst cost of each round, as a share of a full swap of every token."""
        return self.worst / self.full_joint_nats


def worst_case(
    subject: Subject,
    directions: Directions,
    s_star: Int64[np.ndarray, " subset"],
    spec: WorstSpec,
    seed: int,
    track: Track = untracked,
) -> WorstCase:
    """Return the cost of the worst masks found over S*, and S* without what makes that cost too high.

    A mask says for each row and each direction of S* what share of it, from 0 to 1, is removed from the
    whole row. The search starts from random masks and makes `steps` steps of length 2 / `steps` along
    the signs of the gradient of the mean over tokens of KL(unedited || edited); shares are kept between 0
    and 1. In each row the costliest of the masks visited counts, or the removal of all of S* where that
    costs more.

    While these masks cost more than `limit`, a share `drop` of S* leaves it. It is the directions with
    the largest sum over rows of mask times gradient at the costliest masks, which is what their removal
    adds to the cost, to first order.

    The cost found is a lower bound of the true worst. The masks are fitted to the rows on which they are
    scored, as an adversary's should be.

    Source: projected gradient ascent with signs (Madry et al. 2018, ICLR). Differs: it is on masks instead
    of inputs. Dropping directions is this package's.

    Args:
        subject: The model and its held-out tokens.
        directions: All directions at the hookpoint.
        s_star: The directions that may be removed.
        spec: The limit, and how hard the adversary looks.
        seed: The seed of rows, swaps and first masks.
        track: It shows how many readings of the rows are done, of at most how many.

    Raises:
        NotEstimable: no confirmation document has a token that counts.
    """
    rows = rows_of(
        subject, ~discovery_documents(subject.tokens, seed), spec.n_tokens, seed, "worst case"
    )
    attack = _Attack(subject, directions, rows, spec, seed)
    left = s_star.astype(np.int64)
    sizes, worst, joint = [], [], []
    whole = len(rows) * (1 + (spec.rounds + 1) * (spec.steps + 2))
    with track("look for the worst masks", whole, "readings of rows, at most,") as attack.advance:
        full = attack.full()
        while True:
            masks = attack.run(left)
            sizes.append(len(left))
            worst.append(masks.worst)
            joint.append(masks.joint)
            holds = masks.worst <= spec.limit * full
            if holds or len(sizes) > spec.rounds:
                break
            n = max(1, round(spec.drop * len(left)))
            left = left[~np.isin(left, left[np.argsort(-masks.blame[left], kind="stable")[:n]])]
    return WorstCase(
        s_star=left,
        sizes=np.array(sizes, dtype=np.int64),
        worst=np.array(worst, dtype=np.float64),
        joint=np.array(joint, dtype=np.float64),
        full_joint_nats=full,
        holds=holds,
        n_tokens=attack.n_tokens,
        n_passes=attack.n_passes,
    )


@dataclass(frozen=True, eq=False)
class _WorstMask:
    """The costliest masks found over a set of directions.

    Attributes:
        worst: Their cost, in nats per token.
        joint: The cost of removing the whole set, in nats per token.
        blame: Mask times gradient at these masks, summed over rows, for each direction.
    """

    worst: float
    joint: float
    blame: Float64[np.ndarray, " direction"]


class _Attack:
    """A search for bad masks over the same rows in every round."""

    def __init__(
        self,
        subject: Subject,
        directions: Directions,
        rows: Int64[np.ndarray, " row"],
        spec: WorstSpec,
        seed: int,
    ) -> None:
        self.subject, self.directions, self.rows = subject, directions, rows
        self.spec, self.seed = spec, seed
        self.n_tokens = len(subject.tokens_in(rows))
        self.n_passes = 0
        self.advance: Advance = unheard

    def full(self) -> float:
        """Return the mean cost of swapping the activations of all tokens, in nats per token."""
        partner = partners(self.subject, self.rows, self.seed)
        total = 0.0
        for batch in batches(self.subject, self.rows):
            by_row, _ = self._costs(batch, swapped(self.subject, batch, partner), False)
            total += float(by_row.sum())
        return total / self.n_tokens

    def run(self, which: Int64[np.ndarray, " subset"]) -> _WorstMask:
        """Return the worst masks found over these directions."""
        wanted = subset(self.directions, which)
        blame = np.zeros(len(self.directions))
        worst = joint = 0.0
        for batch in batches(self.subject, self.rows):
            masked = _Masked.of(self.directions, only(self.directions, wanted, batch.tokens), batch)
            whole = np.ones(masked.n_pairs, dtype=np.float32)
            # at the joint removal the gradient may be 0, so it is scored but no ascent starts from it
            best, part = self._slopes(batch, masked, whole)
            joint += float(best.sum())
            for by_row, of_pairs in self._ascent(batch, masked):
                better = by_row > best
                best = np.where(better, by_row, best)
                part = np.where(better[masked.row_of], of_pairs, part)
            worst += float(best.sum())
            blame += np.bincount(masked.direction, part, minlength=len(blame))
        return _WorstMask(worst / self.n_tokens, joint / self.n_tokens, blame)

    def _ascent(
        self, batch: Batch, masked: _Masked
    ) -> Iterator[tuple[Float32[np.ndarray, " row"], Float32[np.ndarray, " pair"]]]:
        """Yield the cost of each row, and mask times gradient of each pair, at every step."""
        drawn = [
            numpy_generator(self.seed, "first masks", int(row)).random(n, dtype=np.float32)
            for row, n in zip(
                batch.rows, np.bincount(masked.row_of, minlength=len(batch.rows)), strict=True
            )
        ]
        mask = np.concatenate(drawn)
        for _ in range(self.spec.steps + 1):
            by_row, slopes = self._slopes(batch, masked, mask)
            yield by_row, mask * slopes
            mask = np.clip(mask + 2 / self.spec.steps * np.sign(slopes), 0, 1).astype(np.float32)

    def _slopes(
        self, batch: Batch, masked: _Masked, mask: Float32[np.ndarray, " pair"]
    ) -> tuple[Float32[np.ndarray, " row"], Float32[np.ndarray, " pair"]]:
        """Return the cost of each row under a mask, in nats, and its derivative by the mask of each pair."""
        delta = batch.placed(removed(masked.under(mask), self.directions.vectors))
        by_row, gradient = self._costs(batch, delta, True)
        assert gradient is not None
        return by_row, masked.slopes(gradient, self.directions.vectors)

    def _costs(
        self, batch: Batch, delta: Float32[torch.Tensor, "row pos d_in"], with_gradient: bool
    ) -> tuple[Float32[np.ndarray, " row"], Float32[np.ndarray, "cell d_in"] | None]:
        """Return each row's cost summed over its tokens, and the gradient of all of it by the edit.

        The gradient is None where it is not wanted.
        """
        counts = torch.zeros(batch.real.shape)
        counts.view(-1)[torch.from_numpy(batch.cells)] = 1
        self.n_passes += batch.real.size * (3 if with_gradient else 1)
        delta = delta.requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient):
            cost = costs(self.subject, batch, delta)
            by_row = (cost * counts.to(cost)).sum(1)
            slope = torch.autograd.grad(by_row.sum(), delta)[0] if with_gradient else None
        gradient = None if slope is None else slope.flatten(0, 1).float().cpu().numpy()
        self.advance(len(batch.rows))
        return by_row.detach().float().cpu().numpy(), gradient


@dataclass(frozen=True, eq=False)
class _Masked:
    """The amounts that a mask acts on: the entries of one direction in one row, a **pair**, share a mask.

    Attributes:
        amounts: CSR [token, direction] amounts at the tokens of a batch.
        cells: The cell of each entry, in the flattened [row, pos].
        pair: The pair of each entry.
        row_of: The row of each pair, ascending.
        direction: The direction of each pair.
    """

    amounts: Any
    cells: Int64[np.ndarray, " entry"]
    pair: Int64[np.ndarray, " entry"]
    row_of: Int64[np.ndarray, " pair"]
    direction: Int64[np.ndarray, " pair"]

    @classmethod
    def of(cls, directions: Directions, amounts: Any, batch: Batch) -> _Masked:
        """Return the pairs of a batch, given the amounts at its tokens."""
        cells = np.repeat(batch.cells, np.diff(amounts.indptr))
        keys = cells // batch.real.shape[1] * len(directions) + amounts.indices
        pairs, pair = np.unique(keys, return_inverse=True)
        row_of, direction = np.divmod(pairs, len(directions))
        return cls(amounts, cells, pair.astype(np.int64), row_of, direction)

    @property
    def n_pairs(self) -> int:
        """How many pairs of a row and a direction there are."""
        return len(self.row_of)

    def under(self, mask: Float32[np.ndarray, " pair"]) -> Any:
        """Return the amounts that a mask removes."""
        amounts = self.amounts.copy()
        amounts.data = self.amounts.data * mask[self.pair]
        return amounts

    def slopes(
        self,
        gradient: Float32[np.ndarray, "cell d_in"],
        vectors: Float32[np.ndarray, "direction d_in"],
    ) -> Float32[np.ndarray, " pair"]:
        """Return the derivative of the cost by each pair's mask, given its gradient by the edit.

        Removing an entry adds minus its amount times its vector, so that its derivative is minus the amount
        times the gradient along the vector.
        """
        columns = self.amounts.indices.astype(np.int64)
        each = -self.amounts.data * along(gradient, vectors, self.cells, columns)
        return np.bincount(self.pair, each, minlength=self.n_pairs).astype(np.float32)
