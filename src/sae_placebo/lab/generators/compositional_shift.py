"""G14: pairs of features that training never shows together, and test always does."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import (
    GENERATORS,
    MOST_DIRECTIONS,
    GeneratorSpec,
    GeneratorTruth,
    unit_rows,
)
from sae_placebo.lab.generators.sparse_draws import (
    codes_of,
    independent_support,
    orthonormal_rows,
)
from sae_placebo.saes import Codes


@GENERATORS.add
class CompositionalShiftSpec(GeneratorSpec):
    """The same features at the same rates, in training and at test, in pairs that never mix.

    `shift = False` is training, `shift = True` is test. Dictionary and rates are the same in both, and only
    the features' company differs, so what is lost at test is lost to the combination. There are two laws:

    - `law = "sets"` (as G3): every token holds one item i of set A and one item j of set B. With H =
      `n_held_out`, the held-out pairs are j = (i + k) mod items, k = 0 .. H - 1. Training draws uniformly
      from all others, test from these. Each item has rate 1 / items in both.
    - `law = "independent"` (as G1): rates p_i are those of `SuperpositionSpec`, except that features 2k and
      2k + 1 of the first 2H are given their mean p and are held-out pairs. Training has exactly one of such
      a pair with probability 2p, test has both with probability p. All else is independent, in both.

    Amplitudes are uniform on (0, 1] and independent. Rows are orthonormal where d_in allows it, else
    independent and uniform on the sphere.

    Source: the question of 2603.28744 (whether dictionaries fail out of distribution), asked on the
    generators of Anders et al. (2024) and Sharkey et al. (2022); held-out pairs are our own. Independent
    amplitudes keep the set law identifiable: with a constant one, {a_i + s, b_j - s} makes the same data.
    """

    kind: Literal["compositional_shift"] = "compositional_shift"
    law: Literal["sets", "independent"] = "sets"
    shift: bool = False
    """Whether tokens hold the held-out pairs (test) or never do (training)."""
    d_in: int = Field(8, ge=2)
    """Width; 2 * items (sets) or 256 (independent) if it is left out."""
    items: int = Field(4, ge=2)
    """Law `sets`: features of each set."""
    n_held_out: int = Field(1, ge=1)
    """Law `sets`: held-out partners of each item. Law `independent`: number of held-out pairs."""
    n_features: int = Field(512, ge=2, le=MOST_DIRECTIONS)
    """Law `independent`: number of features."""
    l0: float = Field(5.0, gt=0)
    """Law `independent`: mean number of active features of a token."""
    decay: float = Field(0.99, gt=0, le=1)
    """Law `independent`: ratio of a feature's rate to that of the one before."""

    @model_validator(mode="before")
    @classmethod
    def _width(cls, data: Any) -> Any:
        if isinstance(data, dict) and "d_in" not in data:
            if data.get("law") == "independent":
                return {**data, "d_in": 256}
            items = data.get("items", 4)
            return {**data, "d_in": 2 * items if isinstance(items, int) else 8}
        return data

    @model_validator(mode="after")
    def _pairs_fit(self) -> CompositionalShiftSpec:
        if self.law == "sets":
            if self.n_held_out >= self.items:
                raise ValueError(
                    f"{self.n_held_out} of {self.items} partners held out leave none to train on: lower "
                    "n_held_out or raise items"
                )
            return self
        if 2 * self.n_held_out > self.n_features:
            raise ValueError(
                f"{self.n_held_out} pairs need {2 * self.n_held_out} features, there are "
                f"{self.n_features}: lower n_held_out or raise n_features"
            )
        rates = self._rates()
        top = max(2 * float(rates[0]), float(rates.max()))
        if not top < 1:
            raise ValueError(
                f"a held-out pair would be active with probability {top:.3g}: lower l0 ({self.l0:g}) "
                f"or raise n_features ({self.n_features}) or decay ({self.decay:g})"
            )
        return self

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Return the held-out pairs, as (feature, feature)."""
        if self.law == "independent":
            return tuple((2 * k, 2 * k + 1) for k in range(self.n_held_out))
        return tuple(
            (i, self.items + (i + k) % self.items)
            for i in range(self.items)
            for k in range(self.n_held_out)
        )

    def shifted(self) -> CompositionalShiftSpec:
        """Return the same features with the pairs of the test."""
        return self.model_copy(update={"shift": True})

    @property
    def least_directions(self) -> int:
        """Return how many directions of width `d_in` the truth is made of at least."""
        return 2 * self.items

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        if self.law == "sets":
            return self._sets(n_tokens, random)
        return self._independent(n_tokens, random)

    def _sets(self, n_tokens: int, random: torch.Generator) -> Codes:
        first = torch.randint(self.items, (n_tokens,), generator=random)
        low, high = (0, self.n_held_out) if self.shift else (self.n_held_out, self.items)
        step = torch.randint(low, high, (n_tokens,), generator=random)
        second = self.items + (first + step) % self.items
        features = torch.stack([first, second], dim=1).flatten()
        tokens = torch.arange(n_tokens).repeat_interleave(2)
        return self._with_amplitudes(tokens, features, n_tokens, random)

    def _independent(self, n_tokens: int, random: torch.Generator) -> Codes:
        """Return the codes of tokens on which each pair is drawn as one event, and then what is in it."""
        rates = self._rates().double()
        inside = 2 * self.n_held_out
        events = rates[0:inside:2] * (1 if self.shift else 2)
        events = torch.cat([events, rates[inside:]])
        tokens, drawn = independent_support(events, n_tokens, random)
        paired = drawn < self.n_held_out
        alone, single = tokens[~paired], drawn[~paired] + self.n_held_out
        held, firsts = tokens[paired], 2 * drawn[paired]
        if self.shift:
            held = held.repeat_interleave(2)
            firsts = torch.stack([firsts, firsts + 1], dim=1).flatten()
        else:
            firsts = firsts + torch.randint(2, firsts.shape, generator=random)
        return self._with_amplitudes(
            torch.cat([held, alone]), torch.cat([firsts, single]), n_tokens, random
        )

    def _with_amplitudes(
        self, tokens: torch.Tensor, features: torch.Tensor, n_tokens: int, random: torch.Generator
    ) -> Codes:
        values = 1 - torch.rand(len(tokens), generator=random)
        return codes_of(tokens, features, values, n_tokens, len(self._rates()))

    def _draw_truth(self) -> GeneratorTruth:
        rates = self._rates()
        n = len(rates)
        # `shift` is no part of the name: training and test have one dictionary
        random = generator(self.seed, self.kind, "dictionary", self.law, self.d_in, n)
        make = orthonormal_rows if n <= self.d_in else unit_rows
        sets = (tuple(range(self.items)), tuple(range(self.items, n)))
        exclusive = sets if self.law == "sets" else ()
        if not self.shift:
            exclusive = (*exclusive, *self.pairs)
        return GeneratorTruth(make(n, self.d_in, random), rates, exclusive=exclusive)

    def _rates(self) -> torch.Tensor:
        if self.law == "sets":
            return torch.full((2 * self.items,), 1 / self.items)
        falling = self.decay ** torch.arange(self.n_features, dtype=torch.float64)
        rates = self.l0 * falling / falling.sum()
        inside = 2 * self.n_held_out
        rates[:inside] = rates[:inside].reshape(-1, 2).mean(1).repeat_interleave(2)
        return rates.float()
