"""Whole rows with directions removed from all their tokens, and what it costs at every position.

A direction is removed at a token by subtracting its amount times its vector from the activation. The SAE's
error and every other direction stay. Layers before the hookpoint do not run again. The cost at a position is
KL(unedited || edited) of the next-token prediction there, in nats.

Documents are split into two halves: on **discovery** documents directions are ordered, and on
**confirmation** documents it is measured how many can be removed together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.downstream import kl
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.latents.base import TokenTable
from sae_placebo.models.sites import text_config

_LOGITS = 1 << 22
"""About so many logits are computed in one pass, so that any size of vocabulary takes the same memory."""

_IN_CACHE = 1 << 18
"""About so many logits are compared at a time."""


def discovery_documents(tokens: TokenTable, seed: int) -> Bool[np.ndarray, " document"]:
    """Return which documents are for discovery; all others are for confirmation.

    Documents are paired by their number of tokens, and chance sends one of each pair to either side, so
    that both sides have about as many documents and tokens.
    """
    sizes = np.bincount(tokens.documents, minlength=tokens.n_documents)
    random = numpy_generator(seed, "discovery documents")
    order = random.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    sides = np.stack([random.permutation(2) for _ in range(-(-len(sizes) // 2))]).ravel()
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order] = sides[: len(sizes)] == 1
    return chosen


def rows_of(
    subject: Subject, documents: Bool[np.ndarray, " document"], n_tokens: int, seed: int, use: str
) -> Int64[np.ndarray, " row"]:
    """Return random rows of some documents with at least `n_tokens` tokens together, ascending.

    The first row of every document is taken, then the second of every document, and so on, so that many
    documents are read. All rows are returned where they have fewer tokens.

    Args:
        subject: The model and its held-out tokens.
        documents: Which documents may be read.
        n_tokens: No further row is taken once the rows have this many tokens.
        seed: The seed of the draw.
        use: A name for the draw: draws of different names are independent.

    Raises:
        NotEstimable: no row of these documents has a token.
    """
    tokens = subject.tokens
    sizes = np.bincount(tokens.places[:, 0], minlength=len(tokens.rows.lengths))
    owners = tokens.rows.documents
    rows = np.flatnonzero((sizes > 0) & documents[owners])
    if not len(rows):
        raise NotEstimable("no document of this half has a token that counts")
    rows = numpy_generator(seed, "rows", use).permutation(rows)
    turn = np.zeros(len(rows), dtype=np.int64)
    for document in np.unique(owners[rows]):
        of_document = owners[rows] == document
        turn[of_document] = np.arange(of_document.sum())
    rows = rows[np.argsort(turn, kind="stable")]
    before = np.cumsum(sizes[rows]) - sizes[rows]
    return np.sort(rows[before < n_tokens]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Batch:
    """Whole rows, padded on the right, as the model reads them unedited.

    Attributes:
        rows: The rows of the token table that are read.
        token_ids: Their token ids.
        real: Which positions are no padding.
        site: The activations at the hookpoint.
        entering: The hidden states that enter the first layer that runs again.
        log_probs: The unedited log probabilities of the next token, in nats.
        tokens: The held-out tokens that lie in the rows; no others are ever edited.
        cells: The place of each of these tokens in the flattened [row, pos].
    """

    rows: Int64[np.ndarray, " row"]
    token_ids: Int64[torch.Tensor, "row pos"]
    real: Bool[np.ndarray, "row pos"]
    site: Float[torch.Tensor, "row pos d_in"]
    entering: Float[torch.Tensor, "row pos d_model"]
    log_probs: Float[torch.Tensor, "row pos vocabulary"]
    tokens: Int64[np.ndarray, " token"]
    cells: Int64[np.ndarray, " token"]

    def placed(
        self, changes: Float32[np.ndarray, "token d_in"]
    ) -> Float32[torch.Tensor, "row pos d_in"]:
        """Return the edit of the batch that adds `changes` to the activations of its `tokens`."""
        n_rows, width = self.real.shape
        delta = np.zeros((n_rows * width, changes.shape[1]), dtype=np.float32)
        delta[self.cells] = changes
        return torch.from_numpy(delta).view(n_rows, width, -1)


def positions_at_once(subject: Subject) -> int:
    """Return how many positions, over all rows together, one pass may have."""
    vocabulary = int(text_config(subject.downstream.model).vocab_size)
    return max(1, _LOGITS // vocabulary)


def batches(subject: Subject, rows: Int64[np.ndarray, " row"]) -> Iterator[Batch]:
    """Yield the rows in batches, rows of similar length together, as many at once as one pass takes."""
    table = subject.tokens.rows
    rows = rows[np.argsort(table.lengths[rows], kind="stable")]
    per_row = max(1, int(table.lengths[rows].max()))
    size = max(1, positions_at_once(subject) // per_row)
    starts = np.searchsorted(subject.tokens.places[:, 0], np.arange(len(table.lengths) + 1))
    for start in range(0, len(rows), size):
        yield _batch(subject, rows[start : start + size], starts)


def _batch(
    subject: Subject, rows: Int64[np.ndarray, " row"], starts: Int64[np.ndarray, " row_plus_one"]
) -> Batch:
    """Return some rows as the model reads them; `starts` holds the first token of every row."""
    table = subject.tokens.rows
    width = int(table.lengths[rows].max())
    ids = torch.from_numpy(table.token_ids[rows, :width].astype(np.int64))
    site, entering = subject.downstream.read_rows(ids)
    with torch.no_grad():
        clean = subject.downstream.logits(ids.to(site.device), entering).float().log_softmax(-1)
    tokens = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in rows])
    sizes = starts[rows + 1] - starts[rows]
    cells = np.repeat(np.arange(len(rows)), sizes) * width + subject.tokens.places[tokens, 1]
    return Batch(
        rows=rows,
        token_ids=ids.to(site.device),
        real=np.arange(width) < table.lengths[rows][:, None],
        site=site,
        entering=entering,
        log_probs=clean,
        tokens=tokens,
        cells=cells,
    )


def removed(
    amounts: Any, vectors: Float32[np.ndarray, "direction d_in"]
) -> Float32[np.ndarray, "token d_in"]:
    """Return the change of each token's activation that removes `amounts`, scipy CSR [token, direction].

    It is minus the sum over directions of amount times vector.
    """
    return np.asarray(-(amounts @ vectors), dtype=np.float32)


def costs(
    subject: Subject, batch: Batch, delta: Float[torch.Tensor, "row pos d_in"]
) -> Float[torch.Tensor, "row pos"]:
    """Return what an edit of whole rows costs at every position: KL(unedited || edited), in nats.

    Gradients reach `delta` where the caller records them.

    Args:
        subject: The model behind the hookpoint.
        batch: The rows. Where there is only one, `delta` may hold several edits of it.
        delta: What is added to the activations.
    """
    n = len(delta)
    logits = subject.downstream.logits(
        batch.token_ids.expand(n, -1), batch.entering.expand(n, -1, -1), delta.to(batch.entering)
    )
    unedited = batch.log_probs.expand(n, -1, -1).flatten(0, 1)
    return compared(unedited, logits.flatten(0, 1)).view(n, -1)


def compared(
    log_probs: Float[torch.Tensor, "pos vocabulary"], logits: Float[torch.Tensor, "pos vocabulary"]
) -> Float[torch.Tensor, " pos"]:
    """Return KL(unedited || edited) at each position, in nats.

    A few positions are compared at a time, since large intermediates would not stay in the cache.

    Args:
        log_probs: The unedited log probabilities.
        logits: The logits after the edit.
    """
    size = max(1, _IN_CACHE // logits.shape[1])
    parts = [slice(start, start + size) for start in range(0, len(logits), size)]
    return torch.cat([kl(log_probs[part], logits[part][None])[0] for part in parts])


def partners(
    subject: Subject, rows: Int64[np.ndarray, " row"], seed: int
) -> Int64[np.ndarray, " token"]:
    """Return for each token of these rows another of their tokens, and -1 for tokens of other rows.

    The tokens are put in a random circle and each gets its neighbor, so that none gets itself and each
    is given once.
    """
    circle = numpy_generator(seed, "whole swaps").permutation(subject.tokens_in(rows))
    partner = np.full(len(subject.tokens), -1, dtype=np.int64)
    partner[circle] = np.roll(circle, 1)
    return partner


def swapped(
    subject: Subject, batch: Batch, partner: Int64[np.ndarray, " token"]
) -> Float32[torch.Tensor, "row pos d_in"]:
    """Return the edit that replaces the activation of every token of the batch by its partner's."""
    cells = torch.from_numpy(batch.cells).to(batch.site.device)
    unedited = batch.site.flatten(0, 1)[cells].float().cpu()
    other = subject.activations[torch.from_numpy(partner[batch.tokens])].float().cpu()
    return batch.placed((other - unedited).numpy())


