"""The latents that stand for a label, and how much of the label other latents take over from them.

A latent's part of the projection on a probe is its code, times the norm of its decoder row, times the cosine
of that row to the probe. So the length of decoder rows plays no part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sae_placebo.audits.probes import MIN_POSITIVE, best_f1, f1_of
from sae_placebo.stats.fits import fit_logistic

JUMP = 0.03
"""Gain in F1 above which another latent joins the family."""
FULL_COSINE, FULL_SHARE = 0.025, 0.4
"""Least cosine to the probe, and least share of x's projection on it, of a latent that absorbs in full."""
PART_COSINE, MOST_ABSORBERS = 0.1, 3
"""Least cosine to the probe of the latents that absorb in part, and the most of them at a token."""
MOST_LATENTS = 8
"""The most latents in a family."""
_RIDGE = 1e-3
VERSIONS = ("single", "family")
RATES = tuple(f"{measure}_{version}" for measure in ("full", "fraction") for version in VERSIONS)


@dataclass(frozen=True, eq=False)
class Family:
    """The latents that stand for one label.

    Attributes:
        latents: The best latent, then each that adds more than `JUMP` to F1, in the order of choice.
        first: F1 of the best latent alone, on tokens that it was not chosen on; NaN without a latent.
        whole: F1 of a logistic probe on all of them, on the same tokens; NaN without a latent.
    """

    latents: Int64[np.ndarray, " member"]
    first: float
    whole: float


