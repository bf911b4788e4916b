"""The whole experiment, in order. Read this first.

A trial asks what sparse autoencoders (SAEs) find in a trained language model that they do not find
in a placebo: the same model with its weights re-drawn. Every arm reads the same tokens in the same
order, and its SAEs start from the same bits; only the model differs.

    protocol -> tokenize -> for each arm and re-draw: build, harvest, train
             -> for each SAE: measure -> compare -> report

Each step's result is an artefact, keyed by everything that decides it: a stopped trial goes on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_placebo import artefacts, models, precision
from sae_placebo.controls import build
from sae_placebo.diagnostics import card
from sae_placebo.errors import ModelError
from sae_placebo.gaussian import GaussianReader
from sae_placebo.harvesting import harvest, second_moments
from sae_placebo.interop import saelens
from sae_placebo.lazy import torch
from sae_placebo.matched import ArmTraining
from sae_placebo.materials import Materials
from sae_placebo.measurement import HeldOut, held_out, measure
from sae_placebo.plans import ArmModel, Plan, plan_steps
from sae_placebo.progress import Progress
from sae_placebo.protocol import TrialSpec, load_trial
from sae_placebo.results import Trial, environment, write_results
from sae_placebo.statistics import document_weights
from sae_placebo.store import Store, write_json


def run(
    source: TrialSpec | Mapping[str, Any] | str | Path,
    store: str | Path = "runs",
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    wait_seconds: float = 0.0,
) -> Trial:
    """Run a trial, or what is left of it, and return its tables and report.

    Args:
        source: Path of a trial file (TOML), its content as tables, or a checked `TrialSpec`.
        store: Folder for artefacts and results; created when missing.
        overrides: `dotted.key=value` settings that replace the file's.
        progress: Where progress is shown; nowhere by default.
        wait_seconds: How long to wait for another process that holds the store.

    Raises:
        PlaceboError: anything that a user can mend, in one sentence; finished steps are kept.
    """
    spec = load_trial(source, overrides=overrides)
    progress = progress or Progress()
    place = Store(Path(store), warn=progress.note, environment=environment())
    with place.lock(wait_seconds), precision.fast_products():
        bench = Bench(plan_steps(spec), place, progress)
        _ = bench.given.tokens  # too little text should be told before a model is built
        for one in bench.plan.train:
            bench.prepare(one)
        for step in bench.plan.measure:
            bench.measure(*step)
        with progress.track("compare and report", 1, "trial") as advance:
            trial = write_results(bench.plan, place)
            advance(1)
    return trial


@dataclasses.dataclass
class Bench:
    """A trial in progress: its plan, its store, and what is loaded once and only when needed."""

    plan: Plan
    store: Store
    progress: Progress

    @property
    def spec(self) -> TrialSpec:
        """The protocol."""
        return self.plan.spec

    @functools.cached_property
    def given(self) -> Materials:
        """The reference model and the tokens that every arm reads."""
        return Materials(self.plan, self.store, self.progress)

    # --- one arm: build the control, read its activations, train its SAEs ------------------------

    def prepare(self, one: ArmModel) -> None:
        """Build one arm's model, harvest its held-out activations and train its SAEs."""
        steps = (self.plan.build[one], self.plan.harvest[one], self.plan.train[one])
        if all(self.store.find(step) is not None for step in steps):
            return
        control = self.spec.arms[one.arm].control
        seed = one.model_seed if control.draws and one.model_seed is not None else 0
        try:
            model, recipe = build(
                self.given.reference, control, self.spec.seed, seed, source=self.spec.model
            )
            self._record(one, model, recipe.model_dump(mode="json"))
            models.truncate(model, self.spec.hookpoints)
            reader = self._reader(one, models.Reader(model, self.spec.hookpoints))
            self._harvest(one, reader)
            self._train(one, reader)
        except ModelError as error:
            raise ModelError(f"arm {one.label}: {error}") from error

    def _record(self, one: ArmModel, model: Any, recipe: dict[str, Any]) -> None:
        """Keep what was done to the model, and its diagnostics card."""
        step, rows, spec = (
            self.plan.build[one],
            self.given.rows_of(one)["heldout"],
            self.spec.harvest,
        )
        for made in (step, self.plan.harvest[one], self.plan.train[one]):
            folder = self.store.find(made)
            if folder and artefacts.read_hash(folder) != recipe["read_hash"]:
                raise ModelError(
                    f"other weights than behind the store's {made.stage} artefact (another torch?); "
                    "go back to its versions or choose another --store"
                )
        if self.store.find(step) is not None:
            return
        ids = torch.from_numpy(rows.token_ids[: spec.card_rows]).long()
        usable = torch.from_numpy(rows.usable()[: spec.card_rows])
        label = f"build {one.label}"
        with self.progress.track(label, 1, "model") as advance, self.store.write(step) as draft:
            write_json(draft / "recipe.json", recipe)
            found = card(model, self.spec.hookpoints, ids, usable, spec.outlier_ratio)
            write_json(draft / "card.json", found)
            advance(1)

    def _reader(self, one: ArmModel, reader: models.Reader) -> models.Reader | GaussianReader:
        """Return what reads the arm's activations: its model, or a Gaussian in its model's place."""
        data = self.spec.arms[one.arm].data
        if data is None or not data.of_activations:
            return reader
        with self.progress.track(f"moments {one.label}", 1, "stream") as advance:
            rows, spec = self.given.rows["train"], self.spec
            moments = second_moments(reader, rows, spec.harvest, spec.seed)
            draws = {name: found.sampler() for name, found in moments.items()}
            advance(1)
        return GaussianReader(draws, reader.d_in, spec.seed, one.model_seed or 0)

    def _harvest(self, one: ArmModel, reader: models.Reader | GaussianReader) -> None:
        """Calibrate the arm on the head of the training stream; keep its held-out activations."""
        step, rows = self.plan.harvest[one], self.given.rows_of(one)
        if self.store.find(step) is not None:
            return
        label, total = f"harvest {one.label}", int(rows["heldout"].usable().sum())
        with self.progress.track(label, total) as advance, self.store.write(step) as draft:
            found = harvest(reader, rows, self.spec.harvest, self.spec.seed, advance)
            artefacts.write_harvest(draft, *found, self.store.path(self.plan.build[one]))

    def _train(self, one: ArmModel, reader: models.Reader | GaussianReader) -> None:
        """Train every SAE of the arm in one pass over the token stream, then its Gaussian nulls."""
        step, steps = self.plan.train[one], self.plan
        if self.store.find(step) is not None:
            return
        harvested, rows = self.store.path(steps.harvest[one]), self.given.rows_of(one)["train"]
        control = self.spec.arms[one.arm].dictionary
        arm = ArmTraining(self.spec, reader, rows, harvested, len(self.given.vocabulary), control)
        with self.store.write(step) as draft:
            with self.progress.track(f"train {one.label}", arm.n_tokens) as advance:
                arm.fit(advance)
            total = arm.n_tokens * len(self.spec.hookpoints)
            with self.progress.track(f"gaussian null {one.label}", total) as advance:
                write_json(draft / "gaussian.json", arm.fit_nulls(advance))
            arm.write(draft, self.store.path(steps.build[one]), one)

    # --- one SAE: what its latents are, and what every metric says -------------------------------

    @functools.cached_property
    def heldout(self) -> dict[str, HeldOut]:
        """Per hookpoint, the held-out tokens that no arm leaves out."""
        folders = [self.store.path(step) for step in self.plan.harvests]
        return {
            name: held_out(
                self.given.rows["heldout"],
                [artefacts.outliers(folder, name) for folder in folders],
                self.given.vocabulary,
            )
            for name in self.spec.hookpoints
        }

    def measure(self, one: ArmModel, hookpoint: str, label: str, sae_seed: int) -> None:
        """Encode the held-out activations with one SAE and write its tables."""
        step, spec = self.plan.measure[one, hookpoint, label, sae_seed], self.spec
        if self.store.find(step) is not None:
            return
        rows = self.given.rows_of(one)["heldout"]
        tokens = dataclasses.replace(
            self.heldout[hookpoint], rows=rows, readability=self.given.readability
        )
        trained = self.store.path(self.plan.train[one])
        activations = artefacts.read_activations(self.store.path(self.plan.harvest[one]), hookpoint)
        n = len(tokens.places)
        with (
            self.progress.track(f"measure {step.name}", n) as advance,
            self.store.write(step) as draft,
        ):
            measured = measure(
                saelens.read(artefacts.sae_folder(trained, hookpoint, label, sae_seed)),
                activations[torch.from_numpy(tokens.usable)],
                tokens,
                artefacts.read_lookup(trained, hookpoint),
                artefacts.read_gaussian(trained, hookpoint, label, sae_seed),
                document_weights(len(tokens.rows.names), spec.measurement.replicates, spec.seed),
                spec.measurement,
                spec.seed,
            )
            artefacts.write_measured(draft, measured)
            advance(n)