def only(
    directions: Directions,
    wanted: Bool[np.ndarray, " direction"],
    tokens: Int64[np.ndarray, " token"],
) -> Any:
    """Return the amounts of the wanted directions at some tokens, CSR [token, direction] without zeros."""
    amounts = directions.amounts[tokens]
    return entries(amounts, wanted[amounts.indices] & (amounts.data != 0))


def entries(amounts: Any, kept: Bool[np.ndarray, " entry"]) -> Any:
    """Return a CSR matrix with only those of its stored entries that are kept."""
    from scipy.sparse import csr_matrix

    ends = np.concatenate([[0], np.cumsum(kept)])[amounts.indptr]
    parts = amounts.data[kept], amounts.indices[kept], ends.astype(amounts.indptr.dtype)
    return csr_matrix(parts, shape=amounts.shape)


def along(
    gradient: Float32[np.ndarray, "cell d_in"],
    vectors: Float32[np.ndarray, "direction d_in"],
    cells: Int64[np.ndarray, " entry"],
    columns: Int64[np.ndarray, " entry"],
) -> Float32[np.ndarray, " entry"]:
    """Return, for each entry, the product of the gradient at its cell with the vector of its direction.

    A few thousand entries are multiplied at a time.

    Args:
        gradient: The gradient at every cell.
        vectors: The vector of every direction.
        cells: The cell of each entry.
        columns: The direction of each entry.
    """
    products = np.empty(len(cells), dtype=np.float32)
    for start in range(0, len(cells), 4096):
        at = slice(start, start + 4096)
        np.einsum("ed,ed->e", gradient[cells[at]], vectors[columns[at]], out=products[at])
    return products


def subset(
    directions: Directions, which: Int64[np.ndarray, " subset"]
) -> Bool[np.ndarray, " direction"]:
    """Return a mask over all directions that is true for those in `which`."""
    wanted = np.zeros(len(directions), dtype=bool)
    wanted[which] = True
    return wanted
