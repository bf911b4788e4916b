"""How much firing depends on where in its row a token is."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.latents.base import Columns, Encoded, Folds
from sae_placebo.latents.latent_blocks import latent_blocks, leave_out, token_groups

N_BINS = 16


def positions(reading: Encoded, folds: Folds) -> Columns:
    """Return how much information about the position a latent's firing has, in bits.

    Columns:
        position_bits: Mutual information, in bits, of a > 0 and the bin of the position in the row
            (`position_bins`, 16 at most); it is never more than the entropy of a > 0. Null 0: the expected
            value of the plug-in estimate for an independent latent, about (bins - 1) / (2 n_tokens ln 2),
            is subtracted, so that values just below 0 occur, and are kept. NaN where the latent never
            fires.

    Source: mutual information of a neuron's state and the position, Voita et al. 2023 (arXiv
    2309.04827). Differs: positions are binned, and the bias is corrected: each of the three entropies
    gets (occupied cells - 1) / (2 n) nats (Miller 1955). For rare latents, whose cells are mostly
    empty, that takes off less than the bias.
    """
    groups = token_groups(reading, folds)
    n_groups = folds.n_groups
    bins = position_bins(reading.tokens.positions)
    n_bins = int(bins.max(initial=0)) + 1
    cells = bins * n_groups + groups
    by_cell = np.bincount(cells, minlength=n_bins * n_groups).astype(np.float64)
    there = leave_out(by_cell.reshape(n_bins, n_groups))
    bits = np.full((reading.d_sae, 1 + n_groups), np.nan)
    for block in latent_blocks(reading):
        counts = block.sums(cells[block.tokens], n_bins * n_groups)
        active = leave_out(counts.reshape(-1, n_bins, n_groups))
        bits[block.latents] = _information(active, there)
    return {"position_bits": bits}


def position_bins(
    places: Int64[np.ndarray, " token"], n_bins: int = N_BINS
) -> Int64[np.ndarray, " token"]:
    """Return the bin of each position: 0 to n_bins - 1 at most, narrow at the start of a row.

    The edges are a geometric series up to the last position, rounded, so that the first bins are single
    positions and later ones grow by an equal ratio. Short rows have fewer bins.
    """
    last = max(int(places.max(initial=1)), 1)
    edges = np.unique(np.round(np.geomspace(1, last + 1, n_bins + 1)).astype(np.int64))
    return np.searchsorted(edges[1:-1], places, "right").astype(np.int64)


def _information(
    active: Float[np.ndarray, "latent bin fold"], there: Float[np.ndarray, "bin fold"]
) -> Float[np.ndarray, "latent fold"]:
    """Return the corrected mutual information of bin and firing, in bits."""
    silent = there - active
    n = there.sum(0)
    marginal = np.stack([active.sum(1), silent.sum(1)], axis=1)
    entropy_bins = _entropy(there[None], n)
    bits = entropy_bins + _entropy(marginal, n) - _entropy(active, n) - _entropy(silent, n)
    occupied = (active > 0).sum(1) + (silent > 0).sum(1)
    corrected = (there > 0).sum(0) - 1 + (marginal > 0).sum(1) - 1 - (occupied - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        bits = bits + corrected / (2 * n * np.log(2))
    return np.where(marginal[:, 0] > 0, bits, np.nan)


def _entropy(
    counts: Float[np.ndarray, "latent cell fold"], n: Float[np.ndarray, " fold"]
) -> Float[np.ndarray, "latent fold"]:
    """Return - sum p log2 p over the cells, where p = count / n."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = counts / n
        logs = np.log2(share, where=share > 0, out=np.zeros_like(share))
    entropy: Float[np.ndarray, "latent fold"] = -(share * logs).sum(1)
    return entropy
