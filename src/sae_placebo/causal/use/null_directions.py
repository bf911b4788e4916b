"""The test whether ablating a direction costs more than ablating null directions, which mean nothing.

A null direction must be matched to the direction that it is compared with. A random direction is no fair
null, even with the same amount removed: an ablation shortens the activation, since a latent fires where
its direction points along the activation, while a random push lengthens it; and models answer to length.
So a null direction here has, at every firing, the direction's angle to the activation, and the same amount
of it is removed. The edited activation then has the same length, and the same angle to the unedited one, as
after the ablation that is tested.

With x the activation, c the cosine between it and the direction d, and w a random unit vector across x (at a
right angle to it), the null direction is u = c x / |x| + sqrt(1 - c^2) w. A null direction is **one** random
vector for all firings of d, from which w is made at each firing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from sae_placebo.causal.use.ablation import Ablations
from sae_placebo.causal.use.base import Directions, Subject, grouped
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.causal.use.firings import Firings
from sae_placebo.causal.use.parallel_rows import side_by_side
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.core.spec import numpy_generator

_EDITS = 128
"""How many edits of one token are run in one pass."""
TIE = 1e-6
"""Costs come from float32 products, so two that differ by no more than this share count as tied."""


@dataclass(frozen=True, eq=False)
class NullTest:
    """The rank of each direction's cost among those of null directions; NaN where it was not tested.

    Attributes:
        p: [direction] (1 + how many nulls cost at least as much) / (1 + how many there are). After all
            nulls, where none costs as much, it is the tail of a distribution fitted to their costs, if
            that is smaller.
        null: [direction] The mean cost of the null directions, in nats per firing.
        cost: [direction] The mean cost of the direction itself at the same firings, in nats per firing.
        n_firings: [direction] How many firings these are, at most one in a document.
        n_nulls: [direction] How many null directions it was compared with.
        p_decoders: [direction] The rank among other directions at the hookpoint that have about the same
            angle to its activations. It is NaN for a direction that was given up before it was compared
            with these.
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
    """Return how the cost of ablating each candidate ranks among those of ablating null directions.

    Costs are summed over the firings of a candidate before they are ranked. One null direction is one
    random vector for all of them, turned at each firing to the candidate's angle. For the firings of a
    latent are alike, so that the costs of one direction at several firings go together, and a null with a
    new vector at each firing would scatter too little.

    Nulls come in stages, to save passes. A candidate whose p after the first nulls is at least
    `spec.give_up` is given up: it keeps that p and gets no further nulls. One that after the glance, which
    is a part of the first nulls, is bound to be given up, is so at once, with the p that it has then.
    Neither makes p-values below `spec.give_up` more frequent. Candidates that are left get the rest of the
    nulls, and are then compared with other directions at the hookpoint as well.

    Args:
        subject: The model behind the hookpoint, and the tokens.
        directions: All directions at the hookpoint; the others serve as the second null.
        ablated: The costs of ablating the candidates.
        candidates: The directions that are tested.
        spec: How many firings and nulls there are, and when a candidate is given up.
        seed: The seed of the null directions.
        advance: It is called with the number of edits done, of those of all firings. Edits that are saved
            by giving a candidate up count as done.

    Source: matching norm and cosine is in arXiv 2605.03160; rank p-values with an early end are
    Besag and Clifford (1991). One vector for all firings is this package's.
    """
    m = len(directions)
    cost, null, p, p_decoders = (np.full(m, np.nan) for _ in range(4))
    n_nulls = np.zeros(m, dtype=np.int64)
    firings, amounts, firing_costs = _few_firings(ablated, candidates, spec.null_firings, seed)
    if not len(firings):
        return NullTest(p, null, cost, n_nulls.copy(), n_nulls, p_decoders)
    random = numpy_generator(seed, "null directions")
    shape = (spec.nulls, directions.vectors.shape[1])
    drawn = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
    alike = _alike(subject, directions, firings, candidates, spec.first_nulls)
    totals = np.zeros((m, spec.nulls + alike.shape[1]))
    edits = _NullEdits(subject, directions, firings, amounts, spec.window, drawn, alike)
    zero = np.bincount(firings.directions, firing_costs, minlength=m)
    n = np.bincount(firings.directions, minlength=m)
    first = min(spec.first_nulls, spec.nulls)
    # if so many nulls cost as much by the glance, p after the first nulls is too large whatever the rest cost
    sure = spec.give_up * (1 + first) - 1 - 1e-9
    left = np.arange(len(firings))  # firings of candidates that have not been given up
    stages = sorted({0, min(spec.glance_nulls, first), first, spec.nulls})
    for start, stop in itertools.pairwise(stages):
        if not len(left):
            continue
        edits.add_costs(totals, left, start, stop, advance)
        which = np.unique(firings.directions[left])
        nulls = totals[which, :stop]
        n_nulls[which] = stop
        higher = _at_least(nulls, zero[which])
        p[which] = (1 + higher) / (1 + stop)
        null[which] = nulls.mean(1) / n[which]
        if stop == spec.nulls:
            beyond = which[higher == 0]
            p[beyond] = np.minimum(p[beyond], _tail(zero[beyond], totals[beyond, :stop]))
            above = _at_least(totals[which, spec.nulls :], zero[which])
            p_decoders[which] = (1 + above) / (1 + alike.shape[1])
        given_up = higher >= sure if stop < first else p[which] >= spec.give_up
        kept = ~np.isin(firings.directions[left], which[given_up])
        advance(int((~kept).sum()) * (totals.shape[1] - stop if stop < spec.nulls else 0))
        left = left[kept]
    tested = n > 0
    cost[tested] = zero[tested] / n[tested]
    return NullTest(p, null, cost, n.astype(np.int64), n_nulls, p_decoders)


