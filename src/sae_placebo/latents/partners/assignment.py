"""Whether two SAEs of one model have the same latents, by the directions of their rows.

The two must read the same activations, since only then do their directions share a basis. Rows of two random
dictionaries have a nearest row too, which is nearer the more rows there are, so that every number here is
given with what random directions reach in as many dimensions with as many rows.

The seeds of the two must differ: SAEs that start from the same bits share whatever training did not move.
"""

from __future__ import annotations

import functools
import math
import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, Shaped
from pydantic import Field

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.spec import Spec, numpy_generator
from sae_placebo.stats.proportions import wilson
from sae_placebo.stats.quantiles import mean_half_width
from sae_placebo.stats.random_dictionaries import expected_max_cosine

_CHUNK_NUMBERS = 1 << 24
_FEWEST_FOR_AUCTION = 256
_STEPS = (0.03, 0.005, 0.001)
_LEFT_OVER, _MOST_ROUNDS = 8, 2000
_DRAWING = threading.Lock()


class AssignmentSpec(Spec):
    """How rows are assigned one to one, and when a latent counts as shared."""

    cosine: float = Field(0.7, gt=0, le=1)
    """Cosine that encoder and decoder rows must both reach (Paulo and Belrose 2025)."""
    optimal_up_to: int = Field(4096, ge=1)
    """Number of latents up to which the best assignment is computed; with more, nearest pairs go first."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """One-to-one partners of rows, and the cosine of each pair.

    Attributes:
        partner: [latent] row of the other dictionary; -1 for rows left over.
        cosine: [latent] cosine of the pair; NaN for rows left over.
        method: `optimal` (largest sum of cosines) or `greedy` (nearest pairs first).
    """

    partner: Int64[np.ndarray, " latent"]
    cosine: Float[np.ndarray, " latent"]
    method: str

    def turned(self, n: int) -> Assignment:
        """Return the same pairs with the sides exchanged, for the other dictionary's `n` rows."""
        partner, cosine = np.full(n, -1, np.int64), np.full(n, np.nan)
        paired = np.flatnonzero(self.partner >= 0)
        partner[self.partner[paired]], cosine[self.partner[paired]] = paired, self.cosine[paired]
        return Assignment(partner, cosine, self.method)


@dataclass(frozen=True)
class MeanCosine:
    """A mean over latents with its interval and its null.

    Attributes:
        value: Mean over latents.
        low: Lower bound of its interval, in which latents count as drawn and the two SAEs as given.
        high: Upper bound.
        null: The same number for random directions of as many dimensions and rows.
        n: Number of latents.
    """

    value: float
    low: float
    high: float
    null: float
    n: int


@dataclass(frozen=True, eq=False)
class Sharing:
    """How much two SAEs of the same activations have in common.

    Attributes:
        encoder: Assignment by encoder rows.
        decoder: Assignment by decoder rows.
        shared: [latent] whether the latent has the same partner in both, with both cosines at the threshold
            or above.
        pw_mcc: Mean cosine of assigned decoder rows. Source: Song et al. (2025). Deviation: it is signed,
            since a latent is active on one side only.
        mmcs: Mean over latents of a of the largest cosine of their decoder row with any of b.
        share: Share of latents that are shared; its bounds are Wilson's.
        share_low: Lower bound.
        share_high: Upper bound.
        null_share: Share among random directions with equal encoder and decoder, which is an upper bound of
            what chance reaches.
    """

    encoder: Assignment
    decoder: Assignment
    shared: Bool[np.ndarray, " latent"]
    pw_mcc: MeanCosine
    mmcs: MeanCosine
    share: float
    share_low: float
    share_high: float
    null_share: float


@dataclass(frozen=True)
class ClassShare:
    """The share of one class's latents that are shared, or the reason why it has no share."""

    name: str
    n: int
    shared: int
    share: float | None
    low: float | None
    high: float | None
    reason: str | None


