"""Latents of a placebo as decoys: the threshold of a score above which few latents are like a placebo's.

This is target-decoy estimation of the false discovery rate, as used for spectra of peptides. A trained SAE's
latents are targets, a placebo's latents are decoys, and any score of a latent can be used. If a decoy is as
likely to reach a score as a target in which nothing was learned, the decoys above a threshold estimate the
number of such targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from sae_placebo.core.errors import SpecError
from sae_placebo.core.spec import numpy_generator

_NO_SEEDS = "one SAE: the interval is over its latents alone"


@dataclass(frozen=True)
class Decoys:
    """How many targets pass a threshold at which decoys are at most a given share of what passes.

    Attributes:
        threshold: Score from which latents pass; None where no score achieves the rate.
        rate: Share of decoys that is allowed.
        achieved: Estimated share of decoys at the threshold.
        passing: Number of targets that pass; None where there is no threshold.
        low: Lower bound of `passing`.
        high: Upper bound.
        decoys_passing: Number of decoys at or above the threshold, as counted.
        n_targets: Number of targets, those without a score included.
        n_decoys: Number of decoys, those without a score included.
        reason: Why there is no threshold; None where there is one.
        remark: What the interval leaves out; None where it leaves out nothing.
    """

    threshold: float | None
    rate: float
    achieved: float | None
    passing: int | None
    low: float | None
    high: float | None
    decoys_passing: int | None
    n_targets: int
    n_decoys: int
    reason: str | None
    remark: str | None

    @property
    def share(self) -> float | None:
        """Share of targets that pass."""
        return None if self.passing is None else self.passing / self.n_targets


def decoys(
    target_scores: Float[np.ndarray, " target"],
    decoy_scores: Float[np.ndarray, " decoy"],
    rate: float = 0.1,
    target_seeds: Integer[np.ndarray, " target_seed"] | None = None,
    decoy_seeds: Integer[np.ndarray, " decoy_seed"] | None = None,
    seed: int = 0,
    draws: int = 200,
    level: float = 0.95,
) -> Decoys:
    """Return the lowest threshold at which decoys are at most `rate` of what passes, and how many pass.

    At threshold t the estimate is (1 + number of decoys >= t) x (targets / decoys), divided by the number of
    targets >= t. The 1 keeps the bound valid where counts are small: without it, the best of two identical
    groups would pass half of the time. Larger scores are better. NaN passes no threshold and still counts,
    so that in an SAE with more dead latents fewer pass, not more of those that are left.

    **Conservative.** The estimate allows all targets to be false; if only a share pi of them are, the rate
    achieved is about pi x `rate`. **Not conservative** where decoys score lower than a target in which
    nothing was learned, as where the placebo's activations are easier or its scores are of fewer tokens.
    Such differences must be removed before scores are compared.

    The interval is a percentile one. A draw takes SAEs (n - 1 of n seeds with replacement, which is
    unbiased; Rao and Wu 1988) and then latents within them, separately for targets and decoys, and searches
    for the threshold again; where there is none, no target passes. With few seeds the interval has few
    distinct values.

    Args:
        target_scores: Scores of the trained SAE's latents.
        decoy_scores: Scores of the placebo's latents.
        rate: Share of decoys that is allowed.
        target_seeds: SAE of each target; None where all are of one.
        decoy_seeds: SAE (and re-draw) of each decoy; None where all are of one.
        seed: It names the draws.
        draws: Number of draws of the interval.
        level: Level of the interval.

    Raises:
        SpecError: the rate is not between 0 and 1, there is no target or decoy, or a seed is missing.

    Source: Elias and Gygi (2007); the 1 as in He et al. (2015) and Barber and Candes (2015).
    """
    if not 0 < rate < 1:
        raise SpecError(f"a rate of decoys lies between 0 and 1; found {rate}")
    n, m = len(target_scores), len(decoy_scores)
    if not n or not m:
        raise SpecError(f"{n} targets and {m} decoys: needed is one of each at least")
    groups = [_groups(target_scores, target_seeds), _groups(decoy_scores, decoy_seeds)]
    threshold, achieved, passing, least = _search(target_scores, decoy_scores, rate)
    if threshold is None:
        why = f"at no score are decoys {rate:.0%} of what passes or less; the least is {least:.0%}"
        return Decoys(None, rate, None, None, None, None, None, n, m, why, None)
    random = numpy_generator(seed, "decoys", draws)
    shares = np.empty(draws)
    for i in range(draws):
        targets, others = (_drawn(group, random) for group in groups)
        shares[i] = _search(targets, others, rate)[2] / len(targets)
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2]) * n
    return Decoys(
        threshold=threshold,
        rate=rate,
        achieved=achieved,
        passing=passing,
        low=float(low),
        high=float(high),
        decoys_passing=int(np.sum(decoy_scores >= threshold)),
        n_targets=n,
        n_decoys=m,
        reason=None,
        remark=_NO_SEEDS if min(map(len, groups)) < 2 else None,
    )


def _search(
    targets: Float[np.ndarray, " target"], others: Float[np.ndarray, " decoy"], rate: float
) -> tuple[float | None, float | None, int, float]:
    """Return threshold, share of decoys there, number of targets that pass, and least share of all."""
    scores = np.sort(targets[~np.isnan(targets)])[::-1]
    known = np.sort(others[~np.isnan(others)])
    if not len(scores):
        return None, None, 0, 1.0
    # latents with equal scores pass together
    last = np.flatnonzero(np.append(scores[:-1] != scores[1:], True))
    above = len(known) - np.searchsorted(known, scores[last], side="left")
    shares = (1 + above) * (len(targets) / len(others)) / (last + 1)
    ok = np.flatnonzero(shares <= rate)
    least = min(1.0, float(shares.min()))
    if not len(ok):
        return None, None, 0, least
    at = ok[-1]
    return float(scores[last[at]]), float(shares[at]), int(last[at]) + 1, least


def _groups(
    scores: Float[np.ndarray, " latent"], seeds: Integer[np.ndarray, " seed"] | None
) -> list[Float[np.ndarray, " some"]]:
    """Return the scores of each SAE."""
    if seeds is None:
        return [scores]
    if len(seeds) != len(scores):
        raise SpecError(f"{len(scores)} scores with {len(seeds)} seeds: give one for each")
    return [scores[seeds == sae] for sae in np.unique(seeds)]


def _drawn(
    groups: list[Float[np.ndarray, " some"]], random: np.random.Generator
) -> Float[np.ndarray, " latent"]:
    """Return the scores of latents that are drawn within SAEs that are drawn."""
    chosen = groups
    if len(groups) > 1:
        chosen = [groups[i] for i in random.integers(0, len(groups), len(groups) - 1)]
    return np.concatenate([g[random.integers(0, len(g), len(g))] for g in chosen])