def _at_least(
    nulls: Float64[np.ndarray, "direction null"], cost: Float64[np.ndarray, " direction"]
) -> Int64[np.ndarray, " direction"]:
    """Return how many null directions cost at least as much as each direction, ties included."""
    return np.asarray((nulls >= cost[:, None] * (1 - TIE)).sum(1))


def _tail(
    cost: Float64[np.ndarray, " direction"], nulls: Float64[np.ndarray, "direction null"]
) -> Float64[np.ndarray, " direction"]:
    """Return p-values of costs above all of their nulls, from how far above on a log scale.

    The distance from the mean of the logarithms, in standard errors of a prediction, is compared with
    Student's t with 6 degrees of freedom: logarithms of null costs have somewhat heavier tails than a
    normal, and this t has heavier ones still. Of 1,200 pseudo-latents with 24 nulls, 3.8% (4.6%), .6% (.7%)
    and .08% (0) had a p of at most 5%, 1% and .3% on a re-drawn (trained) model of 4 layers; a gamma or a
    log-normal tail gave two to five times too many small ones.
    """
    from scipy.stats import t

    n = nulls.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(nulls)
        spread = logs.std(axis=1, ddof=1) * np.sqrt(1 + 1 / n)
        z = (np.log(cost) - logs.mean(axis=1)) / spread
    p = t.sf(z, 6) if n > 2 else np.ones(len(cost))
    # nulls that cost nothing, or all the same, do not show a tail
    return np.asarray(np.where(np.isfinite(z) & (spread > TIE), p, 1.0), dtype=np.float64)


def turned(
    vectors: Float[torch.Tensor, "null d_in"],
    direction: Float[torch.Tensor, " d_in"],
    activation: Float[torch.Tensor, " d_in"],
) -> Float[torch.Tensor, "null d_in"]:
    """Return vectors turned to the direction's angle to the activation, as unit vectors.

    A turned vector is u = c x + sqrt(1 - c^2) w. Here x is the activation, w is what is left of the vector
    without its part along x, both brought to length 1, and c is the cosine of direction and activation.
    """
    unit = activation / activation.norm().clamp_min(1e-30)
    cosine: torch.Tensor = (direction @ unit).clamp(-1, 1)
    across = vectors - (vectors @ unit)[:, None] * unit
    across = across / across.norm(dim=1, keepdim=True).clamp_min(1e-30)
    result: torch.Tensor = cosine * unit + (1 - cosine**2).sqrt() * across
    return result


def _few_firings(
    ablated: Ablations, candidates: Int64[np.ndarray, " candidate"], most: int, seed: int
) -> tuple[Firings, Float64[np.ndarray, " firing"], Float64[np.ndarray, " firing"]]:
    """Return up to `most` firings of each candidate, with their amounts and the costs of zero ablation.

    They are those at the first tokens of one random order that all candidates share, so that many
    candidates keep the same tokens and their edits share a pass.
    """
    tokens = ablated.firings.tokens
    visited, at = np.unique(tokens, return_inverse=True)
    turn = numpy_generator(seed, "tokens for nulls").permutation(len(visited))[at]
    by_owner = np.lexsort((turn, ablated.firings.directions))
    owner = ablated.firings.directions[by_owner]
    rank = np.empty(len(tokens), dtype=np.int64)
    rank[by_owner] = np.arange(len(tokens)) - np.searchsorted(owner, owner)
    kept = (rank < most) & np.isin(ablated.firings.directions, candidates)
    return ablated.firings.kept(kept), ablated.amounts[kept], ablated.zero[kept]


def n_alike(directions: Directions, spec: UseSpec) -> int:
    """Return with how many other directions at the hookpoint each candidate is compared as well."""
    return min(spec.first_nulls, max(int(directions.vectors.any(axis=1).sum()) - 1, 0))


