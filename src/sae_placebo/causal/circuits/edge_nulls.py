"""What chance gives an edge: the same statistic of pseudo-targets, which read at random.

A pseudo-target is a random mixture of the target SAE's encoders, so it reads the same subspace with the same
strength, and stands for no latent. It picks its own tokens, those of its largest pre-activations, as many as
a random target fires on. So what picking tokens does to alignments is in the null as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from sae_placebo.causal.use.base import Directions
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import numpy_generator

FEWEST_SOURCES = 20
"""A target is tested if at least so many sources fire with it."""
_IN_STRATUM = 30
"""Strata are made so large that they have about this many sources each."""
_QUARTILES_OF_NORMAL = 1.3489795003921634
"""The distance of the quartiles of a normal distribution, in its standard deviations."""
_TAIL = 0.01
"""Beyond this share of the null's values its tail is fitted, since the values themselves run out."""
_GROUPS = 3
"""Targets are compared with the pseudo-targets in the same third by how many sources they have: the fewer,
the less is known of their center and spread."""


@dataclass(frozen=True, eq=False)
class Readouts:
    """Vectors that read the later activation, and the tokens on which each is active.

    Attributes:
        encoders: Of length 1.
        active: scipy CSC [token, readout] of ones.
    """

    encoders: Float32[np.ndarray, "readout d_in"]
    active: Any

    def __len__(self) -> int:
        return len(self.encoders)


@dataclass(frozen=True, eq=False)
class SourcesOf:
    """The sources that fire with one readout often enough.

    Attributes:
        readout: Which it is.
        n: On how many tokens it is active.
        source: The sources.
        alignment: The scalar product of the readout's encoder, of length 1, and each source's direction.
        mean: Each source's mean amount over the tokens on which the readout is active.
        together: On how many tokens both are active.
    """

    readout: int
    n: int
    source: Int64[np.ndarray, " source"]
    alignment: Float64[np.ndarray, " source"]
    mean: Float64[np.ndarray, " source"]
    together: Int64[np.ndarray, " source"]


