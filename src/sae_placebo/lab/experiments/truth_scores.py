"""Sets of scores that compare an SAE's rows and firings with the features, for any generator."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.experiments.score_sets import SCORE_SETS, Scored, ScoreSet, TrainedOn
from sae_placebo.lab.scores.absorption import Absorbed, absorption, hedging_slope
from sae_placebo.lab.scores.ceilings import ceilings
from sae_placebo.lab.scores.composition import LatentShare, composition
from sae_placebo.lab.scores.detectors import detectors
from sae_placebo.lab.scores.frequencies import recovery_by_rate
from sae_placebo.lab.scores.matching import matching, matching_by_activation
from sae_placebo.lab.scores.null_tables import Atoms, matching_null
from sae_placebo.lab.scores.recovery import support
from sae_placebo.lab.scores.subspaces import subspace_recovery
from sae_placebo.saes import Codes
from sae_placebo.stats.proportions import wilson
from sae_placebo.stats.quantiles import mean_half_width, normal_quantile

_OTHER_LAWS: dict[Atoms, str] = {
    "gaussian": "MCC of random rows with the activations' covariance",
    "data": "MCC of tokens taken as rows",
}
_HOLE_BY_CHANCE = 3.4e-6
"""Probability that a normal deviate exceeds the 4.5 standard errors from which a hole counts."""


def mean_of_units(
    name: str,
    values: Float[np.ndarray, " unit"],
    of: str,
    null: float | None = None,
    best: float | None = None,
) -> Scored:
    """Return a mean over the units whose value is not NaN, with its normal 95% interval."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Scored(name, None, null, best, n=0, of=of, note=f"there are no {of} to average over")
    mean, half = float(known.mean()), mean_half_width(known)
    low, high = (None, None) if math.isnan(half) else (mean - half, mean + half)
    return Scored(name, mean, null, best, low, high, len(known), of)


def _matching(one: TrainedOn) -> list[Scored]:
    rows, truth, seed = one.sae.params["W_dec"], one.draw.truth, one.seed
    found, null = matching(rows, truth), matching_null(truth, one.sae.d_sae, seed)
    scores = [
        mean_of_units("one to one, MCC", found.similarity, "pairs", null.mcc.mean, 1.0),
        Scored("one to one with signs, MCC", found.mcc_signed, null.mcc_signed.mean, 1.0),
        Scored("nearest features per latent", found.uniqueness, null.uniqueness.mean),
    ]
    for law, name in _OTHER_LAWS.items():
        if law == "gaussian" or len(one.draw.x) >= one.sae.d_sae:
            drawn = matching_null(truth, len(rows), seed, atoms=law, x=one.draw.x, draws=4)
            scores.append(Scored(name, drawn.mcc.mean, null.mcc.mean))
    codes = one.sae.encode(one.draw.x)
    by_code = matching_by_activation(codes, one.draw.codes)
    moved = matching_by_activation(_shuffled(codes, seed), one.draw.codes)
    scores.append(
        mean_of_units("codes one to one, MCC", by_code.similarity, "pairs", moved.mcc, 1.0)
    )
    return scores


def _shuffled(codes: Codes, seed: int) -> Codes:
    """Return codes whose tokens are in a random order."""
    order = torch.randperm(codes.n_tokens, generator=generator(seed, "shuffled codes"))
    counts = codes.offsets.diff()[order]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    # the place of each stored value: where its token begins, and how far it is behind that
    behind = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(counts)
    at = codes.offsets[:-1][order].repeat_interleave(counts) + behind
    return Codes(offsets, codes.latents[at], codes.values[at], codes.d_sae)


def _detectors(one: TrainedOn) -> list[Scored]:
    matched = matching(one.sae.params["W_dec"], one.draw.truth)
    found = detectors(one.sae.encode(one.draw.x), one.draw.codes, matched)
    scores = []
    for name, of in (
        ("precision", "precision"),
        ("recall", "recall"),
        ("F1", "f1"),
        ("F1 at the best threshold", "f1_at_threshold"),
    ):
        try:
            mean = found.mean(of)  # type: ignore[arg-type]
        except NotEstimable as lack:
            scores.append(Scored(name, None, note=str(lack)))
            continue
        bounds = mean.low, mean.high
        scores.append(Scored(name, mean.value, mean.null, 1.0, *bounds, mean.n, "latents"))
    pooled = found.support_recall
    numbers = pooled.value, pooled.null, 1.0, pooled.low, pooled.high, pooled.n
    scores.append(Scored("active pairs on which the feature's latent fires", *numbers, "pairs"))
    return scores


def _rates(one: TrainedOn) -> list[Scored]:
    scores = []
    for part in recovery_by_rate(one.sae.params["W_dec"], one.draw.truth, seed=one.seed):
        rates = f"rate {part.low:.2g} to {part.high:.2g}"
        bounds = part.share_low, part.share_high, part.n
        scores.append(
            Scored(f"found, {rates}", part.share, part.null_share, 1.0, *bounds, "features")
        )
        numbers = part.cosine, part.null_cosine, 1.0, None, None, part.n
        scores.append(Scored(f"cosine, {rates}", *numbers, "features"))
    return scores


def _absorption(one: TrainedOn) -> list[Scored]:
    found = absorption(one.sae, one.draw)
    known = [pair for pair in found.pairs if pair.score is not None]
    by_chance = [pair.null_off * pair.null_share for pair in known]
    null = float(np.mean(by_chance)) if known else None
    scores = [
        mean_of_units("absorption", _numbers(known, "score"), "children", null, 0.0),
        mean_of_units(
            "absorption beyond what the parent misses",
            _numbers(known, "excess"),
            "children",
            0.0,
            0.0,
        ),
    ]
    if found.tested:
        n_holes = len(found.holes)
        bounds = wilson(n_holes, found.tested)
        numbers = n_holes / found.tested, _HOLE_BY_CHANCE, 0.0, *bounds, found.tested
        scores.append(Scored("pairs of features with a hole", *numbers, "pairs"))
    return scores


