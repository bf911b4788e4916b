"""J, the training objective on held-out tokens: of trained SAEs, and of the best codes there are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from pydantic import Field

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import Spec
from sae_placebo.lab import GeneratorSpec, Sample, Scaling
from sae_placebo.lab.experiments.base import LabTraining, in_training_units, scale_of, unfold
from sae_placebo.lab.scores.inference import best_of_k, nonnegative_lasso, nonnegative_pursuit
from sae_placebo.saes import SAE, BatchTopKSpec, Codes, JumpReLUSpec, ReLUSpec, SAESpec, TopKSpec
from sae_placebo.saes.base import Context
from sae_placebo.saes.penalized import PenalizedSpec
from sae_placebo.stats.quantiles import student_quantile


class SplitSpec(Spec):
    """How the split is measured and judged."""

    tokens: int = Field(16_384, ge=64)
    """Held-out tokens; rounded up to whole blocks."""
    blocks: int = Field(32, ge=4)
    """Parts of the held-out tokens; J is measured on each, and intervals are those of the blocks' mean."""
    confidence: float = Field(0.95, gt=0, lt=1)
    tolerance: float = Field(0.02, gt=0)
    """A gap below this share of J(oracle) is none. J(oracle) counts as a twentieth of the activations'
    mean squared norm at least: where the oracle leaves nothing, a share of it means nothing."""
    moved: float = Field(0.02, gt=0)
    """Training has left the truth where the mean max cosine, of features or of latents, is this far
    below 1."""
    true_runs: int = Field(1, ge=1)
    """Seeds, the first ones, from which `true` and `from_true` are trained; the lowest J counts."""


@dataclass(frozen=True)
class Value:
    """A mean over held-out tokens, with the interval of the blocks' mean."""

    mean: float
    low: float
    high: float
    n_tokens: int


@dataclass(frozen=True)
class Missing:
    """A value that cannot be had, and why."""

    reason: str


@dataclass(frozen=True)
class Run:
    """A trained SAE with its J, block by block."""

    sae: SAE
    losses: Float64[np.ndarray, " block"]

    @property
    def mean(self) -> float:
        """J over all blocks."""
        return float(self.losses.mean())


