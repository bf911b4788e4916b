"""J is the training objective on held-out tokens, of trained SAEs and of the best codes that there are."""

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
    """How a split (`experiments.split`) is measured and judged."""

    tokens: int = Field(16_384, ge=64)
    """Number of held-out tokens; it is rounded up to whole blocks."""
    blocks: int = Field(32, ge=4)
    """Number of equal parts of the held-out tokens; J is measured on each, and intervals are of its mean."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Confidence of the intervals."""
    tolerance: float = Field(0.02, gt=0)
    """A gap below this share of J(oracle) counts as none. J(oracle) is taken to be a twentieth of the
    activations' mean squared norm or more: where the oracle leaves nothing, a share of it means nothing."""
    moved: float = Field(0.02, gt=0)
    """Training has left the truth where the mean max cosine, of features or of latents, is more than this
    below 1."""
    true_runs: int = Field(1, ge=1)
    """`true` and `from_true` are trained with this many of the seeds, the first ones; the lowest J counts."""


@dataclass(frozen=True)
class Value:
    """A mean over `n_tokens` held-out tokens, with the interval of the mean over blocks."""

    mean: float
    low: float
    high: float
    n_tokens: int


@dataclass(frozen=True)
class Missing:
    """A value that does not exist, and the reason in words."""

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
    """Measures J of several SAEs and dictionaries on the same held-out blocks.

    Attributes:
        draw: The held-out tokens.
        sae: Settings of the SAE in the generator's units.
        inner: Settings of the same SAE in training's units.
        scaling: Brings activations to training's units.
        bias: What becomes of `b_dec` in training, as in `LabTraining`.
        spec: How J is measured.
    """

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
        """Return the meter of one SAE's objective on a generator's held-out tokens.

        Raises:
            NotEstimable: the objective is not the same number in all runs, because its penalty is steered or
                changes in training.
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
        """Return J of an SAE as its training computes it, at the full weight of the penalty.

        J is per token, in squared units of the generator's activations.
        """
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
        """Return which latents fire on at least one held-out token."""
        return torch.bincount(sae.encode(self.draw.x).latents, minlength=sae.d_sae) > 0

    def oracle(
        self, rows: Float32[torch.Tensor, "atom d_in"], like: SAE
    ) -> tuple[Float64[np.ndarray, " block"] | Missing, bool]:
        """Return J of a dictionary with the best codes, and whether they are surely the best.

        `b_dec` is zero or the activations' mean, as `bias` says. Where it is trained, J is the lower of two:
        with zero, and with the `b_dec` of `like`.

        Args:
            rows: The dictionary, rows of length 1.
            like: A trained SAE.
        """
        zero = torch.zeros_like(self.scaling.mean)
        biases = {
            "none": [zero],
            "mean": [self.scaling.mean],
            "trained": [zero, like.params["b_dec"]],
        }
        tried = []
        for bias in biases[self.bias]:
            losses = oracle_losses(self.sae, self.draw.x - bias, rows, self.spec.blocks)
            if losses is None:
                return Missing(
                    f"no best code is known for the objective of {self.sae.kind!r}"
                ), False
            tried.append(losses)
        by_token, is_exact = min(tried, key=lambda losses: float(losses[0].mean()))
        return by_token.reshape(self.spec.blocks, -1).mean(dim=1).numpy(), is_exact

    def value(self, losses: Float[np.ndarray, " block"] | Missing) -> Value | Missing:
        """Return the mean over blocks with its Student interval; what is missing stays missing."""
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

    How the codes are found depends on the SAE. For an objective that is not listed no best code is known, and
    None is returned.

    - `relu`: the codes are the non-negative lasso's;
    - `topk`: all supports of k atoms are tried where they are few, else non-negative pursuit finds one;
    - `batchtopk`: non-negative pursuit orders each token's atoms, and the k T atoms that lower the error most
      are taken within each batch of T tokens, however many of them are one token's;
    - `jumprelu` with the loss `l0`: each token takes as many of pursuit's atoms as make its objective lowest.

    Args:
        sae: Settings of the SAE in the units of `x`.
        x: Activations less `b_dec`.
        rows: The dictionary, rows of length 1.
        batches: Number of equal batches that the tokens are split into, for `batchtopk`.
    """
    if isinstance(sae, ReLUSpec) and sae.coefficient is not None:
        unit = {"sum": 1.0, "mean": x.shape[1], "mean_both": x.shape[1] / sae.d_sae}[sae.scaling]
        price = sae.coefficient * unit
        codes = nonnegative_lasso(x, rows, price)
        sums = torch.zeros(codes.n_tokens, dtype=torch.float64)
        sums.index_add_(0, codes.tokens(), codes.values.double())
        return _errors(x, codes, rows) + price * sums, True
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
    """Return each token's error where the batch's k atoms per token are taken in the order of their gain."""
    # an atom counts as gaining no more than those that its token takes first: it is not taken without them
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
