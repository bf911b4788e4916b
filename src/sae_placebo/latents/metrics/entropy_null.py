"""The token entropy of a latent that fires at random positions, which is the null of token entropy.

The plug-in entropy of n draws is at most log2 n and is biased far below the entropy of the source, so that a
latent's token entropy means nothing without the value that n random positions would give. That value is the
expectation over samples without replacement from the held-out positions,

    E[H_n] = log2 n - (1 / n) sum over tokens of E[k log2 k],

with k the number of times that a token with K occurrences among N is drawn. It is computed, not simulated,
with k as binomial(K, n / N). This keeps the thinning of sampling without replacement, and ignores that the
sample's size is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num

# above this expected count, k log2 k is expanded about its mean; the error is below 1e-4 of it
_EXPAND_ABOVE = 64.0
# shares of the positions drawn: three to an octave, down to one in 67 million
_SHARES = np.exp2(-np.arange(78, -1, -1) / 3)


@dataclass(frozen=True)
class EntropyNull:
    """Expected plug-in entropy of n random positions, for each column of document weights."""

    log2_sizes: Float[np.ndarray, "replicate size"]
    bits: Float[np.ndarray, "replicate size"]

    def at(self, n: Float[np.ndarray, "latent replicate"]) -> Float[np.ndarray, "latent replicate"]:
        """Return the null in bits for n positions, n not necessarily whole; NaN stays NaN."""
        null = np.full(n.shape, np.nan)
        wanted = np.log2(np.maximum(n, 1))
        for replicate, (sizes, bits) in enumerate(zip(self.log2_sizes, self.bits, strict=True)):
            if np.isfinite(sizes[0]):
                null[:, replicate] = np.interp(wanted[:, replicate], sizes, bits)
        np.minimum(null, wanted, out=null)  # n positions cannot have more than log2 n bits
        null[np.isnan(n)] = np.nan
        return null


def entropy_null(counts: Num[np.ndarray, "type replicate"]) -> EntropyNull:
    """Return the null for tokens that occur `counts` times in each weighted set of documents."""
    whole = np.rint(counts).astype(np.int64)
    tokens = whole.sum(0)
    # tokens that occur equally often contribute equally, so that there is one term for each number
    distinct, index = np.unique(whole, return_inverse=True)
    replicates = whole.shape[1]
    column = index.reshape(whole.shape) * replicates + np.arange(replicates)
    how_many = np.bincount(column.ravel(), minlength=len(distinct) * replicates)
    terms = _expected_k_log2_k(distinct, _SHARES)
    sums = how_many.reshape(len(distinct), replicates).T.astype(np.float64) @ terms
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = tokens[:, None] * _SHARES
        bits = np.log2(sizes) - sums / sizes
        log2_sizes = np.where(tokens[:, None] > 0, np.log2(sizes), np.nan)
    return EntropyNull(log2_sizes=log2_sizes, bits=np.maximum(bits, 0.0))


def _expected_k_log2_k(
    occurrences: Num[np.ndarray, " distinct"], shares: Float[np.ndarray, " size"]
) -> Float[np.ndarray, "distinct size"]:
    """Return E[k log2 k], in bits, where k is binomial(occurrences, share)."""
    total = occurrences[:, None].astype(np.float64)
    share = np.broadcast_to(shares, (len(total), len(shares)))
    mean = total * share
    left = 1 - share
    out = np.zeros(mean.shape)

    many = mean > _EXPAND_ABOVE
    mu, q, p = mean[many], left[many], share[many]
    out[many] = mu * np.log(mu) + q / 2 - q * (1 - 2 * p) / (6 * mu) + q**2 / (4 * mu)

    few = ~many & (mean > 0) & (left > 0)
    number = np.broadcast_to(total, mean.shape)[few]
    odds = share[few] / left[few]
    chance = np.exp(number * np.log(left[few]))  # at most 64 / share * log(1 - share): no underflow
    expected = np.zeros(number.shape)
    most = int(np.ceil(_EXPAND_ABOVE + 9 * np.sqrt(_EXPAND_ABOVE) + 12))
    for k in range(1, most + 1):
        chance = chance * (np.maximum(number - k + 1, 0) / k) * odds
        expected += chance * (k * np.log(k))
    out[few] = expected

    every = ~many & (left == 0) & (mean > 0)
    out[every] = mean[every] * np.log(mean[every])
    out /= np.log(2)
    return out
