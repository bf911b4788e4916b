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
    """Features whose rates lie between `low` and `high`, both included.

    Attributes:
        low: Lowest rate.
        high: Highest rate.
        n: Features.
        recovered: Those with a cosine above the threshold to some latent.
        share: Their share.
        share_low: Wilson's lower bound.
        share_high: Wilson's upper bound.
        cosine: Mean largest cosine.
        null_share: Mean share that random directions recover.
        null_cosine: Their mean largest cosine.
        null_cosine_sd: Of that, between draws of the random directions.
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
    """Return recovery by bins of rate, rarest first; a bin that no feature falls in is left out.

    Bins are equally wide in log rate. Features that never occur are in none. The null is of as many
    random directions, uniform on the sphere, against the same features.

    Args:
        learned: Decoder rows; lengths do not matter.
        truth: Features and their rates.
        threshold: Cosine above which a feature counts as recovered.
        n_bins: Bins; one alone where all rates agree.
        seed: Names the null's draws.
        draws: Of the null.

    Raises:
        SpecError: no bin, or fewer than 2 draws.
        NotEstimable: no feature ever occurs.
    """
    if n_bins < 1 or draws < 2:
        raise SpecError(f"{n_bins} bins and {draws} draws: needed are 1 or more, and 2 or more")
    rates = truth.rates.double().numpy()
    occurs = rates > 0
    if not occurs.any():
        raise NotEstimable("no feature ever occurs, so none can be recovered")
    best = recovery(learned.float(), truth.dictionary).best_cosine.double().numpy()
    random = generator(seed, "recovery by rate", truth.dictionary.shape[1], len(learned))
    null = np.stack(
        [
            recovery(
                unit_rows(len(learned), truth.dictionary.shape[1], random), truth.dictionary
            ).best_cosine.numpy()
            for _ in range(draws)
        ]
    ).astype(np.float64)
    logs = np.log(np.where(occurs, rates, 1.0))
    low, high = logs[occurs].min(), logs[occurs].max()
    width = max((high - low) / n_bins, 1e-6)
    index = np.where(occurs, np.minimum((logs - low) // width, n_bins - 1), -1)
    found = []
    for at in range(n_bins):
        own = np.flatnonzero(index == at)
        if not len(own):
            continue
        hits = int((best[own] > threshold).sum())
        by_draw = null[:, own].mean(axis=1)
        found.append(
            RateBin(
                float(rates[own].min()),
                float(rates[own].max()),
                len(own),
                hits,
                hits / len(own),
                *wilson(hits, len(own)),
                cosine=float(best[own].mean()),
                null_share=float((null[:, own] > threshold).mean()),
                null_cosine=float(by_draw.mean()),
                null_cosine_sd=float(by_draw.std(ddof=1)),
            )
        )
    return found