def _numbers(pairs: list[Absorbed], name: str) -> Float[np.ndarray, " pair"]:
    values = [getattr(pair, name) for pair in pairs]
    return np.array([math.nan if value is None else value for value in values])


def _hedging(one: TrainedOn) -> list[Scored]:
    found = hedging_slope(one.sae, one.draw)
    slope = Scored(
        "slope of cosine on correlation",
        found.slope,
        found.null,
        0.0,
        found.low,
        found.high,
        found.n,
        "pairs",
        found.reason,
    )
    if not found.n_sign:
        return [slope]
    share = found.agree / found.n_sign
    bounds = found.sign_low, found.sign_high, found.n_sign
    return [slope, Scored("cosine with the correlation's sign", share, 0.5, 0.5, *bounds, "pairs")]


def _subspaces(one: TrainedOn) -> list[Scored]:
    codes = one.sae.encode(one.draw.x)
    found = subspace_recovery(one.sae.params["W_dec"], one.draw.truth, codes, seed=one.seed)
    similarity = np.nan_to_num(found.similarity)
    return [
        mean_of_units("subspace found", similarity, "features", found.mean_null, 1.0),
        mean_of_units("largest angle, degrees", found.largest_angle, "features served", None, 0.0),
        mean_of_units(
            "latents per feature served",
            found.atoms[found.atoms > 0].astype(np.float64),
            "features served",
            None,
            float(found.dimensions.mean()),
        ),
    ]


def _composition(one: TrainedOn) -> list[Scored]:
    found = composition(one.sae, one.draw, one.seed)
    live, by_chance = found.live, found.random
    scores = [
        _of_latents("composed latents", found.conjunctions(), 0.0),
        _of_latents("atomic latents", found.atomic(), 1.0),
        _of_latents(f"atomic in terms of {found.dictionary}", found.atomic_by_best(), 1.0),
        mean_of_units(
            "order of rows",
            found.order[live],
            "latents",
            float(np.nanmean(found.random_rows.order)),
            1.0,
        ),
        mean_of_units(
            "row not made of features",
            found.unexplained[live],
            "latents",
            float(found.random_rows.unexplained.mean()),
            0.0,
        ),
    ]
    for name, part in (
        ("firing for single features", "main_effect"),
        ("firing for several at once", "conjunction"),
        ("firing for an absence", "complement"),
    ):
        null = getattr(by_chance, part)[live]
        known = float(np.nanmean(null)) if np.isfinite(null).any() else None
        scores.append(mean_of_units(name, getattr(found.firing, part)[live], "latents", known))
    explained, moved = found.firing.explained[live], found.shuffled.explained[live]
    null = float(np.nanmean(moved)) if np.isfinite(moved).any() else None
    scores.append(mean_of_units("firing that features explain", explained, "latents", null, 1.0))
    return scores


def _of_latents(name: str, share: LatentShare, best: float) -> Scored:
    return Scored(name, share.value, share.null, best, share.low, share.high, share.n, "latents")


def _ceilings(one: TrainedOn) -> list[Scored]:
    found, draw = ceilings(one.draw), one.draw
    by_token = ceilings(draw, over="tokens")
    agreed = support(
        one.sae.encode(draw.x), draw.codes, one.sae.params["W_dec"], draw.truth.dictionary
    )
    null, n = agreed.null_recall, found.tokens
    n_pairs = int(draw.codes.offsets[n])
    half = normal_quantile() * math.sqrt(found.omp * (1 - found.omp) / n_pairs)
    scores = [
        Scored(
            "pursuit that knows the truth",
            found.omp,
            null,
            None,
            max(0.0, found.omp - half),
            min(1.0, found.omp + half),
            n_pairs,
            "active pairs",
        ),
        Scored("linear encoder that knows it", found.linear, null, n=n_pairs, of="active pairs"),
        Scored("pursuit, mean over tokens", by_token.omp, null, n=n, of="tokens"),
        Scored("this SAE", agreed.recall, null, found.omp, n=len(draw.codes.values), of="pairs"),
    ]
    if math.isfinite(found.nonnegative):
        name = "pursuit that knows codes are positive as well"
        scores.append(Scored(name, found.nonnegative, null, n=n_pairs, of="active pairs"))
    return scores


for _set in (
    ScoreSet(
        "matching",
        "latents matched to features one to one; null: random rows, or the codes of other tokens",
        _matching,
    ),
    ScoreSet(
        "detectors",
        "how a latent's firing tells its feature's activity; null: independent firing",
        _detectors,
    ),
    ScoreSet(
        "rates",
        "features with a cosine > 0.9 to some latent, by how often they occur; null: random rows",
        _rates,
    ),
    ScoreSet(
        "absorption",
        "parents' latents silent where a child's latent has taken over; null: firing on any tokens "
        "and random rows, or chance alone",
        _absorption,
    ),
    ScoreSet(
        "hedging",
        "latents leaning towards what correlates with their feature; null: other features shuffled",
        _hedging,
    ),
    ScoreSet(
        "subspaces",
        "features of several dimensions and the latents that span them; null: the nearest of random rows",
        _subspaces,
    ),
    ScoreSet(
        "composition",
        "whether latents are features or combinations; null: random directions, or firings of other "
        "tokens",
        _composition,
    ),
    ScoreSet(
        "ceilings",
        "share of active pairs that can be found at all; null: this SAE's firings on other tokens",
        _ceilings,
    ),
):
    SCORE_SETS.add(_set)
