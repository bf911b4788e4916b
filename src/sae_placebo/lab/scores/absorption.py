"""Where a feature's latent is silent although the feature is there, and where latents carry others along."""

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
_CHUNK_LATENTS = 256
_FEWEST_OTHERS = 3


@dataclass(frozen=True)
class Rate:
    """A share of tokens with Wilson's interval; None, and a reason, where there are no tokens."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""


@dataclass(frozen=True)
class Absorbed:
    """One child and its parent.

    Attributes:
        child: Feature.
        parent: Feature.
        child_latent: Latent whose row is nearest to the child.
        parent_latent: Latent whose row is nearest to the parent.
        off_given_child: Share of the child's tokens on which the parent's latent is silent.
        off_given_parent_only: The same on the parent's tokens without any of its children: what the latent
            misses anyway.
        parent_share: Cosine of the child's latent's row to the parent, without what child and parent have
            in common; 0 at least.
        score: `off_given_child` times `parent_share`; None, with a reason, where it cannot be had.
        excess: The same of what `off_given_child` lies above `off_given_parent_only`, 0 at least.
        null_off: Share of silent tokens were the parent's latent to fire as often and anywhere.
        null_share: Mean `parent_share` of random directions.
        reason: Why there is no score.
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
    """A feature's latent, silent more often where another feature is there as well.

    Attributes:
        feature: The feature.
        latent: Its latent.
        other: The feature that silences it.
        on_without: Share of the feature's tokens without the other on which the latent fires.
        on_with: Share with the other.
        n_with: Tokens with both features.
        z: Of the difference.
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
    """What was absorbed.

    Attributes:
        pairs: Every child and its parent.
        holes: Found among all features, deepest first.
        tested: Pairs of features that holes were looked for in; about 3e-6 of them pass by chance.
    """

    pairs: tuple[Absorbed, ...]
    holes: tuple[Hole, ...]
    tested: int

    def mean(self) -> float:
        """Return the mean score over pairs that have one.

        Raises:
            NotEstimable: none has.
        """
        scores = [pair.score for pair in self.pairs if pair.score is not None]
        if not scores:
            raise NotEstimable("no child with a parent has an absorption score")
        return float(np.mean(scores))

    def mean_excess(self) -> float:
        """Return the mean excess over pairs that have one.

        Raises:
            NotEstimable: none has.
        """
        found = [pair.excess for pair in self.pairs if pair.excess is not None]
        if not found:
            raise NotEstimable("no child with a parent has an absorption score")
        return float(np.mean(found))


def absorption(sae: SAE, draw: Sample) -> Absorption:
    """Return which children's latents took over from their parents' latents, and all holes.

    Latents are those whose rows are nearest to the features, among those that fire.

    Source: Chanin et al. (arXiv 2409.14507) for what absorption is; measured on the truth, so that
    neither probe nor ablation is needed.

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
    found, tested = _holes(fires, active, latent_of)
    return Absorption(tuple(pairs), found, tested)


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
        # of max(0, cosine): half of E|cosine|
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
    """Return holes of every feature's latent, and the pairs of features that were looked at."""
    on = active.multiply(fires[:, latent_of])
    both, hit = (active.T @ active).tocoo(), (on.T @ active).tocsr()
    counts = np.diff(active.indptr).astype(np.float64)
    hits = np.asarray(on.sum(axis=0)).ravel()
    found, tested = [], 0
    for i, k, n in zip(both.row, both.col, both.data, strict=True):
        without = counts[i] - n
        if i == k or n < 8 or without < 8:
            continue
        tested += 1
        on_with = float(hit[i, k]) / n
        on_without = float(hits[i] - hit[i, k]) / without
        pooled = hits[i] / counts[i]
        sd = math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / without))
        z = (on_without - on_with) / sd if sd > 0 else 0.0
        if z > _SURE_HOLE:
            found.append(
                Hole(int(i), int(latent_of[i]), int(k), on_without, on_with, int(n), float(z))
            )
    found.sort(key=lambda hole: (hole.on_with - hole.on_without, -hole.z))
    return tuple(found), tested


