"""Which latents get a verdict where not all of them can: evenly from every kind, with their weights."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from sae_placebo.core.spec import numpy_generator
from sae_placebo.stats.proportions import wilson


def draw(
    strata: Shaped[np.ndarray, " latent"],
    able: Int64[np.ndarray, " able"],
    n: int | None,
    seed: int,
) -> tuple[Int64[np.ndarray, " drawn"], Float64[np.ndarray, " drawn"]]:
    """Return latents drawn evenly from strata, ascending, and how many latents each stands for.

    Every stratum gives as many as every other, as far as it has them: rare kinds are seen. Shares of
    latents are then sums of weights (Horvitz and Thompson 1952).

    Args:
        strata: Name of each latent's stratum.
        able: Latents that can be asked about.
        n: How many to draw; None for all.
        seed: Names the draw.
    """
    if n is None or n >= len(able):
        return np.sort(able), np.ones(len(able))
    random = numpy_generator(seed, "latents that get a verdict")
    able = random.permutation(able)
    names = np.array([str(strata[i]) for i in able])
    rank = np.empty(len(able), dtype=np.int64)
    for name in np.unique(names):
        part = np.flatnonzero(names == name)
        rank[part] = np.arange(len(part))
    # the first of every stratum, then the second of every one, and so on
    taken = np.lexsort((random.random(len(able)), rank))[:n]
    sizes = {name: int((names == name).sum()) for name in np.unique(names)}
    drawn = {name: int((names[taken] == name).sum()) for name in sizes}
    weights = np.array([sizes[name] / drawn[name] for name in names[taken]])
    order = np.argsort(able[taken])
    return able[taken][order], weights[order]


def share(
    holds: Shaped[np.ndarray, " drawn"], weights: Float64[np.ndarray, " drawn"]
) -> tuple[float, float, float]:
    """Return the share of latents for which something holds, with a 95% interval.

    Weighted; the interval is Wilson's at the effective number of latents, (sum w)^2 / sum w^2 (Kish 1965),
    which takes no credit for what strata explain, so that it errs wide.

    Args:
        holds: Of each drawn latent.
        weights: Latents that each stands for.
    """
    total = float(weights.sum())
    if not total:
        return float("nan"), float("nan"), float("nan")
    p = float((weights * holds).sum() / total)
    n = total**2 / float((weights**2).sum())
    return p, *wilson(p * n, n)
