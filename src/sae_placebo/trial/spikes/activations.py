"""An arm's activations as its SAEs read them in the trial, kept so that spikes can be planted many times.

Tokens are in the order of the trial's training stream, in its batches, without its outliers, and they are
centered and scaled by the trial's calibration. So an SAE that is trained on them with nothing planted is the
trial's own, bit for bit, and the trial's own is what an SAE without the spikes would be.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sae_placebo.controls.dictionary import DictionaryControl, StreamMoments
from sae_placebo.core.errors import ModelError, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.memory import total_memory
from sae_placebo.core.progress import Advance
from sae_placebo.lab.spikes.kept_activations import KeptActivations
from sae_placebo.lab.spikes.keys import TokenKeys
from sae_placebo.lab.spikes.planting import Planting, Spike
from sae_placebo.models.activation_files import read_calibrations
from sae_placebo.models.activations import Calibration, batch_places
from sae_placebo.models.gaussian import SecondMoments
from sae_placebo.saes import SAE, SAESpec
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.training import Fit, step_all
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.recipes import read_hash
from sae_placebo.trial.spec import TrialSpec
from sae_placebo.trial.spikes.planning import Subject
from sae_placebo.trial.stages.arm_models import arm_models
from sae_placebo.trial.stages.explained_variance_null import placed
from sae_placebo.trial.stages.harvest import harvest_arms
from sae_placebo.trial.stages.stream import TrainingStream
from sae_placebo.trial.stages.train import begin, scaled_moments

TOGETHER = 16
"""Batches into which spikes are planted at a time."""
_CHUNK_TOKENS = 1 << 16


@dataclass(frozen=True, eq=False)
class ArmActivations:
    """One arm's activations at one hookpoint, in the order and the batches of its training.

    Attributes:
        spec: The trial's protocol.
        control: What the arm does to the dictionary; None: nothing.
        kept: The activations, outliers left out, with their tokens' keys.
        batches: Of each batch, the tokens of the stream that it stands for, and those that are kept.
        calibration: How the trial centers and scales them.
    """

    spec: TrialSpec
    control: DictionaryControl | None
    kept: KeptActivations
    batches: tuple[tuple[int, int], ...]
    calibration: Calibration

    @functools.cached_property
    def scale(self) -> float:
        """Return the rms norm of the training tokens about their mean: the unit of magnitudes."""
        return self.kept.scale()

    @functools.cached_property
    def n_tokens(self) -> int:
        """Return how many tokens the stream has, outliers included."""
        return sum(offered for offered, _ in self.batches)

    def plan(self, spikes: list[Spike], seed: int) -> Planting:
        """Return a plan of spikes, whose directions are orthogonal."""
        return Planting.of(spikes, seed, self.kept.d_in, self.scale)

    def train(self, plan: Planting | None, sae: SAESpec, sae_seed: int, advance: Advance) -> SAE:
        """Train an SAE as the trial does, with spikes planted, and return it in model units.

        Args:
            plan: What is planted; None: nothing, and the SAE is the one that the trial would train.
            sae: Settings of the SAE.
            sae_seed: Seed of its first weights.
            advance: Called after each step with the tokens of the stream that it stands for.

        Raises:
            SpecError: training diverged.
        """
        fit, workspace, by = self._start(sae, sae_seed), Workspace(), self.calibration
        first = 0
        for some in self._in_groups():
            sizes = [size for _, size in some]
            x = self.kept.x[first : first + sum(sizes)]
            if plan is not None:
                x, _ = plan.plant(x, self.kept.keys[np.arange(first, first + len(x))])
            scaled = x.sub(by.mean).mul_(by.factor)
            for (offered, _), batch in zip(some, torch.split(scaled, sizes), strict=True):
                step_all([fit], batch.to(self.spec.device), workspace, offered)
                advance(offered)
            first += sum(sizes)
        return placed(fit.sae(), "cpu").fold(by.mean, by.factor)

    def _in_groups(self) -> Iterator[tuple[tuple[int, int], ...]]:
        for i in range(0, len(self.batches), TOGETHER):
            yield self.batches[i : i + TOGETHER]

    def _start(self, sae: SAESpec, sae_seed: int) -> Fit:
        """Return a new fit; where the arm changes the dictionary, the arm says how it starts."""
        needed = self.control is not None and self.control.needs_moments
        moments = self._moments if needed else None
        start = sae.create(self.kept.d_in, sae_seed)
        return begin(self.spec, start, sae_seed, self.n_tokens, self.control, moments)

    @functools.cached_property
    def _moments(self) -> StreamMoments:
        """Return mean and covariance of the activations without spikes, which dictionaries are drawn from."""
        counted = SecondMoments(self.calibration.mean)
        for part in torch.split(self.kept.x, _CHUNK_TOKENS):
            counted.add(part)
        return scaled_moments(counted, self.calibration)


def read_activations(artefacts: Artefacts, subject: Subject) -> ArmActivations:
    """Return an arm's activations, read anew from its model; the held-out ones are those of the store.

    Raises:
        ModelError: the model has other weights than the one behind the store's artefacts.
        SpecError: the activations are larger than this machine's memory.
    """
    one, hookpoint, spec = subject.one, subject.hookpoint, artefacts.spec
    harvested = artefacts.store.path(artefacts.plan.harvest[one])
    calibration = read_calibrations(harvested)[hookpoint]
    rows = artefacts.materials.rows_of(one)
    _check_memory(int(rows["train"].usable().sum()), len(calibration.mean))
    with artefacts.progress.track(f"build {one.label}", 1, "model") as advance:
        made = arm_models(artefacts, one)
        advance(1)
    if made.recipe["read_hash"] != read_hash(harvested):
        raise ModelError(
            f"arm {one.label}: other weights than behind the store's activations (another torch?); go back "
            "to its versions, or run the trial in another --store"
        )
    reader = harvest_arms(artefacts, [one], made)
    stream = TrainingStream(spec, reader, rows["train"], read_calibrations(harvested))
    with artefacts.progress.track(f"read {one.label}", stream.n_tokens) as advance:
        x, keys, batches = _in_training_order(stream, hookpoint, advance)
    heldout = artefacts.activations(one, hookpoint)
    places = artefacts.heldout[hookpoint].places
    kept = KeptActivations(x, keys, heldout, TokenKeys.of_rows(rows["heldout"], places))
    return ArmActivations(spec, spec.arms[one.arm].dictionary, kept, batches, calibration)


def _in_training_order(
    stream: TrainingStream, hookpoint: str, advance: Advance
) -> tuple[Float[torch.Tensor, "token d_in"], TokenKeys, tuple[tuple[int, int], ...]]:
    """Return the stream's activations as batches take them, their keys, and the sizes of batches."""
    spec, by = stream.spec, stream.calibrations[hookpoint]
    x = torch.empty(stream.n_tokens, stream.reader.widths[hookpoint])
    places, batches, done = [], [], 0
    for index, block in stream.blocks():
        values = block.activations[hookpoint].cpu()
        keeps = by.keeps(values)
        for part in batch_places(len(values), spec.training.batch_tokens, spec.seed, index):
            chosen = part[keeps[part]]
            x[done : done + len(chosen)] = values[chosen]
            places.append(block.places[chosen].numpy())
            batches.append((len(part), len(chosen)))
            done += len(chosen)
        advance(len(values))
    keys = TokenKeys.of_rows(stream.rows, np.concatenate(places))
    return x[:done], keys, tuple(batches)


def _check_memory(n_tokens: int, d_in: int) -> None:
    needed, memory = 4 * n_tokens * d_in, total_memory()
    if memory is not None and needed > memory:
        raise SpecError(
            f"text.train_tokens is about {n_tokens:,}: their activations, into which spikes are planted, "
            f"take {needed / 1e9:,.1f} GB of memory, and this machine has {memory / 1e9:,.1f} GB; run a "
            "trial of fewer tokens"
        )
