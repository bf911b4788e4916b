"""Whether ablating a direction costs more than ablating one that means nothing.

A random direction of equal size is no fair null: an ablation shortens the activation, a random push
lengthens it, and models answer to length. Null directions here have, at every firing, the same angle to
the activation and the same amount removed, so that the edited activation has the same length and the
same angle to the old one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from sae_placebo.causal.use.ablation import Ablations
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.causal.use.firings import Firings
from sae_placebo.causal.use.side_by_side import side_by_side
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.core.spec import numpy_generator

_EDITS = 128
TIE = 1e-6
"""Costs come of float32 products: two that differ by no more than this share are tied."""
"""Edits of one token in a pass."""


@dataclass(frozen=True, eq=False)
class NullTest:
    """Rank of a direction's cost among those of null directions; NaN where it was not asked.

    Attributes:
        p: [direction] (1 + nulls at least as costly) / (nulls + 1); where none is, a tail that is fitted to
            all nulls, if that is smaller.
        null: [direction] mean cost of the null directions, nats per firing.
        cost: [direction] the direction's own, at the same firings.
        n_firings: [direction] these firings, at most one per document.
        n_nulls: [direction] null directions.
        p_decoders: [direction] rank among other directions of about the same angle to the activations; NaN
            where it was given up before.
    """

    p: Float64[np.ndarray, " direction"]
    null: Float64[np.ndarray, " direction"]
    cost: Float64[np.ndarray, " direction"]
    n_firings: Int64[np.ndarray, " direction"]
    n_nulls: Int64[np.ndarray, " direction"]
    p_decoders: Float64[np.ndarray, " direction"]


def against_nulls(
    subject: Subject,
    directions: Directions,
    ablated: Ablations,
    candidates: Int64[np.ndarray, " candidate"],
    spec: UseSpec,
    seed: int,
    advance: Advance = unheard,
) -> NullTest:
    """Return how the candidates' costs rank among those of null directions.

    One null direction is one random vector for all firings of a candidate, turned at each firing to the
    candidate's angle: firings of a latent are alike, so that costs of one direction at several firings go
    together, and a null with a new vector at each would be too narrow. Candidates with p of at least
    `spec.give_up` after the first nulls keep that p; this makes p at smaller levels no smaller. One that
    is sure to come to that keeps the p of the nulls it had at the glance before.

    Args:
        subject: The model behind the hookpoint, and the tokens.
        directions: All directions; those that are no candidates serve as the second null.
        ablated: What ablations of the candidates cost.
        candidates: Directions that are asked about.
        spec: Firings and nulls.
        seed: Names the null directions.
        advance: Told how many edits are done, of those of all firings; those given up count as done.

    Source: matching norm and cosine is in arXiv 2605.03160; rank p-values with an early end are
    Besag and Clifford (1991). One vector for all firings is ours.
    """
    m = len(directions)
    cost, null, p, p_decoders = (np.full(m, np.nan) for _ in range(4))
    n_nulls = np.zeros(m, dtype=np.int64)
    firings, own = _few_firings(ablated, candidates, spec.null_firings, seed)
    if not len(firings):
        return NullTest(p, null, cost, n_nulls.copy(), n_nulls, p_decoders)
    random = numpy_generator(seed, "null directions")
    shape = (spec.nulls, directions.vectors.shape[1])
    drawn = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
    ask = _Ask(subject, directions, firings, own[:, 0], spec.window)
    swaps = _alike(subject, directions, firings, candidates, spec.first_nulls)
    totals = np.zeros((m, spec.nulls + swaps.shape[1]))
    zero = np.bincount(firings.directions, own[:, 1], minlength=m)
    n = np.bincount(firings.directions, minlength=m)
    first = min(spec.first_nulls, spec.nulls)
    # as many as these cost more: after the first nulls p would be too large, whatever the rest of them cost
    sure = spec.give_up * (1 + first) - 1 - 1e-9
    asked = np.arange(len(firings))
    cuts = sorted({0, min(spec.glance_nulls, first), first, spec.nulls})
    for start, stop in itertools.pairwise(cuts):
        if not len(asked):
            continue
        others, columns = stop == spec.nulls, np.arange(start, stop)
        if others:
            columns = np.concatenate([columns, np.arange(spec.nulls, totals.shape[1])])
        by_firing = np.zeros((len(firings), len(columns)))
        for here, costs in ask.costs(asked, drawn[start:stop], swaps if others else None):
            by_firing[here] = costs
            advance(costs.size)
        # summed in the order of firings, whichever was done first
        np.add.at(totals, (firings.directions[asked][:, None], columns), by_firing[asked])
        some = np.unique(firings.directions[asked])
        n_nulls[some] = stop
        higher = (totals[some, :stop] >= zero[some, None] * (1 - TIE)).sum(1)
        p[some] = (1 + higher) / (1 + stop)
        if stop == spec.nulls:
            beyond = some[higher == 0]
            p[beyond] = np.minimum(p[beyond], _tail(zero[beyond], totals[beyond, :stop]))
        null[some] = totals[some, :stop].mean(1) / n[some]
        if others:
            above = (totals[some, spec.nulls :] >= zero[some, None] * (1 - TIE)).sum(1)
            p_decoders[some] = (1 + above) / (1 + swaps.shape[1])
        given_up = higher >= sure if stop < first else p[some] >= spec.give_up
        kept = ~np.isin(firings.directions[asked], some[given_up])
        advance(int((~kept).sum()) * (totals.shape[1] - stop if stop < spec.nulls else 0))
        asked = asked[kept]
    there = n > 0
    cost[there] = zero[there] / n[there]
    return NullTest(p, null, cost, n.astype(np.int64), n_nulls, p_decoders)


def _tail(
    cost: Float64[np.ndarray, " direction"], nulls: Float64[np.ndarray, "direction null"]
) -> Float64[np.ndarray, " direction"]:
    """Return p-values of costs above all nulls, from how far above on a log scale.

    Logarithms of null costs have somewhat heavier tails than a normal; Student's t with 6 degrees of freedom
    has heavier ones still. Of 1,200 pseudo-latents with 24 nulls, 3.8% (4.6%), .6% (.7%) and .08% (0) had a p
    of at most 5%, 1% and .3% on a re-drawn (trained) model of 4 layers; a gamma or a log-normal tail gave two
    to five times too many small ones.
    """
    from scipy.stats import t

    n = nulls.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(nulls)
        spread = logs.std(axis=1, ddof=1) * np.sqrt(1 + 1 / n)
        z = (np.log(cost) - logs.mean(axis=1)) / spread
    found = t.sf(z, 6) if n > 2 else np.ones(len(cost))
    # nulls that cost nothing, or all the same, say nothing of a tail
    return np.asarray(np.where(np.isfinite(z) & (spread > TIE), found, 1.0), dtype=np.float64)


def turned(
    vectors: Float[torch.Tensor, "null d_in"],
    direction: Float[torch.Tensor, " d_in"],
    activation: Float[torch.Tensor, " d_in"],
) -> Float[torch.Tensor, "null d_in"]:
    """Return unit vectors at the direction's angle to the activation, otherwise as given.

    u = c x + sqrt(1 - c^2) w, with x the activation and w what a vector has across it, both of length 1,
    and c the cosine of direction and activation.
    """
    unit = activation / activation.norm().clamp_min(1e-30)
    cosine: torch.Tensor = (direction @ unit).clamp(-1, 1)
    across = vectors - (vectors @ unit)[:, None] * unit
    across = across / across.norm(dim=1, keepdim=True).clamp_min(1e-30)
    found: torch.Tensor = cosine * unit + (1 - cosine**2).sqrt() * across
    return found


def _few_firings(
    ablated: Ablations, candidates: Int64[np.ndarray, " candidate"], most: int, seed: int
) -> tuple[Firings, Float64[np.ndarray, "firing two"]]:
    """Return up to `most` firings of each candidate, at random; their amounts and costs."""
    tokens = ablated.firings.tokens
    # the same random order of tokens for all, so that many candidates keep the same ones and share a pass
    visited, at = np.unique(tokens, return_inverse=True)
    turn = numpy_generator(seed, "tokens for nulls").permutation(len(visited))[at]
    by_owner = np.lexsort((turn, ablated.firings.directions))
    owner = ablated.firings.directions[by_owner]
    rank = np.empty(len(tokens), dtype=np.int64)
    rank[by_owner] = np.arange(len(tokens)) - np.searchsorted(owner, owner)
    kept = (rank < most) & np.isin(ablated.firings.directions, candidates)
    return ablated.firings.kept(kept), np.stack([ablated.amounts[kept], ablated.zero[kept]], axis=1)


def n_alike(directions: Directions, spec: UseSpec) -> int:
    """Return how many other directions each candidate is held against as well."""
    return min(spec.first_nulls, max(int(directions.vectors.any(axis=1).sum()) - 1, 0))


def _alike(
    subject: Subject,
    directions: Directions,
    firings: Firings,
    candidates: Int64[np.ndarray, " candidate"],
    n: int,
) -> Int64[np.ndarray, "direction other"]:
    """Return, of each candidate, other directions whose mean cosine with its activations is nearest."""
    x = subject.activations[torch.from_numpy(firings.tokens)].float().cpu().numpy()
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    usable = np.flatnonzero(directions.vectors.any(axis=1))
    n = min(n, len(usable) - 1)
    found = np.zeros((len(directions), n), dtype=np.int64)
    sums = np.zeros((len(directions), x.shape[1]), dtype=np.float32)
    np.add.at(sums, firings.directions, x)
    counts = np.bincount(firings.directions, minlength=len(directions))
    for direction in candidates:
        if not counts[direction]:
            continue
        cosines = directions.vectors[usable] @ (sums[direction] / counts[direction])
        own = directions.vectors[direction] @ (sums[direction] / counts[direction])
        apart = np.where(usable == direction, np.inf, np.abs(cosines - own))
        found[direction] = usable[np.argpartition(apart, n - 1)[:n]]
    return found


@dataclass(frozen=True, eq=False)
class _Ask:
    """Ablations of null directions at firings of others."""

    subject: Subject
    directions: Directions
    firings: Firings
    amounts: Float64[np.ndarray, " firing"]
    window: int

    def costs(
        self,
        asked: Int64[np.ndarray, " asked"],
        drawn: Float[torch.Tensor, "null d_in"],
        swaps: Int64[np.ndarray, "direction other"] | None,
    ) -> Iterator[tuple[Int64[np.ndarray, " here"], Float64[np.ndarray, "here null"]]]:
        """Yield firings asked about, and what removing their amounts of every null direction costs.

        Firings at one token share passes.
        """
        subject, firings = self.subject, self.firings

        def work(
            model: Downstream, row: int, part: Int64[np.ndarray, " here"]
        ) -> tuple[Int64[np.ndarray, " here"], Float64[np.ndarray, "here null"]]:
            clean = model.read(subject.ids_of(row))
            here = asked[part][np.argsort(firings.tokens[asked[part]], kind="stable")]
            cuts = np.flatnonzero(np.diff(firings.tokens[here])) + 1
            costs = []
            for together in np.split(here, cuts):
                position = int(subject.tokens.places[firings.tokens[together[0]], 1])
                edits = torch.cat([self._edits(int(i), drawn, swaps) for i in together])
                found = [
                    model.kl_of_edits(clean, position, some, self.window)
                    for some in torch.split(edits, _EDITS)
                ]
                costs.append(torch.cat(found).double().cpu().numpy().reshape(len(together), -1))
            return here, np.concatenate(costs)

        parts = list(subject.by_row(firings.tokens[asked]))
        return side_by_side(subject.downstream, parts, work)

    def _edits(
        self,
        i: int,
        drawn: Float[torch.Tensor, "null d_in"],
        swaps: Int64[np.ndarray, "direction other"] | None,
    ) -> Float[torch.Tensor, "edit d_in"]:
        """Return what a firing's ablation would be along every null direction."""
        direction = int(self.firings.directions[i])
        vectors = self.directions.vectors
        x = self.subject.activations[int(self.firings.tokens[i])].float().cpu()
        nulls = turned(drawn, torch.from_numpy(vectors[direction]), x)
        if swaps is not None:
            nulls = torch.cat([nulls, torch.from_numpy(vectors[swaps[direction]])])
        edits: torch.Tensor = -float(self.amounts[i]) * nulls
        return edits
