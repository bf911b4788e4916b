"""What directions cost when half of the others are gone too: random masks over everything that is held.

Where either of two directions suffices, removing one costs nothing, and single ablation calls both
unused. Here every direction that a row holds is removed from the whole row with probability 1/2, and
what it costs to be without one is averaged over what else is missing: its Banzhaf value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from pydantic import Field

from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.removal import (
    Batch,
    along,
    batches,
    compared,
    discovery_documents,
    entries,
    only,
    positions_at_once,
    removed,
    rows_of,
    subset,
)
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Track, untracked
from sae_placebo.core.spec import Spec, numpy_generator


class MaskSpec(Spec):
    """How many masks, and of what.

    Attributes:
        n_masks: Of each row; every second one is the complement of the one before.
        n_pivots: Further masks of each row, at which gradients are taken to lower the variance; a pass
            with gradients costs about three. 0 for none.
        window: Later tokens whose predictions are compared, cut at the end of the row.
        n_tokens: Of discovery documents that are read, about.
    """

    n_masks: int = Field(default=32, ge=2, multiple_of=2)
    n_pivots: int = Field(default=4, ge=0, multiple_of=2)
    window: int = Field(default=8, ge=0)
    n_tokens: int = Field(default=10_000, ge=1)


@dataclass(frozen=True, eq=False)
class MaskedUse:
    """What directions cost among random removals of the others.

    Arrays are aligned with `which`.

    Attributes:
        which: The directions asked about, ascending.
        beta: In nats per firing; NaN where none of the tokens read holds the direction.
        se: Standard error, clustered by document; NaN below two documents.
        n: Firings read.
        n_documents: Documents that they lie in.
        n_tokens: Tokens read.
        mean_cost: Of a mask, in nats per token.
        n_passes: Positions that ran behind the hookpoint, in forward passes and, three for each, in
            passes with gradients.
    """

    which: Int64[np.ndarray, " some"]
    beta: Float64[np.ndarray, " some"]
    se: Float64[np.ndarray, " some"]
    n: Int64[np.ndarray, " some"]
    n_documents: Int64[np.ndarray, " some"]
    n_tokens: int
    mean_cost: float
    n_passes: int

    def reason(self, i: int) -> str | None:
        """Return why the i-th number or its error is missing; None where both are there."""
        if self.n[i] == 0:
            return "no token of the discovery rows holds it"
        return "held in one discovery document only" if self.n_documents[i] < 2 else None


def random_masks(
    subject: Subject,
    directions: Directions,
    which: Int64[np.ndarray, " some"],
    spec: MaskSpec,
    seed: int,
    track: Track = untracked,
) -> MaskedUse:
    r"""Return what each direction costs when it is removed among random others, in nats per firing.

    In each row of the discovery documents, under each mask, a direction is removed from all tokens of
    the row or from none. C_i sums KL(unedited || edited) over the tokens that hold i and the `window`
    behind each, every position once; beta_i estimates

        sum over rows of E[C_i | i removed] - E[C_i | i kept], over the firings of i in them,

    the expectation over all other directions of `which` removed or kept at even odds. For firings
    further apart than the window this is the mean over firings of what an ablation costs, in the unit
    of single ablations; where windows overlap a position is not charged to two firings. Where either of
    two directions suffices, each is worth half of both. Where one undoes another it may be below 0.

    It is not an ablation of the model as it is: half of what is held is missing. As far as KL is
    quadratic in the edit, the values of all directions add up to the cost of removing everything, so
    where that is far more than single ablations add up to, every direction has its part of the rest.

    Four things lower the variance, none of which moves the expectation. Contrasts are taken within a
    row, so that what tokens cost on average does not enter. Masks come with their complement, so that
    effects of even order (a constant, pairs of directions) cancel. And the cost of masks is compared
    with its first-order prediction sum_j s_j h_tj / 2, s_j = 1 or -1 for removed or kept; h_tj, the
    gradient at a token along what would be removed, is averaged over masks of its own (`n_pivots`), so
    it is fixed while the contrast's masks are drawn; the prediction's own contrast, sum_t h_ti, is
    known and added back. Each direction is removed in exactly half of a row's masks.

    Source: Banzhaf values by sampled coalitions (Wang and Jia 2023, AISTATS); complements as in paired
    sampling for KernelSHAP (Covert and Lee 2021, AISTATS). First-order control variates with gradients
    at independent masks are this package's.

    Args:
        subject: The model and its held-out tokens.
        directions: Of which each token holds some.
        which: Those that may be removed; all others stay.
        spec: Numbers of masks and tokens.
        seed: Of rows and masks.
        track: Shows how many rows are done.

    Raises:
        NotEstimable: no discovery document has a token that counts.
    """
    which = np.unique(which).astype(np.int64)
    wanted = subset(directions, which)
    rows = rows_of(
        subject,
        discovery_documents(subject.tokens, seed),
        spec.n_tokens,
        seed,
        "random masks",
    )
    sums = _MaskSums()
    with track("remove among others", len(rows), "rows") as advance:
        for batch in batches(subject, rows):
            for i in range(len(batch.rows)):
                _add_row(_Row.of(subject, directions, wanted, batch, i), spec, seed, sums)
                advance(1)
    return sums.result(which, len(directions), spec)


@dataclass(frozen=True, eq=False)
class _Row:
    """One row under masks. `amounts` [position, held] holds the removable directions of the row."""

    subject: Subject
    row: int
    document: int
    batch: Batch
    amounts: Any
    held: Int64[np.ndarray, " held"]
    vectors: Float32[np.ndarray, "held d_in"]
    n_tokens: int

    @classmethod
    def of(
        cls,
        subject: Subject,
        directions: Directions,
        wanted: Bool[np.ndarray, " direction"],
        batch: Batch,
        i: int,
    ) -> _Row:
        from scipy.sparse import csr_matrix

        row, length = int(batch.rows[i]), int(batch.real[i].sum())
        here = batch.cells // batch.real.shape[1] == i
        amounts = only(directions, wanted, batch.tokens[here])
        held, columns = np.unique(amounts.indices, return_inverse=True)
        position = np.repeat(subject.tokens.places[batch.tokens[here], 1], np.diff(amounts.indptr))
        one = slice(i, i + 1), slice(0, length)
        part = Batch(
            rows=batch.rows[one[0]],
            token_ids=batch.token_ids[one],
            real=batch.real[one],
            site=batch.site[one],
            entering=batch.entering[one],
            log_probs=batch.log_probs[one],
            tokens=batch.tokens[here],
            cells=batch.cells[here] - i * batch.real.shape[1],
        )
        return cls(
            subject=subject,
            row=row,
            document=int(subject.tokens.rows.documents[row]),
            batch=part,
            amounts=csr_matrix(
                (amounts.data, (position, columns)), shape=(length, len(held)), dtype=np.float32
            ),
            held=held.astype(np.int64),
            vectors=directions.vectors[held],
            n_tokens=int(here.sum()),
        )

    def edits(self, masks: Bool[np.ndarray, "mask held"]) -> Float32[torch.Tensor, "mask pos d_in"]:
        """Return the edits of some masks: minus all that they remove, one sparse-dense product."""
        from scipy.sparse import vstack

        blocks = vstack([entries(self.amounts, mask[self.amounts.indices]) for mask in masks])
        delta = removed(blocks.tocsr(), self.vectors)
        return torch.from_numpy(delta).view(len(masks), -1, delta.shape[1])

    def costs(self, delta: Float[torch.Tensor, "mask pos d_in"]) -> Float[torch.Tensor, "mask pos"]:
        n, batch = len(delta), self.batch
        logits = self.subject.downstream.logits(
            batch.token_ids.expand(n, -1),
            batch.entering.expand(n, -1, -1),
            delta.to(batch.entering),
        )
        clean = batch.log_probs.expand(n, -1, -1).flatten(0, 1)
        return compared(clean, logits.flatten(0, 1)).view(n, -1)

    @property
    def at_once(self) -> int:
        """Masks of one pass."""
        return max(1, positions_at_once(self.subject) // len(self.batch.real[0]))


def _signs(row: _Row, n: int, seed: int, use: str) -> Float32[np.ndarray, "pair held"]:
    """Return 1 where the first mask of a pair removes a direction and -1 where its complement does."""
    bits = numpy_generator(seed, use, row.row).integers(0, 2, (n // 2, len(row.held)))
    return (2 * bits - 1).astype(np.float32)


def _both(signs: Float32[np.ndarray, "pair held"]) -> Bool[np.ndarray, "mask held"]:
    return np.concatenate([signs > 0, signs < 0])


def _expected(row: _Row, n_pivots: int, seed: int) -> Any:
    """Return h [position, held], CSR: what each firing costs, to first order, at masks of its own."""
    from scipy.sparse import csr_matrix

    masks = _both(_signs(row, n_pivots, seed, "pivots"))
    total = np.zeros((row.amounts.shape[0], row.vectors.shape[1]), dtype=np.float32)
    for start in range(0, n_pivots, row.at_once):
        delta = row.edits(masks[start : start + row.at_once]).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(row.costs(delta).sum(), delta)
        total += gradient.sum(0).float().cpu().numpy()
    cells = np.repeat(np.arange(total.shape[0]), np.diff(row.amounts.indptr))
    slopes = along(total, row.vectors, cells, row.amounts.indices.astype(np.int64))
    data = -row.amounts.data * slopes / n_pivots
    return csr_matrix((data, row.amounts.indices, row.amounts.indptr), shape=row.amounts.shape)


def _reached(amounts: Any, window: int) -> Any:
    """Return which positions lie at a firing or up to `window` behind one, CSR of ones."""
    from scipy.sparse import csr_matrix

    length = amounts.shape[0]
    position = np.repeat(np.arange(length), np.diff(amounts.indptr))
    cells = (position[:, None] + np.arange(window + 1)).ravel()
    columns = np.repeat(amounts.indices, window + 1)
    kept = cells < length
    ones = np.ones(int(kept.sum()), dtype=np.float32)
    reached = csr_matrix((ones, (cells[kept], columns[kept])), shape=amounts.shape)
    reached.data[:] = 1
    return reached


def _add_row(row: _Row, spec: MaskSpec, seed: int, sums: _MaskSums) -> None:
    """Add a row's contrasts: for each held direction, removed less kept, summed over its windows."""
    if not len(row.held):
        return
    signs = _signs(row, spec.n_masks, seed, "masks")
    masks = _both(signs)
    parts = []
    with torch.no_grad():
        for start in range(0, spec.n_masks, row.at_once):
            parts.append(row.costs(row.edits(masks[start : start + row.at_once])).cpu())
    cost = torch.cat(parts).numpy()
    half = spec.n_masks // 2
    odd = (cost[:half] - cost[half:]).T / 2
    known = np.zeros(len(row.held))
    if spec.n_pivots:
        expected = _expected(row, spec.n_pivots, seed)
        odd = odd - expected @ signs.T / 2
        known = np.asarray(expected.sum(0), dtype=np.float64).ravel()
    within = _reached(row.amounts, spec.window).T.tocsr() @ odd
    contrast = 2 * (within * signs.T).mean(1) + known
    sums.add(row, contrast, float(cost[:, row.batch.cells].mean(0).sum()))