def unit_rows(rows: Float[np.ndarray, "any d_in"]) -> Float32[np.ndarray, "any d_in"]:
    """Return rows brought to length 1; rows of zeros stay."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), dtype=np.float32)


def pseudo_targets(
    targets: Readouts, x: Float32[np.ndarray, "token d_in"], n: int, fewest: int, seed: int
) -> Readouts:
    """Return `n` random mixtures of the targets' encoders, each active where its pre-activation is largest.

    Args:
        targets: The targets.
        x: The later activations.
        n: How many are made.
        fewest: Targets that are active on fewer tokens lend no number of tokens.
        seed: The seed of the mixtures and of how many tokens each is active on.

    Raises:
        NotEstimable: no target is active on enough tokens.
    """
    from scipy.sparse import csc_matrix

    counts = np.diff(targets.active.indptr)
    counts = counts[counts >= fewest]
    if not len(counts):
        raise NotEstimable(f"no target is active on {fewest} tokens, so no edge can be tested")
    random = numpy_generator(seed, "pseudo-targets")
    encoders = unit_rows(random.standard_normal((n, len(targets))) @ targets.encoders)
    # no more than half of the tokens: what is active everywhere picks none
    wanted = np.minimum(random.choice(counts, n), len(x) // 2)
    tokens = [
        np.sort(np.argpartition(-(x @ one), k)[:k]) for one, k in zip(encoders, wanted, strict=True)
    ]
    starts = np.concatenate([[0], np.cumsum(wanted)])
    ones = np.ones(starts[-1], dtype=np.float32)
    return Readouts(encoders, csc_matrix((ones, np.concatenate(tokens), starts), shape=(len(x), n)))


def sources_of(
    readouts: Readouts, sources: Directions, together: int, block: int
) -> Iterator[SourcesOf]:
    """Yield each readout's sources, those that fire with it on at least `together` tokens.

    Args:
        readouts: The readouts; those that no source fires with are left out.
        sources: The sources.
        together: How many tokens both must be active on.
        block: So many readouts are held at once.
    """
    amounts = sources.amounts.tocsr()
    held = amounts.astype(bool).astype(np.float32)
    for start in range(0, len(readouts), block):
        active = readouts.active[:, start : start + block].T.tocsr()
        # both products have entries at the same sources: those that a token holds on which it is active
        sums, counts = active @ amounts, active @ held
        sums.sort_indices()
        counts.sort_indices()
        alignment = readouts.encoders[start : start + block] @ sources.vectors.T
        n = np.diff(active.indptr)
        for j in np.flatnonzero(n):
            stored = slice(counts.indptr[j], counts.indptr[j + 1])
            kept = counts.data[stored] >= together
            which = counts.indices[stored][kept].astype(np.int64)
            if len(which):
                yield SourcesOf(
                    readout=start + int(j),
                    n=int(n[j]),
                    source=which,
                    alignment=alignment[j, which].astype(np.float64),
                    mean=sums.data[stored][kept].astype(np.float64) / n[j],
                    together=counts.data[stored][kept].astype(np.int64),
                )


class Standard:
    """The distance of an alignment from what sources like it have, in standard deviations of the target's.

    Alignments are first put in units of what random mixtures of the targets' encoders have with that source.
    The median of a source's stratum, of those with about the same firing rate and mean amount where the
    readout is active, is taken off. The unit is then one for all sources of the readout, by the quartiles of
    what is left: quartiles of a stratum alone would be of too few values.

    Args:
        targets: The targets.
        sources: The sources.
        levels: There are at most so many levels of firing rate, and of mean amount.
    """

    def __init__(self, targets: Readouts, sources: Directions, levels: int) -> None:
        gram = targets.encoders.T.astype(np.float64) @ targets.encoders / len(targets)
        size = np.sqrt(np.maximum(((sources.vectors @ gram) * sources.vectors).sum(1), 0))
        self._size = np.where(size > 0, size, 1)
        self._rate = sources.n_active / sources.amounts.shape[0]
        self._levels = levels

    def __call__(
        self, one: SourcesOf
    ) -> tuple[Float64[np.ndarray, " source"], Float64[np.ndarray, " source"]]:
        """Return z, and the percentage of the other sources of the stratum with a lower alignment.

        Both are NaN where there are too few sources, z also where most have the same alignment.
        """
        m = len(one.source)
        z, percentile = np.full(m, np.nan), np.full(m, np.nan)
        if m < FEWEST_SOURCES:
            return z, percentile
        levels = int(np.clip(np.sqrt(m / _IN_STRATUM), 1, self._levels))
        stratum = _level(self._rate[one.source], levels) * levels
        for level in np.unique(stratum):
            these = stratum == level
            stratum[these] += _level(one.mean[these], levels)
        left = one.alignment / self._size[one.source]
        for cell in np.unique(stratum):
            these = np.flatnonzero(stratum == cell)
            values = left[these]
            percentile[these] = (
                100 * np.searchsorted(np.sort(values), values) / max(len(these) - 1, 1)
            )
            left[these] = values - np.median(values)
        low, high = np.quantile(left, (0.25, 0.75))
        return (left / (high - low) * _QUARTILES_OF_NORMAL if high > low else z), percentile


def _level(values: Float64[np.ndarray, " source"], levels: int) -> Int64[np.ndarray, " source"]:
    """Return each value's level by rank, 0 to `levels` - 1, with about as many values at each level."""
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.argsort(values, kind="stable")] = np.arange(len(values))
    return rank * levels // max(len(values), 1)


class Chance:
    """The distribution of |z| over the sources of pseudo-targets.

    Args:
        found: The z of each pseudo-target's sources; those without are left out.

    Raises:
        NotEstimable: there are no such values.
    """

    def __init__(self, found: list[Float64[np.ndarray, "_"]]) -> None:
        found = [z for z in found if np.isfinite(z).all() and len(z)]
        if len(found) < _GROUPS:
            raise NotEstimable(
                f"{len(found)} pseudo-targets have {FEWEST_SOURCES} sources; {_GROUPS} are needed"
            )
        sizes = np.array([len(z) for z in found])
        self._cuts = np.quantile(sizes, np.arange(1, _GROUPS) / _GROUPS)
        group = np.digitize(sizes, self._cuts)
        every = np.sort(np.abs(np.concatenate(found)))
        self._null = [
            np.sort(
                np.abs(np.concatenate([z for z, g in zip(found, group, strict=True) if g == k]))
            )
            if (group == k).any()
            else every
            for k in range(_GROUPS)
        ]

    def p(self, z: Float64[np.ndarray, " source"]) -> Float64[np.ndarray, " source"]:
        """Return the two-sided p-value of each z of one target's sources.

        This is its rank among the values of pseudo-targets with about as many sources. Beyond the largest
        hundredth of them the tail is taken as a power law, which falls more slowly than a normal one, so that
        p is rather too large (Hill 1975, Annals of Statistics 3:1163).
        """
        null = self._null[int(np.digitize(len(z), self._cuts))]
        size = np.abs(z)
        p = (1 + len(null) - np.searchsorted(null, size)) / (1 + len(null))
        tail = max(int(_TAIL * len(null)), 2)
        start = null[-tail]
        slope = float(np.log(null[-tail:] / start).mean())
        beyond = size > start
        if slope > 0:
            p[beyond] = tail / len(null) * (size[beyond] / start) ** (-1 / slope)
        return np.where(np.isfinite(z), p, np.nan)
