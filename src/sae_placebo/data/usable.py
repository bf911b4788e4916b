"""Which tokens of a row count: the others are read by the model and neither trained on nor measured.

SAELens trains SAEs on some positions of a context (`seqpos_slice`) and without some token ids
(`exclude_special_tokens`); an SAE that was trained so is measured so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from sae_placebo.core.errors import SpecError, TextError


@dataclass(frozen=True, eq=False)
class UsableTokens:
    """The rule that says which tokens of a row count.

    Attributes:
        positions: Which positions of a row count; the first never does.
        excluded: Token ids that do not count, wherever they stand.
    """

    positions: Bool[np.ndarray, " pos"]
    excluded: tuple[int, ...] = ()

    @property
    def is_default(self) -> bool:
        """Return whether every token counts but the first of a row."""
        return not self.excluded and bool(self.positions[1:].all())

    def of(self, ids: Sequence[int], first: int) -> Bool[np.ndarray, " token"]:
        """Return which of some tokens count, the first of which stands at position `first` of its row."""
        found = self.positions[first : first + len(ids)].copy()
        if self.excluded:
            found &= ~np.isin(np.asarray(ids, dtype=np.int64), self.excluded)
        return found


def usable_positions(
    positions: tuple[int, ...] | None, context_tokens: int
) -> Bool[np.ndarray, " pos"]:
    """Return which positions of a row of `context_tokens` a slice of them leaves; never the first.

    Args:
        positions: start[, stop[, step]], as of a Python slice; None for all.
        context_tokens: Positions of a row, BOS included, which stands at 0.
    """
    found = np.zeros(context_tokens, dtype=bool)
    start, stop, step = (*(positions or ()), None, None, None)[:3]
    found[slice(start, stop, step)] = True
    found[0] = False
    return found


def check_positions(positions: tuple[int, ...], context_tokens: int) -> None:
    """Refuse a slice of positions that makes no sense, or leaves nothing of a row.

    Raises:
        SpecError: it does.
    """
    shown = list(positions)
    if len(positions) == 3 and positions[2] < 1:
        raise SpecError(
            f"text.positions {shown} has the step {positions[2]}: it holds start, stop and step, and a step "
            "is 1 or more"
        )
    if not usable_positions(positions, context_tokens).any():
        raise SpecError(
            f"text.positions {shown} leaves no position of a row of {context_tokens} tokens "
            "(text.context_tokens; BOS, which is never used, stands at 0): give [start, stop] with start "
            "below stop, as of a Python slice"
        )


def excluded_ids(
    setting: bool | tuple[int, ...], tokenizer: Any, n_ids: int | None
) -> tuple[int, ...]:
    """Return the token ids that `text.exclude_tokens` names: its own, or every special one.

    Special are the tokens with a role and those that the tokenizer marks as special.

    Args:
        setting: The ids, or whether special tokens are meant.
        tokenizer: Of the model.
        n_ids: How many token ids the model has; None where that is not known.

    Raises:
        TextError: special tokens are meant and no tokenizer says which they are, or there is none; or an id
            is none of the model's.
    """
    if setting is False:
        return ()
    if setting is not True:
        above = [i for i in setting if n_ids is not None and i >= n_ids]
        if above:
            raise TextError(
                f"text.exclude_tokens holds {above[0]}, and the model has {n_ids:,} token ids, 0 to "
                f"{(n_ids or 0) - 1:,}; leave it out"
            )
        return tuple(sorted(setting))
    found = set(map(int, getattr(tokenizer, "all_special_ids", ())))
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found |= {int(i) for i, token in added.items() if token.special}
    if not found:
        raise TextError(
            "text.exclude_tokens is true, and the model has no tokenizer that says which tokens are special; "
            "give their ids, such as exclude_tokens = [0, 2]"
        )
    return tuple(sorted(found))
