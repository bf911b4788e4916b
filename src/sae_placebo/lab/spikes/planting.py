"""Spikes are known features that are planted into real activations.

A spike is a direction that is added to the activations of some tokens. On which tokens, and how much, is
drawn by a hash of (seed, spike, document, position). So a token gets the same spikes whenever and in whatever
order it is read, in training and held out, and every arm gets the same plan.

**Units.** A magnitude is in units of the activations' rms norm about their mean, sqrt(E |x - mean|^2),
without outliers where the caller leaves them out; `Planting.scale` is that number. A spike of magnitude 1 is
as long as a typical activation is far from the mean.

Spikes must have little energy and be nearly at right angles, or they change what is measured of each other:
`Planting.energy_share` and `Planting.largest_cosine` say how little and how nearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt64
from pydantic import Field

from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import Spec, generator
from sae_placebo.lab.generators.base import GeneratorTruth, compose
from sae_placebo.lab.spikes.keys import TokenKeys, uniforms
from sae_placebo.saes import Codes

LOG_SPREAD = 0.5
"""Standard deviation of the logarithm of a lognormal amplitude."""

_SQUARABLE = 1e150
"""Squares of numbers below it are floats."""


class Spike(Spec):
    """One planted feature."""

    name: str = Field(min_length=1)
    """Name of the spike; direction, tokens and amplitudes are drawn by it, not by the place in a list."""
    frequency: float = Field(gt=0, lt=1)
    """Probability that the spike is active on a token; with `token_ids`, on a token that is none of them."""
    magnitude: float = Field(gt=0)
    """Mean length where it is active, in units of the activations' rms norm about their mean."""
    amplitude: Literal["constant", "uniform", "lognormal"] = "constant"
    """Law of the length over its mean: always 1, uniform on [0, 2], or exp(0.5 z - 0.125) for normal z."""
    parent: str | None = None
    """Name of an earlier spike in the list, without which this one never occurs. `frequency` stays the
    probability on a token, so it is active on frequency / (parent's frequency) of the parent's tokens."""
    beside: str | None = None
    """Name of an earlier spike in the list, with which the occurrence of this one is correlated."""
    correlation: float = Field(0.0, ge=-1, le=1)
    """Pearson correlation (phi) of the occurrences of this spike and of `beside`."""
    token_ids: tuple[int, ...] = ()
    """Ids of the tokens on which the spike is active with the probability `token_frequency`."""
    token_frequency: float | None = Field(None, ge=0, le=1)
    """Probability that the spike is active on a token whose id is in `token_ids`."""
    dimension: Literal[1, 2] = 1
    """Number of dimensions; a spike of 2 is a circle, a plane in which the angle is uniform."""
    direction: Literal["isotropic", "covariance"] = "isotropic"
    """Law of the direction: uniform on the sphere, or a normalized draw with the activations' covariance."""

    def squared_amplitude(self) -> float:
        """Return the mean square of the amplitude over its squared mean."""
        spread = {"constant": 1.0, "uniform": 4 / 3, "lognormal": math.exp(LOG_SPREAD**2)}
        return spread[self.amplitude]

    @property
    def energy(self) -> float:
        """The spike's mean square over that of the activations about their mean; inf beyond all floats."""
        squared = self.magnitude**2 if self.magnitude < _SQUARABLE else math.inf
        return self.frequency * self.squared_amplitude() * squared


