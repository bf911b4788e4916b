"""G11: features of two to four dimensions: circles, spheres, tori."""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float32
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

_DIMENSIONS = {"circle": 2, "sphere": 3, "torus": 4}


@GENERATORS.add
class MultidimensionalSpec(GeneratorSpec):
    """Sparse features that are surfaces in subspaces, so that a direction is not what is to be found.

    All draws are independent, t is a token, and block k has r_k = 2, 3 or 4 orthonormal rows B_k:

        x_t = sum_k rho_tk s_tk B_k      over blocks active on t, each with probability rate_k
        circle: s = (cos u, sin u);  sphere: s uniform on the unit sphere of three dimensions
        torus:  s = (cos u, sin u, cos v, sin v) / sqrt(2);   u, v uniform angles
        rho = max(0, 1 + radius_std * e), e ~ N(0, 1);   rate_k = l0_blocks / number of blocks

    Subspaces of different blocks are independent, in uniformly random orientation; they overlap where
    there are more rows than dimensions, and a little otherwise. Codes are coordinates in a block's rows and
    may be negative. `truth.l0` counts rows, `l0_blocks` counts blocks.

    The rows of a block may be rotated into one another (those of a circle or a sphere by any rotation), so
    only subspaces can be scored. A dictionary of single rays needs about 1 / eps^(r - 1) of them to
    approximate a surface of dimension r - 1 with relative error eps.

    Source: setting of Engels et al., "Not all language model features are linear" (2405.14860), and of
    the block-sparse argument of 2606.06333; no published generator, so sizes and rates are our own.
    """

    kind: Literal["multidimensional"] = "multidimensional"
    d_in: int = Field(64, ge=2)
    circles: int = Field(8, ge=0)
    spheres: int = Field(4, ge=0)
    tori: int = Field(4, ge=0)
    l0_blocks: float = Field(2.0, gt=0)
    """Mean number of active blocks of a token."""
    radius_std: float = Field(0.0, ge=0, le=0.2)
    """Standard deviation of the radius, whose mean is 1. At 0 every block stays on its surface, and up to
    0.2 none vanishes."""

    @model_validator(mode="after")
    def _blocks_fit(self) -> MultidimensionalSpec:
        if not self.shapes:
            raise ValueError("there is no feature: set circles, spheres or tori to 1 or more")
        if self.l0_blocks >= len(self.shapes):
            raise ValueError(
                f"{self.l0_blocks:g} active blocks of {len(self.shapes)} leave nothing to be sparse: "
                "lower l0_blocks or add blocks"
            )
        widest = max(_DIMENSIONS[shape] for shape in self.shapes)
        if widest > self.d_in:
            raise ValueError(
                f"a feature of {widest} dimensions does not fit in {self.d_in}: raise d_in"
            )
        return self

    @property
    def shapes(self) -> tuple[str, ...]:
        """Return the shape of each block, in the order of `truth.subspaces`."""
        return ("circle",) * self.circles + ("sphere",) * self.spheres + ("torus",) * self.tori

    @property
    def least_directions(self) -> int:
        """Return how many directions of width `d_in` the truth is made of at least."""
        return 2 * self.circles + 3 * self.spheres + 4 * self.tori

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        groups = self._groups()
        rates = torch.full((len(groups),), self._rate(), dtype=torch.float64)
        tokens, blocks = independent_support(rates, n_tokens, random)
        parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for shape, dimensions in _DIMENSIONS.items():
            of_shape = [k for k, name in enumerate(self.shapes) if name == shape]
            if not of_shape:
                continue
            on = (blocks >= of_shape[0]) & (blocks <= of_shape[-1])
            radius = 1 + self.radius_std * torch.randn(int(on.sum()), generator=random)
            values = _points(shape, len(radius), random) * radius.clamp_min(0)[:, None]
            rows = groups[of_shape[0]][0] + (blocks[on] - of_shape[0])[:, None] * dimensions
            rows = rows + torch.arange(dimensions)
            parts.append(
                (tokens[on].repeat_interleave(dimensions), rows.flatten(), values.flatten())
            )
        return codes_of_parts(parts, n_tokens, groups[-1][-1] + 1)

    def _rate(self) -> float:
        return self.l0_blocks / len(self.shapes)

    def _groups(self) -> tuple[tuple[int, ...], ...]:
        return consecutive_groups([_DIMENSIONS[shape] for shape in self.shapes])

    def _draw_truth(self) -> GeneratorTruth:
        random = generator(self.seed, self.kind, "dictionary", self.d_in, *self.shapes)
        groups = self._groups()
        rows = torch.cat([orthonormal_rows(len(group), self.d_in, random) for group in groups])
        return GeneratorTruth(
            rows,
            torch.full((len(rows),), self._rate()),
            subspaces=groups,
            symmetry="the rows of a subspace may be rotated into one another",
        )


def _points(shape: str, n: int, random: torch.Generator) -> Float32[torch.Tensor, "n dimension"]:
    """Return `n` points that are uniform on a shape, all at distance 1 from the origin."""
    if shape == "sphere":
        return torch.nn.functional.normalize(torch.randn(n, 3, generator=random), dim=1)
    angles = 2 * math.pi * torch.rand(n, 1 if shape == "circle" else 2, generator=random)
    pairs = torch.stack([angles.cos(), angles.sin()], dim=2).flatten(1)
    return pairs / math.sqrt(angles.shape[1])
