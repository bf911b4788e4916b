"""The truth of a compiled world is measured by giving one variable other values at a site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.causal.use.downstream import Downstream, kl
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.lab.worlds.base import WorldTruth, summarize
from sae_placebo.lab.worlds.compiled import CompiledWorld

SMALLEST_SHARE = 0.01
"""Least share of a full swap at which a variable counts as used."""


@dataclass(frozen=True)
class CompiledTruth:
    """What the predictions lose when one variable takes the value that it has at another token.

    Attributes:
        within: The loss where the value is another row's at the same position.
        across: The loss where the value is another row's at another position. A variable that depends only
            on the position never changes in a swap `within`.
        start: The loss where the value is that of a row's start, which no other token has. A program that
            only tells tokens from the start notices this swap and no other, and whether it uses the variable
            is then a matter of definition.
    """

    within: WorldTruth
    across: WorldTruth
    start: WorldTruth

    @property
    def share(self) -> float:
        """The larger share of a full swap, of `within` and `across`; a NaN (0 of 0) is left out."""
        return float(np.fmax(self.within.share_of_full_swap, self.across.share_of_full_swap))

    @property
    def effect_nats(self) -> float:
        """The larger effect of `within` and `across`, in nats per swapped token."""
        return max(self.within.effect_nats, self.across.effect_nats)

    @property
    def is_used(self) -> bool:
        """Whether later computation uses the variable: whether `share` is at least 1%."""
        return self.share >= SMALLEST_SHARE


@dataclass(frozen=True, eq=False)
class Donors:
    """Tokens, none of which starts a row, and the tokens of other rows whose values they get.

    Attributes:
        rows: Row of each token.
        positions: Position of each token in its row.
        donor_rows: Row of each token's donor.
        donor_positions: Position of each token's donor in its row.
    """

    rows: Int64[np.ndarray, " draw"]
    positions: Int64[np.ndarray, " draw"]
    donor_rows: Int64[np.ndarray, " draw"]
    donor_positions: Int64[np.ndarray, " draw"]


Place = Literal["within", "across", "start"]


def draw_donors(world: CompiledWorld, place: Place, n: int, seed: int = 0) -> Donors:
    """Return `n` tokens of the held-out rows, each with a donor in another row.

    Args:
        world: The world.
        place: Where the donor is: at the same position (`within`), at another one (`across`), or at the
            row's `start`.
        n: Number of tokens.
        seed: Seed of the draw.
    """
    random = numpy_generator(seed, "world", "compiled", "donors", place)
    n_rows, length = world.rows.shape[0], world.rows.shape[1] - 1
    rows = np.arange(n) % n_rows
    positions = random.integers(length, size=n)
    donor_rows = (rows + random.integers(1, n_rows, size=n)) % n_rows
    if place == "start":
        return Donors(rows, positions + 1, donor_rows, np.zeros(n, np.int64))
    step = random.integers(1, length, size=n) if place == "across" else np.zeros(n, np.int64)
    return Donors(rows, positions + 1, donor_rows, (positions + step) % length + 1)


def variable_edits(
    world: CompiledWorld, variable: str, donors: Donors
) -> Float[torch.Tensor, "draw d"]:
    """Return what is added to each token's residual stream to give the variable the donor's value."""
    values = world.variable(variable).values
    old = torch.from_numpy(values[donors.rows, donors.positions])
    new = torch.from_numpy(values[donors.donor_rows, donors.donor_positions])
    levels = world.directions[variable]
    return levels[new] - levels[old]


def variable_truth(
    world: CompiledWorld, hookpoint: str, variable: str, *, n: int = 512, seed: int = 0
) -> CompiledTruth:
    """Return what the model loses when a variable in the residual stream has another value at one token.

    The part of the activation that carries the variable takes the value that it has at another token. Nothing
    else changes, whether or not such an activation ever occurs, since that is what a program that reads the
    variable would notice. Effects are summed over that token and all later ones of the row.

    Args:
        world: A compiled world.
        hookpoint: Name of the hookpoint where the activation is edited.
        variable: Name of the variable.
        n: Number of tokens that are edited, for each kind of donor.
        seed: Seed of the draws and of the bootstrap.

    Raises:
        NotEstimable: there is no such variable, or it is not yet written at the hookpoint.
        SpecError: the hookpoint is unknown or past the last layer.
    """
    below = Downstream(world.model, hookpoint)
    if not world.is_present(variable, hookpoint):
        raise NotEstimable(f"nothing has written {variable!r} by {hookpoint}")
    truths = []
    for place in get_args(Place):
        donors = draw_donors(world, place, n, seed)
        site, _ = below.read_rows(torch.from_numpy(world.rows))
        full = site[donors.donor_rows, donors.donor_positions] - site[donors.rows, donors.positions]
        effects, whole = (
            effects_of_edits(world, below, donors, edits)
            for edits in (variable_edits(world, variable, donors), full)
        )
        truths.append(summarize(hookpoint, variable, donors.rows, effects, whole, seed))
    return CompiledTruth(*truths)


def effects_of_edits(
    world: CompiledWorld, below: Downstream, donors: Donors, edits: Float[torch.Tensor, "draw d"]
) -> Float[np.ndarray, " draw"]:
    """Return KL(unedited || edited) in nats of each edit, summed over the tokens of its row.

    Args:
        world: A compiled world.
        below: The model from the edited hookpoint on.
        donors: The edited tokens.
        edits: What is added to the residual stream at each edited token.
    """
    ids = torch.from_numpy(world.rows[donors.rows])
    site, entering = below.read_rows(ids)
    delta = torch.zeros_like(site)
    delta[torch.arange(len(ids)), torch.from_numpy(donors.positions)] = edits
    with torch.no_grad():
        clean = below.logits(ids, entering).float().log_softmax(-1)
        costs = kl(clean.flatten(0, 1), below.logits(ids, entering, delta).flatten(0, 1)[None])
    effects: np.ndarray = costs.view(ids.shape).sum(1).double().numpy()
    return effects
