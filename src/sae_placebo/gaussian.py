"""The null of explained variance: the same recipe on Gaussian noise with the same covariance.

A sparse dictionary explains part of any cloud of points. What it explains of a Gaussian with the
activations' mean and covariance owes nothing to sparse structure, so only what lies above counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float

from sae_placebo.activations import Calibration
from sae_placebo.lazy import torch
from sae_placebo.saes import SAE
from sae_placebo.spec import generator


@runtime_checkable
class Draw(Protocol):
    """Draws n points, centered and scaled like the activations, from a generator."""

    def __call__(self, n: int, random: torch.Generator, /) -> torch.Tensor:
        """Return [n, d_in] draws."""
        ...


SCORED_TOKENS = 16_384


@dataclass(frozen=True)
class GaussianNull:
    """Explained variance of one recipe on a covariance-matched Gaussian, and the draws scored."""

    explained_variance: float
    n_tokens: int

    def record(self) -> dict[str, float | int]:
        """Return the value as JSON."""
        return asdict(self)


class SecondMoments:
    """Streaming mean and covariance of activations.

    Args:
        center: [d_in] a point near the mean, taken off first so that float32 products suffice.
    """

    def __init__(self, center: Float[torch.Tensor, " d_in"]) -> None:
        self.center = center
        self.total = torch.zeros(len(center), dtype=torch.float64)
        self.products = torch.zeros(len(center), len(center), dtype=torch.float64)
        self.n = 0

    def add(self, x: Float[torch.Tensor, "token d_in"]) -> None:
        """Count `x`."""
        x = x - self.center
        self.total += x.sum(0, dtype=torch.float64)
        self.products += (x.T @ x).double()
        self.n += len(x)

    def sampler(self, calibration: Calibration) -> Draw:
        """Return a function (n, generator) -> n draws, centered and scaled like the activations."""
        mean = self.total / self.n
        covariance = self.products / self.n - torch.outer(mean, mean)
        # eigenvalues, not Cholesky: activations may be confined to a subspace
        values, vectors = torch.linalg.eigh(covariance)
        root = (vectors * values.clamp_min(0).sqrt()).T.float() * calibration.factor
        offset = ((self.center + mean - calibration.mean) * calibration.factor).float()

        def draw(n: int, random: torch.Generator) -> torch.Tensor:
            drawn: torch.Tensor = torch.randn(n, len(offset), generator=random) @ root + offset
            return drawn

        return draw


def score(sae: SAE, draw: Draw, seed: int) -> GaussianNull:
    """Return the variance that `sae`, trained on draws, explains of fresh ones."""
    x = draw(SCORED_TOKENS, generator(seed, "gaussian", "scored"))
    error = (x - sae.decode(sae.encode(x))).double().square().sum()
    energy = (x - x.mean(0)).double().square().sum()
    return GaussianNull(float(1 - error / energy), len(x))
