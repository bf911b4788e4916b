"""Activations that hold a token's mean and Gaussian noise, with the mean and covariance of a model's own.

What a metric finds in them, it finds because the space of embeddings is structured: tokens have means, and
nothing else is there. A Gaussian with the same covariance has not even that.

Source: none found that trains SAEs on it; the surrogate data of time series analysis keep second moments and
destroy the rest in the same spirit (Theiler et al. 1992, Physica D 58). Differs: here the means by token are
kept as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.data.rows import Rows
from sae_placebo.models.activations import ActivationBlock, Calibration, within_limits
from sae_placebo.models.gaussian import GaussianReader, SecondMoments, gaussian_draws
from sae_placebo.models.token_tables import (
    N_GROUPS,
    Cells,
    Component,
    Entries,
    GroupSums,
    shrinkage,
)

MOMENT_TOLERANCE = 0.01
"""A relative error of the mean or covariance above this one is said."""


@dataclass(frozen=True)
class Shrunk:
    """One level of a table: the variance between its entries, and how far their means were shrunk to it.

    Attributes:
        component: The variance that was estimated, and that the table is to have.
        by: An entry of n tokens keeps the share n / (n + by) of its deviation; infinite: nothing of it.
    """

    component: Component
    by: float


@dataclass(frozen=True)
class SurrogateLaw:
    """A token's mean plus a Gaussian: the law of the surrogate's activations at one hookpoint.

    Attributes:
        table: [entry + 1, d_in] float32 in model units; the last row, the mean, is what a token has that
            training never saw.
        residual: [d_in, d_in] covariance of the Gaussian, float64.
        tokens: The table's first level.
        pairs: Its second level, on top of the first; None without.
        clipped: Share of the activations' variance in directions in which the table has more variance than
            the activations: the Gaussian cannot take it back, and has none there.
        direction_error: Over the tokens that the component was estimated on: Frobenius norm of the table's
            covariance minus the component's matrix, over that of the matrix. The traces alone are made
            equal; the matrix's own sampling error is in this number.
        moment_errors: The surrogate's mean, its total variance and its covariance under the training
            tokens, from the table and `residual` and not from draws: distance of the mean from the
            activations' over the root of their total variance, difference of the total variances over
            theirs, and Frobenius norm of the difference of the covariances over that of theirs.
        variance: Total variance of the activations.
        n_tokens: Training tokens, outliers left out.
    """

    table: Float[torch.Tensor, "row d_in"]
    residual: Float[torch.Tensor, "d_in d_in"]
    tokens: Shrunk
    pairs: Shrunk | None
    clipped: float
    direction_error: float
    moment_errors: Mapping[str, float]
    variance: float
    n_tokens: int

    @classmethod
    def fitted(cls, moments: SecondMoments, sums: GroupSums, entries: Entries) -> SurrogateLaw:
        """Return the law with the moments of some activations.

        A token's mean is shrunk towards the mean of all, T = mean + s (own - mean) with s = n / (n + l),
        and l is such that the table has the variance between tokens; a pair's mean is then shrunk towards
        its token's entry, to the variance between pairs. The table is moved so that its mean is the
        activations'. The Gaussian has the covariance that is left. Without pairs nothing is left negative:
        means by token have at most the activations' covariance, and shrunk ones less.

        Raises:
            NotEstimable: nothing was counted.
            TextError: as `Cells.component`.
        """
        mean, covariance = moments.mean_and_covariance()
        cells = sums.about(mean - moments.center.double())
        owners = torch.from_numpy(entries.owners)
        by_token = cells.by_token(owners)
        table, tokens = _level(by_token, torch.zeros_like(by_token.means))
        finest, pairs, first = by_token, None, 0
        if len(owners):
            first = len(entries.tokens)
            finest = cells.only(slice(first, None))
            of_pairs, pairs = _level(finest, table[owners])
            table = torch.cat([table, of_pairs])
        weights = cells.n / cells.n.sum()
        table = table - weights @ table
        rows = torch.cat([table + mean, mean[None]]).float()
        away = rows[:-1].double() - mean
        of_table = (away * weights[:, None]).T @ away
        left, clipped = clipped_to_semidefinite(covariance - of_table)
        variance = float(covariance.trace())
        difference = of_table + left - covariance
        errors = {
            "mean": float((weights @ away).norm()) / math.sqrt(variance),
            "variance": abs(float(difference.trace())) / variance,
            "covariance": float(difference.norm() / covariance.norm()),
        }
        off = _direction_error(finest, away[first:])
        return cls(rows, left, tokens, pairs, clipped / variance, off, errors, variance, moments.n)

    def diagnostics(self) -> dict[str, dict[str, Any]]:
        """Return what the law is like, ready for JSON: `value`, `unit`, `n`, `reason`."""
        worst, clipped = max(self.moment_errors.values()), self.clipped
        why = None
        if worst > MOMENT_TOLERANCE:
            why = (
                f"the surrogate's moments are off by up to {worst:.1%}: its table has {clipped:.1%} of "
                "the activations' variance more than they have, in directions that have little"
            )
        found = {
            "surrogate_token_variance": self._component(self.tokens.component),
            "surrogate_token_shrinkage": self._shrinkage(self.tokens),
        }
        if self.pairs is not None:
            found["surrogate_pair_variance"] = self._component(self.pairs.component)
            found["surrogate_pair_shrinkage"] = self._shrinkage(self.pairs)
        last = self.pairs or self.tokens
        return found | {
            "surrogate_direction_error": _entry(
                self.direction_error, "ratio", last.component.n_tokens
            ),
            "surrogate_clipped_share": _entry(clipped, "share", self.n_tokens),
            "surrogate_moment_error": _entry(worst, "ratio", self.n_tokens, why)
            | {"of": dict(self.moment_errors)},
        }

    def _component(self, of: Component) -> dict[str, Any]:
        error = None if of.error is None else of.error / self.variance
        share = of.value / self.variance
        return _entry(share, "share", of.n_tokens) | {"standard_error": error}

    def _shrinkage(self, of: Shrunk) -> dict[str, Any]:
        n = of.component.n_tokens
        if math.isinf(of.by):
            why = (
                "the means of tokens (or of their pairs) are no further apart than chance and documents "
                "put them, so nothing of them is kept"
            )
            return _entry(None, "tokens", n, why)
        return _entry(of.by, "tokens", n)


def _entry(value: float | None, unit: str, n: int, reason: str | None = None) -> dict[str, Any]:
    return {"value": value, "unit": unit, "n": n, "reason": reason}


def _level(cells: Cells, base: torch.Tensor) -> tuple[torch.Tensor, Shrunk]:
    """Return a table relative to the mean, whose entries are shrunk to `base`, in float64; and how far."""
    component, used = cells.component(), cells.repeated
    # an entry that no token was counted of has no mean of its own
    deviation = torch.where(cells.n[:, None] > 0, cells.means - base, 0.0)
    by = shrinkage(base[used], deviation[used], cells.n[used], component.value)
    share = torch.zeros_like(cells.n) if math.isinf(by) else cells.n / (cells.n + by).clamp_min(1)
    return base + share[:, None] * deviation, Shrunk(component, by)


def clipped_to_semidefinite(
    covariance: Float[torch.Tensor, "d_in d_in"],
) -> tuple[Float[torch.Tensor, "d_in d_in"], float]:
    """Return the matrix without its negative eigenvalues, and the sum of their sizes; float64."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    left: torch.Tensor = (vectors * values.clamp_min(0)) @ vectors.T
    return left, float(-values.clamp_max(0).sum())


