"""G5: a parent and a child that sometimes comes alone; what is best for it is known exactly."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS, GeneratorSpec, GeneratorTruth
from sae_placebo.lab.generators.parent_child import never_alone
from sae_placebo.lab.generators.sparse_draws import orthonormal_rows, packed
from sae_placebo.saes import Codes


@GENERATORS.add
class SolvablePairSpec(GeneratorSpec):
    """Pairs of orthonormal features of magnitude 1 that occur together, or one without the other.

    A token holds of each pair, independently of the other pairs,

        parent + child   with probability q
        parent           with probability p0
        child            with probability epsilon
        nothing          else

    Pair b consists of features 2b (parent) and 2b + 1 (child). All pairs follow the same law; the pairs after
    the first compete with it for latents. With an L1 penalty lambda, {parent, child} is a better dictionary
    than {parent, composite} if and only if epsilon is above `closed_forms.epsilon_star(lambda, q)`. At
    `epsilon = 0` both make the same tokens, and the truth is not identifiable.

    Source: "A solvable model of feature absorption in L1 sparse autoencoders" (public draft, not
    reviewed); its formula is derived anew in `closed_forms`. Differs: the frame is a random rotation. That
    all pairs follow the first one's law is our reading of its setting of 16 pairs.
    """

    kind: Literal["solvable_pair"] = "solvable_pair"
    d_in: int = Field(0, ge=2)
    """Width; the number of features, `2 * (1 + background)`, if it is not given."""
    q: float = Field(0.2, gt=0, le=1)
    """Probability of parent and child together."""
    p0: float = Field(0.3, gt=0, le=1)
    """Probability of the parent alone."""
    epsilon: float = Field(0.0, ge=0, le=1)
    """Probability of the child alone."""
    background: int = Field(0, ge=0)
    """Number of pairs besides the first."""

    @model_validator(mode="before")
    @classmethod
    def _width(cls, settings: Any) -> Any:
        # what is not as expected is left to the fields' own checks
        if isinstance(settings, dict) and settings.get("d_in") is None:
            background = settings.get("background", 0)
            if isinstance(background, int):
                return {**settings, "d_in": max(2, 2 * (1 + background))}
        return settings

    @model_validator(mode="after")
    def _fits(self) -> SolvablePairSpec:
        if (total := self.q + self.p0 + self.epsilon) > 1 + 1e-12:
            raise ValueError(
                f"q, p0 and epsilon are probabilities of different events but sum to {total:.4g}: "
                "lower one of them"
            )
        if self.d_in < (needed := 2 * (1 + self.background)):
            raise ValueError(
                f"{needed} orthonormal features do not fit in {self.d_in} dimensions: raise d_in or "
                "lower background"
            )
        return self

    @property
    def least_directions(self) -> int:
        """Return how many directions of width `d_in` the truth is made of at least."""
        return 2 + self.background

    def _chunk_tokens(self, n_tokens: int) -> int:
        return n_tokens

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        event = torch.rand(n_tokens, 1 + self.background, generator=random, dtype=torch.float64)
        # the events are in this order: both, parent alone, child alone, nothing
        child_alone = (event >= self.q + self.p0) & (event < self.q + self.p0 + self.epsilon)
        parent, child = event < self.q + self.p0, (event < self.q) | child_alone
        return packed(torch.stack([parent, child], dim=2).flatten(1).float())

    def _draw_truth(self) -> GeneratorTruth:
        n_pairs = 1 + self.background
        random = generator(self.seed, self.kind, "frame", self.d_in, n_pairs)
        rows = orthonormal_rows(2 * n_pairs, self.d_in, random)
        rates = torch.tensor([self.q + self.p0, self.q + self.epsilon] * n_pairs)
        if self.epsilon:
            return GeneratorTruth(rows, rates)
        parents = tuple(i for b in range(n_pairs) for i in (-1, 2 * b))
        return never_alone(rows, rates, parents)
