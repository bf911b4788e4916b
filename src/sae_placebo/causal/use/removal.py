"""Whole rows with directions removed: which rows, what is taken away, what it costs at every position.

A direction is removed at a token by taking its amount times its vector from the activation; the SAE's
error and every other direction stay. Layers before the hookpoint do not run again.
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
"""Logits of one pass, so that vocabularies of any size take about the same memory."""

_IN_CACHE = 1 << 18
"""Logits compared at a time."""


def discovery_documents(tokens: TokenTable, seed: int) -> Bool[np.ndarray, " document"]:
    """Return which documents are for discovery; the others are for confirmation.

    Of every two documents of about equal length, chance gives one to each side, so that both have
    about as many documents and tokens.
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
    """Return rows of some documents with at least `n_tokens` tokens, or all of them, ascending.

    Rows come one from each document in turn, so that many documents are read.

    Args:
        subject: Whose tokens.
        documents: Which may be read.
        n_tokens: After this many no further row is taken.
        seed: Of the draw.
        use: Names the draw.

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
        mine = owners[rows] == document
        turn[mine] = np.arange(mine.sum())
    rows = rows[np.argsort(turn, kind="stable")]
    before = np.cumsum(sizes[rows]) - sizes[rows]
    return np.sort(rows[before < n_tokens]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Batch:
    """Whole rows, padded on the right, as the model reads them unedited.

    Attributes:
        rows: Which rows of the table.
        token_ids: Of the rows.
        real: Positions that are no padding.
        site: Activations at the hookpoint.
        entering: What enters the first layer that runs again.
        log_probs: Of the next token, unedited, in nats.
        tokens: Tokens of the table that lie in the rows, ascending; no others are ever edited.
        cells: Where each of them is in the flattened [row, pos].
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
        """Return an edit of the batch that adds something to each token of the table."""
        n_rows, width = self.real.shape
        delta = np.zeros((n_rows * width, changes.shape[1]), dtype=np.float32)
        delta[self.cells] = changes
        return torch.from_numpy(delta).view(n_rows, width, -1)


def positions_at_once(subject: Subject) -> int:
    """Return how many positions one pass may have."""
    vocabulary = int(text_config(subject.downstream.model).vocab_size)
    return max(1, _LOGITS // vocabulary)


def batches(subject: Subject, rows: Int64[np.ndarray, " row"]) -> Iterator[Batch]:
    """Yield the rows, as many at once as one pass takes, those of like length together."""
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
    """Return what is added to each token to take away `amounts`, scipy CSR [token, direction]."""
    return np.asarray(-(amounts @ vectors), dtype=np.float32)


def costs(
    subject: Subject, batch: Batch, delta: Float[torch.Tensor, "row pos d_in"]
) -> Float[torch.Tensor, "row pos"]:
    """Return what an edit of whole rows costs at every position: KL(unedited || edited), in nats.

    Gradients reach `delta` where the caller records them.
    """
    logits = subject.downstream.logits(batch.token_ids, batch.entering, delta.to(batch.entering))
    cost = compared(batch.log_probs.flatten(0, 1), logits.flatten(0, 1))
    return cost.view(logits.shape[:2])


def compared(
    log_probs: Float[torch.Tensor, "pos vocabulary"], logits: Float[torch.Tensor, "pos vocabulary"]
) -> Float[torch.Tensor, " pos"]:
    """Return KL at each position, a few positions at a time: large intermediates leave the cache."""
    size = max(1, _IN_CACHE // logits.shape[1])
    parts = [slice(start, start + size) for start in range(0, len(logits), size)]
    return torch.cat([kl(log_probs[part], logits[part][None])[0] for part in parts])


def partners(
    subject: Subject, rows: Int64[np.ndarray, " row"], seed: int
) -> Int64[np.ndarray, " token"]:
    """Return another token of these rows for each token of them, and -1 for those of other rows.

    Tokens are put in a circle by chance and each takes its neighbor: none keeps its own.
    """
    tokens = np.flatnonzero(np.isin(subject.tokens.places[:, 0], rows))
    circle = numpy_generator(seed, "whole swaps").permutation(tokens)
    found = np.full(len(subject.tokens), -1, dtype=np.int64)
    found[circle] = np.roll(circle, 1)
    return found


def swapped(
    subject: Subject, batch: Batch, partner: Int64[np.ndarray, " token"]
) -> Float32[torch.Tensor, "row pos d_in"]:
    """Return the edit that gives every token of the table in these rows another one's activation."""
    cells = torch.from_numpy(batch.cells).to(batch.site.device)
    mine = batch.site.flatten(0, 1)[cells].float().cpu()
    other = subject.activations[torch.from_numpy(partner[batch.tokens])].float().cpu()
    return batch.placed((other - mine).numpy())


def only(
    directions: Directions,
    wanted: Bool[np.ndarray, " direction"],
    tokens: Int64[np.ndarray, " token"],
) -> Any:
    """Return the amounts of some directions at some tokens, CSR of the same width, without zeros."""
    amounts = directions.amounts[tokens]
    return entries(amounts, wanted[amounts.indices] & (amounts.data != 0))


def entries(amounts: Any, kept: Bool[np.ndarray, " entry"]) -> Any:
    """Return a CSR with some of its stored entries."""
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
    """Return the gradient at some cells along a direction each, a few entries at a time."""
    found = np.empty(len(cells), dtype=np.float32)
    for start in range(0, len(cells), 4096):
        here = slice(start, start + 4096)
        np.einsum("ed,ed->e", gradient[cells[here]], vectors[columns[here]], out=found[here])
    return found


def subset(
    directions: Directions, which: Int64[np.ndarray, " some"]
) -> Bool[np.ndarray, " direction"]:
    """Return which directions are among some."""
    wanted = np.zeros(len(directions), dtype=bool)
    wanted[which] = True
    return wanted
