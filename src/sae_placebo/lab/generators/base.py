"""What every generator of activations with a known answer has.

A generator is a frozen spec. Its `truth` is drawn once, from its own `seed`: the dictionary is the same in
every draw, so that training and held-out tokens come from the same world. `draw` is given the random
numbers that the tokens are made of.

Truth and sample have the types of an SAE (`Codes`, tensors), so that what a dictionary finds and what
there is to find are compared without conversion.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from jaxtyping import Float, Float32
from pydantic import Field, model_validator

from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.precision import ROUNDING_ENERGY
from sae_placebo.core.spec import Registry, Spec, generator
from sae_placebo.saes import Codes

MOST_DIRECTIONS = 10**7
"""A truth of more is no toy."""
_CHUNK_TOKENS = 1 << 16


@dataclass(frozen=True)
class GeneratorTruth:
    """What is known of a generator before anything is drawn from it."""

    dictionary: Float32[torch.Tensor, "feature d_in"]
    """The direction of each feature: rows of length 1."""
    rates: Float32[torch.Tensor, " feature"]
    """The probability that a feature is active on a token."""
    parents: tuple[int, ...] = ()
    """For each feature the one without which it never occurs, or -1; empty if there is no hierarchy."""
    exclusive: tuple[tuple[int, ...], ...] = ()
    """Groups of which at most one feature is active on a token."""
    subspaces: tuple[tuple[int, ...], ...] = ()
    """Groups of orthonormal rows, each of which spans one feature of several dimensions. The codes of such
    rows may be negative."""
    alternatives: Mapping[str, Float32[torch.Tensor, "_ d_in"]] = field(default_factory=dict)
    """Other dictionaries, of unit rows, that give the very same activations with as few active features.
    Where there is one, activations do not say which is true. The name says how it is made."""
    symmetry: str = ""
    """What else gives the same activations, in words; empty if nothing is known to."""

    @property
    def is_identifiable(self) -> bool:
        """Return whether no other dictionary is known that gives the same activations."""
        return not self.symmetry

    def coactive(self) -> tuple[tuple[int, int], ...]:
        """Return (child, parent) for every feature that has a parent."""
        return tuple((i, parent) for i, parent in enumerate(self.parents) if parent >= 0)

    @property
    def n_features(self) -> int:
        """Return the number of features."""
        return len(self.rates)

    @property
    def l0(self) -> float:
        """Return the mean number of features that are active on a token."""
        return float(self.rates.sum(dtype=torch.float64))


@dataclass(frozen=True)
class Sample:
    """Tokens of a generator, with what they were made of."""

    x: Float32[torch.Tensor, "token d_in"]
    """The activations, as an SAE would meet them in a model: neither centered nor scaled."""
    codes: Codes
    """The true codes: which features are active on each token, and how strongly."""
    truth: GeneratorTruth
    """The generator's truth, the same in all of its samples."""