def _direction_error(cells: Cells, away: torch.Tensor) -> float:
    used = cells.repeated
    weights = cells.n[used] / cells.n[used].sum()
    of_table = (away[used] * weights[:, None]).T @ away[used]
    matrix = cells.component_matrix()
    return float((of_table - matrix).norm() / matrix.norm())


class SurrogateCounting:
    """Counts means by token, or by pair, and second moments, to draw a surrogate in the activations' place.

    For each hookpoint it takes 16 * entries * `d_in` bytes, the surrogate itself a quarter of that; there
    are as many entries as the training text has distinct tokens, and with pairs up to
    `token_tables.MOST_PAIRS` more.

    Args:
        rows: The training rows.
        calibrations: How activations are masked and centered, by hookpoint.
        seed: The trial's seed, by which documents are dealt into groups.
        with_pairs: Whether a token's mean depends on the token before it.
    """

    def __init__(
        self, rows: Rows, calibrations: Mapping[str, Calibration], seed: int, with_pairs: bool
    ) -> None:
        self._rows, self._calibrations = rows, calibrations
        self.entries = Entries.of(rows, with_pairs)
        dealt = numpy_generator(seed, "surrogate", "document groups").permutation(len(rows.names))
        self._groups = torch.from_numpy(dealt % N_GROUPS)
        self._moments = {name: SecondMoments(one.mean) for name, one in calibrations.items()}
        self._sums = {
            name: GroupSums(len(self.entries), len(one.mean)) for name, one in calibrations.items()
        }

    def add(self, block: ActivationBlock) -> None:
        """Count a block of training tokens, norm outliers left out."""
        row, position = block.places.T.numpy()
        ids = self._rows.token_ids
        found = self.entries.find(ids[row, position - 1], ids[row, position])
        entries, groups = torch.from_numpy(found), self._groups[block.documents]
        for name, kept, x in within_limits(block, self._calibrations):
            self._moments[name].add(x)
            centered = x - self._calibrations[name].mean
            self._sums[name].add(entries[kept], groups[kept], centered)

    def state(self) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
        """Yield the moments and the sums of each hookpoint."""
        for name in self._moments:
            yield f"moments {name}", self._moments[name].state()
            yield f"sums {name}", self._sums[name].state()

    def restore(self, part: Callable[[str], Mapping[str, torch.Tensor]]) -> None:
        """Go on counting from a checkpoint's parts."""
        for name in self._moments:
            self._moments[name].restore(part(f"moments {name}"))
            self._sums[name].restore(part(f"sums {name}"))

    def reader(self, seed: int, model_seed: int) -> SurrogateReader:
        """Return what reads the surrogate.

        Raises:
            NotEstimable: nothing was counted.
            TextError: as `Cells.component`.
        """
        laws = {
            name: SurrogateLaw.fitted(self._moments[name], sums, self.entries)
            for name, sums in self._sums.items()
        }
        return SurrogateReader(laws, self.entries, seed, model_seed)


