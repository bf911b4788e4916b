"""The nulls of a part's share in what moves a latent.

Three kinds of other encoders are looked at: those at the same angle to the displacement of the activation,
random ones that pick their own tokens, and those of other latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from sae_placebo.causal.circuits.streams import Part, PartColumns, by_head, read_through


def angle_null(
    blocks: list[PartColumns],
    moved: list[Float64[np.ndarray, "direction _"]],
    e: Float32[np.ndarray, "direction d_in"],
) -> tuple[Float64[np.ndarray, "direction part"], Float64[np.ndarray, "direction part"]]:
    """Return p of each share among encoders at the same angle to the displacement, and their 95th percentile.

    The displacement dx is by how much the activation's mean differs where the latent fires. Let v be dx
    brought to length 1, and c and s the cosine and sine of the angle between the encoder and v. A random
    encoder at this angle is e = c v + s w, with w a uniform unit vector at a right angle to v. The share of
    part m, whose output moves by o_m, is then

        (c v . o_m + s |o_m across v| t) / (c |dx|),

    with o_m across v what is left of o_m without its part along v, and t a coordinate of a uniform unit
    vector in d - 1 dimensions. As t / sqrt((1 - t^2) / (d - 2)) has Student's distribution with d - 2
    degrees of freedom, the distribution of the share is known and nothing is drawn.

    Args:
        blocks: The blocks of the stream; the last is the activation itself.
        moved: By block, by how much its columns differ where each direction is active.
        e: The encoders.
    """
    from scipy.special import stdtr, stdtrit

    dx = moved[-1]
    length = np.linalg.norm(dx, axis=1)
    unit = (dx / np.maximum(length, 1e-30)[:, None]).astype(np.float32)
    e = e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), 1e-30)
    cosine = (e * unit).sum(1, dtype=np.float64)[:, None]
    sine = np.sqrt(np.maximum(1 - cosine**2, 0))
    sizes, along, read = [], [], []
    for block, o in zip(blocks[:-1], moved[:-1], strict=True):
        size, towards, by_encoder = _geometry(block, o.astype(np.float32), unit, e)
        sizes.append(size)
        along.append(towards)
        read.append(by_encoder)
    size, towards, by_encoder = (np.concatenate(x, axis=1) for x in (sizes, along, read))
    across = np.sqrt(np.maximum(size - towards**2, 0))
    df = max(dx.shape[1] - 2, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = np.clip((by_encoder - cosine * towards) / (sine * across), -1, 1)
        p = 1 - stdtr(df, t * np.sqrt(df / np.maximum(1 - t**2, 1e-15)))
        quantile = float(stdtrit(df, 0.95))
        t95 = quantile / np.sqrt(df + quantile**2)
        null95 = (cosine * towards + sine * across * t95) / (cosine * length[:, None])
    nothing = np.full((len(e), 1), np.nan)
    return np.concatenate([p, nothing], axis=1), np.concatenate([null95, nothing], axis=1)


def _geometry(
    block: PartColumns,
    moved: Float32[np.ndarray, "any width"],
    unit: Float32[np.ndarray, "any d_in"],
    encoders: Float32[np.ndarray, "any d_in"],
) -> tuple[Float[np.ndarray, "any head"], ...]:
    """Return |o|^2, unit . o and e . o for the displacement o of each part of a block, in the stream."""
    heads = len(block.parts)
    towards = by_head(read_through(unit, block), moved, heads)
    by_encoder = by_head(read_through(encoders, block), moved, heads)
    if block.output is None:
        return by_head(moved, moved, 1), towards, by_encoder
    weight = block.output.numpy()
    gram = np.einsum("hde,hdf->hef", weight, weight)
    split = moved.reshape(len(moved), heads, -1)
    sizes = [((split[:, h] @ gram[h]) * split[:, h]).sum(1) for h in range(heads)]
    return np.stack(sizes, axis=1), towards, by_encoder


@dataclass(frozen=True, eq=False)
class PseudoNull:
    """Shares held against those of random encoders that pick their own tokens.

    Attributes:
        percentile: The percentage of random encoders for which the part has a smaller share.
        p: The family-wise p-value of each share, over the heads or over all other parts.
        null95: The 95th percentile of the part's share over random encoders.
        made_p: The p-value of the claim that some head or MLP writes the latent more than it writes random
            encoders: the largest distance over heads and MLPs, ranked among the largest of each encoder.
    """

    percentile: Float64[np.ndarray, "direction part"]
    p: Float64[np.ndarray, "direction part"]
    null95: Float64[np.ndarray, "direction part"]
    made_p: Float64[np.ndarray, " direction"]


def pseudo_null(
    shares: Float64[np.ndarray, "direction part"],
    pseudo: Float64[np.ndarray, "pseudo part"],
    parts: tuple[Part, ...],
    n: Int64[np.ndarray, " any"],
) -> PseudoNull:
    """Return how shares compare with those of random encoders that pick their own tokens.

    A latent is compared with the quarter of the random encoders that fire on about as many tokens, since
    shares over few tokens scatter more. Shares are put in standard deviations from the mean of these
    encoders. The percentile is that among encoders for the same part. For p, the share is ranked among the
    largest of each encoder over the heads, or over all other parts.

    Args:
        shares: The shares of the latents.
        pseudo: The shares of the random encoders.
        parts: The parts.
        n: How many tokens each fires on, latents first.
    """
    m = len(shares)
    percentile, p, null95 = (np.full(shares.shape, np.nan) for _ in range(3))
    made_p = np.full(m, np.nan)
    usable = np.isfinite(pseudo).all(1)
    pseudo, n_pseudo = pseudo[usable], n[m:][usable]
    if not len(pseudo):
        return PseudoNull(percentile, p, null95, made_p)
    edges = np.quantile(n_pseudo, (0.25, 0.5, 0.75))
    of_latents = np.digitize(n[:m], edges)
    of_pseudo = np.digitize(n_pseudo, edges)
    heads, others, made = (
        np.array([part.kind in kinds for part in parts])
        for kinds in (("head",), ("embedding", "mlp"), ("head", "mlp"))
    )
    for stratum in np.unique(of_pseudo):
        null = pseudo[of_pseudo == stratum]
        latents = (of_latents == stratum) & np.isfinite(shares[:, 0])
        if not latents.any():
            continue
        null95[latents] = np.quantile(null, 0.95, axis=0)
        center, scale = null.mean(0), np.maximum(null.std(0), 1e-9)
        z, of_null = (shares[latents] - center) / scale, (null - center) / scale
        for family in (heads, others):
            if family.any():
                at = np.ix_(latents, family)
                p[at] = _ranked(z[:, family], of_null[:, family].max(1))
                below = of_null[None][:, :, family] < z[:, None, family]
                percentile[at] = 100 * below.mean(1)
        if made.any():
            made_p[latents] = _ranked(z[:, made].max(1), of_null[:, made].max(1))
    return PseudoNull(percentile, p, null95, made_p)


def _ranked(
    values: Float64[np.ndarray, " *any"], null: Float64[np.ndarray, " pseudo"]
) -> Float64[np.ndarray, " *any"]:
    """Return the p-value of each value among those of the null."""
    at_least = len(null) - np.searchsorted(np.sort(null), values)
    return np.asarray((1 + at_least) / (1 + len(null)))


def peers(
    shares: Float64[np.ndarray, "direction part"], n: Int64[np.ndarray, " direction"], most: int
) -> tuple[Float64[np.ndarray, "direction part"], Float64[np.ndarray, "direction part"]]:
    """Return each share's percentile among latents that fire about as often, and their 95th percentile.

    Args:
        shares: The shares of the latents.
        n: How many tokens each fires on.
        most: How many other latents a latent is compared with, the nearest in the order of `n`. With
            fewer than eleven latents there is no comparison.
    """
    percentile, null95 = np.full(shares.shape, np.nan), np.full(shares.shape, np.nan)
    known = np.flatnonzero(np.isfinite(shares[:, 0]))
    if len(known) < 11:
        return percentile, null95
    order = known[np.argsort(n[known], kind="stable")]
    ranked = shares[order]
    most = min(most, len(order) - 1)
    for i, latent in enumerate(order):
        start = int(np.clip(i - most // 2, 0, len(order) - most - 1))
        window = np.delete(ranked[start : start + most + 1], i - start, axis=0)
        percentile[latent] = 100 * (window < ranked[i]).mean(0)
        null95[latent] = np.quantile(window, 0.95, axis=0)
    return percentile, null95