# --- the plan ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planting:
    """Spikes with their directions and a scale: all that is needed to plant them.

    Attributes:
        spikes: The spikes; one that names another comes after it.
        seed: Seed of directions, tokens and amplitudes.
        dictionary: Directions of length 1, in the order of the spikes: a row per spike, two for a circle.
        scale: The activations' rms norm about their mean.
    """

    spikes: tuple[Spike, ...]
    seed: int
    dictionary: Float32[torch.Tensor, "feature d_in"]
    scale: float

    @classmethod
    def of(
        cls,
        spikes: Sequence[Spike],
        seed: int,
        d_in: int,
        scale: float,
        covariance: Float64[np.ndarray, "d_in d_in"] | None = None,
        orthogonal: bool = True,
    ) -> Planting:
        """Draw directions for spikes, and return the plan.

        Args:
            spikes: The spikes.
            seed: Seed of directions, tokens and amplitudes.
            d_in: Width of the activations.
            scale: The activations' rms norm about their mean.
            covariance: The activations' covariance, which is needed where a direction is drawn from it.
            orthogonal: Whether isotropic directions are made orthogonal to those before. Each one stays
                uniform on the sphere. Directions from the covariance are left as drawn.

        Raises:
            SpecError: two spikes share a name, one names a spike that does not come before it, a
                probability would leave [0, 1], there are more orthogonal directions than half of d_in, or a
                covariance is needed and none of the right size is given.
        """
        _check(spikes)
        rows: list[torch.Tensor] = []
        isotropic: list[torch.Tensor] = []
        for spike in spikes:
            drawn = torch.randn(
                spike.dimension, d_in, generator=generator(seed, "spike direction", spike.name)
            )
            drawn = drawn.double()
            if spike.direction == "covariance":
                drawn = drawn @ torch.from_numpy(_root(covariance, d_in))
            elif orthogonal:
                for other in isotropic:
                    drawn = drawn - (drawn @ other)[:, None] * other
            frame = torch.linalg.qr(drawn.t()).Q.t()
            frame = frame * (frame * drawn).sum(1, keepdim=True).sign()
            rows += list(frame)
            isotropic += list(frame) if spike.direction == "isotropic" else []
        if orthogonal and len(isotropic) > d_in // 2:
            raise SpecError(
                f"{len(isotropic)} orthogonal directions in {d_in} dimensions leave no room for the "
                f"activations: plant {d_in // 2} or fewer at a time, or pass orthogonal=False"
            )
        dictionary = torch.stack(rows).float() if rows else torch.zeros(0, d_in)
        return cls(tuple(spikes), seed, dictionary, float(scale))

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Indices of the dictionary's rows that belong to each spike."""
        ends = np.cumsum([spike.dimension for spike in self.spikes])
        return tuple(
            tuple(range(int(end) - spike.dimension, int(end)))
            for spike, end in zip(self.spikes, ends, strict=True)
        )

    @property
    def energy_share(self) -> float:
        """Mean square of what is planted, over the mean square of the activations about their mean.

        It is computed as if no two spikes met on a token, and with `frequency` where `token_ids` are given,
        since their share of the tokens is not known here.
        """
        return sum(spike.energy for spike in self.spikes)

    @property
    def largest_cosine(self) -> float:
        """Largest |cosine| between directions of two spikes; 0 where there are fewer than two spikes."""
        cosines = (self.dictionary @ self.dictionary.t()).abs()
        for rows in self.rows:
            cosines[np.ix_(rows, rows)] = 0
        return float(cosines.max()) if len(cosines) else 0.0

    def pointing(self, dictionary: Float32[torch.Tensor, "feature d_in"]) -> Planting:
        """Return the same plan with other directions, such as what a model made of the planted ones."""
        return replace(self, dictionary=dictionary)

    def active(self, keys: TokenKeys) -> list[Bool[np.ndarray, " token"]]:
        """Return, for each spike, whether it is active on each token."""
        hashes = keys.hashes()
        active: dict[str, np.ndarray] = {}
        by_name = {spike.name: spike for spike in self.spikes}
        for spike in self.spikes:
            drawn = uniforms(hashes, self.seed, "active", spike.name)
            chance: float | np.ndarray = spike.frequency
            if spike.parent is not None:
                chance = active[spike.parent] * (spike.frequency / by_name[spike.parent].frequency)
            elif spike.beside is not None:
                high, low = _conditional(spike, by_name[spike.beside])
                chance = np.where(active[spike.beside], high, low)
            elif spike.token_ids and spike.token_frequency is not None:
                inside = np.isin(keys.token_ids, spike.token_ids)
                chance = np.where(inside, spike.token_frequency, spike.frequency)
            active[spike.name] = drawn < chance
        return list(active.values())

    def codes(self, keys: TokenKeys) -> Codes:
        """Return the true codes of tokens, in the activations' units; only codes of circles are signed."""
        hashes = keys.hashes()
        tokens: list[np.ndarray] = []
        features: list[np.ndarray] = []
        values: list[np.ndarray] = []
        for spike, rows, active in zip(self.spikes, self.rows, self.active(keys), strict=True):
            places = np.flatnonzero(active)
            size = self._lengths(spike, hashes[places])
            parts = [size]
            if spike.dimension == 2:
                angle = 2 * np.pi * uniforms(hashes[places], self.seed, "angle", spike.name)
                parts = [size * np.cos(angle), size * np.sin(angle)]
            for row, part in zip(rows, parts, strict=True):
                tokens.append(places)
                features.append(np.full(len(places), row))
                values.append(part)
        if not tokens:
            return _codes(np.zeros(0, int), np.zeros(0, int), np.zeros(0), len(keys), 0)
        gathered = (np.concatenate(tokens), np.concatenate(features), np.concatenate(values))
        return _codes(*gathered, len(keys), len(self.dictionary))

    def _lengths(
        self, spike: Spike, hashes: UInt64[np.ndarray, " token"]
    ) -> Float64[np.ndarray, " token"]:
        """Return the lengths of a spike on tokens where it is active, in the activations' units."""
        drawn = uniforms(hashes, self.seed, "amplitude", spike.name)
        if spike.amplitude == "uniform":
            shape = 2 * drawn
        elif spike.amplitude == "lognormal":
            from scipy.special import ndtri

            shape = np.exp(LOG_SPREAD * ndtri(drawn) - LOG_SPREAD**2 / 2)
        else:
            shape = np.ones_like(drawn)
        lengths: np.ndarray = shape * (spike.magnitude * self.scale)
        return lengths

    def plant(
        self, x: Float[torch.Tensor, "token d_in"], keys: TokenKeys
    ) -> tuple[Float[torch.Tensor, "token d_in"], Codes]:
        """Return `x` with the spikes added, and the true codes."""
        codes = self.codes(keys)
        if not len(codes.values):
            return x, codes
        return x + compose(codes, self.dictionary), codes

    def truth(self, keys: TokenKeys) -> GeneratorTruth:
        """Return the plan's features as a generator's truth.

        `rates` are the probabilities of the spikes' laws, not counts. Where a spike has `token_ids`, their
        share of the tokens is taken from `keys`.
        """
        rates: dict[str, float] = {}
        for spike in self.spikes:
            rate = spike.frequency
            if spike.parent is not None:
                parent = next(s for s in self.spikes if s.name == spike.parent)
                rate *= rates[parent.name] / parent.frequency
            elif spike.token_ids and spike.token_frequency is not None:
                inside = float(np.isin(keys.token_ids, spike.token_ids).mean())
                rate += inside * (spike.token_frequency - spike.frequency)
            rates[spike.name] = rate
        first = {s.name: rows[0] for s, rows in zip(self.spikes, self.rows, strict=True)}
        each = [(s, row) for s, rows in zip(self.spikes, self.rows, strict=True) for row in rows]
        return GeneratorTruth(
            dictionary=self.dictionary,
            rates=torch.tensor([rates[s.name] for s, _ in each], dtype=torch.float32),
            parents=tuple(-1 if s.parent is None else first[s.parent] for s, _ in each),
            subspaces=tuple(rows for rows in self.rows if len(rows) > 1),
        )


