"""Directions at a hookpoint, and the model that they are tested on.

Whether a model uses something is always measured of a **direction**: a unit vector at the hookpoint, with
an **amount** for every token. A token **holds** a direction where its amount is not 0, and each pair of a
direction and a token that holds it is a **firing**. Latents of an SAE are such directions; so are random
vectors, the main directions of what the SAE misses, and latents of another dictionary. Every measure of
use takes any of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64, Integer

from sae_placebo.causal.use.downstream import CleanRow, Downstream
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.latents.base import Encoded, TokenTable

_AT_ONCE = 1 << 14
"""What so many firings of sets take away is computed at once."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model behind one hookpoint, and the held-out tokens on which it is tested.

    Attributes:
        downstream: The model, run from the hookpoint to its predictions.
        tokens: The held-out tokens that count.
        activations: Their activations at the hookpoint, in model units.
        kept: What was computed of the subject alone and is needed again, by name and settings.
    """

    downstream: Downstream
    tokens: TokenTable
    activations: Float[torch.Tensor, "token d_in"]
    kept: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)

    def ids_of(self, row: int) -> Int64[torch.Tensor, " pos"]:
        """Return the token ids of a row without its padding."""
        rows = self.tokens.rows
        return torch.from_numpy(rows.token_ids[row, : rows.lengths[row]].astype(np.int64))

    def clean(self, row: int) -> CleanRow:
        """Return what the model makes of a row, unedited."""
        return self.downstream.read(self.ids_of(row))

    def tokens_in(self, rows: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " token"]:
        """Return the held-out tokens that lie in these rows, ascending."""
        return np.flatnonzero(np.isin(self.tokens.places[:, 0], rows)).astype(np.int64)

    def by_row(
        self, tokens: Int64[np.ndarray, " token"]
    ) -> Iterator[tuple[int, Int64[np.ndarray, " part"]]]:
        """Yield each row in which some of the tokens lie, with the indices of these into `tokens`."""
        rows = self.tokens.places[tokens, 0]
        for part in grouped(rows):
            yield int(rows[part[0]]), part


@dataclass(frozen=True, eq=False)
class Directions:
    """Unit directions, and the amount of each that every held-out token holds.

    Attributes:
        vectors: [direction, d_in], of length 1. A row of zeros stands for no direction and is never
            tested.
        amounts: scipy CSR [token, direction], in model units: an ablation subtracts the amount times the
            vector from the activation. An amount may be below 0 where a direction has two sides.
    """

    vectors: Float32[np.ndarray, "direction d_in"]
    amounts: Any

    def __len__(self) -> int:
        return len(self.vectors)

    @functools.cached_property
    def by_direction(self) -> Any:
        """The amounts as scipy CSC: `indptr`, `indices` (tokens, ascending) and `data` by direction."""
        return self.amounts.tocsc()

    @functools.cached_property
    def n_active(self) -> Int64[np.ndarray, " direction"]:
        """Return how many tokens hold each direction."""
        return np.asarray(np.diff(self.by_direction.indptr), dtype=np.int64)

    def at(self, token: int) -> tuple[Int64[np.ndarray, " active"], Float32[np.ndarray, " active"]]:
        """Return the directions that a token holds, and the amount of each."""
        stored = slice(self.amounts.indptr[token], self.amounts.indptr[token + 1])
        return self.amounts.indices[stored].astype(np.int64), self.amounts.data[stored]


@dataclass(frozen=True, eq=False)
class DirectionSets:
    """Sets of directions, each of which is removed as a whole.

    A token **holds** a set where it holds a member of it, and such a pair is a firing of the set. A single
    direction is a set of one. What removing a set takes away at a token is one vector, the sum over members
    of amount times direction.

    Attributes:
        directions: All directions at the hookpoint.
        membership: scipy CSR [set, direction], 1 for members.
        amounts: scipy CSR [token, set], the length of what removing the set takes away at the token. Of a set
            of one it is the amount, with its sign.
        kind: What the sets are; draws for a set are named by it and by the set's index.
    """

    directions: Directions
    membership: Any
    amounts: Any
    kind: str = "direction"

    def __len__(self) -> int:
        return int(self.membership.shape[0])

    @functools.cached_property
    def by_set(self) -> Any:
        """The lengths as scipy CSC: `indptr`, `indices` (tokens, ascending) and `data` by set."""
        return self.amounts.tocsc()

    def members(self, i: int) -> Int64[np.ndarray, " member"]:
        """Return the directions in a set, ascending."""
        stored = slice(self.membership.indptr[i], self.membership.indptr[i + 1])
        return np.sort(self.membership.indices[stored]).astype(np.int64)

    def held(self, i: int) -> Int64[np.ndarray, " firing"]:
        """Return the tokens that hold a set, ascending."""
        by = self.by_set
        return np.asarray(by.indices[by.indptr[i] : by.indptr[i + 1]], dtype=np.int64)

    def held_members(
        self, sets: Int64[np.ndarray, " firing"], tokens: Int64[np.ndarray, " firing"]
    ) -> Any:
        """Return what a token holds of a set's members, for each pair of both: CSR [firing, direction]."""
        return self.directions.amounts[tokens].multiply(self.membership[sets]).tocsr()

    def taken_away(
        self, sets: Int64[np.ndarray, " firing"], tokens: Int64[np.ndarray, " firing"]
    ) -> Float32[np.ndarray, "firing d_in"]:
        """Return what removing a set takes away at a token, for each pair of both."""
        held = self.held_members(sets, tokens)
        return np.asarray(held @ self.directions.vectors, dtype=np.float32)


