"""G4: a feature that occurs only with another, the generator of feature absorption."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float32
from pydantic import Field

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS, GeneratorSpec, GeneratorTruth
from sae_placebo.lab.generators.sparse_draws import orthonormal_rows, packed
from sae_placebo.saes import Codes

_RATES = (0.25, 0.05, 0.05, 0.05)
_CHILD_GIVEN_PARENT = 0.2


@GENERATORS.add
class ParentChildSpec(GeneratorSpec):
    """Four orthonormal features of magnitude 1, the second of which may need the first.

        x_t = sum_i a_ti f_i         a_ti in {0, 1}

    With `law = "independent"`, feature i is active with probability (.25, .05, .05, .05), whatever the
    others do. With `law = "hierarchical"`, feature 1 is active with probability .2 where feature 0 is, and
    never elsewhere, so that its rate is still .05.

    The hierarchical law is not identifiable. With p, c for features 0 and 1, tokens hold p or p + c, so
    {p, (p + c) / sqrt 2} makes the same tokens with one code where {p, c} needs two: a sparse dictionary
    is right to prefer it. `closed_forms.epsilon_star` says how often c has to occur alone to change that.

    Source: Chanin et al., "A is for Absorption" (arXiv 2409.14507), the toy setting. Differs: the frame
    of features is a random rotation, drawn from `seed`.
    """

    kind: Literal["parent_child"] = "parent_child"
    d_in: int = Field(50, ge=4)
    law: Literal["independent", "hierarchical"] = "hierarchical"
    """Whether feature 1 occurs without feature 0."""

    def _chunk_tokens(self, n_tokens: int) -> int:
        return n_tokens

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        active = torch.rand(n_tokens, 4, generator=random)
        rates = torch.tensor(_RATES)
        if self.law == "hierarchical":
            # the same uniform number decides, so that both laws share every other feature's tokens
            rates[1] = _CHILD_GIVEN_PARENT
        values = (active < rates).float()
        if self.law == "hierarchical":
            values[:, 1] *= values[:, 0]
        return packed(values)

    def _draw_truth(self) -> GeneratorTruth:
        rows = orthonormal_rows(4, self.d_in, generator(self.seed, self.kind, "frame", self.d_in))
        rates = torch.tensor(_RATES)
        if self.law == "independent":
            return GeneratorTruth(rows, rates)
        return never_alone(rows, rates, (-1, 0, -1, -1))


def never_alone(
    rows: Float32[torch.Tensor, "feature d_in"],
    rates: Float32[torch.Tensor, " feature"],
    parents: tuple[int, ...],
) -> GeneratorTruth:
    """Return the truth of features of one constant magnitude, of which no child occurs without its parent.

    Its alternative is the dictionary that absorption arrives at: every child is replaced by the normalized
    sum of parent and child.

    Args:
        rows: Unit rows.
        rates: Probability of each feature.
        parents: Parent of each feature, or -1; a parent has none itself.
    """
    composites = rows.clone()
    for child, parent in enumerate(parents):
        if parent >= 0:
            composites[child] = torch.nn.functional.normalize(rows[child] + rows[parent], dim=0)
    return GeneratorTruth(
        rows,
        rates,
        parents=parents,
        alternatives={"every child replaced by the normalized sum of parent and child": composites},
        symmetry=(
            "a child that never occurs without its parent may be itself, or its sum with the parent: the "
            "activations are the same"
        ),
    )