def plant(
    x: Float[torch.Tensor, "token d_in"],
    spikes: Sequence[Spike],
    seed: int,
    keys: TokenKeys | None = None,
) -> tuple[Float[torch.Tensor, "token d_in"], Codes, GeneratorTruth]:
    """Return `x` with spikes planted, the true codes, and the truth.

    The scale, and the covariance where one is needed, are computed from `x`. To plant the same spikes into
    several sets of tokens make one `Planting`; with this function each set would have a scale of its own.

    Args:
        x: Activations, in any units.
        spikes: The spikes, as in `Planting.of`.
        seed: Seed of directions, tokens and amplitudes.
        keys: Keys of the tokens; None takes them as one document, in order.
    """
    keys = TokenKeys.plain(len(x)) if keys is None else keys
    centered = x.double() - x.double().mean(0)
    scale = float(centered.square().sum(1).mean().sqrt())
    covariance = None
    if any(spike.direction == "covariance" for spike in spikes):
        covariance = (centered.t() @ centered / len(x)).numpy()
    plan = Planting.of(spikes, seed, x.shape[1], scale, covariance)
    planted, codes = plan.plant(x, keys)
    return planted, codes, plan.truth(keys)


def _codes(
    tokens: Int64[np.ndarray, " active"],
    features: Int64[np.ndarray, " active"],
    values: Float64[np.ndarray, " active"],
    n_tokens: int,
    n_features: int,
) -> Codes:
    order = np.argsort(tokens, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(tokens, minlength=n_tokens))])
    return Codes(
        torch.from_numpy(offsets.astype(np.int64)),
        torch.from_numpy(features[order].astype(np.int64)),
        torch.from_numpy(values[order].astype(np.float32)),
        n_features,
    )


