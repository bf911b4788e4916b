"""What the statistics of latents read, and the groups of documents that they are repeated without.

A statistic has, for each latent, one value on all documents and one value for each group of documents that
is left out (a **fold**). Arrays are [latent, fold], and fold 0 is the point estimate. A share of latents, or
any other number made of them, then has one value per fold, and `Folds.replicates` makes bootstrap replicates
of it on the same documents as those of every other metric.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64, Integer

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.data.labels.base import Labels
from sae_placebo.data.rows import Rows
from sae_placebo.saes import SAE

N_GROUPS = 20


@dataclass(frozen=True, eq=False)
class TokenTable:
    """The held-out tokens that count, in reading order, and what is known of them without a model.

    Attributes:
        rows: The rows that the tokens come from. They are the arm's own: where the arm rewrites its text,
            so are they.
        places: [token, 2] row and position of each token.
        vocabulary: Text of each token id.
    """

    rows: Rows
    places: Int64[np.ndarray, "token two"]
    vocabulary: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    @functools.cached_property
    def ids(self) -> Int32[np.ndarray, " token"]:
        """Id of each token."""
        return self._at(0)

    @functools.cached_property
    def previous(self) -> Int32[np.ndarray, " token"]:
        """Id of the token before each token; there always is one, since position 0 is never read."""
        return self._at(-1)

    @functools.cached_property
    def following(self) -> Int32[np.ndarray, " token"]:
        """Id of the token after each token; -1 at the end of a row."""
        ends = self.places[:, 1] + 1 >= self.rows.lengths[self.places[:, 0]]
        width = self.rows.token_ids.shape[1]
        column = np.minimum(self.places[:, 1] + 1, width - 1)
        ids = self.rows.token_ids[self.places[:, 0], column]
        return np.where(ends, -1, ids).astype(np.int32)

    @property
    def positions(self) -> Int64[np.ndarray, " token"]:
        """Position of each token in its row."""
        column: Int64[np.ndarray, " token"] = self.places[:, 1]
        return column

    @functools.cached_property
    def documents(self) -> Int32[np.ndarray, " token"]:
        """Document of each token, ascending."""
        owners: Int32[np.ndarray, " token"] = self.rows.documents[self.places[:, 0]]
        return owners

    @property
    def n_documents(self) -> int:
        """Number of held-out documents; some may have no token that counts."""
        return len(self.rows.names)

    @property
    def labels(self) -> Labels | None:
        """Labels of the rows; None where the text has none. `labels.at(places)` gives them by token."""
        return self.rows.labels

    def _at(self, shift: int) -> Int32[np.ndarray, " token"]:
        ids: Int32[np.ndarray, " token"] = self.rows.token_ids[
            self.places[:, 0], self.places[:, 1] + shift
        ]
        return ids


@dataclass(frozen=True, eq=False)
class Encoded:
    """One SAE, the held-out tokens, and its codes on them.

    Attributes:
        sae: The SAE in model units: `params` W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec.
        tokens: The tokens that were read.
        codes: The SAE's codes, scipy CSR [token, d_sae], float32; every entry is above 0.
        activations: What the SAE encoded, in model units.
    """

    sae: SAE
    tokens: TokenTable
    codes: Any
    activations: Float[torch.Tensor, "token d_in"]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.sae.d_sae

    @functools.cached_property
    def by_latent(self) -> Any:
        """The codes as scipy CSC; `indptr`, `indices` (tokens, ascending) and `data` are by latent."""
        return self.codes.tocsc()


@dataclass(frozen=True, eq=False)
class Folds:
    """Groups of documents that are left out in turn, and the purpose that each document serves.

    Attributes:
        groups: [document] the group of each, 0 to n_groups - 1.
        purposes: [document] 0 where predictors are fitted on the document, 1 where penalties are chosen on
            it, 2 where it is scored. About half of the tokens are fitted on, a quarter is chosen on, and a
            quarter is scored. Statistics that fit nothing use all documents.
    """

    groups: Int64[np.ndarray, " document"]
    purposes: Int64[np.ndarray, " document"]

    @classmethod
    def of(
        cls,
        documents: Integer[np.ndarray, " token"],
        n_documents: int,
        seed: int,
        n_groups: int = N_GROUPS,
    ) -> Folds:
        """Return folds with about equal numbers of tokens.

        They are the same for every arm of a trial, since they depend on the arguments alone.

        Args:
            documents: Document of each token.
            n_documents: Number of documents, those without a token included.
            seed: The trial's; it decides the order in which documents are dealt out.
            n_groups: Number of groups; there are fewer where there are fewer documents.
        """
        tokens = np.bincount(documents, minlength=n_documents)
        order = numpy_generator(seed, "document groups").permutation(n_documents)
        order = order[np.argsort(-tokens[order], kind="stable")]
        groups = np.empty(n_documents, dtype=np.int64)
        purposes = np.empty(n_documents, dtype=np.int64)
        n = min(n_groups, n_documents)
        # documents are dealt out like cards, forth and back, so that sizes stay close; purposes go round
        # within each group, from another start in each, so that every group has documents of every purpose
        deal = np.arange(n_documents)
        turn = deal % (2 * n)
        dealt = np.where(turn < n, turn, 2 * n - 1 - turn)
        groups[order] = dealt
        purposes[order] = np.array([0, 1, 2, 0, 0, 2, 1, 0])[(deal // n + 3 * dealt) % 8]
        return cls(groups, purposes)

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        return int(self.groups.max()) + 1

    @functools.cached_property
    def weights(self) -> Float[np.ndarray, "document fold"]:
        """Multiplicity of each document in each fold; column 0 is ones, column g + 1 leaves out group g."""
        kept = np.ones((len(self.groups), 1 + self.n_groups))
        kept[np.arange(len(self.groups)), 1 + self.groups] = 0
        return kept

    def serving(self, purpose: int) -> Bool[np.ndarray, " document"]:
        """Return which documents serve a purpose: 0 to fit, 1 to choose, 2 to score."""
        return np.asarray(self.purposes == purpose)

    def replicates(
        self,
        values: Float[np.ndarray, " fold"],
        document_weights: Float[np.ndarray, "document replicate"],
    ) -> Float[np.ndarray, " replicate"]:
        """Return bootstrap replicates, to first order, of a number that is known without each group.

        The change that leaving a group out makes says how far that group is from the rest. A replicate adds
        these changes up, each times how much more often than expected it drew the group's documents, in
        standard deviations of that count. So the replicates have the jackknife's variance, and they go up
        and down with those of every other metric.

        Args:
            values: The number on each fold. A fold on which it is undefined (NaN) counts as no change.
            document_weights: Document multiplicities; column 0 is ones and gives `values[0]`.

        Source: the delete-a-group jackknife (Kott 2001). Differs: its variance is spread over the
        bootstrap's documents to first order, which is ours.
        """
        n = self.n_groups
        sizes = np.bincount(self.groups, minlength=n)
        change = np.nan_to_num(values[0] - values[1:]) * (n - 1)
        owner = np.zeros((n, len(self.groups)))
        owner[self.groups, np.arange(len(self.groups))] = 1 / np.sqrt(sizes[self.groups])
        drawn = owner @ (document_weights - 1)
        scale = 1 / np.sqrt(n * max(n - 1, 1))
        replicates: Float[np.ndarray, " replicate"] = values[0] + scale * (change @ drawn)
        return replicates


Columns = dict[str, Float[np.ndarray, "latent fold"]]
"""Statistics by name, such as `density`; NaN where a latent cannot have one."""
