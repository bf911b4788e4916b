"""The detection limit: how large, and how frequent, a feature must be for an SAE to find it.

Many spikes over a grid of frequencies and magnitudes are planted, many at a time, and what was detected is
fitted by

    logit P(detected) = b0 + b1 log10(frequency) + b2 log10(magnitude),

so that the magnitude at which a share s is found is 10^((logit s - b0 - b1 log10 f) / b2). The fit is
penalized by Jeffreys' prior (Firth 1993), with which it exists also where the grid is split cleanly into
found and lost. Intervals are of the bootstrap over trainings where there are five or more, else over
plantings.
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
from sae_placebo.lab.spikes.plant import Spike
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
    """A magnitude with its interval, and how far outside what was planted it lies."""

    value: float
    low: float
    high: float
    extrapolated: float
    """In powers of ten, over frequency and magnitude together; 0 inside the planted rectangle."""


@dataclass(frozen=True)
class Limit:
    """A fitted detection limit.

    Attributes:
        coefficients: b0, b1 and b2, of log10 frequency and log10 magnitude.
        draws: The same, of bootstrap draws.
        frequencies: Least and largest planted.
        magnitudes: The same.
        n: Plantings.
        n_detected: How many were detected.
        unit: What was drawn again for the interval.
        certain: Plantings to which the fit gives 95% or more: detected, and how many. Far below 95% it says
            that the curve bends where the fit does not.
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
        """Return the fitted probability of being detected."""
        found: np.ndarray = _expit(_design(frequency, magnitude) @ self.coefficients)
        return found

    def magnitude(self, share: float, frequency: float) -> Magnitude:
        """Return the magnitude from which a share of the spikes of a frequency is found.

        Raises:
            NotEstimable: larger spikes are not found more often.
        """
        if not self.coefficients[2] > 0:
            raise NotEstimable("larger spikes were not detected more often, so there is no limit")
        target, x = np.log(share / (1 - share)), np.log10(frequency)

        def solved(b: Float64[np.ndarray, "some three"]) -> Float64[np.ndarray, " some"]:
            # where a draw has no slope its limit lies beyond every magnitude
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
        """Return how far points lie outside the planted rectangle, in powers of ten; 0 inside."""
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
        frequencies: Of each planting.
        magnitudes: Of each planting.
        detected: Whether each was.
        trainings: Which training it was in.
        seed: Of the bootstrap.

    Raises:
        NotEstimable: all were detected, or none, or fewer than ten were planted.
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
    picked = resampled_units(random, n_units, _DRAWS)
    # the first sample is the data
    weights = np.ones((_DRAWS + 1, n_units))
    for i, one in enumerate(picked, 1):
        weights[i] = np.bincount(one, minlength=n_units)
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
    """Return logistic regression coefficients penalized by Jeffreys' prior: finite also when separated.

    Newton steps on the modified score X' (y - p + h (1/2 - p)), h the leverages, halved until the
    penalized likelihood does not fall; all samples side by side.

    Args:
        design: One row per cell; the first column is 1. The coefficient of another column that does not
            vary is 0.
        hits: Of each sample in each cell.
        trials: The same.

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
        found: np.ndarray = ((trials * p * (1 - p)) @ outer).reshape(len(p), *ridge.shape) + ridge
        return found

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
    found: np.ndarray = 0.5 * (1 + np.tanh(x / 2))
    return found


# --- real latents on the curve -----------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """Real latents as if each stood for a spike of its own rate and size; arrays over live latents.

    Attributes:
        latents: Which ones.
        rates: Share of tokens on which each fires.
        magnitudes: Mean code where it fires, over the activations' rms norm about their mean.
        probability: What the limit gives for a spike of that rate and size.
        extrapolated: How far outside what was planted, in powers of ten.
    """

    latents: Int64[np.ndarray, " latent"]
    rates: Float64[np.ndarray, " latent"]
    magnitudes: Float64[np.ndarray, " latent"]
    probability: Float64[np.ndarray, " latent"]
    extrapolated: Float64[np.ndarray, " latent"]

    def share_inside(self) -> float:
        """Return the share of the latents that lie inside what was planted."""
        return float((self.extrapolated == 0).mean())


def placed(limit: Limit, sae: SAE, x: Float[torch.Tensor, "token d_in"], scale: float) -> Placed:
    """Return a real SAE's latents on the curve.

    A latent that exists was found, so the curve says nothing of it; it says how many features of that rate
    and size are likely to be missing.

    Args:
        limit: The curve.
        sae: Trained without spikes, in the activations' units.
        x: Held-out activations.
        scale: The unit of magnitudes.

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
    """Fresh plantings on both sides of a limit.

    Attributes:
        frequency: Of all of them.
        above: Magnitude above the limit.
        below: Magnitude far below it.
        found_above: Detected of those above.
        found_below: Detected of those below.
        n: Plantings on each side.
    """

    frequency: float
    above: float
    below: float
    found_above: int
    found_below: int
    n: int

    def interval_above(self) -> tuple[float, float]:
        """Return the interval of the share found above."""
        return wilson(self.found_above, self.n)

    def interval_below(self) -> tuple[float, float]:
        """Return the interval of the share found below."""
        return wilson(self.found_below, self.n)

    @property
    def holds(self) -> bool:
        """Whether 95% or more were found above, and 5% or fewer below."""
        return self.found_above >= 0.95 * self.n and self.found_below <= 0.05 * self.n


Recover = Callable[[list[Spike], int], Bool[np.ndarray, " spike"]]
"""Trains one SAE with spikes planted, by a seed, and returns which of them were detected."""


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
    """Return how many of `n` fresh plantings above the limit are found, and of `n` far below it.

    Above is `margins[0]` times the upper end of the interval of the magnitude at which 95% are found; far
    below is `margins[1]` times the lower end of the interval of the one at which half are. Both kinds share
    the trainings, half and half.

    Args:
        recover: Trains and judges; no seed that the curve was made with may be met again.
        limit: The curve.
        frequency: Of the spikes.
        seed: Of the first training; the next ones follow.
        n: Plantings on each side.
        grid: Laws of the spikes, most spikes and most energy in a training.
        margins: Factors, above 1 and below 1.

    Raises:
        NotEstimable: the curve has no limit at this frequency.
        SpecError: a spike above the limit is more than may be planted at a time.
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
    found = {"above": 0, "below": 0}
    groups = packed(pairs, grid.per_training, grid.energy_share)
    for i, group in enumerate(groups):
        for spike, hit in zip(group, recover(group, seed + i), strict=True):
            found[spike.name.split()[0]] += bool(hit)
    return Verified(frequency, above, below, found["above"], found["below"], n)
