"""Null directions, which mean nothing, and what ablating them costs.

A null direction must be matched to the direction that it is compared with. A random direction is no fair
null, even with the same amount removed: an ablation shortens the activation, since a latent fires where
its direction points along the activation, while a random push lengthens it; and models answer to length.
So a null direction here has, at every firing, the direction's angle to the activation, and the same amount
of it is removed. The edited activation then has the same length, and the same angle to the unedited one, as
after the ablation that is tested.

With x the activation, c the cosine between it and the direction d, and w a random unit vector across x (at a
right angle to it), the null direction is u = c x / |x| + sqrt(1 - c^2) w. A null direction is **one** random
vector for all firings of d, from which w is made at each firing. For the firings of a latent are alike, so
that the costs of one direction at several firings go together, and a null with a new vector at each firing
would scatter too little.

The null of a set of several directions is a set as well: random vectors that have the members' lengths and
angles to each other, with the same amounts. Their sum is turned and brought to the length of the set's.

Null vectors are named by the set that they stand beside, so that those of two sets are independent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from sae_placebo.causal.use.ablation import Ablations
from sae_placebo.causal.use.base import DirectionSets, Subject
from sae_placebo.causal.use.edits import costs_of_edits
from sae_placebo.causal.use.firings import Firings
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance, unheard
from sae_placebo.core.spec import numpy_generator

TIE = 1e-6
"""Costs come from float32 products, so two that differ by no more than this share count as tied."""


@dataclass(frozen=True, eq=False)
class NullCosts:
    """The costs of null directions by firing, beside those of what they are compared with, in nats.

    Attributes:
        firings: The firings at which null directions were ablated.
        own: The cost of ablating the set itself.
        nulls: The cost of ablating each of its null directions.
    """

    firings: Firings
    own: Float64[np.ndarray, " firing"]
    nulls: Float64[np.ndarray, "firing null"]

    def means(self, which: Int64[np.ndarray, " asked"]) -> Float64[np.ndarray, "asked cost"]:
        """Return mean costs over all firings of each set: first its own, then those of its null directions.

        They are weighted by how the firings were drawn. A set without firings has NaN.
        """
        f = self.firings
        at = np.searchsorted(which, f.sets)
        draws = np.bincount(at, f.draws, minlength=len(which))
        costs = np.column_stack([self.own, self.nulls]) * (f.draws * f.weights)[:, None]
        sums = np.stack([np.bincount(at, column, minlength=len(which)) for column in costs.T], 1)
        with np.errstate(invalid="ignore"):
            return np.asarray(sums / np.where(draws > 0, draws, np.nan)[:, None])


def null_costs(
    subject: Subject,
    sets: DirectionSets,
    ablated: Ablations,
    firings: Firings,
    n_nulls: int,
    window: int,
    seed: int,
    advance: Advance = unheard,
) -> NullCosts:
    """Return what ablating null directions costs at some of the firings at which sets were ablated.

    Args:
        subject: The model behind the hookpoint, and the tokens.
        sets: The sets of directions.
        ablated: The costs of ablating them, at all of these firings and perhaps at others.
        firings: The firings at which null directions are ablated.
        n_nulls: How many null directions there are for each set.
        window: The predictions at this many later tokens are compared too.
        seed: The seed of the null directions.
        advance: It is called with the number of edits done.

    Source: matching norm and cosine is in arXiv 2605.03160. One vector for all firings, and sets, are this
    package's.
    """
    place = {(int(i), int(token)): k for k, (i, token) in enumerate(_pairs(ablated.firings))}
    own = ablated.zero[[place[int(i), int(token)] for i, token in _pairs(firings)]]

    edits = NullEdits.of(subject, sets, firings)
    costs = costs_of_edits(
        subject,
        firings.tokens,
        lambda i: edits.at(i, n_nulls, (seed, "null directions", sets.kind, int(firings.sets[i]))),
        n_nulls,
        window,
        advance,
    )
    return NullCosts(firings, own, costs)


def _pairs(firings: Firings) -> Int64[np.ndarray, "firing two"]:
    return np.stack([firings.sets, firings.tokens], axis=1)


@dataclass(frozen=True, eq=False)
class NullEdits:
    """The ablations of null directions at some firings.

    Attributes:
        subject: The model behind the hookpoint, and the tokens.
        sets: The sets of directions that they stand beside.
        firings: The firings.
        held: scipy CSR [firing, direction], the amounts of the members.
        taken: What removing the set takes away at each firing.
    """

    subject: Subject
    sets: DirectionSets
    firings: Firings
    held: Any
    taken: Float32[np.ndarray, "firing d_in"]

    @classmethod
    def of(cls, subject: Subject, sets: DirectionSets, firings: Firings) -> NullEdits:
        """Return the ablations at these firings."""
        held = sets.held_members(firings.sets, firings.tokens)
        taken = np.asarray(held @ sets.directions.vectors, dtype=np.float32)
        return cls(subject, sets, firings, held, taken)

    def at(
        self, i: int, n: int, named: tuple[int, *tuple[str | int, ...]]
    ) -> Float[torch.Tensor, "null d_in"]:
        """Return what ablating `n` null directions adds to the activation of the i-th firing's token.

        Random vectors are drawn from the seed and the name in `named`; the same name gives the same null
        directions at every firing of a set.
        """
        taken = torch.from_numpy(self.taken[i])
        length = float(taken.norm())
        x = self.subject.activations[int(self.firings.tokens[i])].float().cpu()
        sums = torch.from_numpy(self._sums(i, n, named))
        return -length * turned(sums, taken / max(length, 1e-30), x)

    def _sums(
        self, i: int, n: int, named: tuple[int, *tuple[str | int, ...]]
    ) -> Float32[np.ndarray, "null d_in"]:
        """Return, for each null, the sum of its members times the amounts that the token holds.

        Members of a null are random vectors with the angles to each other that the set's have: the set's
        coordinates in an orthonormal basis, in a random orthonormal basis.
        """
        stored = slice(self.held.indptr[i], self.held.indptr[i + 1])
        amounts, random = self.held.data[stored], numpy_generator(*named)
        members = self.sets.members(int(self.firings.sets[i]))
        drawn = random.standard_normal((n, len(members), self.taken.shape[1])).astype(np.float32)
        if len(members) == 1:
            return np.asarray(drawn[:, 0] * np.sign(amounts[0]), dtype=np.float32)
        held = np.zeros(len(members))
        held[np.searchsorted(members, self.held.indices[stored])] = amounts
        coordinates = np.linalg.qr(self.sets.directions.vectors[members].T)[1] @ held
        bases = np.linalg.qr(drawn.transpose(0, 2, 1))[0]
        return np.asarray(bases @ coordinates, dtype=np.float32)


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
