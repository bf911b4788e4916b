"""Which tokens directions are ablated at: few tokens that serve many directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Integer

from sae_placebo.causal.use.base import Directions
from sae_placebo.core.spec import numpy_generator

_SHARED = (8, 4, 2, 1)


@dataclass(frozen=True, eq=False)
class Firings:
    """Pairs of a direction and a token that holds some of it, by token.

    Attributes:
        directions: Of each pair.
        tokens: Of each pair, ascending.
    """

    directions: Int64[np.ndarray, " firing"]
    tokens: Int64[np.ndarray, " firing"]

    def __len__(self) -> int:
        return len(self.tokens)

    def kept(self, mask: Bool[np.ndarray, " firing"]) -> Firings:
        """Return some of the firings."""
        return Firings(self.directions[mask], self.tokens[mask])


def choose_firings(
    directions: Directions,
    which: Int64[np.ndarray, " asked"],
    documents: Integer[np.ndarray, " token"],
    per_direction: int,
    seed: int,
) -> Firings:
    """Return firings of the directions asked about, at most one per document and direction.

    A pass of the model is shared by all directions that a token holds, so tokens in random order are
    taken that serve at least eight directions with firings left to find, then four, two, one.
    Tokens that hold several directions asked about are so a little more likely than others.

    Args:
        directions: All directions.
        which: Those asked about.
        documents: Of each token.
        per_direction: Firings wanted of each.
        seed: Names the order.
    """
    column = np.full(len(directions), -1, dtype=np.int64)
    column[which] = np.arange(len(which))
    amounts = directions.amounts
    wanted = np.full(len(which), per_direction, dtype=np.int64)
    n_documents = int(documents.max()) + 1 if len(documents) else 0
    used = np.zeros((len(which), n_documents), dtype=bool)
    order = numpy_generator(seed, "tokens to ablate at").permutation(amounts.shape[0])
    held = column[amounts.indices]
    asked = np.where(held >= 0, held, 0)
    row = np.repeat(np.arange(amounts.shape[0]), np.diff(amounts.indptr))
    found: list[tuple[Int64[np.ndarray, " some"], int]] = []
    for least in _SHARED:
        # what could still be found at each token; falls as the loop goes on, never rises
        open_ = (held >= 0) & (wanted[asked] > 0) & ~used[asked, documents[row]]
        promising = np.bincount(row[open_], minlength=amounts.shape[0]) >= least
        for token in order[promising[order]]:
            here = held[amounts.indptr[token] : amounts.indptr[token + 1]]
            here = here[here >= 0]
            here = here[(wanted[here] > 0) & ~used[here, documents[token]]]
            if len(here) >= least:
                wanted[here] -= 1
                used[here, documents[token]] = True
                found.append((here, int(token)))
    if not found:
        return Firings(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    tokens = np.repeat([token for _, token in found], [len(here) for here, _ in found])
    owners = which[np.concatenate([here for here, _ in found])]
    by_token = np.lexsort((owners, tokens))
    return Firings(owners[by_token].astype(np.int64), tokens[by_token].astype(np.int64))