@dataclass(frozen=True)
class ObjectiveMeter:
    """Measures J on the same held-out blocks for everything."""

    draw: Sample
    sae: SAESpec
    inner: SAESpec
    scaling: Scaling
    bias: Literal["none", "mean", "trained"]
    spec: SplitSpec

    @classmethod
    def of(
        cls, generator: GeneratorSpec, sae: SAESpec, lab: LabTraining, spec: SplitSpec
    ) -> ObjectiveMeter:
        """Return the judge of one SAE on a generator's held-out tokens.

        Raises:
            NotEstimable: the objective is not the same number in all runs.
        """
        if sae.buffers & {"exponent"} or (
            isinstance(sae, PenalizedSpec) and sae.coefficient is None
        ):
            raise NotEstimable(
                f"the objective of {sae.kind!r} with these settings changes in training, so that two "
                "runs cannot be compared by it: give `coefficient`, with a penalty that stays"
            )
        size = -(-spec.tokens // spec.blocks)
        draw = generator.held_out(size * spec.blocks)
        scaling = scale_of(generator, lab)
        return cls(draw, sae, in_training_units(sae, scaling.factor), scaling, lab.bias, spec)

    @property
    def energy(self) -> float:
        """Mean squared norm of a token."""
        return float(self.draw.x.double().square().sum(dim=1).mean())

    def inner_of(self, sae: SAESpec) -> SAESpec:
        """Return the settings with which an SAE is trained, in training's units."""
        return in_training_units(sae, self.scaling.factor)

    def of_sae(self, sae: SAE) -> Run:
        """Return J of an SAE, in the generator's units, as its training computes it."""
        spec = self.inner_of(sae.spec)
        inner = unfold(SAE(spec, sae.params), self.scaling)
        coefficient = getattr(spec, "coefficient", None) or 0.0
        silent = torch.zeros(sae.d_sae, dtype=torch.bool)
        context = Context(silent, share=1.0, coefficient=coefficient)
        unit = sae.d_in / self.scaling.factor**2
        with torch.no_grad():
            losses = [
                float(spec.evaluate(inner.params, self.scaling.apply(x), context).loss) * unit
                for x in torch.chunk(self.draw.x, self.spec.blocks)
            ]
        return Run(sae, np.array(losses))

    def fired(self, sae: SAE) -> Bool[torch.Tensor, " latent"]:
        """Return which latents fire on a held-out token."""
        return torch.bincount(sae.encode(self.draw.x).latents, minlength=sae.d_sae) > 0

    def oracle(
        self, rows: Float32[torch.Tensor, "atom d_in"], like: SAE
    ) -> tuple[Float64[np.ndarray, " block"] | Missing, bool]:
        """Return J of a dictionary with the best codes, and whether they are surely the best.

        With a trained `b_dec`, the better of none and that of `like`.
        """
        biases = {"none": [], "mean": [self.scaling.mean], "trained": [like.params["b_dec"]]}
        tried = biases[self.bias]
        if self.bias != "mean":
            tried = [torch.zeros_like(self.scaling.mean), *tried]
        found = []
        for bias in tried:
            losses = oracle_losses(self.sae, self.draw.x - bias, rows, self.spec.blocks)
            if losses is None:
                return Missing(
                    f"no best code is known for the objective of {self.sae.kind!r}"
                ), False
            found.append(losses)
        best = min(found, key=lambda one: float(one[0].mean()))
        by_block = best[0].reshape(self.spec.blocks, -1).mean(dim=1)
        return by_block.numpy(), best[1]

    def value(self, losses: Float[np.ndarray, " block"] | Missing) -> Value | Missing:
        """Return the mean with its interval: that of Student for the blocks' mean."""
        if isinstance(losses, Missing):
            return losses
        mean = float(losses.mean())
        half = student_quantile(len(losses) - 1, self.spec.confidence)
        half *= float(losses.std(ddof=1)) / math.sqrt(len(losses))
        return Value(mean, mean - half, mean + half, len(self.draw.x))


def oracle_losses(
    sae: SAESpec,
    x: Float[torch.Tensor, "token d_in"],
    rows: Float[torch.Tensor, "atom d_in"],
    batches: int = 1,
) -> tuple[Float64[torch.Tensor, " token"], bool] | None:
    """Return each token's objective with the best codes on unit `rows`, and whether they are surely the best.

    - `relu`: the non-negative lasso;
    - `topk`: all supports of k atoms where they are few, else non-negative pursuit;
    - `batchtopk`: non-negative pursuit; within each batch the k T atoms that gain most, whoever's they are;
    - `jumprelu` with the loss `l0`: non-negative pursuit, as long as an atom pays its price.

    None: for other objectives no best code is known.
    """
    if isinstance(sae, ReLUSpec) and sae.coefficient is not None:
        unit = {"sum": 1.0, "mean": x.shape[1], "mean_both": x.shape[1] / sae.d_sae}[sae.scaling]
        price = sae.coefficient * unit
        codes = nonnegative_lasso(x, rows, price)
        return _errors(x, codes, rows) + price * _sums(codes, codes.values.double()), True
    if isinstance(sae, TopKSpec):
        codes, exact = best_of_k(x, rows, sae.k)
        return _errors(x, codes, rows), exact
    if isinstance(sae, JumpReLUSpec) and sae.loss == "l0" and sae.coefficient is not None:
        errors = nonnegative_pursuit(x, rows, min(x.shape[1], len(rows))).errors
        return (errors + sae.coefficient * torch.arange(errors.shape[1])).amin(dim=1), False
    if isinstance(sae, BatchTopKSpec):
        most = min(x.shape[1], len(rows), math.ceil(4 * sae.k) + 1)
        path = nonnegative_pursuit(x, rows, most)
        parts = [_shared(part, sae.k) for part in torch.chunk(path.errors, batches)]
        return torch.cat(parts), False
    return None


def _shared(
    errors: Float64[torch.Tensor, "token lengths"], k: float
) -> Float64[torch.Tensor, " token"]:
    """Return the errors where a batch's atoms go where they gain most."""
    # an atom can gain no more than the one it follows: it cannot be had without it
    gains = (errors[:, :-1] - errors[:, 1:]).cummin(dim=1).values
    total = min(round(k * len(errors)), gains.numel())
    chosen = torch.zeros(gains.numel(), dtype=torch.bool)
    chosen[gains.flatten().argsort(descending=True, stable=True)[:total]] = True
    lengths: Int64[torch.Tensor, " token"] = chosen.reshape(gains.shape).sum(dim=1)
    return errors.gather(1, lengths[:, None])[:, 0]


def _errors(
    x: Float[torch.Tensor, "token d_in"], codes: Codes, rows: Float[torch.Tensor, "atom d_in"]
) -> Float64[torch.Tensor, " token"]:
    error: torch.Tensor = (x.double() - codes.dense().double() @ rows.double()).square().sum(dim=1)
    return error


def _sums(
    codes: Codes, values: Float64[torch.Tensor, " active"]
) -> Float64[torch.Tensor, " token"]:
    return torch.zeros(codes.n_tokens, dtype=torch.float64).index_add(0, codes.tokens(), values)
