"""The worst that removing some of S* can do: masks found by gradients, and what must leave S* for it.

Removing two directions at once may cost nothing because one undoes the other. An adversary chooses, in
each row, how much of each direction is removed.
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
    """How hard is looked for bad masks, and what is done about them.

    Attributes:
        limit: Largest cost of the worst masks found, as a share of a full swap.
        n_tokens: Of confirmation documents that are read, about.
        steps: Of projected gradient.
        drop: Share of S* that leaves it at a time.
        rounds: Of dropping, at most.
    """

    limit: float = Field(default=0.02, gt=0, lt=1)
    n_tokens: int = Field(default=2_000, ge=1)
    steps: int = Field(default=8, ge=1)
    drop: float = Field(default=0.1, gt=0, le=1)
    rounds: int = Field(default=10, ge=0)


@dataclass(frozen=True, eq=False)
class WorstCase:
    """What the worst masks found cost, before and after directions left S*.

    Attributes:
        s_star: What is left, as indices of directions, in the order given.
        sizes: Of S* in each round, from the one given.
        worst: Cost of the worst masks found in each round, in nats per token.
        joint: Cost of removing all of it, in nats per token.
        full_joint_nats: Cost of giving every token another one's activation, in nats per token.
        holds: Whether the last cost is within the limit.
        n_tokens: Confirmation tokens read.
        n_passes: Positions that ran behind the hookpoint, three for each pass with gradients.
    """

    s_star: Int64[np.ndarray, " some"]
    sizes: Int64[np.ndarray, " round"]
    worst: Float64[np.ndarray, " round"]
    joint: Float64[np.ndarray, " round"]
    full_joint_nats: float
    holds: bool
    n_tokens: int
    n_passes: int

    @property
    def shares(self) -> Float64[np.ndarray, " round"]:
        """The worst cost of each round as a share of a full swap."""
        return self.worst / self.full_joint_nats


def worst_case(
    subject: Subject,
    directions: Directions,
    s_star: Int64[np.ndarray, " some"],
    spec: WorstSpec,
    seed: int,
    track: Track = untracked,
) -> WorstCase:
    """Return the cost of the worst masks found over S*, and S* without what makes it too high.

    A mask says for each row and direction of S* what share of it, 0 to 1, is removed from the whole
    row. From masks drawn at random, `steps` steps of length 2 / steps along the gradient's signs, cut
    to 0 and 1, raise the mean over tokens of KL(unedited || edited); the costliest masks of each row
    count, removal of all of S* among them. While they cost more than `limit`, a share `drop` of S*
    leaves: the directions with the largest sum over rows of mask times gradient at these masks, which
    is what their removal adds to the cost, to first order.

    What is found is a lower bound of the true worst; the masks are fitted to the rows that they are
    scored on, as an adversary's should be.

    Source: projected gradient ascent with signs (Madry et al. 2018, ICLR), on masks instead of inputs;
    dropping is this package's.

    Args:
        subject: The model and its held-out tokens.
        directions: Of which each token holds some.
        s_star: Directions that are removed.
        spec: The limit, and how hard is looked.
        seed: Of rows, swaps and first masks.
        track: Shows how many readings of the rows are done, of at most how many.

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
            found = attack.run(left)
            sizes.append(len(left))
            worst.append(found.worst)
            joint.append(found.joint)
            holds = found.worst <= spec.limit * full
            if holds or len(sizes) > spec.rounds:
                break
            n = max(1, round(spec.drop * len(left)))
            left = left[~np.isin(left, left[np.argsort(-found.blame[left], kind="stable")[:n]])]
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
    """Mean costs per token, and how much of the worst each direction is to blame for."""

    worst: float
    joint: float
    blame: Float64[np.ndarray, " direction"]