def single_sets(directions: Directions) -> DirectionSets:
    """Return every direction as a set of one; the sets have the directions' indices."""
    from scipy.sparse import identity

    alone = identity(len(directions), dtype=np.float32, format="csr")
    return DirectionSets(directions, alone, directions.amounts)


def direction_sets(directions: Directions, members: list[Int64[np.ndarray, "_"]]) -> DirectionSets:
    """Return sets of directions, given the members of each."""
    from scipy.sparse import csr_matrix

    n, columns = len(members), np.concatenate([np.zeros(0, dtype=np.int64), *members])
    starts = np.cumsum([0, *map(len, members)])
    ones = np.ones(len(columns), dtype=np.float32)
    membership = csr_matrix((ones, columns, starts), shape=(n, len(directions)))
    held = (directions.amounts != 0).astype(np.float32) @ membership.T
    pairs = DirectionSets(directions, membership, held.tocsr())
    tokens, sets = (np.asarray(at, dtype=np.int64) for at in pairs.amounts.nonzero())
    parts = [slice(start, start + _AT_ONCE) for start in range(0, len(tokens), _AT_ONCE)]
    lengths = [np.linalg.norm(pairs.taken_away(sets[at], tokens[at]), axis=1) for at in parts]
    data = np.concatenate([np.zeros(0), *lengths]).astype(np.float32)
    amounts = csr_matrix((data, (tokens, sets)), shape=(len(held.indptr) - 1, n))
    amounts.eliminate_zeros()
    return DirectionSets(directions, membership, amounts, "group")


def grouped(keys: Integer[np.ndarray, " entry"]) -> list[Int64[np.ndarray, "_"]]:
    """Return the indices of equal keys, one array for each key, by ascending key.

    Within an array the indices ascend.
    """
    order = np.argsort(keys, kind="stable")
    cuts = np.flatnonzero(np.diff(keys[order])) + 1
    return np.split(order, cuts) if len(order) else []


def latent_directions(reading: Encoded) -> Directions:
    """Return the latents of an SAE as directions: unit rows of its decoder.

    An amount is the latent's activation times the length of its decoder row. So the sum over directions of
    amount times vector, plus `b_dec`, is the SAE's reconstruction.
    """
    rows = reading.sae.params["W_dec"].detach().float().cpu().numpy()
    norms = np.linalg.norm(rows, axis=1)
    unit = rows / np.where(norms > 0, norms, 1)[:, None]
    amounts = reading.codes.tocsr().astype(np.float32)
    amounts.data = amounts.data * norms.astype(np.float32)[amounts.indices]
    return Directions(unit.astype(np.float32), amounts)


def pseudo_latents(like: Directions, seed: int, n: int) -> Directions:
    """Return random directions with the firings and amounts of some of the given directions.

    Each pseudo-latent is an isotropic random vector that takes over all amounts of one given direction.
    Such a vector means nothing to the model, so a test of use is calibrated where the p-values of
    pseudo-latents are uniform.

    Args:
        like: The directions whose amounts are taken over; they are drawn among those that some token
            holds.
        seed: The seed of the draw.
        n: How many are wanted. There are fewer where fewer directions are held.
    """
    random = numpy_generator(seed, "pseudo-latents")
    held = np.flatnonzero(like.n_active)
    chosen = np.sort(random.choice(held, min(n, len(held)), replace=False))
    rows = random.standard_normal((len(chosen), like.vectors.shape[1]))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    amounts = like.by_direction[:, chosen].tocsr()
    return Directions(rows.astype(np.float32), amounts)


def error_directions(reading: Encoded, n: int) -> Directions:
    """Return the main directions of what the SAE misses: principal components of x - x_hat.

    Every token holds all of them: an amount is the projection on the component of the token's error less
    the mean error, and may be below 0.

    Args:
        reading: The SAE on the held-out tokens.
        n: How many components are returned, those of the largest variance first.
    """
    from scipy.sparse import csr_matrix

    codes = reading.codes
    decoder = reading.sae.params["W_dec"].detach().float().cpu().numpy()
    bias = reading.sae.params["b_dec"].detach().float().cpu().numpy()
    x = reading.activations.detach().float().cpu().numpy()
    error = x - codes @ decoder - bias
    error -= error.mean(0)
    vectors = np.linalg.eigh((error.T @ error).astype(np.float64))[1][:, ::-1][:, :n].T
    amounts = error @ vectors.T.astype(np.float32)
    return Directions(vectors.astype(np.float32).copy(), csr_matrix(amounts))