def sharing(
    a: tuple[Float32[np.ndarray, "latent d_in"], Float32[np.ndarray, "latent d_in"]],
    b: tuple[Float32[np.ndarray, "other d_in"], Float32[np.ndarray, "other d_in"]],
    spec: AssignmentSpec | None = None,
    seed: int = 0,
) -> Sharing:
    """Return which latents of one SAE another SAE of the same activations has too.

    All latents take part. Dead ones do as well: they have moved little from their random start, and have no
    partner. `sharing_by_class` gives the share of each class.

    Args:
        a: Encoder and decoder of one SAE, a row per latent: `W_enc.T`, `W_dec`.
        b: Encoder and decoder of the other SAE.
        spec: Threshold, and the size up to which the assignment is the best one.
        seed: It names the null's draw.

    Source: Paulo and Belrose (2025, arXiv 2501.16615), "shared". Deviation: above
    `optimal_up_to` rows pairs are taken nearest first instead of best in sum.
    """
    return sharing_of_both(a, b, spec, seed)[0]


def sharing_of_both(
    a: tuple[Float32[np.ndarray, "latent d_in"], Float32[np.ndarray, "latent d_in"]],
    b: tuple[Float32[np.ndarray, "other d_in"], Float32[np.ndarray, "other d_in"]],
    spec: AssignmentSpec | None = None,
    seed: int = 0,
) -> tuple[Sharing, Sharing]:
    """Return what `sharing` returns for each of the two SAEs, from one assignment for both."""
    spec = spec or AssignmentSpec()
    units = [(unit_rows(x), unit_rows(y)) for x, y in zip(a, b, strict=True)]
    encoder, decoder = (assign(x, y, spec) for x, y in units)
    x, y = units[1]
    (n, d), m = x.shape, len(y)
    null = random_assignment(d, n, m, spec, seed)
    nearest = _nearest(x, y, True)
    back = encoder.turned(m), decoder.turned(m)
    return (
        _sharing(encoder, decoder, nearest.best, expected_max_cosine(d, m), null, spec),
        _sharing(*back, nearest.top, expected_max_cosine(d, n), null, spec),
    )


def _sharing(
    encoder: Assignment,
    decoder: Assignment,
    nearest: Float32[np.ndarray, " latent"],
    expected: float,
    null: RandomAssignment,
    spec: AssignmentSpec,
) -> Sharing:
    agree = (encoder.partner == decoder.partner) & (encoder.partner >= 0)
    near = np.minimum(encoder.cosine, decoder.cosine)
    shared = agree & np.isfinite(near) & (np.nan_to_num(near, nan=-1.0) >= spec.cosine)
    low, high = wilson(int(shared.sum()), len(shared))
    return Sharing(
        encoder=encoder,
        decoder=decoder,
        shared=shared,
        pw_mcc=_mean(decoder.cosine, null.mean),
        mmcs=_mean(nearest, expected),
        share=float(shared.mean()),
        share_low=low,
        share_high=high,
        null_share=null.share,
    )


def sharing_by_class(
    classes: Shaped[np.ndarray, " latent"], shared: Bool[np.ndarray, " latent"]
) -> list[ClassShare]:
    """Return how many latents of each class are shared, with Wilson's interval; classes are sorted by name.

    Raises:
        SpecError: the numbers of classes and of latents differ.
    """
    if len(classes) != len(shared):
        raise SpecError(f"{len(classes)} classes of {len(shared)} latents: give one for each")
    shares = []
    for name in sorted({str(kind) for kind in classes}):
        members = shared[np.asarray([str(kind) == name for kind in classes], dtype=bool)]
        n, hits = len(members), int(members.sum())
        try:
            low, high = wilson(hits, n)
            shares.append(ClassShare(name, n, hits, hits / n, low, high, None))
        except NotEstimable as why:
            shares.append(ClassShare(name, n, hits, None, None, None, str(why)))
    return shares


