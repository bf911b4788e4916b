"""Matched training: every SAE that reads the same activations in one pass over the token stream.

Arms differ in their model, or in what is done to the dictionaries. Tokens, their order and shuffles, the
SAEs' initial bits, the optimizer and the number of tokens are the same; activations are centered and
scaled to a common mean squared norm. Arms that read the same activations share one forward, and each
gets the bits that it would get alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sae_placebo.controls.dictionary import DictionaryControl, StreamMoments
from sae_placebo.core import checkpoints
from sae_placebo.core.checkpoints import Checkpoint, State, Work
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import write_json
from sae_placebo.models.activation_files import (
    read_activations,
    read_calibrations,
    write_lookup,
)
from sae_placebo.models.activations import ActivationBlock, Calibration, TokenMeans
from sae_placebo.models.gaussian import GaussianCounting, SecondMoments
from sae_placebo.models.hookpoints import lens_name, parse_hookpoint
from sae_placebo.saes import SAE
from sae_placebo.saes.formats import saelens
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.training import Fit, step_all
from sae_placebo.trial.artefacts import Artefacts, sae_folder
from sae_placebo.trial.given import GivenSAE, write_given
from sae_placebo.trial.plan import ArmModel
from sae_placebo.trial.recipes import copy_recipe, provenance, read_hash
from sae_placebo.trial.spec import TrialSpec
from sae_placebo.trial.stages.explained_variance_null import Member, Nulls, placed
from sae_placebo.trial.stages.harvest import untrained
from sae_placebo.trial.stages.stream import (
    AnyReader,
    CountingPass,
    TrainingStream,
    means_state,
    restore_means,
)
from sae_placebo.trial.table_files import write_records


def train_arms(artefacts: Artefacts, arms: Sequence[ArmModel], reader: AnyReader) -> None:
    """Train every SAE of the arms that is left in one pass over the token stream, then their nulls.

    Trainings that were stopped together go on together.
    """
    plan, store, spec = artefacts.plan, artefacts.store, artefacts.spec
    left = {plan.train[one].key: one for one in untrained(artefacts, arms)}
    steps = [plan.train[one] for one in left.values()]
    for together in checkpoints.together(store, steps, "train") if steps else ():
        some = [left[step.key] for step in together]
        first, vocabulary = some[0], len(artefacts.materials.vocabulary)
        harvested = store.path(plan.harvest[first])
        rows = artefacts.materials.rows_of(first)["train"]
        work = Work(store, together, read_hash(store.path(plan.build[first])))
        stream = TrainingStream(spec, reader, rows, read_calibrations(harvested))
        controls = {plan.train[one].key: spec.arms[one.arm].dictionary for one in some}
        given = {
            plan.train[one].key: read for one in some if (read := _given(spec, one, harvested))
        }
        matched = Matched(stream, harvested, vocabulary, controls, work, given)
        name = first.label + (f" and {len(some) - 1} more" if len(some) > 1 else "")
        matched.count(name, artefacts.progress)
        matched.train(name, artefacts.progress)
        matched.train_nulls(name, artefacts.progress)
        for one in some:
            step = plan.train[one]
            with store.write(step, work.seconds / len(some)) as draft:
                matched.write(draft, step.key, store.path(plan.build[one]), one)
        checkpoints.clear(store)


class Place(NamedTuple):
    """The place in the stream that training has reached: block, batches done, and whether it was counted."""

    block: int = 0
    batch: int = 0
    counted: bool = False


@dataclass
class Matched:
    """The SAEs of arms that read the same activations, and what is learned of these on the way.

    Args:
        stream: The stream that they read.
        harvest: The arms' harvest artefact: calibrations and held-out activations.
        vocabulary_size: Number of token ids.
        controls: By the key of an arm's training, what is done to its dictionaries; None: they are
            trained in full.
        work: Where checkpoints are kept.
        given: By the key of an arm's training, the SAEs that are read instead, by label and seed.
    """

    stream: TrainingStream
    harvest: Path
    vocabulary_size: int
    controls: Mapping[str, DictionaryControl | None]
    work: Work
    given: Mapping[str, Mapping[tuple[str, int], GivenSAE]] = field(default_factory=dict)
    trained: dict[tuple[str, Member], tuple[SAE, list[Any]]] = field(default_factory=dict)
    lookups: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    steps: list[tuple[int, dict[str, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._before: dict[str, StreamMoments] = {}
        self._fits: dict[tuple[str, Member], Fit] = {}

    @property
    def spec(self) -> TrialSpec:
        """Return the trial's protocol."""
        return self.stream.spec

    @property
    def calibrations(self) -> Mapping[str, Calibration]:
        """Return how the activations are masked, centered and scaled, by hookpoint."""
        return self.stream.calibrations

    def count(self, name: str, progress: Progress) -> None:
        """Count the stream's moments where a control of the dictionary starts from them."""
        if any(control is not None and control.needs_moments for control in self.controls.values()):
            begin = functools.partial(GaussianCounting, self.calibrations)
            counted = CountingPass(self.stream, begin, self.work, "moments")
            total, done = self.stream.n_tokens, counted.done
            with progress.track(f"moments {name}", total, before=done) as advance:
                counted.run(advance)
            by = self.calibrations
            moments = counted.counting.moments
            self._before = {n: scaled_moments(one, by[n]) for n, one in moments.items()}

    @functools.cached_property
    def _nulls(self) -> Nulls:
        return Nulls(self.spec, self.harvest, self.calibrations, self._starts, self.work)

    def _starts(self, hookpoint: str, seeds: Sequence[int]) -> dict[Member, Fit]:
        """Return new fits of every arm and SAE at one hookpoint, those that are given included."""
        spec, fits = self.spec, {}
        for key, control in self.controls.items():
            for label, sae in spec.saes.items():
                for seed in seeds:
                    start = sae.create(self.stream.reader.widths[hookpoint], seed)
                    moments, n = self._before.get(hookpoint), self.stream.n_tokens
                    fits[key, label, seed] = begin(spec, start, seed, n, control, moments)
        return fits

    # --- the pass --------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Start every SAE, with nothing counted."""
        self._done, self._place = 0, Place()
        self.steps.clear()
        centers = {name: one.mean for name, one in self.calibrations.items()}
        self._means = {name: TokenMeans(self.vocabulary_size, c) for name, c in centers.items()}
        self._moments = self.stream.moments()
        self._fits = {
            (hookpoint, member): fit
            for hookpoint in self.spec.hookpoints
            for member, fit in self._starts(hookpoint, self.spec.sae_seeds).items()
            if member[1] not in {label for label, _ in self.given.get(member[0], ())}
        }

    def train(self, name: str, progress: Progress) -> None:
        """Train the SAEs, and gather E[x | token] and the covariance from the same stream."""
        self._begin()
        saved = self.work.load("train")
        if saved is not None and not self.work.fits(saved, self._restore):
            self._begin()
        total, workspace = self.stream.n_tokens, Workspace()
        with (
            progress.track(f"train {name}", total, before=self._done) as advance,
            self.work.during("train", self._state) as checkpoint,
        ):
            for index, block in self.stream.blocks(self._place.block):
                if not self._place.counted:
                    with self.work.step():
                        self._count(block)
                        self._place = Place(index, 0, counted=True)
                for number, (offered, batch) in enumerate(self.stream.batches(index, block), 1):
                    if number <= self._place.batch:
                        continue  # done before the stop; the block was read again for the others
                    with self.work.step():
                        for hookpoint in self.spec.hookpoints:
                            step_all(self._at(hookpoint), batch[hookpoint], workspace, offered)
                        self.steps.append((offered, {n: len(x) for n, x in batch.items()}))
                        self._done += offered
                        self._place = Place(index, number, counted=True)
                    advance(offered)
                    checkpoint()
                self._place = Place(index + 1)
        self.lookups = {name: one.table() for name, one in self._means.items()}
        while self._fits:  # the optimizers are let go one by one
            key = next(iter(self._fits))
            fit = self._fits.pop(key)
            self.trained[key] = placed(fit.sae(), "cpu"), fit.log()

    def train_nulls(self, name: str, progress: Progress) -> None:
        """Train the Gaussian nulls of the SAEs, in their steps, and score them."""
        total = self.stream.n_tokens * len(self.spec.hookpoints)
        with progress.track(f"gaussian null {name}", total, before=self._nulls.done) as advance:
            self._nulls.run(self._moments, self.steps, advance)

    def _at(self, hookpoint: str) -> list[Fit]:
        return [fit for (place, _), fit in self._fits.items() if place == hookpoint]

    def _count(self, block: ActivationBlock) -> None:
        for name, ids, x in self.stream.kept(block):
            self._means[name].add(ids, x)
            self._moments[name].add(x)

    # --- its state -------------------------------------------------------------------------------

    def _state(self) -> State:
        names = list(self.spec.hookpoints)
        rows = [[offered, *(sizes[name] for name in names)] for offered, sizes in self.steps]
        steps = torch.tensor(rows, dtype=torch.int64).reshape(-1, 1 + len(names))

        def parts() -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
            yield "steps", {"sizes": steps}
            for name in names:
                yield f"means {name}", means_state(self._means[name])
                yield f"moments {name}", self._moments[name].state()
            for key, fit in self._fits.items():
                yield _part(key), fit.state()

        return State(self._done, {"place": self._place, "hookpoints": names}, parts())

    def _restore(self, saved: Checkpoint) -> None:
        names = saved.record["hookpoints"]
        self.steps += [
            (offered, dict(zip(names, sizes, strict=True)))
            for offered, *sizes in saved.part("steps")["sizes"].tolist()
        ]
        for name in names:
            restore_means(self._means[name], saved.part(f"means {name}"))
            self._moments[name].restore(saved.part(f"moments {name}"))
        for key, fit in self._fits.items():
            fit.restore(saved.part(_part(key)))
        self._done, self._place = saved.done, Place(*saved.record["place"])

    # --- its result ------------------------------------------------------------------------------

    def write(self, folder: Path, key: str, build: Path, one: ArmModel) -> None:
        """Write one arm's SAEs in model units, its nulls, the lookup tables and the training log.

        Args:
            folder: Folder that they are written to.
            key: Key of the arm's training.
            build: The arm's build artefact, whose recipe every SAE carries.
            one: The arm and its re-draw.
        """
        made_of = provenance(build, self.spec, one)
        copy_recipe(build, folder)
        logs: list[dict[str, Any]] = []
        for (hookpoint, (of, label, seed)), (sae, log) in self.trained.items():
            if of != key:
                continue
            scale = self.calibrations[hookpoint]
            keys = {"hookpoint": hookpoint, "sae": label, "sae_seed": seed}
            saelens.write(
                sae.fold(scale.mean, scale.factor),
                sae_folder(folder, hookpoint, label, seed),
                {**made_of, **_hook_names(hookpoint), "sae_seed": seed},
            )
            logs += [keys | row for row in log]
        for (label, seed), one_given in self.given.get(key, {}).items():
            saelens.write(
                one_given.sae,
                sae_folder(folder, one_given.hookpoint, label, seed),
                {**made_of, **_hook_names(one_given.hookpoint), "sae_seed": seed},
            )
        if key in self.given:
            write_given(folder, self.given[key].values())
        write_json(folder / "gaussian.json", self._nulls.scores[key])
        write_lookup(folder, self.lookups)
        write_records(folder / "log.parquet", logs)