@dataclass(frozen=True)
class HedgingSlope:
    """Whether latents carry other features along as these correlate with their own.

    Attributes:
        slope: Of cos(d_j, f_i) on corr(a_i, a_match), through zero: with no correlation nothing is carried.
        low: Lower bound of the 95 % interval; latents' other features count as exchangeable.
        high: Upper bound.
        null: Mean slope where each latent's other features are shuffled.
        null_sd: Of that; None: too few pairs to shuffle.
        agree: Pairs, of correlation above 5 standard errors, where the cosine has the correlation's sign.
        n_sign: Such pairs.
        sign_low: Wilson's lower bound of their share.
        sign_high: Wilson's upper bound.
        sign_p: Two-sided binomial p against one half, pairs taken as independent; two features that are
            each other's partner count twice, so take it for a screen.
        n: Pairs of a latent and a feature that is not its own.
        reason: Why there is no interval; empty: there is.
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

    What a latent's own feature has in common with the other one is no hedging: it is taken off the cosine.
    A latent may point away from its feature, and fire for its absence; its row is turned then.

    The null is exact: over all orders of a latent's other features, the sum of products of x and y has mean
    n mean(x) mean(y) and variance S_xx S_yy / (n - 1), with sums of squares about the means. The interval is
    the slope and 1.96 (the normal 95% quantile) times the same spread of what the slope leaves.

    Args:
        sae: The SAE.
        draw: Tokens and their truth.
        matched: Its latents and features; None: by direction. A latent's own feature is the nearest.

    Source: Chanin et al. (arXiv 2505.11756) for hedging; the slope is the package's own.

    Raises:
        NotEstimable: no latent that fires is near a feature, or no two features are correlated.
    """
    from scipy.stats import binomtest

    matched = matched or matching(sae.params["W_dec"], draw.truth)
    fired = np.unique(sae.encode(draw.x).latents.numpy())
    own = fired[matched.nearest[fired] >= 0]
    others = draw.truth.n_features - 1
    if not len(own) or others < 1:
        raise NotEstimable("no latent that fires is near one of two or more features")
    rows, features = _unit_decoder(sae), draw.truth.dictionary.double().numpy()
    codes = code_matrix(draw.codes).tocsc()
    sums, signs = [], np.zeros(2, dtype=np.int64)
    sure = _SURE_CORRELATION / math.sqrt(draw.codes.n_tokens)
    for first in range(0, len(own), _CHUNK_LATENTS):
        latents = own[first : first + _CHUNK_LATENTS]
        target = matched.nearest[latents]
        x = correlation(codes[:, target], codes)
        along = (rows[latents] * features[target]).sum(axis=1)
        turned = np.where(along < 0, -1.0, 1.0)[:, None]
        y = turned * (rows[latents] @ features.T - along[:, None] * (features[target] @ features.T))
        other = np.ones(x.shape, dtype=bool)
        other[np.arange(len(latents)), target] = False
        x, y = (part[other].reshape(len(latents), others) for part in (x, y))
        sums.append(np.stack([part.sum(axis=1) for part in (x, y, x * x, x * y, y * y)]))
        clear = (np.abs(x) > sure) & (y != 0)
        signs += [int((np.sign(x[clear]) == np.sign(y[clear])).sum()), int(clear.sum())]
    sx, sy, sxx, sxy, syy = np.concatenate(sums, axis=1)
    if not sxx.sum() > 0:
        raise NotEstimable("no two features are correlated, so hedging has nothing to follow")
    slope, agree, n_sign = float(sxy.sum() / sxx.sum()), int(signs[0]), int(signs[1])
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
        n=len(own) * others,
        reason="" if enough else "too few other features to shuffle: use the sign test over runs",
    )


def _spread(products: Float[np.ndarray, " latent"], others: int, scale: float) -> float:
    return math.sqrt(float(products.sum()) / (others - 1)) / scale


def _unit_decoder(sae: SAE) -> Float[np.ndarray, "latent d_in"]:
    rows = sae.params["W_dec"].detach().double().numpy()
    found: Float[np.ndarray, "latent d_in"] = rows / np.maximum(
        np.linalg.norm(rows, axis=1, keepdims=True), 1e-12
    )
    return found
