"""The null of explained variance: the same recipe on Gaussian noise with the same covariance.

A sparse dictionary explains part of any cloud of points. What it explains of a Gaussian with the
activations' mean and covariance owes nothing to sparse structure, so only what lies above counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int64

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.data.rows import Rows
from sae_placebo.models.activations import ActivationBlock, Calibration, within_limits
from sae_placebo.saes import SAE


@runtime_checkable
class GaussianDraw(Protocol):
    """A function of this type draws n points from a generator, in the units that it was made for."""

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

    def mean_and_covariance(
        self,
    ) -> tuple[Float[torch.Tensor, " d_in"], Float[torch.Tensor, "d_in d_in"]]:
        """Return both in model units and float64; the covariance is divided by n.

        Raises:
            NotEstimable: nothing was counted.
        """
        if self.n == 0:
            raise NotEstimable("no activation was counted, so there is no mean and covariance.")
        mean = self.total / self.n
        return self.center + mean, self.products / self.n - torch.outer(mean, mean)

    def state(self) -> dict[str, torch.Tensor]:
        """Return what was counted, as tensors that `restore` takes."""
        n = torch.tensor(self.n, dtype=torch.int64)
        return {"total": self.total, "products": self.products, "n": n}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on counting from `state`."""
        self.total.copy_(state["total"])
        self.products.copy_(state["products"])
        self.n = int(state["n"])

    def sampler(self, calibration: Calibration | None = None) -> GaussianDraw:
        """Return a function (n, generator) -> n Gaussian draws; see `gaussian_draws`."""
        return gaussian_draws(*self.mean_and_covariance(), calibration)


def gaussian_draws(
    mean: Float[torch.Tensor, " d_in"],
    covariance: Float[torch.Tensor, "d_in d_in"],
    calibration: Calibration | None = None,
) -> GaussianDraw:
    """Return a function (n, generator) -> n Gaussian draws [n, d_in] in float32.

    Args:
        mean: Mean of the activations, in model units.
        covariance: Covariance of the activations, in model units; it may be singular.
        calibration: Draws are centered and scaled by it, like the activations that SAEs are trained
            on. None: draws are in model units.
    """
    # eigenvalues, not Cholesky: activations may be confined to a subspace
    values, vectors = torch.linalg.eigh(covariance.double())
    root = (vectors * values.clamp_min(0).sqrt()).T.float()
    if calibration is None:
        offset = mean.float()
    else:
        root = root * calibration.factor
        offset = ((mean - calibration.mean) * calibration.factor).float()

    def draw(n: int, random: torch.Generator) -> torch.Tensor:
        drawn: torch.Tensor = torch.randn(n, len(offset), generator=random) @ root + offset
        return drawn

    return draw


class GaussianReader:
    """Reads Gaussian draws where a model's activations would be read; it needs no model.

    A row's draws are named by both seeds, the hookpoint and the digest of the row's token ids: the
    same row gives the same bits in any batch and order, and nothing is kept between calls. The tokens
    only name the draws, which carry nothing of them. Positions, rows and hookpoints are independent:
    what a model shares between them is gone. Two rows of the same tokens get the same draws.

    Args:
        draws: Canonical hookpoint name -> draws in model units, from `SecondMoments.sampler` or
            `gaussian_draws` without a calibration. With moments of the tokens that are no norm
            outliers, as training counts them, outliers have no counterpart among the draws.
        widths: Width of the activations, by hookpoint.
        seed: The trial's seed.
        model_seed: The arm's model seed; another one gives other draws.
        purpose: What the draws are for; another purpose gives other draws.
    """

    def __init__(
        self,
        draws: Mapping[str, GaussianDraw],
        widths: Mapping[str, int],
        seed: int,
        model_seed: int,
        purpose: str = "gaussian activations",
    ) -> None:
        self._draws = dict(draws)
        self.widths = {name: widths[name] for name in self._draws}
        self._seeds = (seed, model_seed)
        self._purpose = purpose

    @property
    def names(self) -> tuple[str, ...]:
        """Return the hookpoints' names, in the order given."""
        return tuple(self._draws)

    def read(
        self, token_ids: Int64[torch.Tensor, "row pos"]
    ) -> dict[str, Float[torch.Tensor, "row pos d_in"]]:
        """Return draws by hookpoint, in model units, on the CPU; padding gets draws as well."""
        rows, n = token_ids.shape
        found = {name: torch.empty(rows, n, self.widths[name]) for name in self._draws}
        seed, model_seed = self._seeds
        for i, row in enumerate(token_ids.cpu().contiguous().numpy()):
            key = hashlib.sha256(row.tobytes()).hexdigest()
            for name, draw in self._draws.items():
                # one row at a time: a product's bits may depend on how many rows it has
                random = generator(seed, self._purpose, model_seed, name, key)
                found[name][i] = draw(n, random)
        return found

    def diagnostics(self, heldout: Rows) -> dict[str, dict[str, Any]]:
        """Return nothing: the law is the mean and the covariance, and both are kept."""
        return {}


class GaussianCounting:
    """Counts the mean and covariance of activations, to draw Gaussian ones in their place.

    Args:
        calibrations: How activations are masked and centered, by hookpoint.
    """

    def __init__(self, calibrations: Mapping[str, Calibration]) -> None:
        self._calibrations = calibrations
        self.moments = {name: SecondMoments(one.mean) for name, one in calibrations.items()}

    def add(self, block: ActivationBlock) -> None:
        """Count a block of training tokens, norm outliers left out."""
        for name, _, x in within_limits(block, self._calibrations):
            self.moments[name].add(x)

    def state(self) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
        """Yield the moments of each hookpoint."""
        for name, one in self.moments.items():
            yield name, one.state()

    def restore(self, part: Callable[[str], Mapping[str, torch.Tensor]]) -> None:
        """Go on counting from a checkpoint's parts."""
        for name, one in self.moments.items():
            one.restore(part(name))

    def reader(self, seed: int, model_seed: int) -> GaussianReader:
        """Return what reads Gaussian draws with these means and covariances."""
        draws = {name: one.sampler() for name, one in self.moments.items()}
        widths = {name: len(one.center) for name, one in self.moments.items()}
        return GaussianReader(draws, widths, seed, model_seed)


def score(sae: SAE, draw: GaussianDraw, seed: int) -> GaussianNull:
    """Return the variance that `sae`, trained on draws, explains of fresh ones."""
    x = draw(SCORED_TOKENS, generator(seed, "gaussian", "scored"))
    error = (x - sae.decode(sae.encode(x))).double().square().sum()
    energy = (x - x.mean(0)).double().square().sum()
    return GaussianNull(float(1 - error / energy), len(x))