def assign(
    x: Float32[np.ndarray, "latent d_in"],
    y: Float32[np.ndarray, "other d_in"],
    spec: AssignmentSpec | None = None,
    signed: bool = True,
) -> Assignment:
    """Return one-to-one partners of unit rows with a large sum of cosines.

    Up to `optimal_up_to` rows the sum is the largest possible. With more rows, the nearest pair of all is
    taken, then the nearest pair of the rest, and so on. These are found in rounds of pairs that are each
    other's nearest, and only a block of cosines is held in memory.

    Args:
        x: Rows of length 1.
        y: Rows of length 1.
        spec: Up to which size the assignment is the best one.
        signed: Whether opposite directions count as far apart; if not, the cosine's absolute value is used.
    """
    spec = spec or AssignmentSpec()
    partner = np.full(len(x), -1, np.int64)
    cosine = np.full(len(x), np.nan)
    if max(len(x), len(y)) <= spec.optimal_up_to:
        cosines = x @ y.T
        cosines = cosines if signed else np.abs(cosines)
        rows, columns = _optimal(cosines)
        partner[rows], cosine[rows] = columns, cosines[rows, columns]
        return Assignment(partner, cosine, "optimal")
    left, right = np.arange(len(x)), np.arange(len(y))
    while len(left) and len(right):
        best, to, _, back = _nearest(x[left], y[right], signed)
        mutual = np.flatnonzero(back[to] == np.arange(len(left)))
        partner[left[mutual]], cosine[left[mutual]] = right[to[mutual]], best[mutual]
        right = np.delete(right, to[mutual])
        left = np.delete(left, mutual)
    return Assignment(partner, cosine, "greedy")


def _optimal(
    cosines: Float32[np.ndarray, "row column"],
) -> tuple[Int64[np.ndarray, " pair"], Int64[np.ndarray, " pair"]]:
    """Return the assignment with the largest sum.

    Subtracting one number from all cosines of a column, or of a row, changes the rank of no assignment. With
    the prices of an auction subtracted, a row's best column is nearly always the one that it gets, and the
    search for the exact optimum takes a third of the time.
    """
    from scipy.optimize import linear_sum_assignment

    n, m = cosines.shape
    costs = -cosines.astype(np.float64)
    if n == m and n >= _FEWEST_FOR_AUCTION:
        costs += _prices(cosines)
        costs -= costs.min(axis=1, keepdims=True)
    rows, columns = linear_sum_assignment(costs)
    return rows.astype(np.int64), columns.astype(np.int64)


def _prices(cosines: Float32[np.ndarray, "row row"]) -> Float32[np.ndarray, " row"]:
    """Return the price of each column after rows have bid for the columns, in ever smaller steps.

    Source: the auction algorithm with scaled steps (Bertsekas 1988). Differs: each round ends with a few
    rows that have no column, since an exact search follows.
    """
    n = len(cosines)
    prices = np.zeros(n, np.float32)
    for step in _STEPS:
        owner, has = np.full(n, -1), np.zeros(n, dtype=bool)
        for _ in range(_MOST_ROUNDS):
            free = np.flatnonzero(~has)
            if len(free) <= _LEFT_OVER:
                break
            values, at = cosines[free] - prices, np.arange(len(free))
            wanted = values.argmax(axis=1)
            best = values[at, wanted]
            values[at, wanted] = -np.inf
            bid = prices[wanted] + (best - values.max(axis=1) + np.float32(step))
            order = np.lexsort((bid, wanted))
            winner = order[np.append(np.diff(wanted[order]) != 0, True)]
            column = wanted[winner]
            has[owner[column][owner[column] >= 0]] = False
            has[free[winner]] = True
            owner[column], prices[column] = free[winner], bid[winner]
    return prices


class _Nearest(NamedTuple):
    """Each row's largest cosine (`best`) and its column, and each column's (`top`) and its row."""

    best: Float32[np.ndarray, " row"]
    to: Int64[np.ndarray, " row"]
    top: Float32[np.ndarray, " column"]
    back: Int64[np.ndarray, " column"]


