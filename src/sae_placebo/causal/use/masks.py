"""Removal among others: what a direction costs while half of the other directions are removed as well.

Where either of two directions suffices, removing one alone costs nothing, so single ablation finds both
dispensable. Here every direction that a row holds is removed from the whole row with probability 1/2, by a
random mask. What it costs to be without one direction is averaged over what else is missing, which is the
direction's Banzhaf value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from pydantic import Field

from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.removal import (
    Batch,
    along,
    batches,
    costs,
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
    """How many masks are drawn, and how many tokens are read under them.

    Attributes:
        n_masks: How many masks each row is read under. Half of them are the complements of the others.
        n_pivots: How many further masks of each row gradients are taken at, to lower the variance; 0 for
            none. A pass with gradients costs about as much as three without.
        window: The predictions at this many later tokens are compared too, as far as the row goes. In a
            trial `UseSpec.window` takes its place.
        n_tokens: About how many tokens of discovery documents are read.
    """

    n_masks: int = Field(default=32, ge=2, multiple_of=2)
    n_pivots: int = Field(default=4, ge=0, multiple_of=2)
    window: int = Field(default=8, ge=0)
    n_tokens: int = Field(default=10_000, ge=1)


@dataclass(frozen=True, eq=False)
class MaskedUse:
    """What directions cost while the others are removed at random; arrays are in the order of `which`.

    Attributes:
        which: The directions that were removed at random, ascending.
        beta: The cost of each in nats per firing; NaN where no token read holds it.
        se: The standard error of beta, clustered by document; NaN with fewer than two documents.
        n: How many firings were read.
        n_documents: How many documents they lie in.
        n_tokens: How many tokens were read.
        mean_cost: The mean cost of a mask, in nats per token.
        n_passes: How many positions ran behind the hookpoint. A position of a pass with gradients counts
            as three.
    """

    which: Int64[np.ndarray, " which"]
    beta: Float64[np.ndarray, " which"]
    se: Float64[np.ndarray, " which"]
    n: Int64[np.ndarray, " which"]
    n_documents: Int64[np.ndarray, " which"]
    n_tokens: int
    mean_cost: float
    n_passes: int

    def reason(self, i: int) -> str | None:
        """Return why the i-th cost or its standard error is missing; None where both are known."""
        if self.n[i] == 0:
            return "no token of the discovery rows holds it"
        return "held in one discovery document only" if self.n_documents[i] < 2 else None


def random_masks(
    subject: Subject,
    directions: Directions,
    which: Int64[np.ndarray, " which"],
    spec: MaskSpec,
    seed: int,
    track: Track = untracked,
) -> MaskedUse:
    """Return what each direction costs when it is removed among random others, in nats per firing.

    Under each mask of a row of the discovery documents, a direction is removed from all tokens of the row
    or from none. Let C_i be KL(unedited || edited) summed over the tokens of the row that hold direction i
    and over the `window` tokens after each, every position counted once. Then beta_i estimates

        sum over rows of (E[C_i | i removed] - E[C_i | i kept]) / number of firings of i in the rows,

    where every other direction in `which` is removed or kept at even odds. Where firings are further apart
    than the window, this is the mean over firings of what an ablation costs, in the unit of single
    ablations; where windows overlap, a position is not charged to two firings. Where either of two
    directions suffices, each is worth half of what both are. Where one undoes another, beta may be below 0.

    It does not say what an ablation does to the model as it is, since half of what tokens hold is missing.
    As far as KL is quadratic in the edit, the values of all directions add up to the cost of removing
    everything. So where that is far more than the sum of single ablations, every direction has a part of the
    difference.

    Four things lower the variance, and none of them moves the expectation:

    1. Contrasts are taken within a row, so that what its tokens cost on average does not enter.
    2. Masks come in pairs of complements, so that effects of even order (a constant, pairs of directions)
       cancel.
    3. Each direction is removed in exactly half of a row's masks, which the pairs see to.
    4. A first-order prediction is subtracted from the cost of each mask: sum_j s_j h_tj / 2, with s_j = 1
       where j is removed and -1 where it is kept. Here h_tj is what removing j at token t adds to the cost
       by the gradient, averaged over further masks (`n_pivots`), so that it is fixed while the masks of
       the contrast are drawn. The contrast of the prediction itself, sum_t h_ti, is known and added back.

    Source: Banzhaf values by sampled coalitions (Wang and Jia 2023, AISTATS); complements as in paired
    sampling for KernelSHAP (Covert and Lee 2021, AISTATS). First-order control variates with gradients
    at independent masks are this package's.

    Args:
        subject: The model and its held-out tokens.
        directions: All directions at the hookpoint.
        which: The directions that are removed at random; all others stay.
        spec: How many masks are drawn and how many tokens are read.
        seed: The seed of rows and masks.
        track: It shows how many rows are done.

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
    """One row, and the directions that may be removed from it.

    Attributes:
        subject: The model and its held-out tokens.
        document: The row's document.
        batch: The row as the model reads it, alone and without padding.
        amounts: CSR [position, held] amounts of the removable directions.
        held: These directions, ascending: those that some token of the row holds.
        vectors: Their vectors.
    """

    subject: Subject
    document: int
    batch: Batch
    amounts: Any
    held: Int64[np.ndarray, " held"]
    vectors: Float32[np.ndarray, "held d_in"]

    @classmethod
    def of(
        cls,
        subject: Subject,
        directions: Directions,
        wanted: Bool[np.ndarray, " direction"],
        batch: Batch,
        i: int,
    ) -> _Row:
        """Return the i-th row of a batch, with its amounts of the wanted directions."""
        from scipy.sparse import csr_matrix

        length = int(batch.real[i].sum())
        in_row = batch.cells // batch.real.shape[1] == i
        tokens = batch.tokens[in_row]
        amounts = only(directions, wanted, tokens)
        held, columns = np.unique(amounts.indices, return_inverse=True)
        position = np.repeat(subject.tokens.places[tokens, 1], np.diff(amounts.indptr))
        cut = slice(i, i + 1), slice(0, length)
        alone = Batch(
            rows=batch.rows[cut[0]],
            token_ids=batch.token_ids[cut],
            real=batch.real[cut],
            site=batch.site[cut],
            entering=batch.entering[cut],
            log_probs=batch.log_probs[cut],
            tokens=tokens,
            cells=batch.cells[in_row] - i * batch.real.shape[1],
        )
        return cls(
            subject=subject,
            document=int(subject.tokens.rows.documents[batch.rows[i]]),
            batch=alone,
            amounts=csr_matrix(
                (amounts.data, (position, columns)), shape=(length, len(held)), dtype=np.float32
            ),
            held=held.astype(np.int64),
            vectors=directions.vectors[held],
        )

    def edits(self, masks: Bool[np.ndarray, "mask held"]) -> Float32[torch.Tensor, "mask pos d_in"]:
        """Return the change of the row's activations under each mask: minus all that it removes."""
        from scipy.sparse import vstack

        blocks = vstack([entries(self.amounts, mask[self.amounts.indices]) for mask in masks])
        delta = removed(blocks.tocsr(), self.vectors)
        return torch.from_numpy(delta).view(len(masks), -1, delta.shape[1])

    @property
    def at_once(self) -> int:
        """Return how many masks one pass takes."""
        return max(1, positions_at_once(self.subject) // len(self.batch.real[0]))


def _signs(row: _Row, n: int, seed: int, use: str) -> Float32[np.ndarray, "pair held"]:
    """Return 1 where the first mask of a pair removes a direction, and -1 where its complement does."""
    random = numpy_generator(seed, use, int(row.batch.rows[0]))
    bits = random.integers(0, 2, (n // 2, len(row.held)))
    return (2 * bits - 1).astype(np.float32)


def _both(signs: Float32[np.ndarray, "pair held"]) -> Bool[np.ndarray, "mask held"]:
    """Return what the masks remove: the first of every pair, then all complements."""
    return np.concatenate([signs > 0, signs < 0])


def _expected(row: _Row, n_pivots: int, seed: int) -> Any:
    """Return h, CSR [position, held]: what removing each firing adds to the row's cost, to first order.

    It is minus the amount times the gradient along the direction, averaged over masks of its own.
    """
    from scipy.sparse import csr_matrix

    masks = _both(_signs(row, n_pivots, seed, "pivots"))
    total = np.zeros((row.amounts.shape[0], row.vectors.shape[1]), dtype=np.float32)
    for start in range(0, n_pivots, row.at_once):
        delta = row.edits(masks[start : start + row.at_once]).requires_grad_()
        with torch.enable_grad():
            cost = costs(row.subject, row.batch, delta).sum()
            (gradient,) = torch.autograd.grad(cost, delta)
        total += gradient.sum(0).float().cpu().numpy()
    cells = np.repeat(np.arange(total.shape[0]), np.diff(row.amounts.indptr))
    slopes = along(total, row.vectors, cells, row.amounts.indices.astype(np.int64))
    data = -row.amounts.data * slopes / n_pivots
    return csr_matrix((data, row.amounts.indices, row.amounts.indptr), shape=row.amounts.shape)


def _reached(amounts: Any, window: int) -> Any:
    """Return which positions lie at a firing or up to `window` after one, CSR [position, held] of ones."""
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
    """Add a row's contrasts to the sums: for each held direction, C_i where removed less C_i where kept."""
    if not len(row.held):
        return
    signs = _signs(row, spec.n_masks, seed, "masks")
    masks = _both(signs)
    parts = []
    with torch.no_grad():
        for start in range(0, spec.n_masks, row.at_once):
            edits = row.edits(masks[start : start + row.at_once])
            parts.append(costs(row.subject, row.batch, edits).cpu())
    cost = torch.cat(parts).numpy()
    half = spec.n_masks // 2
    # [position, pair] half the difference between a mask and its complement: what is of odd order
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
    """The contrasts and the numbers of firings of every direction in every row."""

    def __init__(self) -> None:
        self.parts: list[tuple[Any, ...]] = []
        self.cost, self.n_tokens, self.n_positions = 0.0, 0, 0

    def add(self, row: _Row, contrast: Float64[np.ndarray, " held"], cost: float) -> None:
        """Add a row: the contrast of each direction that it holds, and the cost of a mask over its tokens."""
        firings = np.diff(row.amounts.tocsc().indptr)
        self.parts.append((np.full(len(row.held), row.document), row.held, contrast, firings))
        self.cost += cost
        self.n_tokens += len(row.batch.tokens)
        self.n_positions += row.amounts.shape[0]

    def result(self, which: Int64[np.ndarray, " which"], n: int, spec: MaskSpec) -> MaskedUse:
        """Return the costs of the directions `which` out of `n`.

        Beta is a ratio of sums over documents, contrasts by firings; its standard error is that of a ratio
        whose clusters are documents.
        """
        from scipy.sparse import csc_matrix

        none = (np.zeros(0, dtype=np.int64),) * 2 + (np.zeros(0),) * 2
        documents, held, contrasts, firings = (
            np.concatenate(part) for part in zip(none, *self.parts, strict=True)
        )
        # rows of one document are added up, so that there is one entry for each document and direction
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
