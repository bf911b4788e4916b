"""G12: concepts of different dimension, and concepts that only their magnitude tells apart."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS, GeneratorSpec, GeneratorTruth
from sae_placebo.lab.generators.sparse_draws import (
    codes_of_parts,
    consecutive_groups,
    independent_support,
    orthonormal_rows,
)
from sae_placebo.saes import Codes

_PLANE = 2


@GENERATORS.add
class HeterogeneousSpec(GeneratorSpec):
    """Concepts of one to many dimensions, and pairs of concepts that share a plane.

    All draws are independent, t is a token, and the rows B_c of a concept are orthonormal:

        x_t = sum_c rho_tc s_tc B_c            over active concepts c, each with probability `rate`
            + sum_g rho_tg s_tg P_g            over active gated pairs g, each with probability 2 * rate

    - A concept of r `dimensions` has s uniform on the unit sphere of r dimensions and rho = 1. With r = 1 it
      is a ray: s = 1 and rho is uniform on [0.5, 1.5].
    - A gated pair is an inner and an outer concept in one plane P_g, never together, each half of the time.
      s is uniform on the circle and rho on `inner` or on `outer`: a ring, and a wider one around it.
      No half-space holds all of one and none of the other, and no cone either, so neither one ReLU
      nor the angle tells them apart.

    `truth.dictionary` holds the rows of a pair twice, once for each of its concepts: a latent's row matches
    both, and only its firing can say which concept it is for. `truth.subspaces` holds the concepts of two or
    more dimensions, inner before outer.

    Source: Hindupur et al., "Projecting assumptions" (2025, arXiv 2503.01822), of which the abstract and a
    summary were read: heterogeneous intrinsic dimension, and nonlinear separability. Sizes, rates and
    the ring construction are our own.
    """

    kind: Literal["heterogeneous"] = "heterogeneous"
    d_in: int = Field(64, ge=2)
    dimensions: tuple[int, ...] = Field((1, 1, 1, 1, 2, 2, 4, 8), strict=False)
    """Number of dimensions of each concept that is not gated."""
    gated_pairs: int = Field(2, ge=0)
    """Number of planes that hold two concepts each."""
    rate: float = Field(0.1, gt=0, lt=1)
    """Probability of each concept."""
    inner: tuple[float, float] = Field((0.5, 1.0), strict=False)
    """Lowest and highest radius of the inner concept of a gated pair."""
    outer: tuple[float, float] = Field((2.0, 2.5), strict=False)
    """Lowest and highest radius of the outer concept of a gated pair."""

    @model_validator(mode="after")
    def _concepts_fit(self) -> HeterogeneousSpec:
        if not self.dimensions and not self.gated_pairs:
            raise ValueError("there is no concept: give dimensions, or gated_pairs of 1 or more")
        widest = max([*self.dimensions, _PLANE if self.gated_pairs else 1])
        if min(self.dimensions, default=1) < 1 or widest > self.d_in:
            raise ValueError(
                f"concepts of dimensions {self.dimensions} do not fit in {self.d_in}: allowed are 1 to "
                "d_in"
            )
        if not 0 <= self.inner[0] < self.inner[1] < self.outer[0] < self.outer[1]:
            raise ValueError(
                f"radii {self.inner} and {self.outer} must ascend: magnitudes that overlap do not "
                "tell concepts apart"
            )
        if self.gated_pairs and 2 * self.rate >= 1:
            raise ValueError(
                f"two exclusive concepts of probability {self.rate:g} each: lower rate below 0.5"
            )
        return self

    def concepts(self) -> tuple[tuple[int, ...], ...]:
        """Return the rows of each concept: those of `dimensions`, then inner and outer of each pair."""
        return consecutive_groups((*self.dimensions, *(_PLANE,) * (2 * self.gated_pairs)))

    @property
    def least_directions(self) -> int:
        """Return how many directions of width `d_in` the truth is made of at least."""
        return sum(self.dimensions) + 2 * _PLANE * self.gated_pairs

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        groups, n_plain = self.concepts(), len(self.dimensions)
        rates = [self.rate] * n_plain + [2 * self.rate] * self.gated_pairs
        tokens, drawn = independent_support(torch.tensor(rates), n_tokens, random)
        second = (torch.rand(len(drawn), generator=random) < 0.5).long()
        concept = torch.where(drawn < n_plain, drawn, 2 * drawn - n_plain + second)
        parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for index, group in enumerate(groups):
            on = tokens[concept == index]
            values = self._values(index, len(on), random)
            rows = torch.tensor(group).repeat(len(on))
            parts.append((on.repeat_interleave(len(group)), rows, values.flatten()))
        return codes_of_parts(parts, n_tokens, groups[-1][-1] + 1)

    def _values(self, concept: int, n: int, random: torch.Generator) -> torch.Tensor:
        """Return the coordinates, in a concept's own rows, of `n` of its occurrences."""
        gated = concept - len(self.dimensions)
        size = _PLANE if gated >= 0 else self.dimensions[concept]
        if size == 1:
            return 0.5 + torch.rand(n, 1, generator=random)
        points = torch.nn.functional.normalize(torch.randn(n, size, generator=random), dim=1)
        if gated < 0:
            return points
        low, high = self.outer if gated % 2 else self.inner
        return points * (low + (high - low) * torch.rand(n, 1, generator=random))

    def _draw_truth(self) -> GeneratorTruth:
        names = [str(size) for size in self.dimensions]
        random = generator(self.seed, self.kind, "dictionary", self.d_in, self.gated_pairs, *names)
        blocks = [orthonormal_rows(size, self.d_in, random) for size in self.dimensions]
        for _ in range(self.gated_pairs):
            blocks += [orthonormal_rows(_PLANE, self.d_in, random)] * 2
        rows = torch.cat(blocks)
        groups = self.concepts()
        gated = groups[len(self.dimensions) :]
        symmetries = []
        if any(len(group) > 1 for group in groups):
            symmetries.append("the rows of a subspace may be rotated into one another")
        if gated:
            symmetries.append("the two concepts of a gated pair have one plane in common")
        return GeneratorTruth(
            rows,
            torch.full((len(rows),), self.rate),
            # one row of each concept at most: the rows of one concept are active together
            exclusive=tuple(
                (i, j)
                for inner, outer in zip(gated[::2], gated[1::2], strict=True)
                for i in inner
                for j in outer
            ),
            subspaces=tuple(group for group in groups if len(group) > 1),
            symmetry="; ".join(symmetries),
        )
