"""The tokens that a ladder is fitted, chosen and scored on, and what is known at them.

Tables and readouts are fitted on text of their own where there is some: the training text, which is much
longer than what is held out. Penalties and weights are chosen on some held-out documents; others are scored.
The documents to fit on are put in an order, and the first eighth, quarter and half of them are fitted on
as well as all, so that it can be seen how far a number still moves as more text is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64, Integer

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import numpy_generator
from sae_placebo.data.labels.base import Labels
from sae_placebo.data.rows import Rows
from sae_placebo.latents.base import Folds, TokenTable

PORTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the text to fit on, nested by document, at which the ladder is fitted."""
FIT, CHOOSE, SCORE = 0, 1, 2
"""Purposes of documents, as `Folds.purposes` has them."""


@dataclass(frozen=True, eq=False)
class LadderText:
    """The tokens of a ladder.

    Attributes:
        tokens: All of them: those that are held out, then those of the text to fit on.
        fit: For each portion, the tokens that it adds to the portion before.
        choose: Tokens that penalties and weights are chosen on.
        score: Group and tokens of each group of scored documents.
        n_groups: Number of groups.
        n_documents: Documents of each portion.
    """

    tokens: TokenTable
    fit: tuple[Int64[np.ndarray, "_"], ...]
    choose: Int64[np.ndarray, " chosen"]
    score: tuple[tuple[int, Int64[np.ndarray, "_"]], ...]
    n_groups: int
    n_documents: tuple[int, ...]

    @classmethod
    def beside(cls, held: TokenTable, folds: Folds, fit: TokenTable, seed: int) -> LadderText:
        """Return a ladder that is fitted on text of its own.

        Documents to choose on are those of `folds`; all other held-out documents are scored.

        Args:
            held: The held-out tokens.
            folds: Groups of their documents, and their purposes.
            fit: The tokens to fit on; token i of them is token len(held) + i of the whole.
            seed: It names the order of the documents to fit on.

        Raises:
            NotEstimable: no token is left to fit, choose or score on.
        """
        purposes = folds.purposes[held.documents]
        choose, score = np.flatnonzero(purposes == CHOOSE), np.flatnonzero(purposes != CHOOSE)
        tokens = len(held) + np.arange(len(fit))
        return cls._of(_joined(held, fit), (tokens, choose, score), held, folds, seed)

    @classmethod
    def within(cls, held: TokenTable, folds: Folds, seed: int) -> LadderText:
        """Return a ladder that is fitted, chosen and scored on one text, as `folds` divides it.

        Args:
            held: The tokens.
            folds: Groups of their documents, and their purposes.
            seed: It names the order of the documents to fit on.

        Raises:
            NotEstimable: no token is left to fit, choose or score on.
        """
        purposes = folds.purposes[held.documents]
        fit, choose, score = (np.flatnonzero(purposes == p) for p in (FIT, CHOOSE, SCORE))
        return cls._of(held, (fit, choose, score), held, folds, seed)

    @classmethod
    def _of(
        cls,
        tokens: TokenTable,
        by_purpose: tuple[Int64[np.ndarray, "_"], ...],
        held: TokenTable,
        folds: Folds,
        seed: int,
    ) -> LadderText:
        for some, what in zip(by_purpose, ("fit", "choose penalties", "score"), strict=True):
            if not len(some):
                raise NotEstimable(f"no document to {what} on: the ladder needs more documents")
        fit, choose, score = by_purpose
        documents = tokens.documents[fit]
        portion = portions(documents, seed)
        groups = folds.groups[held.documents[score]]
        added = tuple(fit[portion == p] for p in np.unique(portion))
        numbers = [len(np.unique(documents[portion <= p])) for p in np.unique(portion)]
        scored = tuple((int(g), score[groups == g]) for g in np.unique(groups))
        return cls(tokens, added, choose, scored, folds.n_groups, tuple(numbers))

    @property
    def n_fitted(self) -> tuple[int, ...]:
        """Number of tokens of each portion."""
        return tuple(int(n) for n in np.cumsum([len(added) for added in self.fit]))


class Stacked:
    """What is known at each token, in the parts in which it was read; parts are never put together.

    Indexing by tokens that lie in one part gives a part's rows.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        """Take parts that are arrays or CSR matrices, with a row per token each."""
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(part.shape[0] for part in self._parts)])

    @property
    def shape(self) -> tuple[int, int]:
        """Number of tokens and of columns."""
        return int(self._starts[-1]), int(self._parts[0].shape[1])

    def __getitem__(self, tokens: Int64[np.ndarray, " some"]) -> Any:
        part = 0
        if len(tokens):
            part = int(np.searchsorted(self._starts, tokens[0], side="right")) - 1
        return self._parts[part][tokens - self._starts[part]]

    def columns(self, chosen: slice) -> Stacked:
        """Return some columns of CSR parts."""
        return Stacked([part.tocsc()[:, chosen].tocsr() for part in self._parts])


def portions(documents: Integer[np.ndarray, " token"], seed: int) -> Int64[np.ndarray, " token"]:
    """Return, by token, the index into `PORTIONS` of the first portion that its document is in.

    Documents are drawn in an order; one belongs to a portion if its middle does.

    Args:
        documents: Document of each token.
        seed: It names the draw.
    """
    _, of, sizes = np.unique(documents, return_inverse=True, return_counts=True)
    order = numpy_generator(seed, "documents to fit on").permutation(len(sizes))
    ends = np.cumsum(sizes[order])
    middle = np.empty(len(sizes))
    middle[order] = (ends - sizes[order] / 2) / ends[-1]
    return np.searchsorted(PORTIONS[:-1], middle, side="right").astype(np.int64)[of]


def rows_to_fit_on(rows: Rows, n_tokens: int, seed: int) -> Rows:
    """Return the rows of training documents, drawn in an order until they have about `n_tokens` tokens.

    Args:
        rows: Rows of the training text.
        n_tokens: The most tokens; one document is taken even if it has more.
        seed: It names the draw.
    """
    usable = rows.usable().sum(1)
    sizes = np.bincount(rows.documents, weights=usable, minlength=len(rows.names))
    order = numpy_generator(seed, "documents of the text to fit on").permutation(len(sizes))
    n = max(1, int(np.searchsorted(np.cumsum(sizes[order]), n_tokens, side="right")))
    kept = np.sort(order[:n])
    index = np.full(len(sizes), -1)
    index[kept] = np.arange(n)
    chosen = np.flatnonzero(index[rows.documents] >= 0)
    labels = rows.labels
    if labels is not None:
        labels = Labels(labels.names, labels.bits[chosen], labels.known[chosen])
    return Rows(
        rows.token_ids[chosen],
        rows.lengths[chosen],
        index[rows.documents[chosen]].astype(np.int32),
        tuple(rows.names[i] for i in kept),
        labels,
        None if rows.left_out is None else rows.left_out[chosen],
    )


def _joined(held: TokenTable, fit: TokenTable) -> TokenTable:
    """Return the tokens of both; documents and rows of the second come after those of the first."""
    first, second = held.rows, fit.rows
    rows = Rows(
        np.concatenate([first.token_ids, second.token_ids]),
        np.concatenate([first.lengths, second.lengths]),
        np.concatenate([first.documents, second.documents + len(first.names)]).astype(np.int32),
        (*first.names, *second.names),
        left_out=None
        if first.left_out is None or second.left_out is None
        else np.concatenate([first.left_out, second.left_out]),
    )
    places = np.concatenate([held.places, fit.places + np.array([len(first.lengths), 0])])
    return TokenTable(rows, places, held.vocabulary)
