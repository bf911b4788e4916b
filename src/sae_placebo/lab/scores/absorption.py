"""Feature absorption and feature hedging: latents that are silent for their feature, or take in others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.core.errors import NotEstimable
from sae_placebo.lab.generators.base import Sample
from sae_placebo.lab.scores.matching import Matching, code_matrix, correlation, matching
from sae_placebo.saes import SAE
from sae_placebo.stats.proportions import wilson
from sae_placebo.stats.quantiles import normal_quantile

_SURE_HOLE = 4.5
_SURE_CORRELATION = 5.0
_FEWEST_TOKENS = 8
_CHUNK_LATENTS = 256
_FEWEST_OTHERS = 3


@dataclass(frozen=True)
class Rate:
    """A share of tokens with Wilson's interval; its numbers are None, with a reason, without tokens."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""


@dataclass(frozen=True)
class Absorbed:
    """How far one child's latent has taken over from the latent of its parent.

    Attributes:
        child: Feature that never occurs without the parent.
        parent: Feature.
        child_latent: Latent whose row is nearest to the child.
        parent_latent: Latent whose row is nearest to the parent.
        off_given_child: Share of the child's tokens on which the parent's latent is silent.
        off_given_parent_only: Share of the tokens with the parent, but none of its children, on which the
            parent's latent is silent: what it misses anyway.
        parent_share: Cosine of the row of the child's latent with the part of the parent that is at right
            angles to the child; a negative one counts as 0.
        score: `off_given_child` times `parent_share`; None, with a reason, where there is none.
        excess: What `off_given_child` exceeds `off_given_parent_only` by, 0 at least, times `parent_share`.
        null_off: Share of all tokens on which the parent's latent is silent, which `off_given_child` would
            be if the latent fired as often, but on any tokens.
        null_share: Mean `parent_share` of random directions.
        reason: Why there is no score; empty if there is one.
    """

    child: int
    parent: int
    child_latent: int
    parent_latent: int
    off_given_child: Rate
    off_given_parent_only: Rate
    parent_share: float
    score: float | None
    excess: float | None
    null_off: float
    null_share: float
    reason: str


@dataclass(frozen=True)
class Hole:
    """A hole is where a feature's latent is silent more often if another feature is there as well.

    Attributes:
        feature: Feature.
        latent: Latent of the feature.
        other: Feature that silences the latent.
        on_without: Share of the tokens with the feature, but not the other, on which the latent fires.
        on_with: Share of the tokens with both features on which the latent fires.
        n_with: Number of tokens with both features.
        z: Difference of the two shares, in standard errors under one pooled rate.
    """

    feature: int
    latent: int
    other: int
    on_without: float
    on_with: float
    n_with: int
    z: float


@dataclass(frozen=True)
class Absorption:
    """What latents have absorbed.

    Attributes:
        pairs: Every child with its parent.
        holes: Holes among all features, deepest first.
        tested: Pairs of features that were searched for holes; chance makes one of about 3e-6 of them.
    """

    pairs: tuple[Absorbed, ...]
    holes: tuple[Hole, ...]
    tested: int

    def mean(self) -> float:
        """Return the mean score over pairs that have one.

        Raises:
            NotEstimable: no pair has a score.
        """
        return _mean([pair.score for pair in self.pairs])

    def mean_excess(self) -> float:
        """Return the mean excess over pairs that have one.

        Raises:
            NotEstimable: no pair has an excess.
        """
        return _mean([pair.excess for pair in self.pairs])


def _mean(scores: list[float | None]) -> float:
    known = [score for score in scores if score is not None]
    if not known:
        raise NotEstimable("no child with a parent has an absorption score")
    return float(np.mean(known))


def absorption(sae: SAE, draw: Sample) -> Absorption:
    """Return which children's latents took over from their parents' latents, and all holes.

    The latent of a feature is the one whose row is nearest to it, among those that fire.

    Source: Chanin et al. (arXiv 2409.14507) for what absorption is. Differs: it is measured on the truth,
    so that neither probe nor ablation is needed.

    Raises:
        NotEstimable: no latent fires on these tokens.
    """
    fires = code_matrix(sae.encode(draw.x), 0.0).tocsc()
    fired = np.diff(fires.indptr)
    if not fired.any():
        raise NotEstimable("no latent fires on these tokens, so nothing can be absorbed")
    active = code_matrix(draw.codes, 0.0).tocsc()
    features = draw.truth.dictionary.double().numpy()
    rows = _unit_decoder(sae)
    cosines = np.where(fired[:, None] > 0, rows @ features.T, -np.inf)
    latent_of = cosines.argmax(axis=0)
    family = draw.truth.coactive()
    children: dict[int, list[int]] = {}
    for child, parent in family:
        children.setdefault(parent, []).append(child)
    pairs = []
    for child, parent in family:
        silent = 1 - fires[:, latent_of[parent]].toarray().ravel()
        others = np.asarray(active[:, children[parent]].sum(axis=1)).ravel() > 0
        alone = (active[:, parent].toarray().ravel() > 0) & ~others
        pairs.append(
            _absorbed(
                (child, parent),
                (int(latent_of[child]), int(latent_of[parent])),
                (
                    _rate(silent[active[:, child].toarray().ravel() > 0], "the child never occurs"),
                    _rate(silent[alone], "the parent never occurs without its children"),
                ),
                (rows, features),
                float(silent.mean()),
            )
        )
    holes, tested = _holes(fires, active, latent_of)
    return Absorption(tuple(pairs), holes, tested)


