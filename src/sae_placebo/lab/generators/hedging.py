"""G6: two features for one latent, the generator of feature hedging."""

from __future__ import annotations

import math
from typing import Literal

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
from sae_placebo.lab.generators.parent_child import CHILD_IN_COMPOSITE, NEVER_ALONE, with_composites
from sae_placebo.lab.generators.sparse_draws import orthonormal_rows, packed

_PARENT = 0.25
_CHILD = {
    "independent": (0.2, 0.2),
    "hierarchical": (0.2, 0.0),
    "partial": (0.2, 0.1),
    "anti": (0.1, 0.2),
}


@GENERATORS.add
class HedgingSpec(GeneratorSpec):
    """Two orthonormal features of magnitude 1 whose co-occurrence is chosen.

        x_t = a_t0 f_0 + a_t1 f_1        a in {0, 1}

    Feature 0 is active with probability .25. Feature 1 is active with the probabilities

    | law | where feature 0 is active | elsewhere | rate | correlation |
    |---|---|---|---|---|
    | independent | .2 | .2 | .2 | 0 |
    | hierarchical | .2 | 0 | .05 | .397 |
    | partial | .2 | .1 | .125 | .131 |
    | anti | .1 | .2 | .175 | -.114 |

    An SAE of one latent, too narrow for both, aligns with feature 0 and lets in feature 1 with the sign
    of the correlation.

    Source: Chanin et al., "Feature Hedging" (arXiv 2505.11756), the single-latent setting. Differs: the
    frame of features is a random rotation, drawn from `seed`.
    """

    kind: Literal["hedging"] = "hedging"
    d_in: int = Field(50, ge=2)
    law: Literal["independent", "hierarchical", "partial", "anti"] = "hierarchical"
    """How the second feature depends on the first."""

    @property
    def correlation(self) -> float:
        """Correlation between the activity of both features, in closed form."""
        within, outside = _CHILD[self.law]
        rate = _PARENT * within + (1 - _PARENT) * outside
        covariance = _PARENT * (within - rate)
        return covariance / math.sqrt(_PARENT * (1 - _PARENT) * rate * (1 - rate))

    def draw(self, n_tokens: int, random: torch.Generator) -> Sample:
        """Return `n_tokens` tokens."""
        within, outside = _CHILD[self.law]
        uniform = torch.rand(n_tokens, 2, generator=random)
        parent = uniform[:, 0] < _PARENT
        child = torch.where(parent, uniform[:, 1] < within, uniform[:, 1] < outside)
        codes = packed(torch.stack([parent, child], dim=1).float())
        return Sample(compose(codes, self.truth.dictionary), codes, self.truth)

    def _draw_truth(self) -> GeneratorTruth:
        within, outside = _CHILD[self.law]
        rows = orthonormal_rows(2, self.d_in, generator(self.seed, self.kind, "frame", self.d_in))
        rates = torch.tensor([_PARENT, _PARENT * within + (1 - _PARENT) * outside])
        if outside:
            return GeneratorTruth(rows, rates)
        return GeneratorTruth(
            rows,
            rates,
            parents=(-1, 0),
            alternatives={CHILD_IN_COMPOSITE: with_composites(rows, ((1, 0),))},
            symmetry=NEVER_ALONE,
        )