class _Attack:
    """Searches for bad masks over the same rows."""

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
        self.n_tokens = int(np.isin(subject.tokens.places[:, 0], rows).sum())
        self.n_passes = 0
        self.advance: Advance = unheard

    def full(self) -> float:
        """Return the mean cost of full swaps."""
        partner = partners(self.subject, self.rows, self.seed)
        total = 0.0
        for batch in batches(self.subject, self.rows):
            by_row, _ = self._costs(batch, swapped(self.subject, batch, partner), False)
            total += float(by_row.sum())
        return total / self.n_tokens

    def run(self, some: Int64[np.ndarray, " some"]) -> _WorstMask:
        """Return the worst masks found over some directions."""
        wanted = subset(self.directions, some)
        blame = np.zeros(len(self.directions))
        worst = joint = 0.0
        for batch in batches(self.subject, self.rows):
            masked = _Masked.of(self.directions, only(self.directions, wanted, batch.tokens), batch)
            whole = np.ones(masked.n_pairs, dtype=np.float32)
            # at the joint removal the gradient may be 0, so it is scored but nothing starts from it
            best, part = self._score(batch, masked, whole)
            joint += float(best.sum())
            for mask in self._ascent(batch, masked):
                by_row, of_pairs = mask
                better = by_row > best
                best = np.where(better, by_row, best)
                part = np.where(better[masked.row_of], of_pairs, part)
            worst += float(best.sum())
            blame += np.bincount(masked.direction, part, minlength=len(blame))
        return _WorstMask(worst / self.n_tokens, joint / self.n_tokens, blame)

    def _ascent(
        self, batch: Batch, masked: _Masked
    ) -> Iterator[tuple[Float32[np.ndarray, " row"], Float32[np.ndarray, " pair"]]]:
        """Yield the cost of each row, and mask times gradient, at every step."""
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

    def _score(
        self, batch: Batch, masked: _Masked, mask: Float32[np.ndarray, " pair"]
    ) -> tuple[Float32[np.ndarray, " row"], Float32[np.ndarray, " pair"]]:
        by_row, slopes = self._slopes(batch, masked, mask)
        return by_row, mask * slopes

    def _slopes(
        self, batch: Batch, masked: _Masked, mask: Float32[np.ndarray, " pair"]
    ) -> tuple[Float32[np.ndarray, " row"], Float32[np.ndarray, " pair"]]:
        """Return the cost of each row under a mask, and its gradient by the mask."""
        delta = batch.placed(removed(masked.under(mask), self.directions.vectors))
        by_row, gradient = self._costs(batch, delta, True)
        assert gradient is not None
        return by_row, masked.slopes(gradient, self.directions.vectors)

    def _costs(
        self, batch: Batch, delta: Float32[torch.Tensor, "row pos d_in"], with_gradient: bool
    ) -> tuple[Float32[np.ndarray, " row"], Float32[np.ndarray, "cell d_in"] | None]:
        """Return each row's cost summed over its tokens, and the gradient of their sum by the edit."""
        counts = torch.zeros(batch.real.shape)
        counts.view(-1)[torch.from_numpy(batch.cells)] = 1
        self.n_passes += batch.real.size * (3 if with_gradient else 1)
        delta = delta.requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient):
            cost = costs(self.subject, batch, delta)
            by_row = (cost * counts.to(cost)).sum(1)
            found = torch.autograd.grad(by_row.sum(), delta)[0] if with_gradient else None
        gradient = None if found is None else found.flatten(0, 1).float().cpu().numpy()
        self.advance(len(batch.rows))
        return by_row.detach().float().cpu().numpy(), gradient


@dataclass(frozen=True, eq=False)
class _Masked:
    """Entries of directions at tokens of a batch; those of one direction in one row share a mask.

    Attributes:
        amounts: CSR [token, direction].
        cells: Cell of each entry.
        pair: Pair of row and direction of each entry.
        row_of: Row of each pair, ascending.
        direction: Direction of each pair.
    """

    amounts: Any
    cells: Int64[np.ndarray, " entry"]
    pair: Int64[np.ndarray, " entry"]
    row_of: Int64[np.ndarray, " pair"]
    direction: Int64[np.ndarray, " pair"]

    @classmethod
    def of(cls, directions: Directions, amounts: Any, batch: Batch) -> _Masked:
        cells = np.repeat(batch.cells, np.diff(amounts.indptr))
        keys = cells // batch.real.shape[1] * len(directions) + amounts.indices
        pairs, pair = np.unique(keys, return_inverse=True)
        row_of, direction = np.divmod(pairs, len(directions))
        return cls(amounts, cells, pair.astype(np.int64), row_of, direction)

    @property
    def n_pairs(self) -> int:
        return len(self.row_of)

    def under(self, mask: Float32[np.ndarray, " pair"]) -> Any:
        """Return what a mask removes."""
        amounts = self.amounts.copy()
        amounts.data = self.amounts.data * mask[self.pair]
        return amounts

    def slopes(
        self,
        gradient: Float32[np.ndarray, "cell d_in"],
        vectors: Float32[np.ndarray, "direction d_in"],
    ) -> Float32[np.ndarray, " pair"]:
        """Return the gradient by each pair's mask from that by the edit."""
        columns = self.amounts.indices.astype(np.int64)
        each = -self.amounts.data * along(gradient, vectors, self.cells, columns)
        return np.bincount(self.pair, each, minlength=self.n_pairs).astype(np.float32)
