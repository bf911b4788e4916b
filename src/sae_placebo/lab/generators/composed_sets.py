"""G3: one item from each of two sets, the generator of composed features."""

from __future__ import annotations

import math
from typing import Any, Literal

from jaxtyping import Float32
from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS, GeneratorSpec, GeneratorTruth, unit_rows
from sae_placebo.lab.generators.sparse_draws import orthonormal_rows, packed
from sae_placebo.saes import Codes

_NOTHING = 1e-6


@GENERATORS.add
class ComposedSetsSpec(GeneratorSpec):
    """Two sets A and B of features; a token holds one item of each, or, if solo, one item in all.

    With k = `items`, features 0 .. k - 1 are A and k .. 2k - 1 are B. A token is

        a f_i + b f_(k + j)                   with probability 1 - solo
        r f_l, l uniform among all 2k          with probability solo

    (i, j) is (0, 0) with probability `boost`, else uniform among all k^2 pairs. Amplitudes are

        constant   a = b = r = 1
        uniform    a, b', r uniform on (0, 1], b = (1 - f) b' + f a, f = `correlation`

    so that corr(a, b) = f / sqrt(f^2 + (1 - f)^2); with f = 1 both items share one amplitude.

    Without solo tokens, constant or shared amplitudes leave the truth unidentifiable: for any s the rows
    a_i + s and b_j - s make the same tokens. `truth.alternatives` holds s = mean of B (A's items take in
    what all of B share) and s = -mean of A; with 2 items it also holds the 4 normalized sums, which are as
    many as the features. `closed_forms.composition_boundary` says when pairs are the better dictionary.

    The rows of the dictionary are orthonormal, in a random orientation, where 2k of them fit. Elsewhere they
    are random unit rows; in two dimensions they are a regular polygon in random order, the shape that a toy
    model of superposition gives to equally important features.

    Source: Till, "Do sparse autoencoders find true features?" (2024) and Anders, Neo, Hoelscher-Obermaier
    and Howard, "Sparse autoencoders find composed features in small toy models" (2024). Differs: the
    directions are not those of a trained toy model; the table of pairs is uniform but for one pair; a
    solo item of B has amplitude r, not b.
    """

    kind: Literal["composed_sets"] = "composed_sets"
    d_in: int = Field(0, ge=2)
    """Width; the number of features, `2 * items`, if it is not given."""
    items: int = Field(4, ge=2)
    """Features of each set."""
    amplitude: Literal["constant", "uniform"] = "uniform"
    """How strong an item is; see the class."""
    correlation: float = Field(0.0, ge=0, le=1)
    """Share f of A's amplitude in B's; see the class. It has no effect on constant amplitudes."""
    solo: float = Field(0.0, ge=0, le=1)
    """Probability that a token holds a single item."""
    boost: float = Field(0.0, ge=0, lt=1)
    """Probability, among tokens of two items, that they are the first of each set without a draw."""

    @model_validator(mode="before")
    @classmethod
    def _width(cls, settings: Any) -> Any:
        # what is not as expected is left to the fields' own checks
        if isinstance(settings, dict) and settings.get("d_in") is None:
            items = settings.get("items", 4)
            if isinstance(items, int):
                return {**settings, "d_in": max(2, 2 * items)}
        return settings

    @property
    def least_directions(self) -> int:
        """Return how many directions of width `d_in` the truth is made of at least."""
        return 2 * self.items

    def _chunk_tokens(self, n_tokens: int) -> int:
        return n_tokens

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        k = self.items
        pair = torch.randint(k, (n_tokens, 2), generator=random)
        solo_item = torch.randint(2 * k, (n_tokens,), generator=random)
        uniform = torch.rand(n_tokens, 4, generator=random)
        pair[uniform[:, 0] < self.boost] = 0
        features = pair + torch.tensor([0, k])
        amplitudes = self._amplitudes(1 - uniform[:, 2:])
        solo = uniform[:, 1] < self.solo
        features[solo, 0] = solo_item[solo]
        amplitudes[solo, 1] = 0.0
        return packed(amplitudes, features, 2 * k)

    def _amplitudes(
        self, uniform: Float32[torch.Tensor, "token 2"]
    ) -> Float32[torch.Tensor, "token 2"]:
        if self.amplitude == "constant":
            return torch.ones_like(uniform)
        f = self.correlation
        a, independent = uniform[:, 0], uniform[:, 1]
        return torch.stack([a, (1 - f) * independent + f * a], dim=1)

    def _draw_truth(self) -> GeneratorTruth:
        k = self.items
        rows = self._dictionary()
        of_pairs = torch.full((k,), (1 - self.boost) / k)
        of_pairs[0] += self.boost
        rates = self.solo / (2 * k) + (1 - self.solo) * of_pairs.repeat(2)
        sets = (tuple(range(k)), tuple(range(k, 2 * k)))
        exclusive = (sets[0] + sets[1],) if self.solo == 1 else sets
        shared = self.amplitude == "constant" or self.correlation == 1
        if self.solo or not shared:
            return GeneratorTruth(rows, rates, exclusive=exclusive)
        return GeneratorTruth(
            rows,
            rates,
            exclusive=exclusive,
            alternatives=self._alternatives(rows),
            symmetry=(
                "each token holds one item of each set at one strength, so any vector may move from "
                "all items of one set to all items of the other"
            ),
        )

    def _alternatives(
        self, rows: Float32[torch.Tensor, "feature d_in"]
    ) -> dict[str, Float32[torch.Tensor, "_ d_in"]]:
        first, second = rows[: self.items], rows[self.items :]
        alternatives = {}
        # two opposite items have mean zero, so nothing would move
        if float(second.mean(dim=0).norm()) > _NOTHING:
            alternatives["the mean of the second set moved to the first"] = _shifted(first, second)
        if float(first.mean(dim=0).norm()) > _NOTHING:
            moved = _shifted(second, first).roll(self.items, 0)
            alternatives["the mean of the first set moved to the second"] = moved
        if self.items == 2:
            sums = (first[:, None] + second[None]).flatten(0, 1)
            alternatives["one row for every pair"] = torch.nn.functional.normalize(sums, dim=1)
        return alternatives

    def _dictionary(self) -> Float32[torch.Tensor, "feature d_in"]:
        n = 2 * self.items
        random = generator(self.seed, self.kind, "dictionary", self.d_in, n)
        if self.d_in >= n:
            return orthonormal_rows(n, self.d_in, random)
        if self.d_in > 2:
            return unit_rows(n, self.d_in, random)
        turn = float(torch.rand((), generator=random))
        angles = 2 * math.pi * (torch.randperm(n, generator=random) + turn) / n
        return torch.stack([angles.cos(), angles.sin()], dim=1)


def _shifted(
    receiving: Float32[torch.Tensor, "k d_in"], giving: Float32[torch.Tensor, "k d_in"]
) -> Float32[torch.Tensor, "feature d_in"]:
    """Return unit rows of both sets, after the mean of `giving` has moved to `receiving`."""
    mean = giving.mean(dim=0)
    return torch.nn.functional.normalize(torch.cat([receiving + mean, giving - mean]), dim=1)
