"""The firings at which directions are ablated.

Two kinds of draws are made, and what each may show differs.

- **By importance**: most draws go to firings that a screen by gradients expects to cost much. A few draws
  then say how large a mean cost is, but they say little about the firings where the screen expects nothing.
- **Uniformly**: every firing is as likely as every other. Only such draws can show that something is absent.

Each set of directions draws by a generator of its own, named by the set. So where it is ablated does not
depend on which others are asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from sae_placebo.causal.use.base import DirectionSets
from sae_placebo.causal.use.firing_screen import FiringScreen
from sae_placebo.core.spec import numpy_generator


@dataclass(frozen=True, eq=False)
class Firings:
    """Pairs of a set of directions and a token that holds it, sorted by set, then by token.

    Attributes:
        sets: The set of each pair; a single direction is a set of one.
        tokens: The token of each pair.
        draws: How many of the set's draws fell on the pair.
        weights: By how much a draw counts: the chance of the pair under uniform draws over the chance that
            it had. The mean over draws of weight times cost is an unbiased estimate of the mean cost over
            all firings of the set.
    """

    sets: Int64[np.ndarray, " firing"]
    tokens: Int64[np.ndarray, " firing"]
    draws: Int64[np.ndarray, " firing"]
    weights: Float64[np.ndarray, " firing"]

    def __len__(self) -> int:
        return len(self.tokens)

    def kept(self, mask: Bool[np.ndarray, " firing"]) -> Firings:
        """Return the firings for which the mask is true."""
        return Firings(self.sets[mask], self.tokens[mask], self.draws[mask], self.weights[mask])


def important_firings(
    sets: DirectionSets,
    which: Int64[np.ndarray, " asked"],
    screened: FiringScreen,
    n: int,
    seed: int,
) -> Firings:
    """Return `n` draws of firings of each set, by importance; all firings, once, where it has no more.

    Draws are independent, so that fewer of them are the first of more: the firings for a smaller `n` are
    among those for a larger one.

    Args:
        sets: All sets.
        which: The sets whose firings are wanted.
        screened: What each firing is expected to cost.
        n: How many draws are made for each set.
        seed: The seed of the draws.

    Source: Hansen and Hurwitz (1943), draws with replacement at unequal chances. The mixture of the chances
    is this package's.
    """
    parts = []
    for i in which:
        tokens = sets.held(int(i))
        if len(tokens) <= n:
            parts.append(_all_of(int(i), tokens))
            continue
        chance = screened.chances(int(i))
        points = numpy_generator(seed, "firings", sets.kind, int(i)).random(n)
        at = np.minimum(np.searchsorted(np.cumsum(chance), points), len(tokens) - 1)
        at, draws = np.unique(at, return_counts=True)
        weights = 1 / (len(tokens) * chance[at])
        parts.append(Firings(np.full(len(at), i), tokens[at], draws.astype(np.int64), weights))
    return _joined(parts)


def uniform_firings(
    sets: DirectionSets, which: Int64[np.ndarray, " asked"], n: int, seed: int
) -> Firings:
    """Return up to `n` firings of each set, drawn uniformly without replacement.

    Args:
        sets: All sets.
        which: The sets whose firings are wanted.
        n: How many are drawn of each.
        seed: The seed of the draws.
    """
    parts = []
    for i in which:
        tokens = sets.held(int(i))
        random = numpy_generator(seed, "uniform firings", sets.kind, int(i))
        drawn = np.sort(random.permutation(tokens)[:n])
        parts.append(_all_of(int(i), drawn))
    return _joined(parts)


def _all_of(i: int, tokens: Int64[np.ndarray, " firing"]) -> Firings:
    """Return firings of one set that all count once."""
    ones = np.ones(len(tokens), dtype=np.int64)
    return Firings(np.full(len(tokens), i), tokens, ones, ones.astype(np.float64))


def _joined(parts: list[Firings]) -> Firings:
    none = np.zeros(0, dtype=np.int64)
    return Firings(
        np.concatenate([none, *(part.sets for part in parts)]),
        np.concatenate([none, *(part.tokens for part in parts)]),
        np.concatenate([none, *(part.draws for part in parts)]),
        np.concatenate([none.astype(np.float64), *(part.weights for part in parts)]),
    )
