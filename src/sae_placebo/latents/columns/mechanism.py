"""Predictions of a proposal of how random models come to have latents on arbitrary subsets of contexts.

The proposal is this. Random attention returns roughly an average of the tokens before, so that the activation
is the current token's embedding plus such a bag. A random MLP cuts this mixture along random directions, and
a latent along one of them fires within a domain, on a subset of it that no simple rule describes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.spec import numpy_generator
from sae_placebo.latents.classes.classification import ClassThresholds
from sae_placebo.stats.bootstrap import percentile_interval, resampled_units
from sae_placebo.stats.proportions import wilson

Outcome = Literal["holds", "fails", "undecided", "not estimable"]
Found = tuple[float, float, float, str]
"""An estimate, the ends of its interval, and in words what it was computed from."""
_Z95 = 1.959963984540054
_FEWEST_LATENTS = 10
_FEWEST_CELLS = 5
_DRAWS = 2_000


@dataclass(frozen=True)
class Prediction:
    """One prediction, and what was measured about it.

    Attributes:
        name: The prediction's name in tables.
        says: The prediction in words.
        outcome: "holds" where the whole interval is above 0, "fails" where it is below 0, "undecided"
            where the interval holds 0, "not estimable" where there is no estimate.
        estimate: The difference, or rank correlation, that is above 0 if the prediction is right; NaN where
            there is none.
        low: Lower end of the estimate's 95% interval.
        high: Upper end.
        n: What the estimate was computed from, in words.
        reason: Why the outcome is "undecided" or "not estimable"; else empty.
    """

    name: str
    says: str
    outcome: Outcome
    estimate: float
    low: float
    high: float
    n: str
    reason: str = ""


_SAYS = {
    "less_reproducible": "Arbitrary subsets are found again in another SAE seed less often than "
    "single-token latents are.",
    "needs_attention": "They are fewer where attention is ablated.",
    "needs_nonlinearity": "A small MLP on the token's embedding and the bag predicts them inside their "
    "domain better than the best lookup or linear bag.",
    "grows_with_depth": "Their share is larger in the deepest layer than in the shallowest.",
    "grows_with_blocks": "Their share is larger where blocks write more, relative to the embedding.",
}


def mechanism_predictions(
    latents: pandas.DataFrame,
    shares: pandas.DataFrame,
    ablated: Mapping[str, str | None] | None = None,
    seed: int = 0,
    thresholds: ClassThresholds | None = None,
) -> list[Prediction]:
    """Return each prediction with its outcome and the numbers behind it.

    Intervals take latents as independent, which they are not quite: neither documents nor SAE seeds nor
    models are drawn again. An outcome is about these SAEs.

    Args:
        latents: One row per latent, with the columns arm, class, is_arbitrary, seed_r, linear_auc (the
            latent's `domain_auc`) and mlp_auc (`nonlinear_aurocs`), which are NaN where unknown.
            is_arbitrary is `classification.is_arbitrary`, which does not depend on other seeds. The class
            `arbitrary_subset` itself does, so that its reproducibility is below the limit by definition.
            The caller leaves out arms for which the mechanism is not proposed, such as the trained one.
        shares: One row per arm and layer, with the columns arm, layer, n_arbitrary, n_latents and
            block_ratio (norm of what blocks wrote over the norm of the embedding; NaN where unknown).
        ablated: Arms whose attention is ablated, each with the arm that differs from it in attention alone,
            or None where the trial has no such arm. The prediction about attention compares these pairs;
            the other ones are about arms that attend.
        seed: It names the draws of the bootstrap.
        thresholds: `seed_r` is the correlation from which a latent counts as found again.
    """
    limits = thresholds or ClassThresholds()
    ablated = ablated or {}
    attending = shares[~shares["arm"].isin(list(ablated))]
    latents = latents[~latents["arm"].isin(list(ablated))]
    tests: dict[str, Callable[[], Found]] = {
        "less_reproducible": lambda: _reproducible(latents, limits.seed_r),
        "needs_attention": lambda: _attention(shares, ablated),
        "needs_nonlinearity": lambda: _nonlinear(latents, seed),
        "grows_with_depth": lambda: _depth(attending),
        "grows_with_blocks": lambda: _blocks(attending),
    }
    predictions = []
    for name, test in tests.items():
        try:
            estimate, low, high, n = test()
        except NotEstimable as error:
            nothing = (float("nan"),) * 3
            predictions.append(
                Prediction(name, _SAYS[name], "not estimable", *nothing, "0", str(error))
            )
            continue
        outcome: Outcome = "holds" if low > 0 else "fails" if high < 0 else "undecided"
        reason = "the interval holds 0" if outcome == "undecided" else ""
        predictions.append(Prediction(name, _SAYS[name], outcome, estimate, low, high, n, reason))
    return predictions


def _reproducible(latents: pandas.DataFrame, limit: float) -> Found:
    known = latents[latents["seed_r"].notna()]
    subset = known[known["is_arbitrary"].astype(bool)]["seed_r"].to_numpy() >= limit
    single = known[known["class"] == "single_token"]["seed_r"].to_numpy() >= limit
    if min(len(subset), len(single)) < _FEWEST_LATENTS:
        raise NotEstimable(
            f"{len(subset)} arbitrary subsets and {len(single)} single-token latents have a partner "
            f"looked for in another SAE seed; {_FEWEST_LATENTS} of each are needed"
        )
    n = f"{len(single)} single-token latents, {len(subset)} arbitrary subsets"
    return (*_difference(int(single.sum()), len(single), int(subset.sum()), len(subset)), n)


def _attention(shares: pandas.DataFrame, ablated: Mapping[str, str | None]) -> Found:
    if not ablated:
        raise NotEstimable("the trial has no arm whose attention is ablated")
    twins = {arm: twin for arm, twin in ablated.items() if twin is not None}
    if not twins:
        raise NotEstimable(
            f"no arm differs from {', '.join(ablated)} in attention alone; add the arm that its `of` names"
        )
    without = shares[shares["arm"].isin(list(twins))]
    attending = shares[shares["arm"].isin(list(twins.values()))]
    # the same layers on both sides
    attending = attending[attending["layer"].isin(without["layer"])]
    return _of_counts(attending, without, "with attention", "without")


def _nonlinear(latents: pandas.DataFrame, seed: int) -> Found:
    subset = latents[latents["is_arbitrary"].astype(bool)]
    gain = (subset["mlp_auc"] - subset["linear_auc"]).dropna().to_numpy(dtype=np.float64)
    if len(gain) < _FEWEST_LATENTS:
        raise NotEstimable(
            f"{len(gain)} arbitrary subsets have both AUCs; {_FEWEST_LATENTS} are needed"
        )
    draw = numpy_generator(seed, "bootstrap of the gain of an MLP")
    means = gain[resampled_units(draw, len(gain), _DRAWS)].mean(1)
    return float(gain.mean()), *percentile_interval(means), f"{len(gain)} arbitrary subsets"


def _depth(attending: pandas.DataFrame) -> Found:
    layer = attending["layer"]
    if layer.nunique() < 2:
        raise NotEstimable("the trial reads one layer; two are needed")
    deep, shallow = attending[layer == layer.max()], attending[layer == layer.min()]
    return _of_counts(deep, shallow, "in the deepest layer", "in the shallowest")


def _of_counts(more: pandas.DataFrame, fewer: pandas.DataFrame, name: str, rest: str) -> Found:
    """Return how much larger the share of arbitrary subsets is where more are predicted."""
    counts = [int(part[c].sum()) for part in (more, fewer) for c in ("n_arbitrary", "n_latents")]
    if not counts[1] or not counts[3]:
        raise NotEstimable("one side of the comparison has no latents")
    if not counts[0] and not counts[2]:
        raise NotEstimable("there is no arbitrary subset on either side")
    n = f"{counts[0]} of {counts[1]} latents {name}, {counts[2]} of {counts[3]} {rest}"
    return (*_difference(*counts), n)


def _difference(n: int, total: int, other: int, other_total: int) -> tuple[float, float, float]:
    """Return the difference of two shares with its 95% interval (Newcombe 1998, method 10)."""
    p, q = n / total, other / other_total
    (p_low, p_high), (q_low, q_high) = wilson(n, total), wilson(other, other_total)
    low = p - q - float(np.hypot(p - p_low, q_high - q))
    high = p - q + float(np.hypot(p_high - p, q - q_low))
    return p - q, low, high


def _blocks(attending: pandas.DataFrame) -> Found:
    """Return Spearman's correlation over pairs of arm and layer of the share and the ratio of the blocks.

    Its interval is that of Fisher's z (Bonett and Wright 2000).
    """
    from scipy.stats import spearmanr

    cells = attending[attending["block_ratio"].notna()]
    if len(cells) < _FEWEST_CELLS:
        raise NotEstimable(
            f"{len(cells)} pairs of arm and layer have a ratio; {_FEWEST_CELLS} are needed"
        )
    share = (cells["n_arbitrary"] / cells["n_latents"]).to_numpy(dtype=np.float64)
    ratio = cells["block_ratio"].to_numpy(dtype=np.float64)
    if not np.ptp(share) or not np.ptp(ratio):
        raise NotEstimable("the share, or the ratio, is the same in every arm and layer")
    r = float(spearmanr(share, ratio).statistic)
    z = np.arctanh(np.clip(r, -0.999, 0.999))
    half = _Z95 * np.sqrt((1 + r * r / 2) / (len(cells) - 3))
    low, high = np.tanh([z - half, z + half])
    return r, float(low), float(high), f"{len(cells)} pairs of arm and layer"
