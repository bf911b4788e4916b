"""G6: two features for one latent, the generator of feature hedging."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS, GeneratorSpec, GeneratorTruth
from sae_placebo.lab.generators.parent_child import never_alone
from sae_placebo.lab.generators.sparse_draws import orthonormal_rows, packed
from sae_placebo.saes import Codes

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

    An SAE of one latent, which is too narrow for both, aligns with feature 0 and takes in some of feature 1,
    with the sign of the correlation.

    Source: Chanin et al., "Feature Hedging" (arXiv 2505.11756), the single-latent setting. Differs: the
    frame of features is a random rotation, drawn from `seed`.
    """

    kind: Literal["hedging"] = "hedging"
    d_in: int = Field(50, ge=2)
    law: Literal["independent", "hierarchical", "partial", "anti"] = "hierarchical"
    """How the second feature depends on the first."""

    @property
    def correlation(self) -> float:
        """Return the correlation between the activity of both features, in closed form."""
        within, _ = _CHILD[self.law]
        rate = self._child_rate()
        covariance = _PARENT * (within - rate)
        return covariance / math.sqrt(_PARENT * (1 - _PARENT) * rate * (1 - rate))

    def _child_rate(self) -> float:
        within, outside = _CHILD[self.law]
        return _PARENT * within + (1 - _PARENT) * outside

    def _chunk_tokens(self, n_tokens: int) -> int:
        return n_tokens

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        within, outside = _CHILD[self.law]
        uniform = torch.rand(n_tokens, 2, generator=random)
        parent = uniform[:, 0] < _PARENT
        child = torch.where(parent, uniform[:, 1] < within, uniform[:, 1] < outside)
        return packed(torch.stack([parent, child], dim=1).float())

    def _draw_truth(self) -> GeneratorTruth:
        rows = orthonormal_rows(2, self.d_in, generator(self.seed, self.kind, "frame", self.d_in))
        rates = torch.tensor([_PARENT, self._child_rate()])
        if self.law == "hierarchical":
            return never_alone(rows, rates, (-1, 0))
        return GeneratorTruth(rows, rates)
