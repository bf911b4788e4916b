"""A sample of latents that get a verdict, drawn evenly from every kind, and shares weighted by it."""

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

    Every stratum gives as many latents as every other, as far as it has them, so that rare kinds are seen.
    A drawn latent stands for the size of its stratum over the number drawn from it; a share of latents is
    then a sum of such weights over their total (Horvitz and Thompson 1952).

    Args:
        strata: The name of each latent's stratum.
        able: The latents that can be tested.
        n: How many latents are drawn; None for all.
        seed: The seed of the draw.
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
    """Return the weighted share of latents for which something holds, and a 95% interval: share, low, high.

    All three are NaN where no latent was drawn. The interval is Wilson's at the effective number of
    latents, (sum w)^2 / sum w^2 (Kish 1965). It takes no credit for what strata explain, so it errs on the
    wide side.

    Args:
        holds: Whether it holds for each drawn latent.
        weights: How many latents each of them stands for.
    """
    total = float(weights.sum())
    if not total:
        return float("nan"), float("nan"), float("nan")
    p = float((weights * holds).sum() / total)
    n = total**2 / float((weights**2).sum())
    return p, *wilson(p * n, n)