def _given(spec: TrialSpec, one: ArmModel, harvest: Path) -> dict[tuple[str, int], GivenSAE]:
    """Return the SAEs of an arm that are read instead of trained, by label and seed.

    Raises:
        SpecError: one does not fit the place that the trial reads; the message says which and why.
        StoreError: one cannot be read.
    """
    hookpoint, found = spec.hookpoints[0], {}
    for label, by_arm in spec.given.items():
        paths = by_arm.get(one.arm, ())
        for seed, path in zip(spec.sae_seeds, paths, strict=False):
            x = read_activations(harvest, hookpoint)
            calibration = read_calibrations(harvest)[hookpoint]
            kept = x[calibration.keeps(x)]
            found[label, seed] = GivenSAE.read(label, seed, path, kept, spec)
    return found


def begin(
    spec: TrialSpec,
    start: SAE,
    sae_seed: int,
    n_tokens: int,
    control: DictionaryControl | None,
    moments: StreamMoments | None,
) -> Fit:
    """Return the fit of an SAE that is about to be trained.

    Args:
        spec: The trial's protocol.
        start: The untrained SAE, whose tensors become the fit's.
        sae_seed: Its seed.
        n_tokens: Tokens of the stream, outliers included.
        control: What the arm does to the dictionary; None: nothing.
        moments: Of the stream, for controls that start from them.
    """
    held: dict[str, Any] = {}
    if control is not None:
        start = control.start(start, moments, spec.seed, sae_seed)
        held = {"frozen": control.frozen, "decoder_cosine": control.decoder_cosine}
    return Fit(placed(start, spec.device), spec.training, n_tokens, copied=False, **held)


def _part(key: tuple[str, Member]) -> str:
    hookpoint, (training, label, seed) = key
    return f"fit {training[:16]} {hookpoint} {label} {seed}"


def scaled_moments(counted: SecondMoments, by: Calibration) -> StreamMoments:
    """Return moments in the centered and scaled units of training."""
    mean, covariance = counted.mean_and_covariance()
    return StreamMoments(
        ((mean - by.mean) * by.factor).float(), (covariance * by.factor**2).float()
    )


def _hook_names(hookpoint: str) -> dict[str, str]:
    """Return a hookpoint under our name and, as SAELens asks, under TransformerLens's."""
    return {"hookpoint": hookpoint, "hook_name": lens_name(parse_hookpoint(hookpoint))}
