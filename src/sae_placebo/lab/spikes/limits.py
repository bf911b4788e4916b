"""The detection limit says how large and how frequent a feature must be for an SAE to find it.

Spikes over a grid of frequencies and magnitudes are planted, many at a time. Whether each was detected is
fitted by

    logit P(detected) = b0 + b1 log10(frequency) + b2 log10(magnitude),

so that a share s is detected at the magnitude 10^((logit s - b0 - b1 log10 f) / b2). The fit is penalized by
Jeffreys' prior (Firth 1993), with which it exists even where the grid is split cleanly into detected and
missed. Intervals come from a bootstrap over trainings where there are five or more, else over plantings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.lab.spikes.grid import Grid, packed
from sae_placebo.lab.spikes.planting import Spike
from sae_placebo.saes import SAE
from sae_placebo.stats.bootstrap import percentile_interval, resampled_units
from sae_placebo.stats.proportions import wilson

_DRAWS = 300
_LEAST_TRAININGS = 5
_STEPS = 60
_HALVINGS = 12


# --- the curve ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Magnitude:
    """A magnitude with its 95% interval, in units of the activations' rms norm about their mean."""

    value: float
    low: float
    high: float
    extrapolated: float
    """How far the point lies outside the planted frequencies and magnitudes: see `Limit.extrapolated`."""


@dataclass(frozen=True)
class Limit:
    """A fitted detection limit.

    Attributes:
        coefficients: The coefficients b0, b1 (of log10 frequency) and b2 (of log10 magnitude).
        draws: The coefficients of each bootstrap draw.
        frequencies: The least and the largest planted frequency.
        magnitudes: The least and the largest planted magnitude.
        n: Number of plantings.
        n_detected: How many of them were detected.
        unit: What the bootstrap drew.
        certain: Of the plantings to which the fit gives a probability of 95% or more, how many were detected
            and how many there are. A share far below 95% says that the true curve bends where the fit does
            not.
    """

    coefficients: Float64[np.ndarray, " three"]
    draws: Float64[np.ndarray, "draw three"]
    frequencies: tuple[float, float]
    magnitudes: tuple[float, float]
    n: int
    n_detected: int
    unit: Literal["trainings", "plantings"]
    certain: tuple[int, int]

    def probability(
        self, frequency: Float64[np.ndarray, " point"], magnitude: Float64[np.ndarray, " point"]
    ) -> Float64[np.ndarray, " point"]:
        """Return the fitted probability that a spike of each frequency and magnitude is detected."""
        return _expit(_design(frequency, magnitude) @ self.coefficients)

    def magnitude(self, share: float, frequency: float) -> Magnitude:
        """Return the magnitude at which a share of the spikes of a frequency is detected.

        Args:
            share: The probability of detection, between 0 and 1.
            frequency: The probability that a spike is active on a token.

        Raises:
            NotEstimable: larger spikes were not detected more often.
        """
        if not self.coefficients[2] > 0:
            raise NotEstimable("larger spikes were not detected more often, so there is no limit")
        target, x = np.log(share / (1 - share)), np.log10(frequency)

        def solved(b: Float64[np.ndarray, "draw three"]) -> Float64[np.ndarray, " draw"]:
            # the limit of a draw without a rising slope lies beyond every magnitude
            with np.errstate(all="ignore"):
                power = (target - b[:, 0] - b[:, 1] * x) / b[:, 2]
            return np.where(b[:, 2] > 0, 10.0 ** power.clip(-300, 300), np.inf)

        value = float(solved(self.coefficients[None])[0])
        low, high = percentile_interval(solved(self.draws), method="nearest")
        outside = float(self.extrapolated(np.array([frequency]), np.array([value]))[0])
        return Magnitude(value, low, high, outside)

    def extrapolated(
        self, frequency: Float64[np.ndarray, " point"], magnitude: Float64[np.ndarray, " point"]
    ) -> Float64[np.ndarray, " point"]:
        """Return how far points lie outside the planted frequencies and magnitudes, in powers of ten.

        It is the sum of both distances, and 0 for a point inside.
        """
        total = np.zeros(len(frequency))
        for values, (low, high) in (
            (frequency, self.frequencies),
            (magnitude, self.magnitudes),
        ):
            with np.errstate(divide="ignore"):
                power = np.log10(values)
            total += np.maximum(np.log10(low) - power, 0) + np.maximum(power - np.log10(high), 0)
        return total