def _alike(
    subject: Subject,
    directions: Directions,
    firings: Firings,
    candidates: Int64[np.ndarray, " candidate"],
    n: int,
) -> Int64[np.ndarray, "direction other"]:
    """Return the `n` other directions whose mean cosine with a candidate's activations is nearest to its own.

    Cosines are means over the tokens of the candidate's firings. There are fewer where there are fewer
    directions; rows of directions that are no candidates hold zeros.
    """
    x = subject.activations[torch.from_numpy(firings.tokens)].float().cpu().numpy()
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    usable = np.flatnonzero(directions.vectors.any(axis=1))
    n = min(n, len(usable) - 1)
    nearest = np.zeros((len(directions), n), dtype=np.int64)
    sums = np.zeros((len(directions), x.shape[1]), dtype=np.float32)
    np.add.at(sums, firings.directions, x)
    counts = np.bincount(firings.directions, minlength=len(directions))
    for direction in candidates:
        if not counts[direction]:
            continue
        cosines = directions.vectors[usable] @ (sums[direction] / counts[direction])
        cosine = directions.vectors[direction] @ (sums[direction] / counts[direction])
        apart = np.where(usable == direction, np.inf, np.abs(cosines - cosine))
        nearest[direction] = usable[np.argpartition(apart, n - 1)[:n]]
    return nearest


@dataclass(frozen=True, eq=False)
class _NullEdits:
    """Ablations of null directions at the firings of the directions that they are compared with.

    Attributes:
        subject: The model behind the hookpoint, and the tokens.
        directions: All directions at the hookpoint.
        firings: The firings.
        amounts: What is removed at each firing.
        window: The predictions at this many later tokens are compared too.
        drawn: Random vectors, from which null directions are made at each firing.
        alike: For each direction, others at about its angle to the activations.
    """

    subject: Subject
    directions: Directions
    firings: Firings
    amounts: Float64[np.ndarray, " firing"]
    window: int
    drawn: Float[torch.Tensor, "null d_in"]
    alike: Int64[np.ndarray, "direction other"]

    def add_costs(
        self,
        totals: Float64[np.ndarray, "direction column"],
        left: Int64[np.ndarray, " left"],
        start: int,
        stop: int,
        advance: Advance,
    ) -> None:
        """Add the costs of the null directions from `start` to `stop`, summed over firings, to `totals`.

        With the last of the null directions come the other directions, whose columns are behind those of
        the nulls. Firings at one token share passes.

        Args:
            totals: The sums, in nats.
            left: The firings whose directions have not been given up.
            start: The first null direction.
            stop: The one after the last.
            advance: It is called with the number of edits done.
        """
        subject, firings = self.subject, self.firings
        with_alike = stop == len(self.drawn)
        columns = np.arange(start, stop)
        if with_alike:
            columns = np.concatenate([columns, np.arange(stop, totals.shape[1])])

        def work(
            model: Downstream, row: int, part: Int64[np.ndarray, " part"]
        ) -> tuple[Int64[np.ndarray, " part"], Float64[np.ndarray, "part column"]]:
            clean = model.read(subject.ids_of(row))
            at, costs = [], []
            for group in grouped(firings.tokens[left[part]]):
                together = left[part][group]
                position = int(subject.tokens.places[firings.tokens[together[0]], 1])
                edits = torch.cat([self._edits(int(i), start, stop, with_alike) for i in together])
                kl = [
                    model.kl_of_edits(clean, position, chunk, self.window)
                    for chunk in torch.split(edits, _EDITS)
                ]
                at.append(together)
                costs.append(torch.cat(kl).double().cpu().numpy().reshape(len(together), -1))
            return np.concatenate(at), np.concatenate(costs)

        by_firing = np.zeros((len(firings), len(columns)))
        parts = list(subject.by_row(firings.tokens[left]))
        for at, costs in side_by_side(subject.downstream, parts, work):
            by_firing[at] = costs
            advance(costs.size)
        # summed in the order of firings, whichever was done first
        np.add.at(totals, (firings.directions[left][:, None], columns), by_firing[left])

    def _edits(
        self, i: int, start: int, stop: int, with_alike: bool
    ) -> Float[torch.Tensor, "edit d_in"]:
        """Return what the i-th firing's ablation would add along every null direction."""
        direction = int(self.firings.directions[i])
        vectors = self.directions.vectors
        x = self.subject.activations[int(self.firings.tokens[i])].float().cpu()
        nulls = turned(self.drawn[start:stop], torch.from_numpy(vectors[direction]), x)
        if with_alike:
            nulls = torch.cat([nulls, torch.from_numpy(vectors[self.alike[direction]])])
        edits: torch.Tensor = -float(self.amounts[i]) * nulls
        return edits
