"""A world is a model whose truth is known, and its truth is measured here.

A world is an ordinary Hugging Face causal language model together with the variables that its tokens
carry. What the model does with a variable is never assumed from how it was trained: `truth` measures it
at each site, by interchange.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int64

from sae_placebo.causal.use.downstream import Downstream, kl
from sae_placebo.core.errors import NotEstimable, unknown_name
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.bootstrap import percentile_interval, resampled_counts

Role = Literal["used", "passenger", "conditional", "duplicate"]
Where = Literal["active", "inactive", "everywhere"]

_FEWEST_ROWS = 10
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Swap:
    """How one variable, and no other, gets another value: one input token is replaced by another.

    Attributes:
        alternatives: For each token of the vocabulary, the tokens that differ from it in this variable
            alone; -1 fills the places of tokens that have fewer.
        sources: For each held-out token, the position in its row of the token that decides the variable's
            value there (itself, the one before, or the last marker); -1 where no token does.
    """

    alternatives: Int64[np.ndarray, "token alternative"]
    sources: Int64[np.ndarray, "row pos"]


@dataclass(frozen=True, eq=False)
class Variable:
    """Something that has a value at every token, and that the model may use or not.

    Attributes:
        name: Name of the variable.
        values: Values at the held-out tokens, 0 to n_values - 1.
        train_values: Values at the training tokens.
        n_values: Number of values; "none" is one of them where a token may lack the variable.
        role: What the target makes of the variable: `used`; `passenger`, which is not used; `conditional`,
            which is used where `active`; or `duplicate`, one of two carriers of a value, either of which
            suffices.
        active: Whether the variable matters at each held-out token; None where it matters at all of them.
        whole: For a duplicate, the name of the variable that both carriers carry.
    """

    name: str
    values: Int64[np.ndarray, "row pos"]
    train_values: Int64[np.ndarray, "train_row pos"]
    n_values: int
    role: Role
    active: Bool[np.ndarray, "row pos"] | None = None
    whole: str | None = None


@dataclass(frozen=True, eq=False)
class World:
    """A model whose truth is known.

    Attributes:
        name: Name that people read; nothing depends on it.
        model: A causal language model of Hugging Face, in float32, in eval mode and without gradients.
        rows: Token ids of held-out rows, all of one length and without padding.
        train_rows: Token ids of other rows, to train SAEs on.
        variables: The variables that the tokens carry.
        hookpoints: Names of the hookpoints at which the world is studied, by depth.
        swaps: How a variable gets another value, by its name. A variable without a swap has no truth by
            interchange.
        numbers: What is known of how well the model computes its rule, such as `excess_nats`.
    """

    name: str
    model: Any
    rows: Int64[np.ndarray, "row pos"]
    train_rows: Int64[np.ndarray, "train_row pos"]
    variables: tuple[Variable, ...]
    hookpoints: tuple[str, ...]
    swaps: Mapping[str, Swap] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def variable(self, name: str) -> Variable:
        """Return the variable of that name.

        Raises:
            NotEstimable: there is no such variable; the message has the nearest name.
        """
        for variable in self.variables:
            if variable.name == name:
                return variable
        raise NotEstimable(unknown_name("variable", name, [v.name for v in self.variables]))


# --- what swapping a variable costs ------------------------------------------------------------------


@dataclass(frozen=True)
class WorldTruth:
    """What the model loses at a site when one variable has another value there.

    Attributes:
        hookpoint: Name of the site's hookpoint.
        variable: Name of the variable.
        effect_nats: KL(unedited || edited) in nats per swapped token: the sum over the predictions at that
            token and at the tokens of the window behind it, averaged over swapped tokens.
        interval: 95% interval of the effect, over rows.
        full_swap_nats: The effect, in nats per swapped token, of putting another row's whole activation at
            the same position in the place of the token's.
        share_of_full_swap: The effect as a share of `full_swap_nats`. It can exceed 1 where the other row
            often has the variable's value, too.
        share_interval: 95% interval of the share, over rows.
        n: Number of swapped tokens.
        n_rows: Number of rows that the swapped tokens come from.
    """

    hookpoint: str
    variable: str
    effect_nats: float
    interval: tuple[float, float]
    full_swap_nats: float
    share_of_full_swap: float
    share_interval: tuple[float, float]
    n: int
    n_rows: int


@dataclass(frozen=True, eq=False)
class _Draws:
    """Tokens at which a variable is swapped, one entry per draw.

    Attributes:
        rows: Row of each token.
        positions: Position of each token in its row.
        sources: Position of the token that decides the variable's value there.
        tokens: Id of the token that replaces the deciding one.
    """

    rows: Int64[np.ndarray, " draw"]
    positions: Int64[np.ndarray, " draw"]
    sources: Int64[np.ndarray, " draw"]
    tokens: Int64[np.ndarray, " draw"]

    def __len__(self) -> int:
        return len(self.rows)


def truth(
    world: World,
    hookpoint: str,
    variable: str,
    *,
    where: Where = "active",
    window: int = 8,
    per_row: int = 1,
    seed: int = 0,
) -> WorldTruth:
    """Return what the model loses when a variable has another value at one token of one site.

    The row is run twice, as it is and with the one input token that decides the variable's value at
    token t replaced by one that differs in that variable alone. Then x_t of the second run takes the
    place of x_t in the first, at the hookpoint and at t only: what this changes in the predictions at t
    and behind is what the model still reads of the variable from that site. At the embedding this is
    the swap of the input itself.

    Source: interchange interventions, Geiger et al., "Causal abstractions of neural networks", arXiv
    2106.02997. Differs: the effect is a divergence of predictions, not the agreement of an output.

    Args:
        world: The model and its variables.
        hookpoint: Name of the hookpoint where the activation is edited.
        variable: Name of the variable.
        where: Which tokens are swapped: those where the variable is `active` (all tokens, if it has no
            `active`), those where it is `inactive`, or tokens `everywhere`.
        window: Number of later tokens whose predictions count.
        per_row: Largest number of tokens drawn from each held-out row.
        seed: Seed of the draw and of the bootstrap.

    Raises:
        NotEstimable: there is no such variable, no input token changes it alone, or fewer than 10 rows have a
            token to swap.
        SpecError: the hookpoint is unknown or past the last layer.
    """
    draws = _draws(world, world.variable(variable), where, per_row, seed)
    below = Downstream(world.model, hookpoint)
    effects, full = np.empty(len(draws)), np.empty(len(draws))
    n_chunks = -(-len(draws) // _ROWS_AT_ONCE)
    for part in np.array_split(np.arange(len(draws)), n_chunks):
        effects[part], full[part] = _swapped(world, below, draws, part, window)
    return summarize(hookpoint, variable, draws.rows, effects, full, seed)


def _draws(world: World, variable: Variable, where: Where, per_row: int, seed: int) -> _Draws:
    """Return tokens of held-out rows at which the variable can be swapped; see `truth`."""
    swap = world.swaps.get(variable.name)
    if swap is None:
        raise NotEstimable(
            f"no input token changes {variable.name!r} alone in world {world.name!r}; variables "
            f"that can be swapped: {', '.join(sorted(world.swaps)) or 'none'}"
        )
    allowed = swap.sources >= 0
    if where != "everywhere":
        active = np.ones_like(allowed) if variable.active is None else variable.active
        allowed = allowed & (active if where == "active" else ~active)
    decisive = np.take_along_axis(world.rows, swap.sources.clip(0), axis=1)
    options = swap.alternatives[decisive]
    allowed = allowed & (options >= 0).any(axis=2)
    # a random order of each row's tokens, those that are not allowed last; likewise of alternatives
    random = numpy_generator(seed, "world", "truth", variable.name, where)
    order = np.where(allowed, random.random(allowed.shape), 2.0).argsort(axis=1)[:, :per_row]
    pick = np.where(options >= 0, random.random(options.shape), -1.0).argmax(axis=2)
    rows, ranks = np.nonzero(np.take_along_axis(allowed, order, axis=1))
    # all first draws, then all second ones, so that neighbors are of different rows
    first = np.argsort(ranks, kind="stable")
    rows, positions = rows[first], order[rows[first], ranks[first]]
    n_rows = len(np.unique(rows))
    if n_rows < _FEWEST_ROWS:
        raise NotEstimable(
            f"{n_rows} held-out rows have a token where {variable.name!r} can be swapped "
            f"({where}); {_FEWEST_ROWS} are needed"
        )
    tokens = options[rows, positions, pick[rows, positions]]
    return _Draws(rows, positions, swap.sources[rows, positions], tokens)


def _swapped(
    world: World,
    below: Downstream,
    draws: _Draws,
    part: Int64[np.ndarray, " draw"],
    window: int,
) -> tuple[Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]:
    """Return the divergences of draws, with the variable swapped and with the whole activation swapped."""
    each = torch.arange(len(part))
    ids = torch.from_numpy(world.rows[draws.rows[part]])
    positions = torch.from_numpy(draws.positions[part])
    other = ids.clone()
    other[each, torch.from_numpy(draws.sources[part])] = torch.from_numpy(draws.tokens[part])
    site, entering = below.read_rows(ids)
    counterfactual, _ = below.read_rows(other)
    last = ids.shape[1] - 1
    seen = positions[:, None] + torch.arange(window + 1)
    counts = seen <= last
    seen = seen.clamp(max=last)

    def logits(replacement: torch.Tensor | None) -> torch.Tensor:
        delta = None
        if replacement is not None:
            delta = torch.zeros_like(site)
            delta[each, positions] = (replacement - site)[each, positions]
        return below.logits(ids, entering, delta)[each[:, None], seen]

    with torch.no_grad():
        clean = logits(None).float().log_softmax(-1)
        costs = [
            (kl(clean.flatten(0, 1), logits(x).flatten(0, 1)[None]).view_as(counts) * counts).sum(1)
            for x in (counterfactual, site.roll(1, 0))
        ]
    return costs[0].double().numpy(), costs[1].double().numpy()


def summarize(
    hookpoint: str,
    variable: str,
    rows: Int64[np.ndarray, " draw"],
    effects: Float[np.ndarray, " draw"],
    full: Float[np.ndarray, " draw"],
    seed: int,
) -> WorldTruth:
    """Return the means of swaps' effects, with 95% intervals from a bootstrap of rows.

    Args:
        hookpoint: Name of the site's hookpoint.
        variable: Name of the variable.
        rows: Row of each swapped token.
        effects: Divergence in nats where the variable is swapped.
        full: Divergence in nats where the whole activation is swapped.
        seed: Seed of the bootstrap.
    """
    present, index = np.unique(rows, return_inverse=True)
    sums = np.stack([np.bincount(index, x) for x in (effects, full, np.ones_like(full))])
    random = numpy_generator(seed, "world", "truth", "bootstrap")
    weights = resampled_counts(random, len(present), 1000)
    effect, whole, count = np.concatenate([sums.sum(1)[:, None], sums @ weights.T], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = effect / whole
    means = effect / count
    return WorldTruth(
        hookpoint=hookpoint,
        variable=variable,
        effect_nats=float(means[0]),
        interval=percentile_interval(means[1:]),
        full_swap_nats=float(whole[0] / count[0]),
        share_of_full_swap=float(shares[0]),
        share_interval=percentile_interval(shares[1:]),
        n=len(rows),
        n_rows=len(present),
    )
