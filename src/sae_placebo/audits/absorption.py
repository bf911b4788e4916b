"""The latents that stand for a label, and what others take over from them.

A latent's share of a probe's projection is its code times decoder norm times the cosine of its decoder row
to the probe, so that the length of decoder rows plays no part.
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
"""F1 that another latent must add to be one of the family."""
FULL_COSINE, FULL_SHARE = 0.025, 0.4
PART_COSINE, MOST_ABSORBERS = 0.1, 3
MOST_LATENTS = 8
_RIDGE = 1e-3
VERSIONS = ("single", "family")
RATES = tuple(f"{measure}_{version}" for measure in ("full", "fraction") for version in VERSIONS)


@dataclass(frozen=True, eq=False)
class Family:
    """The latents that stand for one label.

    Attributes:
        latents: The best first, then each that adds more than `JUMP` to F1.
        first: F1 of the best latent alone on tokens that it was not chosen on.
        whole: The same of all of them in one logistic probe.
    """

    latents: Int64[np.ndarray, " member"]
    first: float
    whole: float


class Chooser:
    """Chooses latents for a label, one at a time, on given codes."""

    def __init__(self, codes: Any) -> None:
        """Prepare codes [token, latent] times decoder norms, CSR."""
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
        """Return the latents of a label.

        The next latent is the one on which the logistic loss falls fastest; it is kept if it raises F1
        by more than `JUMP` on the tokens that it is chosen on. F1 is then read on others.

        Args:
            yes: Whether the label holds, on the tokens of this chooser.
            held: Codes that F1 is read on, CSR.
            truth: Whether the label holds there.
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
    """Return how much of a label is absorbed at each token where the probe found it; 0 elsewhere.

    The main latents are the best one alone (`single`) or the whole family (`family`).

    - full: 1 where all main latents are silent, and the other latent with the largest projection on the
      probe has a cosine of at least `FULL_COSINE` to it and carries at least `FULL_SHARE` of the
      projection of x.
    - fraction: the projection of the at most `MOST_ABSORBERS` other latents with the largest ones, of a
      cosine of at least `PART_COSINE`, over that plus the main latents'; 0 where the main latents carry
      all of the projection of x.

    Args:
        codes: Codes times decoder norms, CSR [token, latent].
        cosines: Of each decoder row to the probe's direction.
        along: Projection of x - b_dec on the unit probe.
        hits: Tokens where the label holds and the probe says so.
        family: Main latents, best first.

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
    """Active latents at some tokens, rows ascending.

    Attributes:
        rows: Which token each is at.
        parts: Its projection on the probe.
        cosines: Its decoder row's cosine to the probe.
        along: [row] projection of x.
    """

    rows: Int64[np.ndarray, " active"]
    parts: Float64[np.ndarray, " active"]
    cosines: Float64[np.ndarray, " active"]
    along: Float64[np.ndarray, " row"]

    def largest(
        self, kept: Bool[np.ndarray, " active"], n: int
    ) -> tuple[Int64[np.ndarray, " some"], Int64[np.ndarray, " some"]]:
        """Return the places of each row's n largest parts among those kept, and their rows."""
        places = np.flatnonzero(kept)
        places = places[np.lexsort((-self.parts[places], self.rows[places]))]
        rows = self.rows[places]
        counts = np.bincount(rows, minlength=len(self.along))
        rank = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return places[rank < n], rows[rank < n]


def _shares(
    active: _Active, main: Bool[np.ndarray, " active"]
) -> tuple[Float64[np.ndarray, " row"], Float64[np.ndarray, " row"]]:
    """Return whether each row is absorbed in full, and in what fraction; see `absorbed`."""
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
