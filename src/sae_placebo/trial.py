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

import numpy as np

from sae_placebo import artefacts, models, precision, text
from sae_placebo.activations import blocks, calibrate, row_order
from sae_placebo.controls import build
from sae_placebo.diagnostics import card
from sae_placebo.errors import ModelError
from sae_placebo.interop import saelens
from sae_placebo.lazy import torch
from sae_placebo.matched import ArmTraining
from sae_placebo.measurement import HeldOut, held_out, measure
from sae_placebo.progress import Progress
from sae_placebo.protocol import ArmModel, Plan, TrialSpec, load_trial, plan_steps
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
        _ = bench.tokens  # too little text should be told before a model is built
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

    # --- the reference model, and the tokens that every arm reads --------------------------------

    @functools.cached_property
    def source(self) -> str:
        """Where the reference model is loaded from: a folder or a hub id."""
        step = self.plan.model
        if not self.plan.needs_conversion:
            return self.spec.model.id
        if self.store.find(step) is None:
            label = f"convert {self.spec.model.id}"
            with self.progress.track(label, 1, "model") as advance, self.store.write(step) as draft:
                models.convert(self.spec.model, draft)
                advance(1)
        return str(self.store.path(step))

    @functools.cached_property
    def reference(self) -> Any:
        """The trained model; every control is a changed copy of it."""
        return models.load_model(self.source, self.spec.model.revision)

    @functools.cached_property
    def tokens(self) -> Path:
        """Folder of the tokenized text: one tokenization for all arms."""
        step, spec = self.plan.tokenize, self.spec.text
        if self.store.find(step) is None:
            wanted, source = spec.train_tokens + spec.heldout_tokens, self.source
            with (
                self.progress.track("tokenize", wanted) as advance,
                self.store.write(step) as draft,
            ):
                tokenizer = models.load_tokenizer(source, self.spec.model.revision)
                splits = text.tokenize(spec, tokenizer, self.spec.seed)
                artefacts.write_rows(draft, splits, text.vocabulary(tokenizer))
                advance(wanted)
        return self.store.path(step)

    @functools.cached_property
    def rows(self) -> dict[str, text.Rows]:
        """Rows of token ids of the splits `train` and `heldout`."""
        return artefacts.read_rows(self.tokens)

    @functools.cached_property
    def vocabulary(self) -> list[str]:
        """Text of each token id."""
        return artefacts.read_vocabulary(self.tokens)

    # --- one arm: build the control, read its activations, train its SAEs ------------------------

    def prepare(self, one: ArmModel) -> None:
        """Build one arm's model, harvest its held-out activations and train its SAEs."""
        steps = (self.plan.build[one], self.plan.harvest[one], self.plan.train[one])
        if all(self.store.find(step) is not None for step in steps):
            return
        control = self.spec.arms[one.arm]
        try:
            model, recipe = build(self.reference, control, self.spec.seed, one.model_seed or 0)
            self._record(one, model, recipe.model_dump(mode="json"))
            models.truncate(model, self.spec.hookpoints)
            reader = models.Reader(model, self.spec.hookpoints)
            self._harvest(one, reader)
            self._train(one, reader)
        except ModelError as error:
            raise ModelError(f"arm {one.label}: {error}") from error

    def _record(self, one: ArmModel, model: Any, recipe: dict[str, Any]) -> None:
        """Keep what was done to the model, and its diagnostics card."""
        step, rows, spec = self.plan.build[one], self.rows["heldout"], self.spec.harvest
        for made in (step, self.plan.harvest[one], self.plan.train[one]):
            folder = self.store.find(made)
            if folder and artefacts.weight_hash(folder) != recipe["weight_hash"]:
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

    def _harvest(self, one: ArmModel, reader: models.Reader) -> None:
        """Calibrate the arm on the head of the training stream; keep its held-out activations."""
        step, spec, heldout = self.plan.harvest[one], self.spec.harvest, self.rows["heldout"]
        if self.store.find(step) is not None:
            return
        sample = row_order(len(self.rows["train"].lengths), self.spec.seed)[: spec.calibration_rows]
        head = next(blocks(reader, self.rows["train"], sample, len(sample)))
        calibrations = calibrate(head, spec.outlier_ratio)
        total = int(heldout.usable().sum())
        kept = {name: torch.empty(total, reader.d_in) for name in reader.names}
        in_order, done, label = np.arange(len(heldout.lengths)), 0, f"harvest {one.label}"
        with self.progress.track(label, total) as advance, self.store.write(step) as draft:
            for block in blocks(reader, heldout, in_order, spec.block_rows):
                n = len(block.token_ids)
                for name, x in block.activations.items():
                    kept[name][done : done + n] = x
                done += n
                advance(n)
            artefacts.write_harvest(
                draft, kept, calibrations, self.store.path(self.plan.build[one])
            )

    def _train(self, one: ArmModel, reader: models.Reader) -> None:
        """Train every SAE of the arm in one pass over the token stream, then its Gaussian nulls."""
        step, steps = self.plan.train[one], self.plan
        if self.store.find(step) is not None:
            return
        harvest, rows = self.store.path(steps.harvest[one]), self.rows["train"]
        arm = ArmTraining(self.spec, reader, rows, harvest, len(self.vocabulary))
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
        folders = [self.store.path(step) for step in self.plan.harvest.values()]
        return {
            name: held_out(
                self.rows["heldout"],
                [artefacts.outliers(folder, name) for folder in folders],
                self.vocabulary,
            )
            for name in self.spec.hookpoints
        }

    def measure(self, one: ArmModel, hookpoint: str, label: str, sae_seed: int) -> None:
        """Encode the held-out activations with one SAE and write its tables."""
        step, spec = self.plan.measure[one, hookpoint, label, sae_seed], self.spec
        if self.store.find(step) is not None:
            return
        tokens = self.heldout[hookpoint]
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