class GeneratorSpec(Spec, ABC):
    """The settings of a generator of activations.

    Equal settings have an equal truth, and draw equal tokens from equal random numbers.
    """

    kind: str
    d_in: int = Field(ge=2)
    """Width of the activations."""
    seed: int = Field(0, ge=0)
    """Names the truth: the dictionary, and whatever else is drawn once."""

    @model_validator(mode="after")
    def _directions_can_be_listed(self) -> GeneratorSpec:
        # before the checks of a kind, some of which list what belongs to every direction
        if self.least_directions > MOST_DIRECTIONS:
            raise SpecError(
                f"{self.least_directions:,} directions or more are asked for: {MOST_DIRECTIONS:,} are allowed"
            )
        return self

    @property
    def least_directions(self) -> int:
        """Return how many directions of width `d_in` the truth is made of at least, without drawing it."""
        return 1

    @property
    def truth(self) -> GeneratorTruth:
        """Return the truth, which is drawn at first use and kept for a while; it must not be written to."""
        return _truth(self)

    def held_out(self, n_tokens: int) -> Sample:
        """Return tokens that no `stream` holds; they are the same each time."""
        return self.draw(n_tokens, generator(self.seed, self.kind, "held out"))

    def draw(self, n_tokens: int, random: torch.Generator) -> Sample:
        """Return `n_tokens` tokens with their true codes.

        Codes are drawn for a chunk of tokens at a time where that saves memory.

        Args:
            n_tokens: Number of tokens, 1 or more.
            random: Random numbers to draw from, such as `core.spec.generator(seed, "tokens")`.
        """
        size = self._chunk_tokens(n_tokens)
        codes = Codes.concatenate(
            [
                self._draw_codes(min(size, n_tokens - first), random)
                for first in range(0, n_tokens, size)
            ]
        )
        return Sample(compose(codes, self.truth.dictionary), codes, self.truth)

    def stream(
        self, n_tokens: int, batch_tokens: int, *names: str | int
    ) -> Iterator[Float32[torch.Tensor, "token d_in"]]:
        """Yield the activations of `n_tokens` tokens in batches.

        No more than 65,536 tokens, or one batch if that is larger, are in memory at a time.

        Args:
            n_tokens: Number of tokens in all; the last batch may be shorter.
            batch_tokens: Tokens of a batch.
            names: Names of the tokens. The same names and the same seed give the same tokens.
        """
        random = generator(self.seed, self.kind, "stream", *names)
        chunk = batch_tokens * max(1, _CHUNK_TOKENS // batch_tokens)
        for first in range(0, n_tokens, chunk):
            yield from torch.split(self.draw(min(chunk, n_tokens - first), random).x, batch_tokens)

    @abstractmethod
    def _draw_truth(self) -> GeneratorTruth:
        """Return the truth, which must depend on the settings alone."""

    @abstractmethod
    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        """Return the true codes of some tokens; `n_tokens` is at most `_chunk_tokens`."""

    def _chunk_tokens(self, n_tokens: int) -> int:
        """Return for how many of `n_tokens` tokens codes are drawn at a time; it decides which are drawn."""
        return _CHUNK_TOKENS


# not on the spec itself: a copy of it with other settings would take the old truth along
@lru_cache(maxsize=4)
def _truth(spec: GeneratorSpec) -> GeneratorTruth:
    return spec._draw_truth()


GENERATORS: Registry[type[GeneratorSpec]] = Registry("generator")
"""Every generator is registered here, by its kind."""


def unit_rows(n: int, d_in: int, random: torch.Generator) -> Float32[torch.Tensor, "n d_in"]:
    """Return `n` independent directions, uniform on the sphere: Gaussians brought to length 1."""
    return torch.nn.functional.normalize(torch.randn(n, d_in, generator=random), dim=1)


def compose(
    codes: Codes, dictionary: Float32[torch.Tensor, "feature d_in"]
) -> Float32[torch.Tensor, "token d_in"]:
    """Return, for each token, the sum of the dictionary's rows weighted by the token's codes."""
    return torch.nn.functional.embedding_bag(
        codes.latents,
        dictionary,
        codes.offsets,
        per_sample_weights=codes.values,
        mode="sum",
        include_last_offset=True,
    )


@dataclass(frozen=True)
class Scaling:
    """A shift and a factor that bring activations to what training expects."""

    mean: Float32[torch.Tensor, " d_in"]
    factor: float

    @classmethod
    def of(cls, x: Float32[torch.Tensor, "token d_in"]) -> Scaling:
        """Return the scaling that centers `x` and brings its mean squared norm to `d_in`.

        Raises:
            SpecError: all rows of `x` are the same.
        """
        mean = x.mean(dim=0)
        energy = float((x - mean).square().sum(dim=1).mean())
        if not energy > ROUNDING_ENERGY * float(mean.square().sum()):
            raise SpecError("activations that are all the same have no scale: draw more tokens")
        return cls(mean, math.sqrt(x.shape[1] / energy))

    def apply(self, x: Float[torch.Tensor, "token d_in"]) -> Float[torch.Tensor, "token d_in"]:
        """Return `(x - mean) * factor`."""
        return (x - self.mean) * self.factor
