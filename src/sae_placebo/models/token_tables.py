"""Mean activations by token, or by pair of tokens, and how much of the variance lies between them.

What lies between tokens is estimated from products of one token's activations in *different* documents:
a table of means holds its own noise as well, and what occurrences in one document share besides the token
(its topic, its style) is not the token's. Documents are dealt into a few groups, and sums are kept by
entry and group, so that one pass with bounded memory is enough: products between groups are products
between documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from sae_placebo.core.errors import TextError
from sae_placebo.core.lazy import torch
from sae_placebo.data.rows import Rows

N_GROUPS = 4
"""Groups of documents: three quarters of the pairs of documents are counted, and leaving a group out gives
an error."""
MOST_PAIRS = 65_536
"""Pairs of tokens that have an entry of their own, at most; the commonest have one."""
_HALVINGS = 200


@dataclass(frozen=True)
class Entries:
    """The entries of a table: one for each token id, then one for each pair of adjacent ids.

    Attributes:
        tokens: [token entry] ids, ascending.
        pairs: [pair entry] `previous * 2**32 + current`, ascending; empty where pairs are not told apart.
    """

    tokens: Int64[np.ndarray, " token_entry"]
    pairs: Int64[np.ndarray, " pair_entry"]

    @classmethod
    def of(cls, rows: Rows, with_pairs: bool, most: int = MOST_PAIRS) -> Entries:
        """Return the entries that some rows have: their usable tokens, and pairs that occur at least twice.

        Args:
            rows: The training rows.
            with_pairs: Whether pairs have entries; else a token's entry serves whatever stands before it.
            most: Pairs that have one, at most: the commonest, and of equally common ones the lower ids.
        """
        usable = rows.usable()
        tokens = np.unique(rows.token_ids[usable]).astype(np.int64)
        pairs = np.empty(0, np.int64)
        if with_pairs:
            pairs, counts = np.unique(
                _pairs(rows.token_ids[:, :-1], rows.token_ids[:, 1:])[usable[:, 1:]],
                return_counts=True,
            )
            pairs, counts = pairs[counts >= 2], counts[counts >= 2]
            commonest = np.lexsort((pairs, -counts))[:most]
            pairs = np.sort(pairs[commonest])
        return cls(tokens, pairs)

    def __len__(self) -> int:
        return len(self.tokens) + len(self.pairs)

    @property
    def owners(self) -> Int64[np.ndarray, " pair_entry"]:
        """Return the token entry of each pair's second token."""
        return np.searchsorted(self.tokens, self.pairs & 0xFFFFFFFF)

    def find(
        self, previous: Int[np.ndarray, "*place"], current: Int[np.ndarray, "*place"]
    ) -> Int64[np.ndarray, "*place"]:
        """Return the entry of each token: its pair's, else its own; `len(self)` where it has none."""
        found = _place(self.tokens, current.astype(np.int64), len(self))
        paired = _place(self.pairs, _pairs(previous, current), -1)
        return np.where(paired >= 0, paired + len(self.tokens), found)


def _pairs(previous: np.ndarray, current: np.ndarray) -> np.ndarray:
    return (previous.astype(np.int64) << 32) | current.astype(np.int64)


def _place(keys: np.ndarray, wanted: np.ndarray, missing: int) -> np.ndarray:
    """Return where `wanted` stands in the ascending `keys`, `missing` where it does not."""
    if not len(keys):
        return np.full(wanted.shape, missing, np.int64)
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, place, missing)