def limit_of(
    frequencies: Float64[np.ndarray, " planting"],
    magnitudes: Float64[np.ndarray, " planting"],
    detected: Bool[np.ndarray, " planting"],
    trainings: Int64[np.ndarray, " planting"],
    seed: int,
) -> Limit:
    """Return the detection limit of one arm.

    Args:
        frequencies: Frequency of each planting.
        magnitudes: Magnitude of each planting.
        detected: Whether each planting was detected.
        trainings: Number of the training that each planting was in.
        seed: Seed of the bootstrap.

    Raises:
        NotEstimable: all plantings were detected, or none, or there are fewer than ten.
    """
    n, hits = len(detected), int(detected.sum())
    if n < 10 or hits in (0, n):
        raise NotEstimable(
            f"{hits} of {n} spikes were detected, and a limit lies between found and lost: plant "
            f"{'smaller' if hits == n else 'larger'} or more frequent ones, ten or more"
        )
    pairs, cell = np.unique(np.stack([frequencies, magnitudes], 1), axis=0, return_inverse=True)
    design = _design(pairs[:, 0], pairs[:, 1])
    names, training = np.unique(trainings, return_inverse=True)
    grouped = len(names) >= _LEAST_TRAININGS
    unit = training if grouped else np.arange(n)
    n_units = len(names) if grouped else n
    random = numpy_generator(seed, "spike limit")
    # the first sample is the data
    weights = np.ones((_DRAWS + 1, n_units))
    for i, drawn in enumerate(resampled_units(random, n_units, _DRAWS), 1):
        weights[i] = np.bincount(drawn, minlength=n_units)
    inside = np.zeros((n, len(pairs)))
    inside[np.arange(n), cell.ravel()] = 1.0
    each = weights[:, unit]
    coefficients = firth(design, (each * detected) @ inside, each @ inside)
    fitted = coefficients[0]
    sure = _expit(_design(frequencies, magnitudes) @ fitted) >= 0.95
    return Limit(
        coefficients=fitted,
        draws=coefficients[1:],
        frequencies=(float(frequencies.min()), float(frequencies.max())),
        magnitudes=(float(magnitudes.min()), float(magnitudes.max())),
        n=n,
        n_detected=hits,
        unit="trainings" if grouped else "plantings",
        certain=(int(detected[sure].sum()), int(sure.sum())),
    )


