"""Joint removal: how many directions the model can do without at once.

Single ablation cannot tell a direction that is not used from one of two that each suffice, since removing
one of those costs nothing. Removing both does. So only a direction in a set S* that can be removed as a
whole, at next to no cost, may be called not used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64
from pydantic import Field

from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.removal import (
    Batch,
    batches,
    costs,
    discovery_documents,
    entries,
    partners,
    removed,
    rows_of,
    swapped,
)
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance, Track, unheard, untracked
from sae_placebo.core.spec import Spec
from sae_placebo.stats.effects import document_weights

_DOUBLINGS = 8
"""The first sizes tried are all directions, a half of them, and so on, down to all over two to this power."""


class JointSpec(Spec):
    """How much a joint removal may cost, and how finely the size of S* is sought.

    Attributes:
        share: The upper bound of the cost may be at most this share of a full swap of every token.
        n_tokens: About how many tokens of confirmation documents are read.
        confidence: The confidence of each bound alone; both are one-sided.
        replicates: How many times documents are resampled for the bounds.
        resolution: The search ends when the size is known to this share of the largest that may pass.
        min_documents: With fewer confirmation documents there is no bound.
    """

    share: float = Field(default=0.005, gt=0, lt=1)
    n_tokens: int = Field(default=10_000, ge=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    replicates: int = Field(default=1000, ge=100)
    resolution: float = Field(default=0.02, gt=0, lt=1)
    min_documents: int = Field(default=5, ge=2)


@dataclass(frozen=True, eq=False)
class JointCurve:
    """What it costs to remove the first directions of an order at once, by their number.

    Attributes:
        sizes: How many directions are removed, ascending from 0.
        cost: J, the cost of removing so many, in nats per token.
        low: The lower bound of each J.
        high: The upper bound of each J.
        full_joint_nats: The cost of giving every token another one's activation, in nats per token.
        limit: The largest upper bound that J may have, in nats per token.
        s_star: The longest prefix of the order that can be removed, as indices of directions.
        n_documents: How many confirmation documents were read.
        n_tokens: How many tokens were read.
        n_passes: How many positions ran behind the hookpoint.
    """

    sizes: Int64[np.ndarray, " size"]
    cost: Float64[np.ndarray, " size"]
    low: Float64[np.ndarray, " size"]
    high: Float64[np.ndarray, " size"]
    full_joint_nats: float
    limit: float
    s_star: Int64[np.ndarray, " subset"]
    n_documents: int
    n_tokens: int
    n_passes: int


def joint_removal(
    subject: Subject,
    directions: Directions,
    order: Int64[np.ndarray, " ordered"],
    spec: JointSpec,
    seed: int,
    track: Track = untracked,
) -> JointCurve:
    """Return what it costs to remove the first directions of an order at once, and how many can go.

    J(S) is the mean over tokens of KL(unedited || edited) at the token's position, in nats, when all
    directions in S are removed from every token. Its unit is the same mean when every token is given the
    activation of another token of the same rows. Both are measured on confirmation documents. So the
    order must come from discovery documents alone (`discovery_documents` with the same seed).

    A prefix of the order passes if its upper bound is at most `share` of the unit. S* is the longest prefix
    tried that passes and of which all shorter prefixes tried pass as well. First prefixes of all
    directions, a half, a quarter and so on are tried. Then three sizes are tried between the longest prefix
    that passes and the next one tried, which fails, and so on until the gap is small.

    The search looks at several bounds on the same documents, and the confidence is that of each bound, not
    of the search. As prefixes are nested, J is about monotone in their size, and so are the errors of its
    bounds. So a wrong S* takes a bound that is too low at a size that fails in truth.

    Source: the bounds are percentiles of a ratio of sums over documents drawn with replacement; the search
    is this package's.

    Args:
        subject: The model and its held-out tokens.
        directions: All directions at the hookpoint.
        order: The directions that may be removed, each once, those that cost least first. All others stay.
        spec: The limit, and how finely sizes are sought.
        seed: The seed of rows, swaps and resamples.
        track: It shows how often the rows were read, of at most how often.

    Raises:
        NotEstimable: fewer confirmation documents than `min_documents` have tokens.
    """
    rows = rows_of(
        subject, ~discovery_documents(subject.tokens, seed), spec.n_tokens, seed, "joint removal"
    )
    search = _Search(subject, directions, order.astype(np.int64), rows, spec, seed)
    if search.n_documents < spec.min_documents:
        raise NotEstimable(
            f"{search.n_documents} confirmation documents have tokens, and bounds of joint removal "
            f"need {spec.min_documents}"
        )
    n = len(order)
    first = sorted({n >> k for k in range(_DOUBLINGS + 1)} - {0})
    whole = len(rows) * most_readings(n, spec.resolution)
    with track("remove together", whole, "readings of rows, at most,") as search.advance:
        full = search.run(first, with_swap=True)
        low, high = search.bracket(spec.share * full)
        while high - low > max(1, int(spec.resolution * high)):
            inner = {low + (high - low) * k // 4 for k in (1, 2, 3)} - {low, high}
            search.run(sorted(inner))
            low, high = search.bracket(spec.share * full)
    return search.curve(low, full)


def most_readings(n: int, resolution: float) -> int:
    """Return how often the rows are read at most, in a search among prefixes of `n` directions.

    A reading is one pass over all rows with one edit; the full swap is one of them.
    """
    firsts = 1 + len({n >> k for k in range(_DOUBLINGS + 1)} - {0})
    gap, rounds = n, 0  # each round leaves a quarter
    while gap > max(1, int(resolution * n)):
        gap, rounds = -(-gap // 4), rounds + 1
    return firsts + 3 * rounds


class _Search:
    """The search for S*: the costs of the prefixes tried so far, by document."""

    def __init__(
        self,
        subject: Subject,
        directions: Directions,
        order: Int64[np.ndarray, " ordered"],
        rows: Int64[np.ndarray, " row"],
        spec: JointSpec,
        seed: int,
    ) -> None:
        self.subject, self.directions, self.order = subject, directions, order
        self.rows, self.spec, self.seed = rows, spec, seed
        self.rank = np.full(len(directions), len(order), dtype=np.int64)
        self.rank[order] = np.arange(len(order))
        tokens = subject.tokens_in(rows)
        _, owner = np.unique(subject.tokens.documents[tokens], return_inverse=True)
        self.owner = np.zeros(len(subject.tokens), dtype=np.int64)
        self.owner[tokens] = owner
        self.tokens_of = np.bincount(owner).astype(np.float64)
        weights = document_weights(self.n_documents, spec.replicates, seed)
        self.weights = weights[:, 1:]
        self.tried: dict[int, Float64[np.ndarray, " document"]] = {0: np.zeros(self.n_documents)}
        self.n_passes = 0
        self.advance: Advance = unheard

    @property
    def n_documents(self) -> int:
        """How many confirmation documents have tokens in the rows."""
        return len(self.tokens_of)

    def run(self, sizes: list[int], with_swap: bool = False) -> float:
        """Measure the costs of prefixes of these ascending sizes, and return the cost of full swaps.

        The latter is 0 unless `with_swap` is set.
        """
        total = {size: np.zeros(self.n_documents) for size in sizes}
        full = 0.0
        partner = partners(self.subject, self.rows, self.seed) if with_swap else None
        for batch in batches(self.subject, self.rows):
            if partner is not None:
                full += float(self._at_tokens(batch, swapped(self.subject, batch, partner)).sum())
                self.advance(len(batch.rows))
            amounts = self.directions.amounts[batch.tokens]
            ranks = self.rank[amounts.indices]
            owner = self.owner[batch.tokens]
            change = np.zeros((len(batch.tokens), self.directions.vectors.shape[1]), np.float32)
            for start, size in zip([0, *sizes], sizes, strict=False):
                part = (ranks >= start) & (ranks < size)
                change = change + removed(entries(amounts, part), self.directions.vectors)
                cost = self._at_tokens(batch, batch.placed(change))
                total[size] += np.bincount(owner, cost, minlength=self.n_documents)
                self.advance(len(batch.rows))
        self.tried |= total
        return full / float(self.tokens_of.sum())

    def _at_tokens(
        self, batch: Batch, delta: Float32[torch.Tensor, "row pos d_in"]
    ) -> Float32[np.ndarray, " token"]:
        """Return what an edit of the batch costs at each of its tokens, in nats."""
        with torch.no_grad():
            cost = costs(self.subject, batch, delta).cpu().numpy()
        self.n_passes += cost.size
        return np.asarray(cost.ravel()[batch.cells], dtype=np.float32)

    def bounds(self, size: int) -> tuple[float, float, float]:
        """Return J of the prefix of this size, and its lower and upper bound, in nats per token."""
        cost = self.tried[size]
        replicates = (cost @ self.weights) / (self.tokens_of @ self.weights)
        low, high = np.quantile(replicates, [1 - self.spec.confidence, self.spec.confidence])
        return float(cost.sum() / self.tokens_of.sum()), float(low), float(high)

    def bracket(self, limit: float) -> tuple[int, int]:
        """Return the size of the longest prefix before the first that fails, and the size of that one.

        Where none fails, both are the size of the longest prefix tried.
        """
        passed = 0
        for size in sorted(self.tried):
            if self.bounds(size)[2] > limit:
                return passed, size
            passed = size
        return passed, passed

    def curve(self, size: int, full: float) -> JointCurve:
        """Return all that was measured, with the prefix of this size as S*."""
        sizes = sorted(self.tried)
        cost, low, high = np.array([self.bounds(tried) for tried in sizes], dtype=np.float64).T
        return JointCurve(
            sizes=np.array(sizes, dtype=np.int64),
            cost=cost,
            low=low,
            high=high,
            full_joint_nats=full,
            limit=self.spec.share * full,
            s_star=self.order[:size],
            n_documents=self.n_documents,
            n_tokens=int(self.tokens_of.sum()),
            n_passes=self.n_passes,
        )