class GroupSums:
    """Streaming sums of activations by group of documents and entry.

    They take 4 * `N_GROUPS` * entries * `d_in` bytes.

    Args:
        n_entries: Entries of the table.
        d_in: Width of the activations.
    """

    def __init__(self, n_entries: int, d_in: int) -> None:
        self.sums = torch.zeros(N_GROUPS, n_entries, d_in)
        self.counts = torch.zeros(N_GROUPS, n_entries, dtype=torch.float64)

    def add(
        self,
        entries: Int64[torch.Tensor, " token"],
        groups: Int64[torch.Tensor, " token"],
        x: Float[torch.Tensor, "token d_in"],
    ) -> None:
        """Count `x`, from which a point near the mean was taken, under their groups and entries."""
        cells, place, counts = torch.unique(
            groups * self.counts.shape[1] + entries, return_inverse=True, return_counts=True
        )
        block = torch.zeros(len(cells), x.shape[1]).index_add_(0, place, x)
        self.sums.view(-1, x.shape[1])[cells] += block
        self.counts.view(-1)[cells] += counts

    def about(self, mean: Float[torch.Tensor, " d_in"]) -> Cells:
        """Return the sums of what is left when `mean`, relative to the point taken off, is taken off."""
        return Cells(self.sums - self.counts[..., None].float() * mean.float(), self.counts)

    def state(self) -> dict[str, torch.Tensor]:
        """Return what was counted, as tensors that `restore` takes; the other sums are zero."""
        cells = self.counts.view(-1).nonzero().flatten()
        flat = self.sums.view(-1, self.sums.shape[2])
        return {"cells": cells, "sums": flat[cells], "counts": self.counts.view(-1)[cells]}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on counting from `state`."""
        self.sums.view(-1, self.sums.shape[2])[state["cells"]] = state["sums"]
        self.counts.view(-1)[state["cells"]] = state["counts"]


@dataclass(frozen=True)
class Component:
    """The variance between the entries of a table.

    Attributes:
        value: sum_k n_k |E[x | k] - mean|^2 / sum_k n_k over the entries k that occur in two groups of
            documents or more. The estimate can be negative where there is next to nothing.
        error: Its standard error, by leaving out one group after the other; None where an estimate
            without one of them is impossible.
        n_tokens: sum_k n_k.
    """

    value: float
    error: float | None
    n_tokens: int


@dataclass(frozen=True)
class Cells:
    """Sums of centered activations by group of documents and entry, and how many were summed."""

    sums: Float[torch.Tensor, "group entry d_in"]
    counts: Float[torch.Tensor, "group entry"]

    @property
    def n(self) -> Float[torch.Tensor, " entry"]:
        """Return the tokens of each entry."""
        return self.counts.sum(0)

    @property
    def means(self) -> Float[torch.Tensor, "entry d_in"]:
        """Return each entry's mean in float64; zero where it has no token."""
        means: torch.Tensor = self.sums.sum(0).double() / self.n.clamp_min(1)[:, None]
        return means

    @property
    def repeated(self) -> Bool[torch.Tensor, " entry"]:
        """Return which entries occur in two groups or more."""
        return (self.counts > 0).sum(0) >= 2

    def by_token(self, owners: Int64[torch.Tensor, " pair"]) -> Cells:
        """Return the sums of tokens, whatever stands before them, where the last entries are pairs.

        Args:
            owners: The token entry of each pair.
        """
        n = self.sums.shape[1] - len(owners)
        sums, counts = self.sums[:, :n].clone(), self.counts[:, :n].clone()
        sums.index_add_(1, owners, self.sums[:, n:])
        counts.index_add_(1, owners, self.counts[:, n:])
        return Cells(sums, counts)

    def only(self, chosen: slice) -> Cells:
        """Return some of the entries."""
        return Cells(self.sums[:, chosen], self.counts[:, chosen])

    def component(self) -> Component:
        """Return the variance between entries; see `Component`.

        For one entry, the mean product of activations in different groups estimates |E[x | k] - mean|^2
        without the noise of single tokens and without what tokens of one document share. It is the
        estimator of a variance component from products between independent units. Differs: groups of
        documents take the place of single documents, and the mean of all activations is taken as known.

        Raises:
            TextError: no entry occurs in two groups.
        """
        value = _component(self.sums, self.counts)
        if value is None:
            raise TextError(
                f"no token was read in two of the {N_GROUPS} groups of training documents, so what lies "
                "between tokens cannot be told from what lies between documents; raise "
                "text.train_tokens, lower text.max_document_tokens, or leave the surrogate out."
            )
        groups = range(len(self.sums))
        others = [[g for g in groups if g != left_out] for left_out in groups]
        without = [_component(self.sums[kept], self.counts[kept]) for kept in others]
        known = [one for one in without if one is not None]
        error = None
        if len(known) == len(without):
            spread = sum((one - sum(known) / len(known)) ** 2 for one in known)
            error = math.sqrt((len(known) - 1) / len(known) * spread)
        return Component(value, error, int(self.n[self.repeated].sum()))

    def component_matrix(self) -> Float[torch.Tensor, "d_in d_in"]:
        """Return the matrix of which `component` is the trace, in float64; it need not be semidefinite."""
        used = self.repeated
        n, sums = self.n[used], self.sums[:, used]
        root = (n / n.sum() / _products(self.counts[:, used])).sqrt().float()[:, None]
        whole = sums.sum(0) * root
        matrix = (whole.T @ whole).double()
        for group in sums:
            part = group * root
            matrix -= (part.T @ part).double()
        return matrix


def _products(counts: torch.Tensor) -> torch.Tensor:
    """Return how many ordered pairs of tokens of an entry lie in different groups."""
    pairs: torch.Tensor = counts.sum(0).square() - counts.square().sum(0)
    return pairs


def _component(sums: torch.Tensor, counts: torch.Tensor) -> float | None:
    n, pairs = counts.sum(0), _products(counts)
    used = pairs > 0
    if not bool(used.any()):
        return None
    whole = sums.sum(0).square().sum(1, dtype=torch.float64)
    within = sums.square().sum(2, dtype=torch.float64).sum(0)
    each = (whole - within)[used] / pairs[used]
    return float((n[used] * each).sum() / n[used].sum())


def shrinkage(
    base: Float[torch.Tensor, "entry d_in"],
    deviation: Float[torch.Tensor, "entry d_in"],
    n: Float[torch.Tensor, " entry"],
    target: float,
) -> float:
    """Return l with which sum_k n_k |base_k + s_k deviation_k|^2 / sum_k n_k is `target`, s = n / (n + l).

    It is found by halving an interval. 0 is returned where no shrinkage reaches the target, infinity
    where the base alone exceeds it.

    Args:
        base: What an entry has if it is shrunk whole, relative to the mean.
        deviation: What its own mean has beyond.
        n: Tokens of each entry.
        target: The variance that the shrunk table is to have.
    """
    weights = n / n.sum()
    fixed = float((weights * base.square().sum(1)).sum())
    mixed = 2 * weights * (base * deviation).sum(1)
    squared = weights * deviation.square().sum(1)

    def variance(by: float) -> float:
        share = n / (n + by)
        return fixed + float((mixed * share + squared * share.square()).sum())

    if target <= fixed:
        return math.inf
    if variance(0.0) <= target:
        return 0.0
    low, high = 0.0, 1.0
    while variance(high) > target:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if variance(middle) > target else (low, middle)
    return (low + high) / 2
