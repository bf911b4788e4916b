"""A grammar has a factored vocabulary and a rule for the next token; it needs no model.

A token is (a, b, c, kind), and its embedding is the sum of one frozen random direction for each of the four.
The tokens of a row are independent draws of the factors, so a row says nothing of the token that follows: the
rule gives a distribution over the vocabulary for every position instead. A model can be trained on that
distribution itself, and the same rows serve any rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import Registry, Spec, generator, numpy_generator
from sae_placebo.lab.worlds.base import Swap, Variable

PLAIN, MARKER, FIRST_ONLY, SECOND_ONLY = range(4)
"""Kinds of token. The last two exist where `a` has two carriers, and hold only one of them."""


class FactoredSpec(Spec):
    """Settings of a factored world.

    At position t, the next token's `a` has the logits

        sharpness * (G1[a_t] + G2[a_{t-1}] + interaction * G12[a_t, a_{t-1}] + G3[c at the last marker]
                     + b_weight * G4[b_t]),

    where the entries of each G are standard normal, and terms are left out where there is no token before or
    no marker yet. The distribution is mixed with `noise` of the uniform one. The next token's b, c and kind
    are uniform whatever the row holds.
    """

    n_a: int = Field(8, ge=2)
    """Number of values of a, on which the target depends at t and at t - 1."""
    n_b: int = Field(24, ge=2)
    """Number of values of b, the passenger."""
    n_c: int = Field(4, ge=2)
    """Number of values of c; the value at a marker is used from there to the next marker."""
    marker_rate: float = Field(0.2, gt=0, lt=1)
    """Share of tokens that are markers."""
    duplicates: bool = False
    """Whether a has a second carrier, which is another direction for each value. Most tokens hold both
    carriers, and either suffices; see `gap`."""
    gap: float = Field(0.1, gt=0, lt=0.4)
    """Where a has two carriers, the share of the tokens other than markers that lack the first carrier; the
    share that lack the second is the same."""
    b_weight: float = Field(0.0, ge=0)
    """How much the target depends on b_t; with 0, b is a passenger."""
    interaction: float = Field(0.5, ge=0)
    """Weight of the term in which a_t and a_{t-1} count only together."""
    sharpness: float = Field(1.5, gt=0)
    """Standard deviation of the logits that each term adds."""
    noise: float = Field(0.05, ge=0, lt=1)
    """Share of the uniform distribution in the target."""
    passenger_norm: float = Field(1.5, gt=0)
    """Norm of b's directions; those of the other factors have norm 1. A norm above 1 makes sure that more
    variance does not mean more use."""
    d_model: int = Field(64, ge=8)
    """Width of the model; directions are in superposition where it is below `n_directions`."""
    n_layers: int = Field(3, ge=1)
    """Number of the model's layers."""
    n_heads: int = Field(4, ge=1)
    """Number of attention heads in a layer."""
    row_tokens: int = Field(32, ge=8)
    """Number of tokens in a row."""
    held_out_rows: int = Field(256, ge=16)
    """Number of rows on which the world is studied."""
    train_rows: int = Field(2048, ge=16)
    """Number of rows to train SAEs on; the model is trained on fresh rows."""
    steps: int = Field(800, ge=1)
    """Number of the model's training steps."""
    batch_rows: int = Field(32, ge=1)
    """Number of rows in a step of the model's training."""
    learning_rate: float = Field(6e-3, gt=0)
    """Peak learning rate of the model's training."""
    margin_nats: float = Field(0.02, gt=0)
    """Largest divergence from the rule, in nats per token of the held-out rows, at which the model
    counts as trained."""

    @model_validator(mode="after")
    def _allowed(self) -> FactoredSpec:
        if self.d_model % (2 * self.n_heads):
            raise ValueError(
                f"d_model is {self.d_model} with {self.n_heads} heads: each head needs an even width"
            )
        if self.n_vocabulary > 4096:
            raise ValueError(
                f"the vocabulary has {self.n_vocabulary} tokens, every combination of the factors' "
                "values; at most 4096 stay cheap: lower n_b or n_c"
            )
        return self

    @property
    def n_kinds(self) -> int:
        """Number of kinds of token: plain and marker, and with duplicates the two with one carrier of a."""
        return 4 if self.duplicates else 2

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Numbers of values of a, b, c and kind."""
        return self.n_a, self.n_b, self.n_c, self.n_kinds

    @property
    def n_vocabulary(self) -> int:
        """Number of tokens: one for every combination of values."""
        return self.n_a * self.n_b * self.n_c * self.n_kinds

    @property
    def n_directions(self) -> int:
        """Number of directions in the embedding."""
        return (2 if self.duplicates else 1) * self.n_a + self.n_b + self.n_c + 1


PRESETS: Registry[FactoredSpec] = Registry("preset of factored worlds and twins")
"""Settings of factored worlds and twins, by name."""
PRESETS.add(FactoredSpec(), name="default")
PRESETS.add(FactoredSpec(d_model=32), name="superposed")
PRESETS.add(FactoredSpec(duplicates=True, n_b=12), name="duplicates")
PRESETS.add(
    FactoredSpec(
        n_a=4, n_b=8, n_c=2, d_model=32, n_layers=2, row_tokens=16, held_out_rows=128, steps=300
    ),
    name="small",
)


@dataclass(frozen=True)
class Grammar:
    """The vocabulary and the rule of one seed; nothing here depends on a model.

    What is drawn by the seed does not depend on `b_weight`, so that worlds that differ in it share all else.
    """

    spec: FactoredSpec
    seed: int

    @cached_property
    def factors(self) -> Int64[np.ndarray, "token factor"]:
        """The values of a, b, c and kind of each token."""
        return np.stack(np.unravel_index(np.arange(self.spec.n_vocabulary), self.spec.sizes), 1)

    @cached_property
    def embedding(self) -> Float32[torch.Tensor, "token d_model"]:
        """The embedding of each token: the sum of its directions, times sqrt(d_model) / 2."""
        spec = self.spec
        a, b, c, kind = torch.from_numpy(self.factors).T
        first = self._directions("a", spec.n_a)[a]
        if spec.duplicates:
            second = self._directions("second a", spec.n_a)[a]
            first = first * (kind != SECOND_ONLY)[:, None] + second * (kind != FIRST_ONLY)[:, None]
        total = first + spec.passenger_norm * self._directions("b", spec.n_b)[b]
        total = total + self._directions("c", spec.n_c)[c]
        total = total + self._directions("marker", 1) * (kind == MARKER)[:, None]
        scaled: torch.Tensor = total * (spec.d_model**0.5 / 2)
        return scaled

    def _directions(self, name: str, n: int) -> Float32[torch.Tensor, "value d_model"]:
        random = generator(self.seed, "world", "directions", name, n, self.spec.d_model)
        return torch.nn.functional.normalize(
            torch.randn(n, self.spec.d_model, generator=random), dim=1
        )

    # --- rows ------------------------------------------------------------------------------------

    @cached_property
    def kind_rates(self) -> Float[np.ndarray, " kind"]:
        """Probability of each kind of token."""
        marker, gap = self.spec.marker_rate, self.spec.gap
        rest = [gap * (1 - marker)] * 2 if self.spec.duplicates else []
        return np.array([1 - marker - sum(rest), marker, *rest])

    def rows(self, n: int, *names: str | int) -> Int64[np.ndarray, "row pos"]:
        """Return n rows of independent tokens; other names give other rows."""
        random = numpy_generator(self.seed, "world", "rows", *names)
        shape = (n, self.spec.row_tokens)
        a, b, c = (random.integers(0, size, shape) for size in self.spec.sizes[:3])
        kind = random.choice(self.spec.n_kinds, size=shape, p=self.kind_rates)
        return np.ravel_multi_index((a, b, c, kind), self.spec.sizes).astype(np.int64)

    # --- rule ------------------------------------------------------------------------------------

    @cached_property
    def _tables(self) -> dict[str, Float32[torch.Tensor, "..."]]:
        """The tables G of the rule, by name."""
        n, last = self.spec.n_a, self.spec.n_a
        shapes = {
            "now": (n, n),
            "before": (n + 1, n),
            "together": (n, n + 1, n),
            "marked": (self.spec.n_c + 1, n),
            "b": (self.spec.n_b, n),
        }
        tables = {
            name: torch.randn(shape, generator=generator(self.seed, "world", "rule", name))
            for name, shape in shapes.items()
        }
        # the value past the last is "none": there is no token before, or no marker yet
        tables["before"][last] = 0
        tables["together"][:, last] = 0
        tables["marked"][self.spec.n_c] = 0
        return tables

    def target(self, rows: Int64[np.ndarray, "row pos"]) -> Float32[torch.Tensor, "row pos value"]:
        """Return the distribution of the next token's `a` at each token; its other factors are uniform."""
        spec, g = self.spec, self._tables
        read = self.read(rows)
        a, b, before, marked = (
            torch.from_numpy(read[name]) for name in ("a", "b", "a_previous", "c_last")
        )
        logits = g["now"][a] + g["before"][before] + g["marked"][marked]
        logits = logits + spec.interaction * g["together"][a, before]
        logits = logits + spec.b_weight * g["b"][b]
        rule: torch.Tensor = (spec.sharpness * logits).softmax(-1)
        return (1 - spec.noise) * rule + spec.noise / spec.n_a

    # --- variables -------------------------------------------------------------------------------

    def read(self, rows: Int64[np.ndarray, "row pos"]) -> dict[str, Int64[np.ndarray, "row pos"]]:
        """Return the values of all variables at each token, by the variable's name."""
        spec = self.spec
        a, b, c, kind = np.moveaxis(self.factors[rows], -1, 0)
        before = np.concatenate([np.full((len(rows), 1), spec.n_a), a[:, :-1]], axis=1)
        source = self.last_marker(rows)
        marked = np.where(source < 0, spec.n_c, np.take_along_axis(c, source.clip(0), axis=1))
        values = {"a": a, "a_previous": before, "b": b, "c": c, "c_last": marked}
        values["marker"] = (kind == MARKER).astype(np.int64)
        if spec.duplicates:
            values["a_first"] = np.where(kind == SECOND_ONLY, spec.n_a, a)
            values["a_second"] = np.where(kind == FIRST_ONLY, spec.n_a, a)
        return values

    def last_marker(self, rows: Int64[np.ndarray, "row pos"]) -> Int64[np.ndarray, "row pos"]:
        """Return the position of the last marker at or before each token; -1 where there is none yet."""
        position = np.arange(rows.shape[1])
        marked = np.where(self.factors[rows, 3] == MARKER, position, -1)
        return np.maximum.accumulate(marked, axis=1)

    def variables(
        self, rows: Int64[np.ndarray, "row pos"], train_rows: Int64[np.ndarray, "train_row pos"]
    ) -> tuple[Variable, ...]:
        """Return the variables with their values at held-out and training rows."""
        spec = self.spec
        held, trained = self.read(rows), self.read(train_rows)
        kind = self.factors[rows, 3]
        both: Bool[np.ndarray, "row pos"] = (kind == PLAIN) | (kind == MARKER)
        kinds: dict[str, tuple[Any, ...]] = {
            "a": (spec.n_a, "used"),
            "b": (spec.n_b, "used" if spec.b_weight else "passenger"),
            "c": (spec.n_c, "conditional", kind == MARKER),
            "marker": (2, "used"),
            "a_previous": (spec.n_a + 1, "used"),
            "c_last": (spec.n_c + 1, "used"),
        }
        if spec.duplicates:
            carrier = (spec.n_a + 1, "duplicate", both, "a")
            kinds |= {"a_first": carrier, "a_second": carrier}
        return tuple(
            Variable(name, held[name], trained[name], *rest) for name, rest in kinds.items()
        )

    def swaps(self, rows: Int64[np.ndarray, "row pos"]) -> dict[str, Swap]:
        """Return how one input token gives another value to each variable alone, by the variable's name."""
        position = np.broadcast_to(np.arange(rows.shape[1]), rows.shape).astype(np.int64)
        a, b, c = (self._others(factor) for factor in range(3))
        swaps = {
            "a": Swap(a, position),
            "b": Swap(b, position),
            "c": Swap(c, position),
            "marker": Swap(self._other_kind({PLAIN: MARKER, MARKER: PLAIN}), position),
            "a_previous": Swap(a, position - 1),
            "c_last": Swap(c, self.last_marker(rows)),
        }
        if self.spec.duplicates:
            swaps["a_first"] = Swap(self._other_kind({PLAIN: SECOND_ONLY}), position)
            swaps["a_second"] = Swap(self._other_kind({PLAIN: FIRST_ONLY}), position)
        return swaps

    def _others(self, factor: int) -> Int64[np.ndarray, "token alternative"]:
        """Return, for each token, the tokens that differ from it only in the value of one factor."""
        n = self.spec.sizes[factor]
        values = [x[:, None] for x in self.factors.T]
        values[factor] = (values[factor] + np.arange(1, n)) % n
        tokens = np.ravel_multi_index(np.broadcast_arrays(*values), self.spec.sizes)
        return tokens.astype(np.int64)

    def _other_kind(self, change: dict[int, int]) -> Int64[np.ndarray, "token alternative"]:
        """Return, for each token, the same token of another kind; -1 where `change` has no other kind."""
        table = np.array([change.get(kind, -1) for kind in range(self.spec.n_kinds)])
        a, b, c, kind = self.factors.T
        other = table[kind]
        tokens = np.ravel_multi_index((a, b, c, other.clip(0)), self.spec.sizes)
        return np.where(other < 0, -1, tokens).astype(np.int64)[:, None]