def _absorbed(
    pair: tuple[int, int],
    latents: tuple[int, int],
    rates: tuple[Rate, Rate],
    directions: tuple[Float[np.ndarray, "latent d_in"], Float[np.ndarray, "feature d_in"]],
    null_off: float,
) -> Absorbed:
    rows, features = directions
    child, parent = features[pair[0]], features[pair[1]]
    given, alone = rates
    row = rows[latents[0]]
    beyond = parent - (parent @ child) * child
    length = float(np.linalg.norm(beyond))
    share = max(0.0, float(row @ beyond) / length) if length > 1e-6 else 0.0
    reason = given.reason
    if latents[0] == latents[1]:
        reason = "one latent is nearest to child and parent, so neither has one of its own"
    score = excess = None
    if not reason and given.value is not None:
        score = given.value * share
        excess = None if alone.value is None else max(0.0, given.value - alone.value) * share
    return Absorbed(
        child=pair[0],
        parent=pair[1],
        child_latent=latents[0],
        parent_latent=latents[1],
        off_given_child=given,
        off_given_parent_only=alone,
        parent_share=share,
        score=score,
        excess=excess,
        null_off=null_off,
        # the mean of max(0, cosine) is half that of the absolute cosine
        null_share=1 / math.sqrt(2 * math.pi * len(row)),
        reason=reason,
    )


def _rate(silent: Float[np.ndarray, " token"], reason: str) -> Rate:
    if not len(silent):
        return Rate(None, None, None, 0, reason)
    hits = float(silent.sum())
    return Rate(hits / len(silent), *wilson(hits, len(silent)), len(silent))


def _holes(
    fires: Any, active: Any, latent_of: Int64[np.ndarray, " feature"]
) -> tuple[tuple[Hole, ...], int]:
    """Return the holes of every feature's latent, and the number of pairs of features that were tested."""
    on = active.multiply(fires[:, latent_of])
    both, hit = (active.T @ active).tocoo(), (on.T @ active).tocsr()
    counts = np.diff(active.indptr).astype(np.float64)
    hits = np.asarray(on.sum(axis=0)).ravel()
    holes, tested = [], 0
    for i, k, n in zip(both.row, both.col, both.data, strict=True):
        without = counts[i] - n
        if i == k or n < _FEWEST_TOKENS or without < _FEWEST_TOKENS:
            continue
        tested += 1
        on_with = float(hit[i, k]) / n
        on_without = float(hits[i] - hit[i, k]) / without
        pooled = hits[i] / counts[i]
        sd = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / without))
        z = (on_without - on_with) / sd if sd > 0 else 0.0
        if z > _SURE_HOLE:
            holes.append(
                Hole(int(i), int(latent_of[i]), int(k), on_without, on_with, int(n), float(z))
            )
    holes.sort(key=lambda hole: (hole.on_with - hole.on_without, -hole.z))
    return tuple(holes), tested


@dataclass(frozen=True)
class HedgingSlope:
    """Whether latents take in part of other features as far as these correlate with their own feature.

    A pair is a latent and a feature that is not its own.

    Attributes:
        slope: Slope through zero, over pairs, of the cosine of the latent's row with the feature on the
            correlation of the feature's codes with those of the latent's own; 0 means no hedging.
        low: Lower bound of the 95% interval, which takes the other features of a latent as exchangeable.
        high: Upper bound.
        null: Mean slope where the other features of each latent are shuffled.
        null_sd: Standard deviation of the slope where they are shuffled; None if there are too few.
        agree: Pairs, of those whose correlation exceeds 5 standard errors, in which the cosine has the
            correlation's sign.
        n_sign: Number of pairs whose correlation exceeds 5 standard errors.
        sign_low: Wilson's lower bound of the share of pairs that agree.
        sign_high: Wilson's upper bound.
        sign_p: Two-sided binomial p of that share being one half. It takes pairs as independent, though two
            features of which each is the other's partner count twice, so it is a screen and no more.
        n: Number of pairs.
        reason: Why there is no interval; empty if there is one.
    """

    slope: float
    low: float | None
    high: float | None
    null: float | None
    null_sd: float | None
    agree: int
    n_sign: int
    sign_low: float | None
    sign_high: float | None
    sign_p: float | None
    n: int
    reason: str