def firth(
    design: Float64[np.ndarray, "cell column"],
    hits: Float64[np.ndarray, "sample cell"],
    trials: Float64[np.ndarray, "sample cell"],
) -> Float64[np.ndarray, "sample column"]:
    """Return logistic regression coefficients penalized by Jeffreys' prior, finite even where data separate.

    They are found by Newton steps on the modified score X' (y - p + h (1/2 - p)), where h are the leverages.
    A step is halved until the penalized likelihood does not fall. All samples are fitted at once.

    Args:
        design: One row per cell, the first column all ones. The coefficient of another column that does not
            vary is 0.
        hits: Number of successes of each sample in each cell.
        trials: Number of trials of each sample in each cell.

    Source: Firth (1993); Heinze and Schemper (2002).
    """
    # centered and scaled, so that one step size fits all columns
    center, spread = design[:, 1:].mean(0), design[:, 1:].std(0)
    varies = spread > 1e-12
    scaled = np.where(varies, (design[:, 1:] - center) / np.where(varies, spread, 1), 0.0)
    x = np.concatenate([design[:, :1], scaled], axis=1)
    ridge = 1e-9 * np.eye(x.shape[1])

    def information(p: Float64[np.ndarray, "sample cell"]) -> np.ndarray:
        # as one product: weights times the outer products of rows
        outer = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
        sums: np.ndarray = ((trials * p * (1 - p)) @ outer).reshape(len(p), *ridge.shape)
        return sums + ridge

    def value(b: Float64[np.ndarray, "sample column"]) -> np.ndarray:
        p = _expit(b @ x.T).clip(1e-12, 1 - 1e-12)
        likelihood = (hits * np.log(p) + (trials - hits) * np.log(1 - p)).sum(1)
        return np.asarray(likelihood + np.linalg.slogdet(information(p))[1] / 2)

    beta = np.zeros((len(hits), x.shape[1]))
    current = value(beta)
    for _ in range(_STEPS):
        p = _expit(beta @ x.T).clip(1e-12, 1 - 1e-12)
        inverse = np.linalg.inv(information(p))
        leverage = p * (1 - p) * ((x @ inverse) * x).sum(-1)
        score = (hits - trials * p + trials * leverage * (0.5 - p)) @ x
        step = (inverse @ score[:, :, None])[:, :, 0]
        step *= np.minimum(1.0, 5.0 / np.abs(step).max(1).clip(1e-300))[:, None]
        for _ in range(_HALVINGS):
            new = value(beta + step)
            falls = new < current - 1e-10
            if not falls.any():
                break
            step[falls] /= 2
        beta, current = beta + step, new
        if np.abs(step).max() < 1e-7:
            break
    slopes = np.where(varies, beta[:, 1:] / np.where(varies, spread, 1), 0.0)
    return np.concatenate([beta[:, :1] - (slopes @ center)[:, None], slopes], axis=1)


def _design(
    frequency: Float64[np.ndarray, " point"], magnitude: Float64[np.ndarray, " point"]
) -> Float64[np.ndarray, "point three"]:
    return np.stack([np.ones(len(frequency)), np.log10(frequency), np.log10(magnitude)], axis=1)


def _expit(x: Float64[np.ndarray, "*points"]) -> Float64[np.ndarray, "*points"]:
    probability: np.ndarray = 0.5 * (1 + np.tanh(x / 2))
    return probability


