"""What a rule may ask of a token: its id, its spelling and its labels, and those of the token before it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from sae_placebo.data.labels.catalogue import NAMES
from sae_placebo.latents.base import TokenTable
from sae_placebo.latents.columns.attributes import SPELLING, spelling

KINDS = 6
TOKEN, SPELLED, LABEL, AFTER_TOKEN, AFTER_SPELLED, AFTER_LABEL = range(KINDS)


class Literal(NamedTuple):
    """One yes-or-no question about a token.

    Attributes:
        kind: `TOKEN` (which id it has), `SPELLED` (how it is spelled), `LABEL` (which label it has), or the
            same of the token before it: `AFTER_TOKEN`, `AFTER_SPELLED`, `AFTER_LABEL`.
        value: A token id, an index into `SPELLING`, or an index into the names of labels.
    """

    kind: int
    value: int

    def in_words(self, vocabulary: Sequence[str]) -> str:
        """Return the literal as it is written in tables: `")"`, `after kind.operator`.

        Token texts are quoted as JSON strings. They come from data: escape them where they are shown.
        """
        asked = self.kind % AFTER_TOKEN
        if asked == TOKEN:
            name = json.dumps(vocabulary[self.value], ensure_ascii=False)
        else:
            name = (SPELLING if asked == SPELLED else NAMES)[self.value]
        return name if self.kind < AFTER_TOKEN else f"after {name}"


Clause = tuple[Literal, ...]
"""Literals that must all hold."""


@dataclass(frozen=True, eq=False)
class LiteralTable:
    """Some tokens, and where each literal holds.

    Attributes:
        tokens: The tokens, and what comes before them in their rows.
    """

    tokens: TokenTable
    _known: dict[int, Bool[np.ndarray, "token property"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def clause(self, clause: Clause) -> Bool[np.ndarray, " token"]:
        """Return the tokens at which every literal of a clause holds."""
        all_hold: Bool[np.ndarray, " token"] = np.logical_and.reduce(
            [self._holds(one) for one in clause]
        )
        return all_hold

    def true(self, kind: int) -> tuple[Int64[np.ndarray, " held"], Int64[np.ndarray, " held"]]:
        """Return the token and the value of every literal of one kind that holds, tokens ascending."""
        if kind % AFTER_TOKEN == TOKEN:
            ids = self._ids(kind).astype(np.int64)
            return np.arange(len(ids)), ids
        token, value = np.nonzero(self._properties(kind))
        return token, value

    def _holds(self, literal: Literal) -> Bool[np.ndarray, " token"]:
        if literal.kind % AFTER_TOKEN == TOKEN:
            return np.asarray(self._ids(literal.kind) == literal.value)
        found = self._properties(literal.kind)
        if not found.size:
            return np.zeros(len(self), dtype=bool)
        return np.asarray(found[:, literal.value])

    def _ids(self, kind: int) -> Int32[np.ndarray, " token"]:
        return self.tokens.ids if kind == TOKEN else self.tokens.previous

    def _properties(self, kind: int) -> Bool[np.ndarray, "token property"]:
        if kind not in self._known:
            asked = kind % AFTER_TOKEN
            self._known[kind] = self._spelled(kind) if asked == SPELLED else self._labelled(kind)
        return self._known[kind]

    def _spelled(self, kind: int) -> Bool[np.ndarray, "token property"]:
        ids, types = np.unique(self._ids(kind - SPELLED), return_inverse=True)
        return spelling(self.tokens.vocabulary, ids.astype(np.int64))[types]

    def _labelled(self, kind: int) -> Bool[np.ndarray, "token label"]:
        labels = self.tokens.labels
        if labels is None:
            return np.zeros((len(self), 0), dtype=bool)
        return labels.at(self.tokens.places - np.array([0, int(kind >= AFTER_TOKEN)]))
