"""The whole experiment, in order. Read this first.

A trial asks what sparse autoencoders (SAEs) find in a trained language model that they do not find
in a placebo: the same model with its weights re-drawn. Every arm reads the same tokens in the same
order, and its SAEs start from the same bits; only the model differs.

    protocol -> tokenize -> for each arm and re-draw: build, harvest, train
             -> for each SAE: measure, profile -> for each arm: methods -> for some SAEs: use, audit
             -> compare -> report

Arms that read the same activations are trained in one pass. Each step's result is an artefact, keyed by
everything that decides it, and a training keeps checkpoints: a stopped trial goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_placebo.controls import build
from sae_placebo.core import checkpoints, interrupts, memory
from sae_placebo.core.checkpoints import Work
from sae_placebo.core.crew import Crew
from sae_placebo.core.devices import describe_device, settings
from sae_placebo.core.errors import ModelError, StoreError
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import Step, Store, write_json
from sae_placebo.data.rows import Rows
from sae_placebo.latents.measurement import HeldOut, held_out, measure
from sae_placebo.models import loading as models
from sae_placebo.models.diagnostics import card
from sae_placebo.models.embeddings import embedding, unembedding
from sae_placebo.saes.formats import saelens
from sae_placebo.stats.effects import document_weights
from sae_placebo.trial import artefacts
from sae_placebo.trial.faults import Faults
from sae_placebo.trial.plan import ArmModel, Plan, plan_steps
from sae_placebo.trial.result_folders import in_the_way, store_folder
from sae_placebo.trial.results import Trial, environment, trial_folder, write_results
from sae_placebo.trial.sizes import check_sizes
from sae_placebo.trial.spec import TrialSpec, load_trial
from sae_placebo.trial.stages.audit import Auditing
from sae_placebo.trial.stages.harvest import (
    HarvestPrecision,
    arm_reader,
    harvest,
    harvest_repeats,
    random_rows,
)
from sae_placebo.trial.stages.materials import Materials
from sae_placebo.trial.stages.profile import Profiles
from sae_placebo.trial.stages.stream import AnyReader, TrainingStream, in_its_place
from sae_placebo.trial.stages.train import Matched
from sae_placebo.trial.stages.use import Uses
from sae_placebo.trial.standing import expected, outlook_of, standing


def run(
    source: TrialSpec | Mapping[str, Any] | str | Path,
    store: str | Path = "runs",
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    wait_seconds: float = 0.0,
    replace: bool = False,
) -> Trial:
    """Run a trial, or what is left of it, and return its tables and report.

    Args:
        source: Path of a trial file (TOML), its content as tables, or a checked `TrialSpec`.
        store: Folder for artefacts and results; created when missing.
        overrides: `dotted.key=value` settings that replace the file's.
        progress: Where progress is shown; nowhere by default.
        wait_seconds: How long to wait for another process that holds the store.
        replace: Whether results of other settings under the trial's name are replaced; they are moved
            to `<name>.old-<n>` when the new ones are complete. Otherwise such a trial is refused.

    Raises:
        PlaceboError: anything that a user can mend, in one sentence; finished steps are kept.
        StageFault: a job of `use` or `audit` failed unforeseen; everything else is done and written.
    """
    spec = load_trial(source, overrides=overrides)
    progress = progress or Progress()
    root = store_folder(store)
    check_sizes(spec, root)
    if (taken := in_the_way(trial_folder(root, spec.name), spec, replace)) is not None:
        raise StoreError(taken)
    # what does not count is told where it is made anew
    plan, unheard = plan_steps(spec), Store(root)
    outlook = outlook_of(plan, unheard)
    progress.note(f"{standing(plan, unheard)}; {expected(outlook)}")
    place = Store(root, progress.note)
    place.environment = environment() | describe_device(spec.device)
    with (
        place.lock(wait_seconds),
        settings(spec.device),
        interrupts.listening(),
        progress.whole(outlook),
    ):
        checkpoints.clear(place)
        bench = Bench(plan, place, progress)
        bench.check()
        _ = bench.given.tokens  # too little text should be told before a model is built
        for arms in bench.plan.groups:
            bench.prepare(arms)
            memory.give_back()
        bench.measure()
        profiles = Profiles(bench.plan, place, bench.given, bench.heldout, progress)
        profiles.run()
        faults = Faults(progress.note)
        Uses(bench.plan, place, profiles, progress, faults).run()
        Auditing(bench.plan, place, bench.given, profiles, progress, faults).run()
        with progress.track("compare and report", 1, "trial") as advance:
            trial = write_results(bench.plan, place)
            advance(1)
    faults.raised(trial.report)
    return trial


@dataclasses.dataclass
class Bench:
    """A trial in progress: its plan, its store, and what is loaded once and only when needed."""

    plan: Plan
    store: Store
    progress: Progress

    @property
    def spec(self) -> TrialSpec:
        """Return the protocol."""
        return self.plan.spec

    @functools.cached_property
    def given(self) -> Materials:
        """Return the reference model and the tokens that every arm reads."""
        return Materials(self.plan, self.store, self.progress)

    def check(self) -> None:
        """Hash the artefacts that are there; what is damaged is named, and made again."""
        unheard = Store(self.store.root)  # what does not count is told where it is made anew
        there = [step for step in self.plan.steps() if unheard.has(step)]
        if not there:
            return
        with self.progress.track("check what is there", len(there), "artefacts") as advance:
            for step in there:
                self.store.find(step)
                advance(1)

    # --- arms: build the controls, read their activations, train their SAEs ----------------------

    def prepare(self, arms: Sequence[ArmModel]) -> None:
        """Build the models of arms that read the same activations, harvest these, train all SAEs."""
        plan, model, first = self.plan, None, arms[0]
        left: dict[str, ArmModel] = {}  # arms may share an artefact, under the first one's name
        for one in arms:
            if self.store.find(plan.train[one]) is None:
                left.setdefault(plan.train[one].key, one)
        unread = bool(left) or self.store.find(plan.harvest[first]) is None
        for one in arms:
            if self.store.find(plan.build[one]) is None or (unread and model is None):
                made = self._build(one)
                model = made if model is None else model
        if model is None or not unread:
            return
        with _named(first):
            models.truncate(model, self.spec.hookpoints)
            steps = [plan.train[one] for one in left.values()] or [plan.harvest[first]]
            source, precision = self._reader(first, model.to(self.spec.device), steps)
            self._harvest(first, source, precision)
            for some in checkpoints.together(self.store, steps, "train") if left else ():
                self._train([left[step.key] for step in some], source)

    def _build(self, one: ArmModel) -> Any:
        """Return one arm's model; its recipe and diagnostics card are kept."""
        given, spec, control = self.given.reference, self.spec, self.spec.arms[one.arm].control
        seed = one.model_seed if control.draws and one.model_seed is not None else 0
        with _named(one), self.progress.track(f"build {one.label}", 1, "model") as advance:
            model, recipe = build(given, control, spec.seed, seed, source=spec.model)
            self._record(one, model, recipe.model_dump(mode="json"))
            advance(1)
        return model

    def _record(self, one: ArmModel, model: Any, recipe: dict[str, Any]) -> None:
        """Keep what was done to the model, and its diagnostics card."""
        step, spec = self.plan.build[one], self.spec.harvest
        rows = self.given.rows_of(one)["heldout"]
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
        with self.store.write(step) as draft:
            write_json(draft / "recipe.json", recipe)
            found = card(model, self.spec.hookpoints, ids, usable, spec.outlier_ratio)
            write_json(draft / "card.json", found)
            heads = {"embedding": embedding(model), "unembedding": unembedding(model)}
            artefacts.write_heads(draft, heads)

    def _reader(
        self, one: ArmModel, model: Any, steps: Sequence[Step]
    ) -> tuple[AnyReader, HarvestPrecision]:
        """Return what reads an arm's activations, its model or a Gaussian in its place; the precision."""
        data, spec, rows = self.spec.arms[one.arm].data, self.spec, self.given.rows_of(one)["train"]
        known = self.store.find(self.plan.harvest[one])
        decided = artefacts.read_precision(known) if known else None
        reader, used = arm_reader(model, spec.hookpoints, rows, spec.harvest, spec.seed, decided)
        if data is None or not data.of_activations:
            return reader, used
        track = functools.partial(self.progress.track, f"moments {one.label}")
        seed, work = one.model_seed or 0, self._work(one, steps)
        return in_its_place(reader, spec, rows, seed, work, track), used

    def _work(self, one: ArmModel, steps: Sequence[Step]) -> Work:
        """Return work with checkpoints, from which only a model with the same weights goes on."""
        return Work(self.store, steps, artefacts.read_hash(self.store.path(self.plan.build[one])))

    def _harvest(self, one: ArmModel, reader: AnyReader, used: HarvestPrecision) -> None:
        """Calibrate the arm on the head of the training stream; keep its held-out activations."""
        step, rows = self.plan.harvest[one], self.given.rows_of(one)
        if self.store.find(step) is not None:
            return
        label, total = f"harvest {one.label}", int(rows["heldout"].usable().sum())
        with self.progress.track(label, total) as advance, self.store.write(step) as draft:
            found = harvest(reader, rows, self.spec.harvest, self.spec.seed, advance)
            artefacts.write_harvest(draft, *found, used, self.store.path(self.plan.build[one]))
            artefacts.write_repeats(draft, self._repeats(reader, rows["heldout"]))

    def _repeats(self, reader: AnyReader, rows: Rows) -> dict[str, Any]:
        """Return the activations on random blocks, fresh and repeated; none where no model is read."""
        n, block = self.spec.structure.repeats
        # BOS and two blocks: rows are no longer than the text's, which the model is known to read
        block = min(block, (self.spec.text.context_tokens - 1) // 2)
        if not isinstance(reader, models.Reader):
            return {}
        fresh, repeated = (
            random_rows(rows, n, block, self.spec.seed, again) for again in (False, True)
        )
        return harvest_repeats(reader, fresh, repeated, block)

    def _train(self, arms: Sequence[ArmModel], reader: AnyReader) -> None:
        """Train every SAE of the arms in one pass over the token stream, then their Gaussian nulls."""
        plan, spec, first = self.plan, self.spec, arms[0]
        harvested, rows = self.store.path(plan.harvest[first]), self.given.rows_of(first)["train"]
        work = self._work(first, [plan.train[one] for one in arms])
        controls = {plan.train[one].key: spec.arms[one.arm].dictionary for one in arms}
        stream = TrainingStream(spec, reader, rows, artefacts.read_calibrations(harvested))
        pass_ = Matched(stream, harvested, len(self.given.vocabulary), controls, work)
        more = f" and {len(arms) - 1} more" if len(arms) > 1 else ""
        pass_.run(first.label + more, self.progress)
        for one in arms:
            step = plan.train[one]
            with self.store.write(step, work.seconds / len(arms)) as draft:
                pass_.write(draft, step.key, self.store.path(plan.build[one]), one)
        checkpoints.clear(self.store)

    # --- one SAE: what its latents are, and what every metric says -------------------------------

    @functools.cached_property
    def heldout(self) -> dict[str, HeldOut]:
        """Return, by hookpoint, the held-out tokens that no arm leaves out."""
        folders = [self.store.path(step) for step in self.plan.harvests]
        return {
            name: held_out(
                self.given.rows["heldout"],
                [artefacts.outliers(folder, name) for folder in folders],
                self.given.vocabulary,
            )
            for name in self.spec.hookpoints
        }

    def measure(self) -> None:
        """Measure every SAE that was not, as many at a time as there are threads."""
        steps = {
            step.key: at for at, step in self.plan.measure.items() if not self.store.find(step)
        }
        if not steps:
            return
        jobs = [functools.partial(self._measure, *at) for at in steps.values()]
        n = len(self.heldout[self.spec.hookpoints[0]].usable)
        _ = self.given.readability  # read once, before the threads ask for it
        label = f"measure {len(jobs)} SAEs"
        with self.progress.track(label, n * len(jobs)) as advance, Crew() as crew:
            for _ in crew.each(jobs):
                advance(n)

    def _measure(self, one: ArmModel, hookpoint: str, label: str, sae_seed: int) -> None:
        """Encode the held-out activations with one SAE and write its tables."""
        step, spec = self.plan.measure[one, hookpoint, label, sae_seed], self.spec
        rows = self.given.rows_of(one)["heldout"]
        tokens = dataclasses.replace(
            self.heldout[hookpoint], rows=rows, readability=self.given.readability
        )
        trained = self.store.path(self.plan.train[one])
        activations = artefacts.read_activations(self.store.path(self.plan.harvest[one]), hookpoint)
        with self.store.write(step) as draft:
            measured = measure(
                saelens.read(artefacts.sae_folder(trained, hookpoint, label, sae_seed)),
                activations[torch.from_numpy(tokens.usable)],
                tokens,
                artefacts.read_lookup(trained, hookpoint),
                artefacts.read_gaussian(trained, hookpoint, label),
                document_weights(len(tokens.rows.names), spec.measurement.replicates, spec.seed),
                spec.measurement,
            )
            artefacts.write_measured(draft, measured)


@contextlib.contextmanager
def _named(one: ArmModel) -> Iterator[None]:
    """Put the arm's name before what is wrong with its model."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"arm {one.label}: {error}") from error
