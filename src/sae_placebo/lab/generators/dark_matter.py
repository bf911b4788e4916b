"""G13: sparse features, a dense subspace that is no feature, and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float32
from pydantic import Field, model_validator

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import GENERATORS, GeneratorSpec, GeneratorTruth, Sample
from sae_placebo.lab.generators.sparse_draws import (
    codes_of,
    independent_support,
    orthonormal_rows,
)
from sae_placebo.lab.generators.superposition import SuperpositionSpec
from sae_placebo.saes import Codes


@dataclass(frozen=True)
class Parts:
    """Tokens taken apart: their activations are the sum of the three parts."""

    draw: Sample
    sparse: Float32[torch.Tensor, "token d_in"]
    """The part that the features make."""
    dense: Float32[torch.Tensor, "token d_in"]
    """The part that lies in the dense subspace."""
    noise: Float32[torch.Tensor, "token d_in"]
    """The part that is the same in all directions."""


@GENERATORS.add
class DarkMatterSpec(GeneratorSpec):
    """Independent sparse features (those of G1), `dense` Gaussian directions, and isotropic noise.

        x_t = sum_i a_ti f_i + dense_std * sum_k y_tk g_k + noise * n_t

    f_i, a_ti and p_i are those of `SuperpositionSpec` with the same d_in, n_features, l0, decay and seed:
    the dictionary is the same. g_k are orthonormal, y_tk and n_t standard normal, all independent.

    Dense directions are not features: they have no codes and are in `dense_rows`, not in
    `truth.dictionary`. What an SAE that knows the features leaves over is dense + noise; most of what is
    linear in x of that is the dense part, and noise is the floor that nothing explains. `shares` says how
    large each part is, and `parts` gives tokens taken apart.

    Source: the decomposition of Engels, Riggs and Tegmark, "Decomposing the dark matter of sparse
    autoencoders" (2410.14670), turned into a generator; sizes are our own. With dense = 0 and noise = 0
    it is G1, drawn in another order.
    """

    kind: Literal["dark_matter"] = "dark_matter"
    d_in: int = Field(256, ge=2)
    n_features: int = Field(512, ge=1)
    l0: float = Field(5.0, gt=0)
    """Mean number of active features of a token."""
    decay: float = Field(0.99, gt=0, le=1)
    """Ratio of a feature's rate to that of the feature before it."""
    dense: int = Field(8, ge=0)
    """Number of dense directions."""
    dense_std: float = Field(0.25, ge=0)
    """Standard deviation along each of them."""
    noise: float = Field(0.03, ge=0)
    """Standard deviation of the noise, per dimension."""

    @model_validator(mode="after")
    def _fits(self) -> DarkMatterSpec:
        if self.dense > self.d_in:
            raise ValueError(
                f"{self.dense} dense directions do not fit in {self.d_in} dimensions: lower dense"
            )
        self.sparse_spec()
        return self

    def sparse_spec(self) -> SuperpositionSpec:
        """Return the generator of the sparse part alone."""
        return SuperpositionSpec(
            d_in=self.d_in,
            n_features=self.n_features,
            l0=self.l0,
            decay=self.decay,
            seed=self.seed,
        )

    @property
    def dense_rows(self) -> Float32[torch.Tensor, "dense d_in"]:
        """Return the dense directions, which are orthonormal."""
        random = generator(self.seed, self.kind, "dense", self.d_in, self.dense)
        return orthonormal_rows(self.dense, self.d_in, random)

    @property
    def shares(self) -> tuple[float, float, float]:
        """Return the shares of the sparse, dense and noise parts in the variance of x.

        The variance is summed over dimensions. A feature's part of it is p/3 - p^2/4, since where the
        feature is active a^2 has mean 1/3 and a has mean 1/2.
        """
        rates = self.truth.rates.double()
        sparse = float((rates / 3 - rates.square() / 4).sum())
        dense = self.dense * self.dense_std**2
        noise = self.d_in * self.noise**2
        whole = sparse + dense + noise
        return sparse / whole, dense / whole, noise / whole

    def draw(self, n_tokens: int, random: torch.Generator) -> Sample:
        """Return `n_tokens` tokens with their true codes; see `GeneratorSpec.draw`."""
        return self.parts(n_tokens, random).draw

    def parts(self, n_tokens: int, random: torch.Generator) -> Parts:
        """Return the tokens of `draw`, with the parts that they are the sum of."""
        sparse = super().draw(n_tokens, random)
        along = torch.randn(n_tokens, self.dense, generator=random)
        dense = self.dense_std * along @ self.dense_rows
        noise = self.noise * torch.randn(n_tokens, self.d_in, generator=random)
        whole = Sample(sparse.x + dense + noise, sparse.codes, self.truth)
        return Parts(whole, sparse.x, dense, noise)

    @property
    def least_directions(self) -> int:
        """Return how many directions of width `d_in` the truth is made of at least."""
        return self.n_features

    def _draw_codes(self, n_tokens: int, random: torch.Generator) -> Codes:
        tokens, features = independent_support(self.truth.rates, n_tokens, random)
        values = 1 - torch.rand(len(tokens), generator=random)
        return codes_of(tokens, features, values, n_tokens, self.n_features)

    def _draw_truth(self) -> GeneratorTruth:
        return self.sparse_spec().truth