class Chooser:
    """Chooses the latents that stand for a label, one at a time.

    Args:
        codes: Codes times decoder norms, scipy CSR [token, latent], on which latents are chosen.
    """

    def __init__(self, codes: Any) -> None:
        self.by_latent = codes.tocsc()
        self.turned = codes.T.tocsr()
        n = codes.shape[0]
        self.mean = np.asarray(codes.sum(0), dtype=np.float64).ravel() / n
        squares = np.asarray(codes.multiply(codes).sum(0), dtype=np.float64).ravel() / n
        scale = np.sqrt(np.maximum(squares - self.mean**2, 0))
        counts = np.diff(self.by_latent.indptr)
        # latents that hardly ever fire can agree with a few tokens of anything
        self.scale = np.where((scale > 0) & (counts >= MIN_POSITIVE // 5), scale, np.inf)

    def family(
        self, yes: Bool[np.ndarray, " token"], held: Any, truth: Bool[np.ndarray, " scored"]
    ) -> Family:
        """Return the latents that stand for a label.

        The next latent is the one along whose code the logistic loss of the latents so far falls fastest.
        It is kept if it raises F1 by more than `JUMP` on the tokens that it is chosen on. The F1 that is
        returned is that of other tokens.

        Args:
            yes: Whether the label holds, at the tokens that latents are chosen on.
            held: Codes at the tokens that F1 is computed on, scipy CSR [scored, latent].
            truth: Whether the label holds at those tokens.
        """
        from scipy.special import expit

        chosen: list[int] = []
        rate, best, whole = float(yes.mean()), 0.0, 0.0
        first = math.nan
        chance = np.full(len(yes), rate)
        while len(chosen) < MOST_LATENTS:
            pull = self.turned @ (yes - chance) - self.mean * float((yes - chance).sum())
            pull = pull / self.scale
            pull[chosen] = -np.inf
            latent = int(np.argmax(pull))
            if not pull[latent] > 0:
                break
            trial = [*chosen, latent]
            columns = _dense(self.by_latent, trial)
            probe = fit_logistic(columns, yes[:, None], _RIDGE)
            logits = probe.logits(columns)[:, 0]
            f1, limit = best_f1(logits, yes)
            if chosen and f1 - best <= JUMP:
                break
            chosen, best = trial, f1
            chance = expit(logits)
            whole = f1_of(probe.logits(_dense(held, chosen))[:, 0] > limit, truth)
            first = whole if len(chosen) == 1 else first
        return Family(np.array(chosen, dtype=np.int64), first, whole if chosen else math.nan)


def _dense(codes: Any, latents: list[int]) -> Float64[np.ndarray, "token k"]:
    return np.asarray(codes[:, latents].todense(), dtype=np.float64)


def absorbed(
    codes: Any,
    cosines: Float[np.ndarray, " latent"],
    along: Float[np.ndarray, " token"],
    hits: Bool[np.ndarray, " token"],
    family: Int64[np.ndarray, " member"],
) -> dict[str, Float64[np.ndarray, " token"]]:
    """Return how much of a label is absorbed at each token where the probe finds it; 0 at other tokens.

    The main latents are the best one alone (names that end in `single`) or the whole family (names that
    end in `family`). There are two measures.

    - full: 1 where all main latents are silent, and the other latent with the largest projection on the
      probe has a cosine of at least `FULL_COSINE` to it and carries at least `FULL_SHARE` of the
      projection of x.
    - fraction: Of the other latents with a cosine of at least `PART_COSINE`, those with the largest
      projections, at most `MOST_ABSORBERS`, are added up. The fraction is this sum over itself plus the
      projection of the main latents. It is 0 where the main latents carry all of the projection of x.

    Args:
        codes: Codes times decoder norms, scipy CSR [token, latent].
        cosines: Cosine of each decoder row to the probe's direction.
        along: Projection of x - b_dec on the probe's unit direction.
        hits: Which tokens have the label and are found by the probe.
        family: The main latents, the best first.

    Source: SAEBench (Karvonen et al. 2025), after Chanin et al. 2024 (arXiv 2409.14507).
    """
    out = {name: np.zeros(len(along)) for name in RATES}
    tokens = np.flatnonzero(hits)
    part = codes[tokens]
    rows = np.repeat(np.arange(len(tokens)), np.diff(part.indptr))
    cosine = cosines[part.indices].astype(np.float64)
    active = _Active(rows, part.data * cosine, cosine, along[tokens].astype(np.float64))
    for version in VERSIONS:
        main = np.zeros(codes.shape[1], dtype=bool)
        main[family[:1] if version == "single" else family] = True
        full, fraction = _shares(active, main[part.indices])
        out[f"full_{version}"][tokens] = full
        out[f"fraction_{version}"][tokens] = fraction
    return out


@dataclass(frozen=True, eq=False)
class _Active:
    """The active pairs of token and latent at the tokens of interest, which are numbered as rows.

    Attributes:
        rows: The row of each pair, ascending.
        parts: The latent's part of the projection on the probe.
        cosines: The cosine of the latent's decoder row to the probe.
        along: The projection of each row's x - b_dec on the probe.
    """

    rows: Int64[np.ndarray, " active"]
    parts: Float64[np.ndarray, " active"]
    cosines: Float64[np.ndarray, " active"]
    along: Float64[np.ndarray, " row"]

    def largest(
        self, kept: Bool[np.ndarray, " active"], n: int
    ) -> tuple[Int64[np.ndarray, " largest"], Int64[np.ndarray, " largest"]]:
        """Return which pairs have each row's n largest parts among those kept, and the rows of these."""
        places = np.flatnonzero(kept)
        places = places[np.lexsort((-self.parts[places], self.rows[places]))]
        rows = self.rows[places]
        counts = np.bincount(rows, minlength=len(self.along))
        rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return places[rank < n], rows[rank < n]


def _shares(
    active: _Active, main: Bool[np.ndarray, " active"]
) -> tuple[Float64[np.ndarray, " row"], Float64[np.ndarray, " row"]]:
    """Return for each row whether it is absorbed in full (0 or 1) and in what fraction; see `absorbed`."""
    n, along = len(active.along), active.along
    silent = np.bincount(active.rows[main], minlength=n) == 0
    first, rows = active.largest(~main, 1)
    full = np.zeros(n)
    full[rows] = (active.cosines[first] >= FULL_COSINE) & (
        active.parts[first] >= FULL_SHARE * along[rows]
    )
    full[~silent | (along <= 0)] = 0
    of_main = np.bincount(active.rows[main], active.parts[main], n).clip(min=0)
    able, rows = active.largest(~main & (active.cosines >= PART_COSINE), MOST_ABSORBERS)
    taken = np.bincount(rows, active.parts[able], n)
    counts = (taken > 0) & (along > 0) & (of_main < along)
    fraction = np.divide(taken, taken + of_main, out=np.zeros(n), where=counts)
    return full, fraction
