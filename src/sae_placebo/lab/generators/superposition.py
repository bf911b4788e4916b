"""G1: independent features in superposition, the generator of most recovery claims."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

from jaxtyping import Float32
from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import (
    GENERATORS,
    GeneratorSpec,
    GeneratorTruth,
    Sample,
    unit_rows,
)
from sae_placebo.lab.generators.sparse_draws import codes_of
from sae_placebo.saes import Codes

_CHUNK_NUMBERS = 1 << 22


@GENERATORS.add
class SuperpositionSpec(GeneratorSpec):
    """More features than dimensions, switched on one by one with geometrically falling rates.

    There are n features i = 0 .. n - 1, t is a token, and all draws are independent:

        x_t = sum_i a_ti f_i + noise * g_t          g_t ~ N(0, I)
        f_i  uniform on the unit sphere of d_in dimensions
        a_ti = u_ti with probability p_i, else 0     u_ti uniform on (0, 1]
        p_i  = l0 * decay^i / sum_j decay^j

    so that the mean number of active features is `l0` whatever the decay. At the defaults the most
    frequent feature is active on 5.0% of tokens, the rarest on 0.029%, and 0.6% of tokens hold none.

    With `correlated`, `p_i` becomes `2 p_i Phi(h_ti)`, where `h_t ~ N(0, C)` is drawn for every token and C
    is a symmetrized matrix of uniforms whose smallest eigenvalue is lifted just above zero. The mean of
    Phi(h) is 1/2, so `l0` stays the same.

    Source: Sharkey, Braun and Millidge, "Taking features out of superposition with sparse
    autoencoders" (2022), and its code, HoagyC/sparse_coding `replicate_toy_models.py`. Differs:

    - rates are scaled after the decay. The code of the uncorrelated setting does not:
      `p_i = (l0 / n) decay^i`, a mean of 0.97 active features where 5 are stated, and 38% of tokens
      empty. `legacy = "unscaled_decay"` gives that;
    - correlation is drawn per token. The code draws h once per batch, which leaves features
      independent within it, and scales every draw to the exact mean;
    - a token without any feature stays as it is, where the code gives it one in the correlated setting;
    - amplitudes exclude 0, so that an active feature has a code.
    """

    kind: Literal["superposition"] = "superposition"
    d_in: int = Field(256, ge=2)
    n_features: int = Field(512, ge=1)
    l0: float = Field(5.0, gt=0)
    """Mean number of active features of a token."""
    decay: float = Field(0.99, gt=0, le=1)
    """Ratio of a feature's rate to that of the feature before it."""
    noise: float = Field(0.0, ge=0)
    """Standard deviation of the Gaussian noise, per dimension; the published option is 0.1."""
    correlated: bool = False
    """Whether features occur together more or less often than by chance."""
    legacy: Literal["unscaled_decay"] | None = None
    """A known fault of the published code that is repeated, to compare with numbers made by it."""

    @model_validator(mode="after")
    def _rates_fit(self) -> SuperpositionSpec:
        highest = max(self._rates()) * (2 if self.correlated else 1)
        if highest > 1:
            raise ValueError(
                f"the most frequent feature would be active with probability {highest:.3g}: lower "
                f"l0 ({self.l0:g}) or raise n_features ({self.n_features}) or decay ({self.decay:g})"
            )
        return self

    def draw(self, n_tokens: int, random: torch.Generator) -> Sample:
        """Return `n_tokens` tokens with their true codes; see `GeneratorSpec.draw`."""
        sample = super().draw(n_tokens, random)
        if self.noise:
            sample.x.add_(self.noise * torch.randn(sample.x.shape, generator=random))
        return sample

    @property
    def least_directions(self) -> int:
        """Return how many directions of width `d_in` the truth is made of at least."""
        return self.n_features

    def _chunk_tokens(self, n_tokens: int) -> int:
        return max(1, _CHUNK_NUMBERS // self.n_features)

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        rates = self.truth.rates
        if self.correlated:
            h = torch.randn(n_tokens, self.n_features, generator=random) @ _mixing(self).t()
            rates = rates * 2 * torch.special.ndtr(h)
        active = torch.rand(n_tokens, self.n_features, generator=random) < rates
        tokens, features = active.nonzero().unbind(1)
        values = 1 - torch.rand(len(features), generator=random)
        return codes_of(tokens, features, values, n_tokens, self.n_features)

    def _draw_truth(self) -> GeneratorTruth:
        random = generator(self.seed, self.kind, "dictionary", self.d_in, self.n_features)
        rows = unit_rows(self.n_features, self.d_in, random)
        return GeneratorTruth(rows, torch.tensor(self._rates(), dtype=torch.float32))

    def _rates(self) -> list[float]:
        falling = [self.decay**i for i in range(self.n_features)]
        whole = self.n_features if self.legacy == "unscaled_decay" else math.fsum(falling)
        return [self.l0 * part / whole for part in falling]


@lru_cache(maxsize=2)
def _mixing(spec: SuperpositionSpec) -> Float32[torch.Tensor, "feature feature"]:
    """Return L with L L^T = C, as in `generate_corr_matrix` of the source."""
    n = spec.n_features
    random = generator(spec.seed, spec.kind, "correlation", n)
    uniform = torch.rand(n, n, generator=random, dtype=torch.float64)
    symmetric = (uniform + uniform.t()) / 2
    lowest = min(0.0, float(torch.linalg.eigvalsh(symmetric)[0]))
    lifted = symmetric + (1e-9 - 1.001 * lowest) * torch.eye(n, dtype=torch.float64)
    lower: torch.Tensor = torch.linalg.cholesky(lifted)
    return lower.float()
