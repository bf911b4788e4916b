"""G9: many more features than an SAE can tell apart, at the limit of compressed sensing."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS, GeneratorSpec, GeneratorTruth, unit_rows
from sae_placebo.lab.generators.sparse_draws import codes_of, independent_support
from sae_placebo.saes import Codes


@GENERATORS.add
class HighExpansionSpec(GeneratorSpec):
    """Independent features, 32 for each dimension at the default, with log-normal amplitudes.

        x_t  = sum_i a_ti f_i,   f_i uniform on the unit sphere of d_in dimensions
        a_ti = exp(sigma * e_ti) with probability p_i, else 0,   e_ti ~ N(0, 1)

    With `law = "constant"`, p_i = l0 / n_features, which is 0.00625 at the default. With `law = "variable"`,
    p_i is proportional to 10^u_i, where u_i is uniform on [`lowest`, `highest`], and the p_i sum to `l0`.

    Only the choice (d_in, l0) = (100, 20) is published. There, pursuit that is given the true dictionary
    finds 0.67 of a token's features, and the largest products find 0.32 (`ceilings` over tokens, to about
    0.01, at sigma 0.5; at sigma 0.25 they find 0.43 and 0.35). With d_in 200, or l0 10 or 5, pursuit finds
    0.99 or more: an SAE that fails there fails by itself.

    Source: Korznikov et al., "Sanity checks for sparse autoencoders" (2026, arXiv 2602.14111).
    Differs:

    - amplitudes there are LogNormal(0, 0.25). Whether 0.25 is the standard deviation of the logarithm or
      its square is not said; `sigma` is the standard deviation, and the default 0.5 takes it as the
      square, as the notation N(mean, variance) does. `sigma = 0.25` is the other reading;
    - variable rates are scaled to the sum `l0`. Without that, the sum of 3200 of them is 20.4 on
      average and differs between seeds.
    """

    kind: Literal["high_expansion"] = "high_expansion"
    d_in: int = Field(100, ge=2)
    n_features: int = Field(3200, ge=1)
    l0: float = Field(20.0, gt=0)
    """Mean number of active features of a token."""
    law: Literal["constant", "variable"] = "constant"
    sigma: float = Field(0.5, ge=0)
    """Standard deviation of the logarithm of an amplitude."""
    lowest: float = -5.5
    """Law `variable`: decimal logarithm of the smallest possible rate, before scaling."""
    highest: float = -1.2
    """Law `variable`: decimal logarithm of the largest possible rate, before scaling."""

    @model_validator(mode="after")
    def _rates_fit(self) -> HighExpansionSpec:
        if self.lowest >= self.highest:
            raise ValueError(
                f"lowest ({self.lowest:g}) must be below highest ({self.highest:g}): exchange them"
            )
        top = float(self._rates().max())
        if not top < 1:
            raise ValueError(
                f"the most frequent feature would be active with probability {top:.3g}: lower l0 "
                f"({self.l0:g}) or raise n_features ({self.n_features})"
            )
        return self

    @property
    def least_directions(self) -> int:
        """Return how many directions of width `d_in` the truth is made of at least."""
        return self.n_features

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        tokens, features = independent_support(self._rates(), n_tokens, random)
        values = torch.exp(self.sigma * torch.randn(len(tokens), generator=random))
        return codes_of(tokens, features, values, n_tokens, self.n_features)

    def _draw_truth(self) -> GeneratorTruth:
        random = generator(self.seed, self.kind, "dictionary", self.d_in, self.n_features)
        return GeneratorTruth(unit_rows(self.n_features, self.d_in, random), self._rates().float())

    def _rates(self) -> torch.Tensor:
        """Return the rates, which do not depend on d_in, so that widths can be compared."""
        if self.law == "constant":
            return torch.full((self.n_features,), self.l0 / self.n_features, dtype=torch.float64)
        random = generator(self.seed, self.kind, "rates", self.n_features)
        u = torch.rand(self.n_features, generator=random, dtype=torch.float64)
        raw = torch.exp(math.log(10) * (self.lowest + (self.highest - self.lowest) * u))
        return raw * (self.l0 / raw.sum())
