"""The control that writes text without any structure but token frequency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from sae_placebo.controls.data.base import (
    DATA_CONTROLS,
    DataControl,
    rewritten,
    training_tokens,
)
from sae_placebo.data.text import Rows


@DATA_CONTROLS.add
class Unigram(DataControl):
    """It draws every token independently from the training split's token frequencies.

    Both splits are drawn from the training frequencies, so held-out rows hold new tokens of the same
    law, and documents are left without a topic of their own. The first position of each row stays.

    Source: none found that trains SAEs on it; Shannon 1948, section 3, the "first-order word
    approximation". Differs: tokens in the place of words.
    """

    kind: Literal["unigram"] = "unigram"

    preserves: ClassVar[frozenset[str]] = frozenset({"layout", "unigrams", "token_identity"})
    destroys: ClassVar[frozenset[str]] = frozenset(
        {"document_unigrams", "bigrams", "order", "mean_and_covariance", "token_means"}
    )

    def rewrite(self, splits: Mapping[str, Rows], seed: int, model_seed: int) -> dict[str, Rows]:
        """Return the splits with every usable token drawn anew; see the class.

        Raises:
            TextError: the training split holds no token.
        """
        tokens = training_tokens(splits, self.kind)
        result = {}
        for split, rows in splits.items():
            random = self.random(seed, model_seed, split)
            # a uniform choice among occurrences is a choice of token by its frequency
            chosen = random.integers(len(tokens), size=int(rows.usable().sum()))
            result[split] = rewritten(rows, tokens[chosen])
        return result