def hedging_slope(sae: SAE, draw: Sample, matched: Matching | None = None) -> HedgingSlope:
    """Return whether latents lean towards features that correlate with their own.

    Over pairs of a latent and a feature that is not its own, x is the correlation of that feature's codes
    with those of the latent's own feature, and y the cosine of the latent's row with that feature. What the
    two features have in common is no hedging, so the part of the row along the latent's own feature is taken
    off first. A latent may point away from its feature and fire for its absence; its row is then turned.

    The null is exact: over all orders of a latent's other features, the sum of products of x and y has mean
    n mean(x) mean(y) and variance S_xx S_yy / (n - 1), with sums of squares about the means. The interval is
    the slope plus and minus 1.96 (the normal 95% quantile) times the same spread of what the slope leaves.

    Args:
        sae: SAE whose decoder rows are read.
        draw: Tokens and their truth.
        matched: Matching of latents and features, of which the nearest feature is a latent's own; None
            matches them by direction.

    Source: Chanin et al. (arXiv 2505.11756) for hedging; the slope is the package's own.

    Raises:
        NotEstimable: no latent that fires is near a feature, or no two features are correlated.
    """
    from scipy.stats import binomtest

    matched = matched or matching(sae.params["W_dec"], draw.truth)
    fired = np.unique(sae.encode(draw.x).latents.numpy())
    latents = fired[matched.nearest[fired] >= 0]
    others = draw.truth.n_features - 1
    if not len(latents) or others < 1:
        raise NotEstimable("no latent that fires is near one of two or more features")
    (sx, sy, sxx, sxy, syy), agree, n_sign = _leanings(sae, draw, latents, matched.nearest[latents])
    if not sxx.sum() > 0:
        raise NotEstimable("no two features are correlated, so hedging has nothing to follow")
    slope = float(sxy.sum() / sxx.sum())
    enough = others >= _FEWEST_OTHERS
    null = spread = half = None
    if enough:
        apart = sxx - sx**2 / others
        null = float((sx * sy / others).sum() / sxx.sum())
        spread = _spread(apart * (syy - sy**2 / others), others, float(sxx.sum()))
        left = (syy - 2 * slope * sxy + slope**2 * sxx) - (sy - slope * sx) ** 2 / others
        half = normal_quantile() * _spread(apart * np.maximum(left, 0), others, float(sxx.sum()))
    bounds = wilson(agree, n_sign) if n_sign else (None, None)
    return HedgingSlope(
        slope=slope,
        low=None if half is None else slope - half,
        high=None if half is None else slope + half,
        null=null,
        null_sd=spread,
        agree=agree,
        n_sign=n_sign,
        sign_low=bounds[0],
        sign_high=bounds[1],
        sign_p=float(binomtest(agree, n_sign).pvalue) if n_sign else None,
        n=len(latents) * others,
        reason="" if enough else "too few other features to shuffle: use the sign test over runs",
    )


def _leanings(
    sae: SAE,
    draw: Sample,
    latents: Int64[np.ndarray, " latent"],
    targets: Int64[np.ndarray, " latent"],
) -> tuple[Float[np.ndarray, "5 latent"], int, int]:
    """Return sums of x, y, x^2, xy and y^2 over each latent's other features, and the counts of signs.

    `targets` are the latents' own features. The counts are of pairs that agree in sign and of pairs whose
    correlation is sure; see `hedging_slope`.
    """
    rows, features = _unit_decoder(sae), draw.truth.dictionary.double().numpy()
    codes = code_matrix(draw.codes).tocsc()
    sums, agree, n_sign = [], 0, 0
    sure = _SURE_CORRELATION / math.sqrt(draw.codes.n_tokens)
    for first in range(0, len(latents), _CHUNK_LATENTS):
        part = rows[latents[first : first + _CHUNK_LATENTS]]
        target = targets[first : first + _CHUNK_LATENTS]
        x = correlation(codes[:, target], codes)
        along = (part * features[target]).sum(axis=1)
        turned = np.where(along < 0, -1.0, 1.0)[:, None]
        y = turned * (part @ features.T - along[:, None] * (features[target] @ features.T))
        other = np.ones(x.shape, dtype=bool)
        other[np.arange(len(part)), target] = False
        x, y = (pairs[other].reshape(len(part), -1) for pairs in (x, y))
        sums.append(np.stack([pairs.sum(axis=1) for pairs in (x, y, x * x, x * y, y * y)]))
        clear = (np.abs(x) > sure) & (y != 0)
        agree += int((np.sign(x[clear]) == np.sign(y[clear])).sum())
        n_sign += int(clear.sum())
    return np.concatenate(sums, axis=1), agree, n_sign


def _spread(products: Float[np.ndarray, " latent"], others: int, scale: float) -> float:
    return math.sqrt(float(products.sum()) / (others - 1)) / scale


def _unit_decoder(sae: SAE) -> Float[np.ndarray, "latent d_in"]:
    rows = sae.params["W_dec"].detach().double().numpy()
    unit: Float[np.ndarray, "latent d_in"] = rows / np.maximum(
        np.linalg.norm(rows, axis=1, keepdims=True), 1e-12
    )
    return unit
