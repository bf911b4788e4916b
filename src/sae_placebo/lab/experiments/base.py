"""SAEs are trained on a generator and returned in the generator's own units.

The SAEs, and the step that trains them, are those of a trial; only the source of the tokens differs. Because
the generator's units are kept, the weight of a penalty means here what it means in the paper it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from pydantic import Field

from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import Spec
from sae_placebo.lab import GeneratorSpec, Scaling
from sae_placebo.lab.sizes import SCALE_TOKENS
from sae_placebo.saes import SAE, SAESpec
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.penalized import PenalizedSpec
from sae_placebo.saes.training import Fit, step_all
from sae_placebo.saes.training_spec import TrainingSpec


class LabTraining(Spec):
    """How SAEs are trained on a generator."""

    steps: int = Field(5_000, ge=1)
    """Optimizer steps, each on tokens that were never seen before."""
    training: TrainingSpec = TrainingSpec(
        batch_tokens=512, learning_rate=2e-3, decay_share=0.3, beta2=0.999
    )
    """Batch, step size and their schedule."""
    bias: Literal["none", "mean", "trained"] = "mean"
    """What becomes of `b_dec`: it is held at zero, held at the activations' mean, or trained from there."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens that training reads."""
        return self.steps * self.training.batch_tokens


@dataclass(frozen=True)
class TrainedSAE:
    """An SAE trained on a generator.

    Attributes:
        sae: The SAE in the generator's units: `sae.encode(draw.x)` has the units of the true codes.
        scaling: Brings activations to training's units: training saw `scaling.apply(x)`.
        seed: Seed of the initial weights and of the tokens.
        fvu: Fraction of variance unexplained on training batches, the mean over the last twentieth of the
            steps.
        l0: Active latents per token, the mean over the same steps.
    """

    sae: SAE
    scaling: Scaling
    seed: int
    fvu: float
    l0: float


Advance = Callable[[int], None]
"""Is called after each training step with the number of tokens that the step read."""


def fit_on(
    generator: GeneratorSpec,
    saes: Mapping[str, SAESpec],
    lab: LabTraining,
    seeds: Sequence[int],
    *,
    starts: Mapping[str, SAE] | None = None,
    frozen: Sequence[str] = (),
    decoder_cosine: float | None = None,
    advance: Advance = lambda _: None,
) -> dict[tuple[str, int], TrainedSAE]:
    """Return SAEs trained on one generator, by label and seed; those of one seed read the same tokens.

    Coefficients of penalties are in the generator's units: the objective is the sum over tokens of
    |x - x_hat|^2 + coefficient * penalty with x as the generator gives it. So the lambda of a paper that sums
    the error over dimensions is the coefficient.

    Args:
        generator: Draws the tokens.
        saes: Settings of the SAEs, by label.
        lab: How the SAEs are trained.
        seeds: Seeds of the initial weights and of the tokens; each SAE is trained once per seed.
        starts: SAEs whose weights replace the initial ones, by label, in the generator's units.
        frozen: Names of tensors that training leaves as they are; `b_dec` is one unless `lab.bias` trains it.
        decoder_cosine: Least cosine of decoder rows with their start, as in `Fit`; None sets no limit.
        advance: Called after each step with the number of tokens it read.

    Raises:
        SpecError: `starts` has a label that `saes` has not.
    """
    starts = dict(starts or {})
    if unknown := sorted(set(starts) - set(saes)):
        raise SpecError(f"a start is given for {unknown[0]!r}, but the SAEs are {sorted(saes)}")
    scaling = scale_of(generator, lab)
    held = frozenset(frozen) | (frozenset() if lab.bias == "trained" else frozenset({"b_dec"}))
    trained = {}
    for seed in seeds:
        fits = {}
        for label, spec in saes.items():
            inner = in_training_units(spec, scaling.factor)
            sae = inner.create(generator.d_in, seed)
            if label in starts:
                sae = unfold(SAE(inner, starts[label].params), scaling)
            fits[label] = Fit(
                sae, lab.training, lab.n_tokens, frozen=held, decoder_cosine=decoder_cosine
            )
        workspace, members = Workspace(), list(fits.values())
        for x in generator.stream(lab.n_tokens, lab.training.batch_tokens, "training", seed):
            step_all(members, scaling.apply(x), workspace)
            advance(len(x))
        for label, fit in fits.items():
            log = fit.log()[-max(1, lab.steps // 20) :]
            inner_sae = fit.sae().fold(scaling.mean, scaling.factor)
            trained[label, seed] = TrainedSAE(
                SAE(saes[label], inner_sae.params),
                scaling,
                seed,
                sum(float(row["fvu"] or 0.0) for row in log) / len(log),
                sum(float(row["l0"] or 0.0) for row in log) / len(log),
            )
    return trained


def explained_variance(
    x: Float[torch.Tensor, "token d_in"], x_hat: Float[torch.Tensor, "token d_in"]
) -> float:
    """Return the share of the variance of `x` that the reconstruction explains.

    1 is perfect, 0 is as good as the mean, and it can be below 0. The variance is about the mean over tokens
    and summed over dimensions; both sums are taken in double precision.
    """
    missed = (x - x_hat).double().square().sum()
    return 1 - float(missed / (x - x.mean(dim=0)).double().square().sum())


def scale_of(generator: GeneratorSpec, lab: LabTraining, n_tokens: int = SCALE_TOKENS) -> Scaling:
    """Return the scaling that brings a generator's activations to a mean squared norm of `d_in`.

    It also centers them, except with `lab.bias = "none"`, which leaves the origin where it is.

    Args:
        generator: Draws the tokens.
        lab: Says, by `bias`, whether activations are centered.
        n_tokens: Number of tokens from which mean and norm are estimated.
    """
    x = next(generator.stream(n_tokens, n_tokens, "scale"))
    if lab.bias != "none":
        return Scaling.of(x)
    energy = float(x.square().sum(dim=1).mean())
    return Scaling(torch.zeros(generator.d_in), (generator.d_in / energy) ** 0.5)


def in_training_units(spec: SAESpec, factor: float) -> SAESpec:
    """Return the settings of the same objective for activations that are multiplied by `factor`.

    The squared error grows with the square of `factor`, and a penalty of power p (`penalty_power`, 1 where it
    is linear in codes) with `factor ** p`, so the coefficient is multiplied by `factor ** (2 - p)`.
    """
    if not isinstance(spec, PenalizedSpec) or spec.coefficient is None:
        return spec
    return spec.model_copy(
        update={"coefficient": spec.coefficient * factor ** (2 - spec.penalty_power)}
    )


def unfold(sae: SAE, scaling: Scaling) -> SAE:
    """Return an SAE of the generator's units in training's units, as the inverse of `SAE.fold`."""
    params = {name: tensor.clone() for name, tensor in sae.params.items()}
    for name in sae.spec.in_activation_units & set(params):
        params[name] = params[name] * scaling.factor
    params["b_dec"] = (params["b_dec"] - scaling.mean) * scaling.factor
    return SAE(sae.spec, params)
