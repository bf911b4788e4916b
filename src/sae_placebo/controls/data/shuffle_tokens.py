"""The control that puts the tokens of every document in random order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from sae_placebo.controls.data.base import DATA_CONTROLS, DataControl, rewritten
from sae_placebo.data.text import Rows


@DATA_CONTROLS.add
class ShuffleTokens(DataControl):
    """It permutes tokens within each document, over all of the document's rows in the split.

    Each document keeps its exact token counts, so whatever can be read off a bag of words stays: its
    topic, and how common each token is. Order is lost, and adjacent pairs with it. Every permutation is
    equally likely. The first position of each row keeps its token, BOS or not.

    Source: none found that trains SAEs on it; word order is shuffled to probe language models since
    Sinha et al. 2021 (arXiv 2104.06644). Differs: within documents, not sentences, and by the model's
    own tokens, so that words of several tokens are broken up as well.
    """

    kind: Literal["shuffle_tokens"] = "shuffle_tokens"

    preserves: ClassVar[frozenset[str]] = frozenset(
        {"layout", "document_unigrams", "unigrams", "token_identity"}
    )
    destroys: ClassVar[frozenset[str]] = frozenset(
        {"bigrams", "order", "mean_and_covariance", "token_means"}
    )

    def rewrite(self, splits: Mapping[str, Rows], seed: int, model_seed: int) -> dict[str, Rows]:
        """Return the splits with each document shuffled; see the class."""
        return {
            split: _shuffled(rows, self.random(seed, model_seed, split))
            for split, rows in splits.items()
        }


def _shuffled(rows: Rows, random: np.random.Generator) -> Rows:
    usable = rows.usable()
    tokens = rows.token_ids[usable]
    owner = np.broadcast_to(rows.documents[:, None], usable.shape)[usable]
    # a permutation of all places, parted by document, permutes the places of each uniformly
    mixed = random.permutation(len(tokens))
    sources = mixed[np.argsort(owner[mixed], kind="stable")]
    places = np.argsort(owner, kind="stable")
    shuffled = np.empty_like(tokens)
    shuffled[places] = tokens[sources]
    return rewritten(rows, shuffled)
