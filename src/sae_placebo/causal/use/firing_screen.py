"""What each firing is expected to cost, by gradients: it says where to look, and decides nothing.

With g the gradient at a token of the log probabilities of labels drawn from the model, and v what removing a
set of directions takes away there, (g . v)^2 / 2 is the expected cost to second order (`screen`). A null
direction at the angle of v costs, in expectation over such directions, |v|^2 (c^2 A^2 + (1 - c^2) B^2 /
(d_in - 1)) / 2. Here c is the cosine of v and the activation, A is the part of g along the activation and B
the length of the rest of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

from sae_placebo.causal.use.base import DirectionSets, Subject
from sae_placebo.causal.use.gradients import drawn_rows, sampled_gradients
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Track, untracked

_SAMPLES = 2
"""How many labels are drawn for each prediction."""
_UNIFORM, _BY_AMOUNT, _BY_OWN, _BY_NULL = 0.25, 0.25, 0.25, 0.25
"""Shares of the draws: uniform, by squared length, by the expected cost, by that of null directions."""
_AT_ONCE = 1 << 13
"""So many firings are screened at once."""
_KEPT = 1 << 25
"""No more than so many numbers are kept of each sample of gradients."""


@dataclass(frozen=True, eq=False)
class FiringScreen:
    """Expected costs of the firings of sets of directions; NaN where the token was not read.

    Attributes:
        sets: The sets.
        own: The expected cost of each firing, in nats, in the order of `sets.by_set`.
        null: The expected cost of null directions there, likewise.
    """

    sets: DirectionSets
    own: Float64[np.ndarray, " firing"]
    null: Float64[np.ndarray, " firing"]

    def chances(self, i: int) -> Float64[np.ndarray, " firing"]:
        """Return the chance of each firing of a set to be drawn; they sum to 1.

        It is a mixture of four: as likely as every other, by squared length, by the expected cost, and by
        that of null directions. So no draw counts for more than four uniform ones. A firing that was not
        screened is expected to cost, per squared length, what the others cost on average.

        Half of what the screen has a say in goes to null directions, so that their mean cost, with which a
        set's is compared, is known about as well as the set's own.
        """
        by = self.sets.by_set
        stored = slice(by.indptr[i], by.indptr[i + 1])
        square = by.data[stored].astype(np.float64) ** 2
        found = _UNIFORM / len(square) + _BY_AMOUNT * square / square.sum()
        for share, expected in ((_BY_OWN, self.own[stored]), (_BY_NULL, self.null[stored])):
            known = np.isfinite(expected)
            total = expected[known].sum()
            rate = total / square[known].sum() if total > 0 else 1.0
            filled = np.where(known & (total > 0), expected, rate * square)
            found += share * filled / filled.sum()
        return np.asarray(found / found.sum(), dtype=np.float64)

    def expected_null(self, i: int) -> float:
        """Return the mean expected cost of null directions at a set's firings, in nats; NaN if unknown."""
        by = self.sets.by_set
        null = self.null[by.indptr[i] : by.indptr[i + 1]]
        return float(np.nanmean(null)) if np.isfinite(null).any() else float("nan")


def screen_firings(
    subject: Subject,
    sets: DirectionSets,
    which: Int64[np.ndarray, " asked"],
    n_tokens: int,
    seed: int,
    track: Track = untracked,
) -> FiringScreen:
    """Return what each firing of some sets is expected to cost, and null directions there.

    Args:
        subject: The model and its held-out tokens.
        sets: All sets.
        which: The sets whose firings are screened.
        n_tokens: At most so many tokens are read, in whole rows.
        seed: The seed of the rows and of the labels.
        track: It shows how many tokens are done.
    """
    by = sets.by_set
    own, null = np.full(by.nnz, np.nan), np.full(by.nnz, np.nan)
    tokens, gradients = _gradients(subject, n_tokens, seed, track)
    wanted = np.zeros(len(sets), dtype=bool)
    wanted[which] = True
    owner = np.repeat(np.arange(len(sets)), np.diff(by.indptr))
    held = by.indices.astype(np.int64)
    at = np.minimum(np.searchsorted(tokens, held), len(tokens) - 1)
    entries = np.flatnonzero(wanted[owner] & (tokens[at] == held))
    for start in range(0, len(entries), _AT_ONCE):
        part = entries[start : start + _AT_ONCE]
        taken = sets.taken_away(owner[part], held[part])
        x = subject.activations[torch.from_numpy(held[part])].float().cpu().numpy()
        own[part], null[part] = _expected(taken, x, gradients[:, at[part]])
    return FiringScreen(sets, own, null)


def _gradients(
    subject: Subject, n_tokens: int, seed: int, track: Track
) -> tuple[Int64[np.ndarray, " token"], Float32[np.ndarray, "sample token d_in"]]:
    """Return tokens, ascending, with the gradients at each; they are computed once and kept."""
    key = ("gradients", n_tokens, seed)
    if key not in subject.kept:
        n = min(n_tokens, _KEPT // subject.activations.shape[1])
        rows = drawn_rows(subject, n, seed)
        with track("screen firings", len(subject.tokens_in(rows)), "tokens") as advance:
            parts = []
            for found in sampled_gradients(subject, rows, _SAMPLES, seed):
                parts.append((found.tokens, found.sampled.float().cpu().numpy()))
                advance(len(found.tokens))
        tokens = np.concatenate([part for part, _ in parts])
        gradients = np.concatenate([part for _, part in parts], axis=1)
        order = np.argsort(tokens)
        subject.kept[key] = tokens[order], gradients[:, order]
    kept: tuple[Any, Any] = subject.kept[key]
    return kept


def _expected(
    taken: Float32[np.ndarray, "firing d_in"],
    x: Float32[np.ndarray, "firing d_in"],
    g: Float32[np.ndarray, "sample firing d_in"],
) -> tuple[Float64[np.ndarray, " firing"], Float64[np.ndarray, " firing"]]:
    """Return the expected costs of firings and of null directions there, in nats.

    Args:
        taken: What each firing's removal takes away.
        x: The activations.
        g: The gradients there.
    """
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    along_taken = np.einsum("sfd,fd->sf", g, taken).astype(np.float64)
    along_x = np.einsum("sfd,fd->sf", g, x).astype(np.float64)
    rest = np.maximum((g.astype(np.float64) ** 2).sum(-1) - along_x**2, 0)
    square = (taken.astype(np.float64) ** 2).sum(1)
    cosine2 = np.clip((taken * x).sum(1) ** 2 / np.maximum(square, 1e-30), 0, 1)
    spread = (1 - cosine2) * rest / max(taken.shape[1] - 1, 1)
    null = square * (cosine2 * along_x**2 + spread)
    return (along_taken**2).mean(0) / 2, null.mean(0) / 2
