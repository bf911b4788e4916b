"""The control that writes text in which each token depends on the one before, as in the corpus, alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int32, Int64

from sae_placebo.controls.data.base import (
    DATA_CONTROLS,
    DataControl,
    rewritten,
    training_tokens,
)
from sae_placebo.data.text import Rows


@DATA_CONTROLS.add
class Markov(DataControl):
    """It runs a bigram chain, fitted on the training rows, along every row of both splits.

    Transitions are counted within rows, the one from a row's first position included. The chain
    starts at that position, which stays as it is: after BOS, the first token is therefore drawn from
    the training rows' first tokens; without BOS, from what followed the row's own first token. A token
    that nothing follows in the training rows is followed by a draw from the token frequencies. Counts
    are not smoothed: apart from that last case, every pair occurs in the training rows.

    The chain's token frequencies are its own, near the corpus's by the length of a row: they differ by
    how much the chain's last tokens in a row differ from the corpus's, spread over the row.

    Source: none found that trains SAEs on it; Shannon 1948, section 3, the "second-order word
    approximation". Differs: tokens in the place of words, and every row starts anew.
    """

    kind: Literal["markov"] = "markov"

    preserves: ClassVar[frozenset[str]] = frozenset(
        {"layout", "unigrams", "bigrams", "token_identity"}
    )
    destroys: ClassVar[frozenset[str]] = frozenset(
        {"document_unigrams", "order", "mean_and_covariance", "token_means"}
    )

    def rewrite(self, splits: Mapping[str, Rows], seed: int, model_seed: int) -> dict[str, Rows]:
        """Return the splits with a run of the chain in every row; see the class.

        Raises:
            TextError: the training split holds no token.
        """
        tokens = training_tokens(splits, self.kind)
        n_ids = 1 + max(int(r.token_ids.max(initial=0)) for r in splits.values())
        chain = _Chain.fitted(splits["train"], tokens, n_ids)
        return {
            split: chain.run(rows, self.random(seed, model_seed, split))
            for split, rows in splits.items()
        }


@dataclass(frozen=True)
class _Chain:
    """The tokens that followed each token id.

    Those of id t are `followers[first[t] : first[t] + n[t]]`, with one entry for each occurrence.
    """

    followers: Int32[np.ndarray, " occurrence"]
    first: Int64[np.ndarray, " id"]
    n: Int64[np.ndarray, " id"]

    @classmethod
    def fitted(cls, rows: Rows, tokens: Int32[np.ndarray, " token"], n_ids: int) -> _Chain:
        """Return the chain of `rows`, whose usable tokens are `tokens`, for ids below `n_ids`."""
        after = rows.usable()[:, 1:]
        before = rows.token_ids[:, :-1][after]
        followers = rows.token_ids[:, 1:][after][np.argsort(before, kind="stable")]
        n = np.bincount(before, minlength=n_ids).astype(np.int64)
        first = np.cumsum(n) - n
        # an id that nothing followed takes all tokens, which stand behind the followers
        nothing = n == 0
        first[nothing], n[nothing] = len(followers), len(tokens)
        return cls(np.concatenate([followers, tokens]), first, n)

    def run(self, rows: Rows, random: np.random.Generator) -> Rows:
        """Return `rows` with a run of the chain from each row's first position."""
        usable = rows.usable()
        token_ids = rows.token_ids.copy()
        for position in range(1, token_ids.shape[1]):
            going = np.flatnonzero(usable[:, position])
            before = token_ids[going, position - 1]
            chosen = self.first[before] + random.integers(self.n[before])
            token_ids[going, position] = self.followers[chosen]
        return rewritten(rows, token_ids[usable])