def _nearest(
    x: Float32[np.ndarray, "row d_in"], y: Float32[np.ndarray, "column d_in"], signed: bool
) -> _Nearest:
    """Return the nearest column of each row and row of each column, from one block of cosines at a time."""
    best, to = np.empty(len(x), np.float32), np.empty(len(x), np.int64)
    top, back = np.full(len(y), -np.inf, np.float32), np.zeros(len(y), np.int64)
    size = max(1, _CHUNK_NUMBERS // len(y))
    for first in range(0, len(x), size):
        cosines = x[first : first + size] @ y.T
        cosines = cosines if signed else np.abs(cosines)
        rows = slice(first, first + len(cosines))
        to[rows] = cosines.argmax(axis=1)
        best[rows] = np.take_along_axis(cosines, to[rows, None], axis=1)[:, 0]
        at = cosines.argmax(axis=0)
        value = cosines[at, np.arange(len(y))]
        back = np.where(value > top, at + first, back)
        top = np.maximum(top, value)
    return _Nearest(best, to, top, back)


def max_cosine(
    x: Float32[np.ndarray, "latent d_in"],
    y: Float32[np.ndarray, "other d_in"],
    signed: bool = True,
) -> Float32[np.ndarray, " latent"]:
    """Return the largest cosine of each unit row with a row of `y`; the mean of these is MMCS."""
    return _nearest(x, y, signed).best


@dataclass(frozen=True)
class RandomAssignment:
    """What random directions reach when they are assigned one to one.

    Attributes:
        mean: Mean cosine of assigned rows.
        share: Share of pairs that reach the threshold.
    """

    mean: float
    share: float


def random_assignment(
    d: int, n: int, m: int, spec: AssignmentSpec | None = None, seed: int = 0, signed: bool = True
) -> RandomAssignment:
    """Return what n and m random unit vectors in d dimensions reach when assigned one to one.

    They are assigned by the same method as the rows that they are the null of. Where n or m is small,
    vectors are drawn until there are 2,000 pairs, so that above a few dimensions the mean's standard error
    stays below .01. Results are kept in memory by their arguments.

    Raises:
        SpecError: a size is below 1.
    """
    if min(d, n, m) < 1:
        raise SpecError(f"random directions need sizes of 1 or more; found d={d}, n={n}, m={m}")
    with _DRAWING:  # two threads that need the same result draw it once
        return _drawn(d, n, m, spec or AssignmentSpec(), seed, signed)


@functools.lru_cache(maxsize=64)
def _drawn(
    d: int, n: int, m: int, spec: AssignmentSpec, seed: int, signed: bool
) -> RandomAssignment:
    random = numpy_generator(seed, "random assignment", d, n, m)
    draws = []
    for _ in range(max(1, math.ceil(2000 / min(n, m)))):
        x, y = (unit_rows(random.standard_normal((k, d), np.float32)) for k in (n, m))
        draws.append(assign(x, y, spec, signed).cosine)
    cosines = np.concatenate(draws)
    cosines = cosines[np.isfinite(cosines)]
    return RandomAssignment(float(cosines.mean()), float(np.mean(cosines >= spec.cosine)))


def unit_rows(rows: Float[np.ndarray, "latent d_in"]) -> Float32[np.ndarray, "latent d_in"]:
    """Return the rows scaled to length 1; a row of zeros stays as it is, with cosine 0 to all others."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), dtype=np.float32)


def _mean(values: Float[np.ndarray, " latent"], null: float) -> MeanCosine:
    """Return the mean of the finite values, with its interval."""
    known = values[np.isfinite(values)].astype(np.float64)
    if len(known) < 2:
        raise NotEstimable(f"{len(known)} assigned latents have no spread: two are needed")
    half = mean_half_width(known)
    mean = float(known.mean())
    return MeanCosine(mean, mean - half, mean + half, null, len(known))