def _conditional(spike: Spike, other: Spike) -> tuple[float, float]:
    """Return the probability of a spike where the other one is active, and where it is not."""
    p, q = spike.frequency, other.frequency
    spread = spike.correlation * math.sqrt(p * (1 - p))
    return p + spread * math.sqrt((1 - q) / q), p - spread * math.sqrt(q / (1 - q))


def _root(
    covariance: Float64[np.ndarray, "d_in d_in"] | None, d_in: int
) -> Float64[np.ndarray, "d_in d_in"]:
    if covariance is None or covariance.shape != (d_in, d_in):
        raise SpecError(
            "a direction is to be drawn from the activations' covariance, which was not given, or is "
            f"not {d_in} by {d_in}: pass it to Planting.of"
        )
    values, vectors = np.linalg.eigh(covariance)
    root: np.ndarray = np.sqrt(values.clip(0))[:, None] * vectors.T
    return root


def _check(spikes: Sequence[Spike]) -> None:
    """Refuse spikes that contradict each other; `Planting.of` says which."""
    before: dict[str, Spike] = {}
    for spike in spikes:
        if spike.name in before:
            raise SpecError(f"two spikes are called {spike.name!r}: give each a name of its own")
        if (spike.token_frequency is None) != (not spike.token_ids):
            raise SpecError(f"spike {spike.name!r}: token_ids and token_frequency go together")
        named = [n for n in (spike.parent, spike.beside) if n is not None]
        if len(named) + bool(spike.token_ids) > 1:
            raise SpecError(
                f"spike {spike.name!r} has more than one of parent, beside and token_ids: give one"
            )
        for name in named:
            if name not in before:
                raise SpecError(
                    f"spike {spike.name!r} names {name!r}, which does not come before it in the list"
                )
        if spike.parent and spike.frequency > before[spike.parent].frequency:
            raise SpecError(
                f"spike {spike.name!r} is more frequent than its parent {spike.parent!r}, without "
                "which it never occurs: lower its frequency"
            )
        if spike.beside:
            other = before[spike.beside]
            if other.token_ids or other.parent:
                raise SpecError(
                    f"spike {spike.name!r} is correlated with {other.name!r}, whose own probability "
                    "differs from token to token: name a spike without parent and token set"
                )
            if not all(0 <= chance <= 1 for chance in _conditional(spike, other)):
                raise SpecError(
                    f"no two occurrences with frequencies {spike.frequency:g} and "
                    f"{other.frequency:g} have the correlation {spike.correlation:g}: choose one "
                    "nearer to 0"
                )
        before[spike.name] = spike
