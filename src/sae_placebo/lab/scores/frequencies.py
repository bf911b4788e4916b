"""Which features are found, by how often they occur."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GeneratorTruth, unit_rows
from sae_placebo.lab.scores.recovery import recovery
from sae_placebo.stats.proportions import wilson


@dataclass(frozen=True)
class RateBin:
    """How many features are recovered whose rates lie between `low` and `high`, both included.

    Attributes:
        low: Lowest rate of a feature in the bin.
        high: Highest rate.
        n: Number of features.
        recovered: Number of features with a cosine above the threshold to some latent.
        share: Share of features that are recovered.
        share_low: Wilson's lower bound of the share.
        share_high: Wilson's upper bound.
        cosine: Mean over features of the largest cosine to a latent.
        null_share: Mean share of features that random directions recover.
        null_cosine: Mean over features of the largest cosine to a random direction.
        null_cosine_sd: Standard deviation of `null_cosine` between draws of the random directions.
    """

    low: float
    high: float
    n: int
    recovered: int
    share: float
    share_low: float
    share_high: float
    cosine: float
    null_share: float
    null_cosine: float
    null_cosine_sd: float


def recovery_by_rate(
    learned: Float[torch.Tensor, "latent d_in"],
    truth: GeneratorTruth,
    *,
    threshold: float = 0.9,
    n_bins: int = 6,
    seed: int = 0,
    draws: int = 8,
) -> list[RateBin]:
    """Return the recovery of features in bins of rate, rarest first; empty bins are left out.

    Bins are equally wide in log rate. Features that never occur are in none. The null is that of as many
    random directions as there are latents, uniform on the sphere, on the same features.

    Args:
        learned: Decoder rows; lengths do not matter.
        truth: Features and their rates.
        threshold: Cosine above which a feature counts as recovered.
        n_bins: Number of bins; there is one where all rates agree.
        seed: Names the draws of the null.
        draws: Draws of the null, 2 or more.

    Raises:
        SpecError: there is no bin, or there are fewer than 2 draws.
        NotEstimable: no feature ever occurs.
    """
    if n_bins < 1 or draws < 2:
        raise SpecError(f"{n_bins} bins and {draws} draws: needed are 1 or more, and 2 or more")
    rates = truth.rates.double().numpy()
    occurs = rates > 0
    if not occurs.any():
        raise NotEstimable("no feature ever occurs, so none can be recovered")
    best = recovery(learned.float(), truth.dictionary).best_cosine.double().numpy()
    d_in = truth.dictionary.shape[1]
    random = generator(seed, "recovery by rate", d_in, len(learned))
    directions = (unit_rows(len(learned), d_in, random) for _ in range(draws))
    null = np.stack(
        [recovery(rows, truth.dictionary).best_cosine.numpy() for rows in directions]
    ).astype(np.float64)
    logs = np.log(np.where(occurs, rates, 1.0))
    low, high = logs[occurs].min(), logs[occurs].max()
    width = max((high - low) / n_bins, 1e-6)
    index = np.where(occurs, np.minimum((logs - low) // width, n_bins - 1), -1)
    bins = []
    for at in range(n_bins):
        members = np.flatnonzero(index == at)
        if not len(members):
            continue
        hits = int((best[members] > threshold).sum())
        by_draw = null[:, members].mean(axis=1)
        bins.append(
            RateBin(
                float(rates[members].min()),
                float(rates[members].max()),
                len(members),
                hits,
                hits / len(members),
                *wilson(hits, len(members)),
                cosine=float(best[members].mean()),
                null_share=float((null[:, members] > threshold).mean()),
                null_cosine=float(by_draw.mean()),
                null_cosine_sd=float(by_draw.std(ddof=1)),
            )
        )
    return bins
