"""How many directions the model can do without at once, and the worst that removing them can do.

Only a direction that is among those removed together without cost may be called unused: what is left
by single ablations may be two that each suffice.
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
"""The smallest prefix of the first round is all of them over two to this power."""


class JointSpec(Spec):
    """How much may be lost by a joint removal, and how finely its size is sought.

    Attributes:
        share: Largest cost, as a share of a full swap.
        n_tokens: Of confirmation documents that are read, about.
        confidence: Of the bounds, each one-sided.
        replicates: Of the document bootstrap.
        resolution: Sizes are told apart to this share of the largest that may still pass.
        min_documents: Fewer give no bound.
    """

    share: float = Field(default=0.005, gt=0, lt=1)
    n_tokens: int = Field(default=10_000, ge=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    replicates: int = Field(default=1000, ge=100)
    resolution: float = Field(default=0.02, gt=0, lt=1)
    min_documents: int = Field(default=5, ge=2)


@dataclass(frozen=True, eq=False)
class JointCurve:
    """What it costs to remove prefixes of an order at once.

    Attributes:
        sizes: Of the prefixes, ascending, from 0.
        cost: J, in nats per token.
        low: Lower bound of each.
        high: Upper bound of each.
        full_joint_nats: What it costs, in nats per token, to give every token another one's activation.
        limit: Share of that which J may have, times it: nats per token.
        s_star: The largest prefix that can be removed, as indices of directions, least used first.
        n_documents: Confirmation documents read.
        n_tokens: Tokens read.
        n_passes: Positions that ran behind the hookpoint.
    """

    sizes: Int64[np.ndarray, " size"]
    cost: Float64[np.ndarray, " size"]
    low: Float64[np.ndarray, " size"]
    high: Float64[np.ndarray, " size"]
    full_joint_nats: float
    limit: float
    s_star: Int64[np.ndarray, " some"]
    n_documents: int
    n_tokens: int
    n_passes: int


def joint_removal(
    subject: Subject,
    directions: Directions,
    order: Int64[np.ndarray, " some"],
    spec: JointSpec,
    seed: int,
    track: Track = untracked,
) -> JointCurve:
    """Return what removing the first directions of an order at once costs, and how many can go.

    J(S) is the mean over tokens of KL(unedited || edited) at their position when all directions of S
    are removed at every token. Its unit is the same mean when every token is given the activation of
    another token of the same rows. Both are of confirmation documents, and so is every point of the
    curve: the order must come from discovery documents alone (`discovery_documents`, same seed).

    S* is the longest prefix found whose upper bound is at most `share` of the unit, and below which no
    prefix tried is above. Prefixes of all directions, a half, a quarter and so on are tried, then three
    between the longest that passes and the shortest behind it that does not, and again. That search
    looks at several bounds on the same documents. As prefixes are nested, J is about monotone and so
    are errors of its bounds, so a wrong S* takes a bound that is too low at a size that fails in
    truth; the confidence is that of each bound, not of the search.

    Source: documents drawn with replacement, percentiles of the ratio of sums; this package's search.

    Args:
        subject: The model and its held-out tokens.
        directions: Of which each token holds some.
        order: Directions, least used first, none twice; those not in it stay.
        spec: The limit, and how finely sizes are sought.
        seed: Of rows, swaps and bootstrap.
        track: Shows how often the rows were read, of at most how often.

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
    """Return how often the rows are read, at most, to search among prefixes of `n` directions."""
    firsts = 1 + len({n >> k for k in range(_DOUBLINGS + 1)} - {0})
    gap, rounds = n, 0  # each round leaves a quarter
    while gap > max(1, int(resolution * n)):
        gap, rounds = -(-gap // 4), rounds + 1
    return firsts + 3 * rounds


class _Search:
    """Costs of the prefixes tried so far, by document."""

    def __init__(
        self,
        subject: Subject,
        directions: Directions,
        order: Int64[np.ndarray, " some"],
        rows: Int64[np.ndarray, " row"],
        spec: JointSpec,
        seed: int,
    ) -> None:
        self.subject, self.directions, self.order = subject, directions, order
        self.rows, self.spec, self.seed = rows, spec, seed
        self.rank = np.full(len(directions), len(order), dtype=np.int64)
        self.rank[order] = np.arange(len(order))
        tokens = np.flatnonzero(np.isin(subject.tokens.places[:, 0], rows))
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
        return len(self.tokens_of)

    def run(self, sizes: list[int], with_swap: bool = False) -> float:
        """Try some prefixes in one reading of the rows; return the cost of full swaps if asked."""
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
        with torch.no_grad():
            cost = costs(self.subject, batch, delta).cpu().numpy()
        self.n_passes += cost.size
        return np.asarray(cost.ravel()[batch.cells], dtype=np.float32)

    def bounds(self, size: int) -> tuple[float, float, float]:
        """Return J of a prefix, and its lower and upper bound."""
        costs_of = self.tried[size]
        found = (costs_of @ self.weights) / (self.tokens_of @ self.weights)
        low, high = np.quantile(found, [1 - self.spec.confidence, self.spec.confidence])
        return float(costs_of.sum() / self.tokens_of.sum()), float(low), float(high)

    def bracket(self, limit: float) -> tuple[int, int]:
        """Return the longest prefix before the first that fails, and that one; or the longest twice."""
        passed = 0
        for size in sorted(self.tried):
            if self.bounds(size)[2] > limit:
                return passed, size
            passed = size
        return passed, passed

    def curve(self, size: int, full: float) -> JointCurve:
        sizes = sorted(self.tried)
        cost, low, high = np.array([self.bounds(one) for one in sizes], dtype=np.float64).T
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
