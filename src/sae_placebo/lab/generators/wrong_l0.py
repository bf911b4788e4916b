"""G7: correlated features, on which an SAE with too low an L0 mixes what occurs together."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

from jaxtyping import Float32
from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS, GeneratorSpec, GeneratorTruth
from sae_placebo.lab.generators.sparse_draws import codes_of, orthonormal_rows
from sae_placebo.saes import Codes

_CHUNK_NUMBERS = 1 << 22
_SMALL = 5
_LARGE = 50
_PUBLISHED_D_IN = {"large": 100, "small": 20}


@GENERATORS.add
class WrongL0Spec(GeneratorSpec):
    """Fewer orthonormal features than dimensions, switched on by a Gaussian copula.

    For token t and feature i, with h_t ~ N(0, C) drawn for every token and e_ti ~ N(0, 1) independent,

        x_t  = sum_i a_ti f_i
        a_ti = max(0, 1 + magnitude_std * e_ti) where h_ti > Phi^-1(1 - p_i), else 0

    `preset = "large"` has 50 features, p_i = 0.345 (49 - i) / 50 + 0.05 and a mean L0 of 10.95. C starts with
    30% of the pairs at 0; half of the others are positive, half negative, with a size uniform on
    [`weakest`, `strongest`]. Eigenvalues below 1e-6 are then lifted to 1e-6, and the diagonal is brought
    back to 1. That lifting is always needed and weakens the correlations: `correlations` returns what is
    left of them.

    `preset = "small"` has 5 features, p_i = 0.4 and an L0 of 2. C is 1 on the diagonal, `correlation` between
    feature 0 and each other one, and 0 elsewhere.

    Correlations are those of h. Those of the binary features are weaker, of the same sign.

    Source: Chanin and Garriga-Alonso, "Sparse but wrong" (2025, arXiv 2508.16560), and its code,
    chanind/sparse-but-wrong-paper: `get_training_batch.py`, the notebooks of the toy models. Differs:

    - rows are exactly orthonormal; the code reaches that approximately, by gradient descent;
    - C of the large preset is another draw of the same law; the code draws it from Python's generator at
      seed 42.
    """

    kind: Literal["wrong_l0"] = "wrong_l0"
    preset: Literal["large", "small"] = "large"
    d_in: int = Field(100, ge=2)
    """Width; the published one, 100 (large) or 20 (small), if it is left out."""
    correlation: float = Field(0.4, gt=-0.5, lt=0.5)
    """Preset `small`: correlation of feature 0 with each other one; 0.4 and -0.4 are published. Beyond one
    half no such Gaussian exists."""
    weakest: float = Field(0.3, ge=0, le=1)
    """Preset `large`: smallest size of a correlation, before lifting."""
    strongest: float = Field(0.9, ge=0, le=1)
    """Preset `large`: largest size of a correlation, before lifting."""
    magnitude_std: float = Field(0.15, ge=0)
    """Standard deviation of the magnitude of an active feature, whose mean is 1."""

    @model_validator(mode="before")
    @classmethod
    def _published_width(cls, data: Any) -> Any:
        if isinstance(data, dict) and "d_in" not in data:
            return {**data, "d_in": _PUBLISHED_D_IN.get(data.get("preset", "large"), 100)}
        return data

    @model_validator(mode="after")
    def _fits(self) -> WrongL0Spec:
        if self.d_in < self.n_features:
            raise ValueError(
                f"{self.n_features} orthonormal features do not fit in {self.d_in} dimensions: "
                f"raise d_in to {self.n_features} or more"
            )
        if self.weakest > self.strongest:
            raise ValueError(
                f"weakest ({self.weakest:g}) is above strongest ({self.strongest:g}): exchange them"
            )
        return self

    @property
    def n_features(self) -> int:
        """Return the number of features."""
        return _LARGE if self.preset == "large" else _SMALL

    @property
    def correlations(self) -> Float32[torch.Tensor, "feature feature"]:
        """Return the correlation matrix of h, after lifting."""
        return _correlations(self).float()

    @property
    def least_directions(self) -> int:
        """Return how many directions of width `d_in` the truth is made of at least."""
        return self.n_features

    def _chunk_tokens(self, n_tokens: int) -> int:
        return _CHUNK_NUMBERS // self.n_features

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        mixing = torch.linalg.cholesky(_correlations(self)).float()
        thresholds = torch.special.ndtri(1 - self._rates()).float()
        h = torch.randn(n_tokens, self.n_features, generator=random) @ mixing.t()
        tokens, features = (h > thresholds).nonzero().unbind(1)
        values = 1 + self.magnitude_std * torch.randn(len(tokens), generator=random)
        return codes_of(tokens, features, values.clamp_min(0), n_tokens, self.n_features)

    def _draw_truth(self) -> GeneratorTruth:
        random = generator(self.seed, self.kind, "dictionary", self.d_in, self.n_features)
        positive = 1.0
        if self.magnitude_std:
            positive = float(torch.special.ndtr(torch.tensor(1 / self.magnitude_std)))
        return GeneratorTruth(
            orthonormal_rows(self.n_features, self.d_in, random),
            (self._rates() * positive).float(),
        )

    def _rates(self) -> torch.Tensor:
        if self.preset == "small":
            return torch.full((_SMALL,), 0.4, dtype=torch.float64)
        falling = (_LARGE - 1 - torch.arange(_LARGE, dtype=torch.float64)) / _LARGE
        return 0.345 * falling + 0.05


@lru_cache(maxsize=8)
def _correlations(spec: WrongL0Spec) -> torch.Tensor:
    n = spec.n_features
    matrix = torch.eye(n, dtype=torch.float64)
    if spec.preset == "small":
        matrix[0, 1:] = matrix[1:, 0] = spec.correlation
        return matrix
    random = generator(spec.seed, spec.kind, "correlation")
    above = torch.triu_indices(n, n, offset=1)
    n_pairs = above.shape[1]
    shuffled = above[:, torch.randperm(n_pairs, generator=random)[: n_pairs - int(0.3 * n_pairs)]]
    sizes = torch.rand(shuffled.shape[1], generator=random, dtype=torch.float64)
    sizes = spec.weakest + (spec.strongest - spec.weakest) * sizes
    sizes[shuffled.shape[1] // 2 :] *= -1
    matrix[shuffled[0], shuffled[1]] = sizes
    matrix[shuffled[1], shuffled[0]] = sizes
    values, vectors = torch.linalg.eigh(matrix)
    lifted = (vectors * values.clamp_min(1e-6)) @ vectors.t()
    scale = lifted.diagonal().rsqrt()
    unit: torch.Tensor = lifted * scale[:, None] * scale
    unit.fill_diagonal_(1.0)
    return unit
