"""What a generator of activations with a known answer is.

A generator is a frozen spec. Its `truth` is drawn from its own `seed`, once: the dictionary is the
same in every draw, so that training and held-out tokens come from the same world. `draw` takes the
tokens' generator.

Truth and draw are in the types of an SAE (`Codes`, tensors), so that what a dictionary finds and what
there is to find are compared without conversion.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from jaxtyping import Float, Float32
from pydantic import ConfigDict, Field

from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.precision import ROUNDING_ENERGY
from sae_placebo.core.spec import Registry, Spec, generator
from sae_placebo.saes import Codes

_CHUNK_TOKENS = 1 << 16


@dataclass(frozen=True)
class GeneratorTruth:
    """What is known of a generator before anything is drawn from it."""

    dictionary: Float32[torch.Tensor, "feature d_in"]
    """Unit rows, one per feature."""
    rates: Float32[torch.Tensor, " feature"]
    """Probability that a feature is active on a token."""
    parents: tuple[int, ...] = ()
    """The feature without which each one never occurs, -1 where there is none; empty: no hierarchy."""
    exclusive: tuple[tuple[int, ...], ...] = ()
    """Groups of which at most one feature is active on a token."""
    subspaces: tuple[tuple[int, ...], ...] = ()
    """Groups of rows, orthonormal, that span one feature of several dimensions; codes of these are signed."""
    alternatives: Mapping[str, Float32[torch.Tensor, "_ d_in"]] = field(default_factory=dict)
    """Other dictionaries, unit rows, that give the very same activations with as few features: where there
    is one, activations do not say which is true. The name says how it is made."""
    symmetry: str = ""
    """What else gives the same activations, in words; empty: nothing that is known."""

    @property
    def is_identifiable(self) -> bool:
        """Whether no other dictionary is known that gives the same activations."""
        return not self.symmetry

    def coactive(self) -> tuple[tuple[int, int], ...]:
        """Return (child, parent) of every feature that has a parent."""
        return tuple((i, parent) for i, parent in enumerate(self.parents) if parent >= 0)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return len(self.rates)

    @property
    def l0(self) -> float:
        """Mean number of active features of a token."""
        return float(self.rates.sum(dtype=torch.float64))


@dataclass(frozen=True)
class Sample:
    """Tokens of a generator, with what they were made of."""

    x: Float32[torch.Tensor, "token d_in"]
    """The activations, as an SAE would meet them in a model: neither centered nor scaled."""
    codes: Codes
    """The true codes: which features are active on each token, and how much."""
    truth: GeneratorTruth
    """The generator's truth, the same in all of its draws."""


class GeneratorSpec(Spec, ABC):
    """Settings of a generator. Equal settings have equal truth, and equal draws of equal generators."""

    model_config = ConfigDict(strict=True)

    kind: str
    d_in: int = Field(ge=2)
    """Width of the activations."""
    seed: int = 0
    """Names the truth: dictionary, and whatever else is drawn once."""

    @property
    def truth(self) -> GeneratorTruth:
        """The truth; drawn at first use and kept for a while. Not to be written to."""
        return _truth(self)

    def held_out(self, n_tokens: int) -> Sample:
        """Return tokens that no `stream` holds; the same ones each time."""
        return self.draw(n_tokens, generator(self.seed, self.kind, "held out"))

    @abstractmethod
    def draw(self, n_tokens: int, random: torch.Generator) -> Sample:
        """Return `n_tokens` tokens.

        Args:
            n_tokens: How many, 1 or more.
            random: Names the tokens; `spec.generator(seed, ...)`.
        """

    def stream(
        self, n_tokens: int, batch_tokens: int, *names: str | int
    ) -> Iterator[Float32[torch.Tensor, "token d_in"]]:
        """Yield the activations of `n_tokens` tokens in batches; no more than a chunk is in memory.

        Args:
            n_tokens: How many in all; the last batch may be shorter.
            batch_tokens: Tokens of a batch.
            names: Name the tokens, under the generator's seed: the same names, the same tokens.
        """
        random = generator(self.seed, self.kind, "stream", *names)
        chunk = batch_tokens * max(1, _CHUNK_TOKENS // batch_tokens)
        for first in range(0, n_tokens, chunk):
            yield from torch.split(self.draw(min(chunk, n_tokens - first), random).x, batch_tokens)

    @abstractmethod
    def _draw_truth(self) -> GeneratorTruth:
        """Return the truth, from `seed` alone."""


# not on the spec itself: a copy of it with other settings would take the old truth along
@lru_cache(maxsize=4)
def _truth(spec: GeneratorSpec) -> GeneratorTruth:
    return spec._draw_truth()


GENERATORS: Registry[type[GeneratorSpec]] = Registry("generator")
"""Every generator, by kind."""


def unit_rows(n: int, d_in: int, random: torch.Generator) -> Float32[torch.Tensor, "n d_in"]:
    """Return `n` independent directions, uniform on the sphere: normalized Gaussians."""
    return torch.nn.functional.normalize(torch.randn(n, d_in, generator=random), dim=1)


def compose(
    codes: Codes, dictionary: Float32[torch.Tensor, "feature d_in"]
) -> Float32[torch.Tensor, "token d_in"]:
    """Return the sum of dictionary rows that each token's codes name."""
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
        """Return what centers `x` and brings its mean squared norm to `d_in`.

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
