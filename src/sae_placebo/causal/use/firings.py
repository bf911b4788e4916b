"""The firings at which directions are ablated: few tokens, each of which serves many directions.

A pass of the model costs about as much for one direction as for all that a token holds. So the tokens are
screened: those that hold many of the directions still wanted come first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Integer

from sae_placebo.causal.use.base import Directions
from sae_placebo.core.spec import numpy_generator

_SHARED = (8, 4, 2, 1)
"""A token is taken in each round if it serves at least so many directions that still need firings."""


@dataclass(frozen=True, eq=False)
class Firings:
    """Pairs of a direction and a token that holds it, sorted by token.

    Attributes:
        directions: The direction of each pair.
        tokens: The token of each pair, ascending.
    """

    directions: Int64[np.ndarray, " firing"]
    tokens: Int64[np.ndarray, " firing"]

    def __len__(self) -> int:
        return len(self.tokens)

    def kept(self, mask: Bool[np.ndarray, " firing"]) -> Firings:
        """Return the firings for which the mask is true."""
        return Firings(self.directions[mask], self.tokens[mask])


def choose_firings(
    directions: Directions,
    which: Int64[np.ndarray, " asked"],
    documents: Integer[np.ndarray, " token"],
    per_direction: int,
    seed: int,
) -> Firings:
    """Return up to `per_direction` firings of each wanted direction, at most one in a document.

    Tokens are visited in one random order, in rounds. In the first round a token is taken if it holds at
    least eight directions that still need firings and have none yet in its document; in later rounds four,
    two and one suffice. A taken token gives a firing to every such direction that it holds. So tokens
    that hold several of the wanted directions are a little more likely to be drawn than others.

    Args:
        directions: All directions at the hookpoint.
        which: The directions whose firings are wanted.
        documents: The document of each token.
        per_direction: How many firings of each direction are wanted.
        seed: The seed of the order of tokens.
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
    taken: list[tuple[Int64[np.ndarray, " served"], int]] = []
    for least in _SHARED:
        # how many directions each token could serve at the start of the round; it can only fall from here
        open_ = (held >= 0) & (wanted[asked] > 0) & ~used[asked, documents[row]]
        promising = np.bincount(row[open_], minlength=amounts.shape[0]) >= least
        for token in order[promising[order]]:
            served = held[amounts.indptr[token] : amounts.indptr[token + 1]]
            served = served[served >= 0]
            served = served[(wanted[served] > 0) & ~used[served, documents[token]]]
            if len(served) >= least:
                wanted[served] -= 1
                used[served, documents[token]] = True
                taken.append((served, int(token)))
    if not taken:
        return Firings(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    tokens = np.repeat([token for _, token in taken], [len(served) for served, _ in taken])
    owners = which[np.concatenate([served for served, _ in taken])]
    by_token = np.lexsort((owners, tokens))
    return Firings(owners[by_token].astype(np.int64), tokens[by_token].astype(np.int64))