class SurrogateReader:
    """Reads a surrogate where a model's activations would be read; it needs no model.

    The Gaussian's draws are named as `GaussianReader` names them, by both seeds, the hookpoint and the
    row's token ids: a document's activations are the same bits whatever else is read, in any batch and
    order, and rows of the same tokens have the same activations, as a model gives them. Positions, rows and
    hookpoints are independent but for their tokens.

    Args:
        laws: Canonical hookpoint name -> the law of its activations.
        entries: The tables' entries, the same at every hookpoint.
        seed: The trial's seed.
        model_seed: The arm's model seed; another one gives other draws around the same means.
    """

    def __init__(
        self, laws: Mapping[str, SurrogateLaw], entries: Entries, seed: int, model_seed: int
    ) -> None:
        self.laws, self._entries = dict(laws), entries
        draws = {
            name: gaussian_draws(torch.zeros(len(law.residual)), law.residual)
            for name, law in laws.items()
        }
        self.widths = {name: len(law.residual) for name, law in laws.items()}
        self._noise = GaussianReader(draws, self.widths, seed, model_seed, "surrogate")

    @property
    def names(self) -> tuple[str, ...]:
        """Return the hookpoints' names, in the order given."""
        return self._noise.names

    def read(
        self, token_ids: Int64[torch.Tensor, "row pos"]
    ) -> dict[str, Float[torch.Tensor, "row pos d_in"]]:
        """Return draws by hookpoint, in model units, on the CPU.

        A row's first position has no token before it, so no pair; padding gets draws as well.
        """
        entries = torch.from_numpy(self._find(token_ids.cpu().numpy()))
        found = self._noise.read(token_ids)
        return {name: found[name] + self.laws[name].table[entries] for name in found}

    def _find(self, token_ids: np.ndarray) -> np.ndarray:
        previous = np.full_like(token_ids, -1)
        previous[:, 1:] = token_ids[:, :-1]
        return self._entries.find(previous, token_ids)

    def diagnostics(self, heldout: Rows) -> dict[str, dict[str, Any]]:
        """Return each law's diagnostics, and the share of the held-out tokens that have the mean alone.

        With pairs there is also the share of them whose pair has no entry, so that the token's serves.
        """
        found = self._find(heldout.token_ids.astype(np.int64))[heldout.usable()]
        n, own = len(found), len(self._entries.tokens)
        shares = {"surrogate_unseen_share": found == len(self._entries)}
        if len(self._entries.pairs):
            shares["surrogate_unpaired_share"] = (found < own) | (found == len(self._entries))
        of_text = {
            key: _entry(float(flags.mean()), "share", n)
            if n
            else _entry(None, "share", 0, "there is no held-out token")
            for key, flags in shares.items()
        }
        return {name: law.diagnostics() | of_text for name, law in self.laws.items()}
