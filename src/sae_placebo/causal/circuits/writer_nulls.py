"""What a part's share in a latent is held against: encoders at its angle, random encoders, other latents."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from sae_placebo.causal.circuits.streams import Part, PartColumns, by_head, read_through


def angle_null(
    blocks: list[PartColumns],
    moved: list[Float64[np.ndarray, "direction _"]],
    e: Float32[np.ndarray, "direction d_in"],
) -> tuple[Float64[np.ndarray, "direction part"], Float64[np.ndarray, "direction part"]]:
    """Return p of each share among encoders at the same angle to the displacement, and their 95th percentile.

    With v the displacement's unit vector, c the cosine and s the sine of the angle, e = c v + s w and
    w uniform across v: share_m = (c v.o_m + s |o_m across v| t) / (c |dx|), o_m what part m's output
    moves by. t, a coordinate of a uniform unit vector in d - 1 dimensions, is Student's with d - 2
    degrees once divided by sqrt((1 - t^2) / (d - 2)).

    Args:
        blocks: Of the stream; the last is the activation itself.
        moved: By block, what its columns move by where each direction is active.
        e: Encoders.
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
    """Return |o|^2, unit . o and e . o of each part's displacement o in the stream."""
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


def pseudo_null(
    shares: Float64[np.ndarray, "direction part"],
    pseudo: Float64[np.ndarray, "pseudo part"],
    parts: tuple[Part, ...],
    n: Int64[np.ndarray, " any"],
) -> tuple[Float64[np.ndarray, "direction part"], ...]:
    """Return percentile among pseudo encoders, family-wise p over parts of a kind, and 95th percentile.

    Each latent is held against those whose tokens are about as many, a quarter of all: shares of few
    tokens scatter more.
    """
    m = len(shares)
    percentile, p, null95 = (np.full(shares.shape, np.nan) for _ in range(3))
    usable = np.isfinite(pseudo).all(1)
    pseudo, n_pseudo = pseudo[usable], n[m:][usable]
    if not len(pseudo):
        return percentile, p, null95
    edges = np.quantile(n_pseudo, (0.25, 0.5, 0.75))
    own = np.digitize(n[:m], edges)
    theirs = np.digitize(n_pseudo, edges)
    families = [
        np.array([part.kind in kinds for part in parts])
        for kinds in (("head",), ("embedding", "mlp"))
    ]
    for stratum in np.unique(theirs):
        null = pseudo[theirs == stratum]
        there = (own == stratum) & np.isfinite(shares[:, 0])
        null95[there] = np.quantile(null, 0.95, axis=0)
        center, scale = null.mean(0), np.maximum(null.std(0), 1e-9)
        for family in families:
            if not family.any() or not there.any():
                continue
            at = np.ix_(there, family)
            z, of_null = ((x - center)[:, family] / scale[family] for x in (shares[there], null))
            largest = np.sort(of_null.max(1))
            p[at] = (1 + len(null) - np.searchsorted(largest, z)) / (1 + len(null))
            percentile[at] = 100 * (of_null[None] < z[:, None]).mean(1)
    return percentile, p, null95


def peers(
    shares: Float64[np.ndarray, "direction part"], n: Int64[np.ndarray, " direction"], most: int
) -> tuple[Float64[np.ndarray, "direction part"], Float64[np.ndarray, "direction part"]]:
    """Return each share's percentile among latents that fire about as often, and their 95th percentile."""
    percentile, null95 = np.full(shares.shape, np.nan), np.full(shares.shape, np.nan)
    there = np.flatnonzero(np.isfinite(shares[:, 0]))
    if len(there) < 11:
        return percentile, null95
    order = there[np.argsort(n[there], kind="stable")]
    ranked = shares[order]
    most = min(most, len(order) - 1)
    for i, latent in enumerate(order):
        start = int(np.clip(i - most // 2, 0, len(order) - most - 1))
        window = np.delete(ranked[start : start + most + 1], i - start, axis=0)
        percentile[latent] = 100 * (window < ranked[i]).mean(0)
        null95[latent] = np.quantile(window, 0.95, axis=0)
    return percentile, null95