# --- real latents on the curve -----------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """Real latents as points on the curve of a detection limit; arrays over live latents.

    Attributes:
        latents: Indices of the latents.
        rates: Share of tokens on which each latent fires.
        magnitudes: Mean length of what each latent adds where it fires, in units of the activations' rms norm
            about their mean.
        probability: The probability that a spike of this frequency and magnitude is detected.
        extrapolated: How far the point lies outside the planted frequencies and magnitudes, in powers of ten.
    """

    latents: Int64[np.ndarray, " latent"]
    rates: Float64[np.ndarray, " latent"]
    magnitudes: Float64[np.ndarray, " latent"]
    probability: Float64[np.ndarray, " latent"]
    extrapolated: Float64[np.ndarray, " latent"]

    def share_inside(self) -> float:
        """Return the share of latents that lie inside the planted frequencies and magnitudes."""
        return float((self.extrapolated == 0).mean())


def placed(limit: Limit, sae: SAE, x: Float[torch.Tensor, "token d_in"], scale: float) -> Placed:
    """Return the latents of a real SAE as points on the curve of a detection limit.

    A latent that exists was found, so the curve says nothing of it. It says what share of the features of
    that frequency and magnitude an SAE is likely to find.

    Args:
        limit: The detection limit.
        sae: An SAE trained without spikes, in the activations' units.
        x: Held-out activations.
        scale: The activations' rms norm about their mean.

    Raises:
        NotEstimable: no latent fires.
    """
    counts = torch.zeros(sae.d_sae, dtype=torch.float64)
    sums = torch.zeros(sae.d_sae, dtype=torch.float64)
    for part in torch.split(x, 1 << 14):
        codes = sae.encode(part)
        counts += torch.bincount(codes.latents, minlength=sae.d_sae)
        sums.index_add_(0, codes.latents, codes.values.double())
    latents = counts.nonzero()[:, 0]
    if not len(latents):
        raise NotEstimable("no latent fires on these tokens, so none can be placed")
    lengths = sae.params["W_dec"].detach().norm(dim=1).double()
    rates = (counts / len(x))[latents].numpy()
    sizes = (sums / counts.clamp_min(1) * lengths / scale)[latents].numpy()
    return Placed(
        latents=latents.numpy(),
        rates=rates,
        magnitudes=sizes,
        probability=limit.probability(rates, sizes),
        extrapolated=limit.extrapolated(rates, sizes),
    )


# --- whether the curve holds -------------------------------------------------------------------------


@dataclass(frozen=True)
class Verified:
    """How many fresh plantings were detected above a limit, and how many far below it.

    Attributes:
        frequency: Frequency of all plantings.
        above: Magnitude of the plantings above the limit.
        below: Magnitude of the plantings far below it.
        found_above: How many were detected of those above.
        found_below: How many were detected of those below.
        n: Number of plantings on each side.
    """

    frequency: float
    above: float
    below: float
    found_above: int
    found_below: int
    n: int

    def interval_above(self) -> tuple[float, float]:
        """Return the 95% interval of the share that was detected above the limit."""
        return wilson(self.found_above, self.n)

    def interval_below(self) -> tuple[float, float]:
        """Return the 95% interval of the share that was detected far below the limit."""
        return wilson(self.found_below, self.n)

    @property
    def holds(self) -> bool:
        """Whether 95% or more were detected above the limit, and 5% or fewer far below it."""
        return self.found_above >= 0.95 * self.n and self.found_below <= 0.05 * self.n


Recover = Callable[[list[Spike], int], Bool[np.ndarray, " spike"]]
"""A function of spikes and a seed that trains an SAE with them planted and returns which were detected."""


def verified(
    recover: Recover,
    limit: Limit,
    frequency: float,
    seed: int,
    *,
    n: int = 100,
    grid: Grid | None = None,
    margins: tuple[float, float] = (1.25, 1 / 3),
) -> Verified:
    """Plant fresh spikes above a limit and far below it, and return how many of each are detected.

    The magnitude above is `margins[0]` times the upper end of the interval of the magnitude at which 95% are
    detected. The one far below is `margins[1]` times the lower end of the interval of the magnitude at which
    half are. Spikes of both kinds share the trainings.

    Args:
        recover: Trains an SAE and says what it detected.
        limit: The detection limit.
        frequency: Frequency of the spikes.
        seed: Seed of the first training; each next training takes the next integer. None of them may be a
            seed that the limit was fitted with.
        n: Number of plantings on each side.
        grid: Says how spikes are drawn and how many share a training; None takes the defaults.
        margins: Factors of both magnitudes, one above 1 and one below 1.

    Raises:
        NotEstimable: the limit has no finite interval at this frequency.
        SpecError: one spike above the limit has more energy than `grid.energy_share`.
    """
    grid = grid or Grid()
    above = margins[0] * limit.magnitude(0.95, frequency).high
    below = margins[1] * limit.magnitude(0.5, frequency).low
    if not np.isfinite(above) or not below > 0:
        raise NotEstimable(f"the limit at frequency {frequency:g} has no finite interval")
    pairs = [
        grid.spike(frequency, size, f"{side} {k}")
        for k in range(n)
        for side, size in (("above", above), ("below", below))
    ]
    detected = {"above": 0, "below": 0}
    groups = packed(pairs, grid.per_training, grid.energy_share)
    for i, group in enumerate(groups):
        for spike, hit in zip(group, recover(group, seed + i), strict=True):
            detected[spike.name.split()[0]] += bool(hit)
    return Verified(frequency, above, below, detected["above"], detected["below"], n)
