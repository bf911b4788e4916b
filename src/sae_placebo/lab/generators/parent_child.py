"""G4: a feature that occurs only with another, the generator of feature absorption."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float32
from pydantic import Field

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import (
    GENERATORS,
    GeneratorSpec,
    GeneratorTruth,
    Sample,
    compose,
)
from sae_placebo.lab.generators.sparse_draws import orthonormal_rows, packed

_RATES = (0.25, 0.05, 0.05, 0.05)
_CHILD_GIVEN_PARENT = 0.2
CHILD_IN_COMPOSITE = "every child replaced by the normalized sum of parent and child"
"""The name of the dictionary that absorption arrives at."""


@GENERATORS.add
class ParentChildSpec(GeneratorSpec):
    """Four orthonormal features of magnitude 1, the second of which may need the first.

        x_t = sum_i a_ti f_i         a_ti in {0, 1}

    `independent`: feature i is active with probability (.25, .05, .05, .05), whatever the others do.
    `hierarchical`: feature 1 is active with probability .2 where feature 0 is, and never elsewhere, so
    that its rate is still .05.

    The hierarchical law is not identifiable. With p, c for features 0 and 1, tokens hold p or p + c, so
    {p, (p + c) / sqrt 2} makes the same tokens with one code where {p, c} needs two: a sparse dictionary
    is right to prefer it. See `closed_forms` for how often c alone has to occur to change that.

    Source: Chanin et al., "A is for Absorption" (arXiv 2409.14507), the toy setting. Differs: the frame
    of features is a random rotation, drawn from `seed`.
    """

    kind: Literal["parent_child"] = "parent_child"
    d_in: int = Field(50, ge=4)
    law: Literal["independent", "hierarchical"] = "hierarchical"
    """Whether feature 1 occurs without feature 0."""

    def draw(self, n_tokens: int, random: torch.Generator) -> Sample:
        """Return `n_tokens` tokens."""
        active = torch.rand(n_tokens, 4, generator=random)
        rates = torch.tensor(_RATES)
        if self.law == "hierarchical":
            # the same uniform number decides, so that both laws share every other feature's tokens
            rates[1] = _CHILD_GIVEN_PARENT
        values = (active < rates).float()
        if self.law == "hierarchical":
            values[:, 1] *= values[:, 0]
        codes = packed(values)
        return Sample(compose(codes, self.truth.dictionary), codes, self.truth)

    def _draw_truth(self) -> GeneratorTruth:
        rows = orthonormal_rows(4, self.d_in, generator(self.seed, self.kind, "frame", self.d_in))
        rates = torch.tensor(_RATES)
        if self.law == "independent":
            return GeneratorTruth(rows, rates)
        return GeneratorTruth(
            rows,
            rates,
            parents=(-1, 0, -1, -1),
            alternatives={CHILD_IN_COMPOSITE: with_composites(rows, ((1, 0),))},
            symmetry=NEVER_ALONE,
        )


NEVER_ALONE = (
    "a child that never occurs without its parent may be itself, or its sum with the parent: the "
    "activations are the same"
)


def with_composites(
    rows: Float32[torch.Tensor, "feature d_in"], pairs: tuple[tuple[int, int], ...]
) -> Float32[torch.Tensor, "feature d_in"]:
    """Return `rows` where the first of each pair is replaced by the normalized sum of both."""
    changed = rows.clone()
    for child, parent in pairs:
        changed[child] = torch.nn.functional.normalize(rows[child] + rows[parent], dim=0)
    return changed
