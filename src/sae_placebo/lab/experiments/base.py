"""SAEs trained on a generator, in the generator's own units.

The SAEs, and the step that trains them, are those of a trial; what differs is where tokens come from. A
generator's units are kept: a published weight of a penalty means what it meant there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import Spec
from sae_placebo.lab import GeneratorSpec, Scaling
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
    """`b_dec`: held at zero, held at the activations' mean, or trained from there."""

    @property
    def n_tokens(self) -> int:
        """Tokens that training reads."""
        return self.steps * self.training.batch_tokens


@dataclass(frozen=True)
class TrainedSAE:
    """An SAE trained on a generator.

    Attributes:
        sae: In the generator's units: `sae.encode(draw.x)` has the units of the true codes.
        scaling: What training saw of x is `scaling.apply(x)`.
        seed: Of the initial bits and the stream.
        fvu: Of the last batches, the mean over a twentieth of the steps.
        l0: The same, active latents per token.
    """

    sae: SAE
    scaling: Scaling
    seed: int
    fvu: float
    l0: float


Advance = Callable[[int], None]


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
    """Return SAEs trained on one generator, by label and seed; all of a seed read the same tokens.

    Coefficients of penalties are in the generator's units: the objective is the sum over tokens of
    |x - x_hat|^2 + coefficient * penalty with x as the generator gives it, so that lambda of a paper that
    sums over dimensions is the coefficient.

    Args:
        generator: Gives the tokens.
        saes: By label.
        lab: How they are trained.
        seeds: Of the initial bits and of the tokens.
        starts: SAEs to start from instead of initial bits, by label, in the generator's units.
        frozen: Tensors that keep their bits, besides `b_dec` where `lab.bias` says so.
        decoder_cosine: As in `Fit`: how near decoder rows stay to their start.
        advance: Called with the number of tokens after each step.

    Raises:
        SpecError: a start that is named belongs to no SAE.
    """
    starts = dict(starts or {})
    if unknown := sorted(set(starts) - set(saes)):
        raise SpecError(f"a start is given for {unknown[0]!r}, but the SAEs are {sorted(saes)}")
    scaling = scale_of(generator, lab)
    held = frozenset(frozen) | (frozenset() if lab.bias == "trained" else frozenset({"b_dec"}))
    found = {}
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
            found[label, seed] = TrainedSAE(
                SAE(saes[label], inner_sae.params),
                scaling,
                seed,
                sum(float(row["fvu"] or 0.0) for row in log) / len(log),
                sum(float(row["l0"] or 0.0) for row in log) / len(log),
            )
    return found


def scale_of(generator: GeneratorSpec, lab: LabTraining, n_tokens: int = 32_768) -> Scaling:
    """Return what brings a generator's activations to what training expects.

    With `bias = "none"` they are scaled and not centered.
    """
    x = next(generator.stream(n_tokens, n_tokens, "scale"))
    if lab.bias != "none":
        return Scaling.of(x)
    energy = float(x.square().sum(dim=1).mean())
    return Scaling(torch.zeros(generator.d_in), (generator.d_in / energy) ** 0.5)


def in_training_units(spec: SAESpec, factor: float) -> SAESpec:
    """Return the same objective where activations are multiplied by `factor`.

    The error grows with its square, and a penalty that is linear in codes only with `factor`, so that its
    coefficient has to grow with it. Penalties of other powers say so in `penalty_power`.
    """
    if not isinstance(spec, PenalizedSpec) or spec.coefficient is None:
        return spec
    return spec.model_copy(
        update={"coefficient": spec.coefficient * factor ** (2 - spec.penalty_power)}
    )


def unfold(sae: SAE, scaling: Scaling) -> SAE:
    """Return an SAE of the generator's units as training would have it: the inverse of `SAE.fold`."""
    params = {name: tensor.clone() for name, tensor in sae.params.items()}
    for name in sae.spec.in_activation_units & set(params):
        params[name] = params[name] * scaling.factor
    params["b_dec"] = (params["b_dec"] - scaling.mean) * scaling.factor
    return SAE(sae.spec, params)
