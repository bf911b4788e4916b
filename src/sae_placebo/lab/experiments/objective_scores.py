"""Sets of scores that compare an SAE with other codes, another start, simpler methods, and algebra."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab import from_truth, recovery, recovery_null
from sae_placebo.lab.experiments.base import (
    explained_variance,
    fit_on,
    in_training_units,
    scale_of,
)
from sae_placebo.lab.experiments.score_sets import SCORE_SETS, Scored, ScoreSet, TrainedOn
from sae_placebo.lab.experiments.truth_scores import mean_of_units
from sae_placebo.lab.generators.base import unit_rows
from sae_placebo.lab.generators.composed_sets import ComposedSetsSpec
from sae_placebo.lab.generators.solvable_pair import SolvablePairSpec
from sae_placebo.lab.scores.closed_forms import (
    composition_boundary,
    epsilon_star,
    optimum_angle,
    shrinkage,
)
from sae_placebo.lab.scores.inference import best_of_k, duality_gap, nnls, nonnegative_lasso, omp
from sae_placebo.lab.scores.matching import matching
from sae_placebo.lab.scores.references import Kind, reference_dictionary
from sae_placebo.saes import SAE, Codes, ReLUSpec
from sae_placebo.stats.quantiles import mean_half_width

_CODED_TOKENS = 256
"""Best codes are found for this many held-out tokens."""
_FITTED_TOKENS = 4_096
"""Simpler methods are fitted on this many of the tokens that the SAE was trained on."""
_KINDS: tuple[Kind, ...] = ("pca", "ica", "kmeans", "ksvd")


# --- the best codes ----------------------------------------------------------------------------------


def _codes(one: TrainedOn) -> list[Scored]:
    x = one.draw.x[:_CODED_TOKENS]
    centered = x - one.sae.params["b_dec"]
    found = one.sae.encode(x)
    k = max(1, round(len(found.values) / found.n_tokens))
    rows = _unit(one.sae.params["W_dec"])
    random = unit_rows(len(rows), x.shape[1], generator(one.seed, "random rows", *rows.shape))
    reached = explained_variance(x, one.sae.decode(found))
    n, of = len(x), "tokens"
    scores = [
        Scored("explained variance, the SAE's codes", reached, 0.0, n=n, of=of),
        replace(
            _explained("explained variance, best codes, as many", centered, (rows, random), k),
            note=f"{k} per token",
        ),
        _explained("explained variance, any codes >= 0", centered, (rows, random), None),
    ]
    lam = _penalty(one.sae)
    if lam:
        own = found.dense() * one.sae.params["W_dec"].norm(dim=1)
        scores.append(_above_optimum(centered, rows, own, lam))
    return scores


def _above_optimum(
    x: Float[torch.Tensor, "token d_in"],
    rows: Float[torch.Tensor, "atom d_in"],
    codes: Float[torch.Tensor, "token atom"],
    lam: float,
) -> Scored:
    """Return how far above its optimum the objective of codes is; the null is that of no codes at all."""
    name, energy = "objective above its optimum, share of energy", x.double().square().sum(dim=1)
    try:
        best = nonnegative_lasso(x, rows, lam).dense()
    except NotEstimable as lack:
        return Scored(name, None, n=len(x), of="tokens", note=str(lack))
    own, least = (
        (x.double() - c.double() @ rows.double()).square().sum(dim=1) + lam * c.double().sum(dim=1)
        for c in (codes, best)
    )
    scale = float(energy.mean())
    left = float(duality_gap(x, rows, best, lam).mean()) / scale
    by_chance = float((energy - least).mean()) / scale
    gap = mean_of_units(name, ((own - least) / scale).numpy(), "tokens", by_chance, 0.0)
    return replace(gap, note=f"the optimum is known to {max(left, 0.0):.1g}")


def _explained(
    name: str,
    x: Float[torch.Tensor, "token d_in"],
    dictionaries: tuple[Float[torch.Tensor, "atom d_in"], Float[torch.Tensor, "atom d_in"]],
    k: int | None,
) -> Scored:
    """Return what the best codes on rows explain, with random rows as the null; k None is any number."""
    reached = []
    try:
        for rows in dictionaries:
            codes = nnls(x, rows) if k is None else best_of_k(x, rows, k)[0]
            reached.append(explained_variance(x, codes.dense() @ rows))
    except NotEstimable as lack:
        return Scored(name, None, n=len(x), of="tokens", note=str(lack))
    value, null = reached
    return Scored(name, value, null, n=len(x), of="tokens")


def _unit(rows: Float[torch.Tensor, "row d_in"]) -> Float[torch.Tensor, "row d_in"]:
    unit: torch.Tensor = torch.nn.functional.normalize(rows.detach(), dim=1)
    return unit


def _penalty(sae: SAE) -> float | None:
    """Return lambda of |x - x_hat|^2 + lambda sum f, or None where the objective is another."""
    spec = sae.spec
    if not isinstance(spec, ReLUSpec) or spec.coefficient is None:
        return None
    unit = {"sum": 1.0, "mean": sae.d_in, "mean_both": sae.d_in / sae.d_sae}[spec.scaling]
    return float(spec.coefficient * unit)


# --- training that starts at the truth ---------------------------------------------------------------


def _from_truth(one: TrainedOn) -> list[Scored]:
    spec = one.sae.spec
    scaling = scale_of(one.generator, one.lab)
    begin = from_truth(in_training_units(spec, scaling.factor), one.draw, one.seed)
    start = SAE(spec, begin.fold(scaling.mean, scaling.factor).params)
    fits = fit_on(one.generator, {"sae": spec}, one.lab, [one.seed], starts={"sae": start})
    sae, truth = fits["sae", one.seed].sae, one.draw.truth.dictionary
    found = recovery(sae.params["W_dec"], truth)
    null = recovery_null(truth, sae.d_sae, one.seed)
    cosines = found.best_cosine.double().numpy()
    n = len(cosines)
    ev = explained_variance(one.draw.x, sae.decode(sae.encode(one.draw.x)))
    trained = explained_variance(one.draw.x, one.sae.decode(one.sae.encode(one.draw.x)))
    return [
        mean_of_units("feature to latent cosine", cosines, "features", null.mmcs, 1.0),
        Scored("features with a cosine > 0.9", found.share(), null.share, 1.0, n=n, of="features"),
        Scored("explained variance", ev, 0.0, n=len(one.draw.x), of="tokens"),
        Scored("explained variance, random start", trained, 0.0, n=len(one.draw.x), of="tokens"),
    ]


# --- simpler methods ---------------------------------------------------------------------------------


def _references(one: TrainedOn) -> list[Scored]:
    n = min(_FITTED_TOKENS, one.lab.n_tokens)
    x = next(one.generator.stream(n, n, "training", one.seed))
    codes = one.sae.encode(one.draw.x)
    k = max(1, round(len(codes.values) / codes.n_tokens))
    own = recovery(_either_sign(one.sae.params["W_dec"]), one.draw.truth.dictionary)
    held_out = one.draw.x[: 4 * _CODED_TOKENS]
    random = unit_rows(one.sae.d_sae, one.sae.d_in, generator(one.seed, "random reference"))
    null = torch.from_numpy(omp(held_out - x.mean(dim=0), random, k).decode(random.numpy()))
    by_chance = explained_variance(held_out, null + x.mean(dim=0))
    n_features = one.draw.truth.n_features
    own_ev = explained_variance(held_out, one.sae.decode(one.sae.encode(held_out)))
    counted = _of_features("SAE", own.mmcs, one.sae.d_sae, one)
    scores = [counted, _of_tokens("SAE", own_ev, by_chance, len(held_out))]
    for kind in _KINDS:
        try:
            found = reference_dictionary(kind, x, one.sae.d_sae, one.seed, k)
        except NotEstimable as lack:
            scores.append(
                Scored(f"cosine, {kind}", None, n=n_features, of="features", note=str(lack))
            )
            continue
        rows = found.directions
        cosine = recovery(_either_sign(rows), one.draw.truth.dictionary).mmcs
        made = found.decode(found.codes(held_out, min(k, len(rows))))
        scores.append(_of_features(kind, cosine, len(rows), one))
        ev = explained_variance(held_out, made)
        scores.append(_of_tokens(kind, ev, by_chance, len(held_out)))
    return scores


def _of_features(kind: str, cosine: float, n_rows: int, one: TrainedOn) -> Scored:
    truth = one.draw.truth
    null = recovery_null(truth.dictionary, 2 * n_rows, one.seed).mmcs
    return Scored(f"cosine, {kind}", cosine, null, 1.0, n=truth.n_features, of="features")


def _of_tokens(kind: str, ev: float, null: float, n: int) -> Scored:
    return Scored(f"explained variance, {kind}", ev, null, n=n, of="tokens")


def _either_sign(rows: Float[torch.Tensor, "row d_in"]) -> Float[torch.Tensor, "both d_in"]:
    return torch.cat([rows, -rows]).detach()


# --- closed forms ------------------------------------------------------------------------------------


def _closed_forms(one: TrainedOn) -> list[Scored]:
    lam = _penalty(one.sae)
    if lam is None:
        raise NotEstimable(
            f"closed forms are of a ReLU SAE with a fixed penalty, not of {one.sae.spec.kind!r} with "
            "these settings: take --sae relu --sae-set coefficient=0.1"
        )
    scores = _kept(one, lam)
    made = one.generator
    if isinstance(made, SolvablePairSpec):
        scores += _pairs(one, made, lam)
    if isinstance(made, ComposedSetsSpec) and _has_boundary(made):
        boundary = composition_boundary(made.correlation)
        note = "pairs are cheaper above" if lam > boundary else "features are cheaper below"
        scores.append(Scored("lambda, and its boundary", lam, None, boundary, note=note))
    return scores


def _has_boundary(made: ComposedSetsSpec) -> bool:
    """Return whether every token holds a pair, and pairs are drawn as `composition_boundary` assumes."""
    return made.amplitude == "uniform" and made.solo == 0 and made.boost == 0


def _kept(one: TrainedOn, lam: float) -> list[Scored]:
    """Return what is kept of the amplitude of features that are alone on a token."""
    codes: Codes = one.draw.codes
    alone = torch.nonzero(codes.offsets.diff() == 1)[:, 0]
    at = codes.offsets[alone]
    amplitudes = codes.values[at].double().numpy()
    used = np.flatnonzero(amplitudes > 0)
    name = "share of an amplitude that is kept"
    if not len(used):
        return [Scored(name, None, n=0, of="tokens", note="no token holds one feature alone")]
    amplitudes, alone = amplitudes[used], alone[torch.from_numpy(used)]
    rows = one.draw.truth.dictionary[codes.latents[codes.offsets[alone]]]
    made = []
    for sae in (one.sae, one.start):
        decoded = sae.decode(sae.encode(one.draw.x[alone])) - sae.params["b_dec"]
        made.append((decoded * rows).sum(dim=1).double().numpy())
    expected = np.array([r * shrinkage(r, lam) for r in amplitudes])
    value, null, best = (float(x.sum() / amplitudes.sum()) for x in (*made, expected))
    # a ratio of sums, whose error is that of the mean of what it leaves
    half = mean_half_width((made[0] - value * amplitudes) / amplitudes.mean())
    low, high = (None, None) if math.isnan(half) else (value - half, value + half)
    note = "null: before training; best: at right angles to all others, without b_dec"
    return [Scored(name, value, null, best, low, high, len(amplitudes), "tokens", note)]


def _pairs(one: TrainedOn, made: SolvablePairSpec, lam: float) -> list[Scored]:
    """Return how often the child is alone, and the angle of its latent, against the best ones."""
    if not 0 < lam < math.sqrt(2):
        return [
            Scored("angle of the child's latent", None, note=f"lambda is {lam:g}: sqrt 2 or more")
        ]
    star = epsilon_star(lam, made.q)
    features = one.draw.truth.dictionary
    latent_of = matching(one.sae.params["W_dec"], features).best_latent
    rows = _unit(one.sae.params["W_dec"])[torch.from_numpy(latent_of)]
    cosines = (rows[1::2] * features[0::2]).sum(dim=1).double().clamp(-1, 1)
    angles = np.degrees(np.arccos(cosines.numpy()))
    side = "the child is the better row" if made.epsilon > star else "the composite is"
    return [
        Scored("child alone, and where that pays", made.epsilon, None, star, note=side),
        mean_of_units(
            "angle of the child's latent to the parent, degrees",
            angles,
            "pairs",
            90.0,
            optimum_angle(lam, made.q, made.epsilon),
        ),
    ]


for _set in (
    ScoreSet(
        "codes",
        "the best codes on the SAE's own rows beside the encoder's; null: the same on random rows, or no "
        "codes at all",
        _codes,
    ),
    ScoreSet(
        "from_truth",
        "the same training, begun at the truth: what it leaves is the objective's; null: random rows",
        _from_truth,
    ),
    ScoreSet(
        "references",
        "simpler methods with as many rows, of either sign; null: random rows with as many codes",
        _references,
    ),
    ScoreSet(
        "closed_forms",
        "what is best under an L1 penalty, in closed form (best), beside what was learned",
        _closed_forms,
    ),
):
    SCORE_SETS.add(_set)