class _MaskSums:
    """Contrasts and firings of every direction in every row."""

    def __init__(self) -> None:
        self.parts: list[tuple[Any, ...]] = []
        self.cost, self.n_tokens, self.n_positions = 0.0, 0, 0

    def add(self, row: _Row, contrast: Float[np.ndarray, " held"], cost: float) -> None:
        firings = np.diff(row.amounts.tocsc().indptr)
        self.parts.append((np.full(len(row.held), row.document), row.held, contrast, firings))
        self.cost += cost
        self.n_tokens += row.n_tokens
        self.n_positions += row.amounts.shape[0]

    def result(self, which: Int64[np.ndarray, " some"], n: int, spec: MaskSpec) -> MaskedUse:
        from scipy.sparse import csc_matrix

        none = (np.zeros(0, dtype=np.int64),) * 2 + (np.zeros(0),) * 2
        documents, held, contrasts, firings = (
            np.concatenate(part) for part in zip(none, *self.parts, strict=True)
        )
        # duplicates are added up: one entry for each document that holds a direction
        shape = (int(documents.max(initial=0)) + 1, n)
        y = csc_matrix((contrasts, (documents, held)), shape=shape)
        k = csc_matrix((firings, (documents, held)), shape=shape)
        total, n_documents = np.asarray(k.sum(0)).ravel(), np.diff(k.indptr)
        with np.errstate(invalid="ignore", divide="ignore"):
            beta = np.asarray(y.sum(0)).ravel() / total
            owner = np.repeat(np.arange(n), n_documents)
            left = y.data - beta[owner] * k.data
            spread = np.bincount(owner, left**2, minlength=n) * n_documents / (n_documents - 1)
            se = np.where(n_documents > 1, np.sqrt(spread) / total, np.nan)
        return MaskedUse(
            which=which,
            beta=beta[which],
            se=se[which],
            n=total[which].astype(np.int64),
            n_documents=n_documents[which].astype(np.int64),
            n_tokens=self.n_tokens,
            mean_cost=self.cost / self.n_tokens if self.n_tokens else float("nan"),
            n_passes=self.n_positions * (spec.n_masks + 3 * spec.n_pivots),
        )
