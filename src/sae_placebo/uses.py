"""The stage behind profiles: what a model does with the latents of its SAEs, one job per SAE."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_placebo import artefacts
from sae_placebo.controls import build
from sae_placebo.examining import Examination, confirmed, examine
from sae_placebo.faults import Faults, is_fault, write_refusal
from sae_placebo.materials import Materials
from sae_placebo.passages import passages_of
from sae_placebo.plans import ArmModel, Place, Plan
from sae_placebo.profiles import Profiles
from sae_placebo.progress import Progress
from sae_placebo.spec import numpy_generator
from sae_placebo.store import Step, Store
from sae_placebo.use.base import Subject
from sae_placebo.use.downstream import Downstream
from sae_placebo.use_tables import write_use


@dataclass
class Uses:
    """Asks models what they do with the latents of their SAEs.

    Args:
        plan: Of the trial.
        store: Where artefacts are.
        profiles: Reads the SAEs.
        progress: Where progress is shown.
        faults: What went wrong in single jobs.
    """

    plan: Plan
    store: Store
    profiles: Profiles
    progress: Progress
    faults: Faults

    def run(self) -> None:
        """Ask about every SAE of the arms chosen that was not asked about; one model at a time."""
        left = {p: s for p, s in self.plan.use.items() if is_left(self.store, s)}
        if not left:
            return
        for one in dict.fromkeys(place[0] for place in left):
            with self.progress.track(f"build {one.label} again", 1, "model") as advance:
                model = model_of(self.plan, self.profiles.given, one)
                advance(1)
            for place in left:
                if place[0] == one:
                    self._ask(place, model)

    def _ask(self, place: Place, model: Any) -> None:
        label, before = f"{place[0].label}, {', '.join(place[1:3])}", self.faults.n
        with self.store.write(self.plan.use[place]) as draft:
            work = functools.partial(self._examine, place, model, draft, label)
            reason = self.faults.attempt(f"use: {label}", work)
            if reason is not None:
                write_refusal(draft, reason, self.faults.n > before)

    def _examine(self, place: Place, model: Any, draft: Path, label: str) -> None:
        spec, kinds, reading = self.plan.spec, self._kinds(place), self.profiles.reading(*place)
        subject = Subject(Downstream(model, place[1]), reading.tokens, reading.activations)

        def track(what: str, total: int, unit: str) -> Any:
            return self.progress.track(f"{what}: {label}", total, unit)

        found = examine(subject, reading, kinds, spec.use, spec.circuits, spec.seed, track)
        shown = self._shown(found, kinds)
        with track("patch readers", len(shown), "latents") as advance:
            patched = confirmed(subject, reading, found, shown, spec.circuits, spec.seed, advance)
        write_use(draft, found, spec.use, spec.circuits)
        table = passages_of(reading, shown, spec.measurement)
        table.to_parquet(draft / "use_passages.parquet", index=False)
        patched.to_parquet(draft / "patched.parquet", index=False)

    def _shown(self, found: Examination, kinds: Any) -> list[int]:
        """Return latents of every pair of origin and use, at random."""
        random = numpy_generator(self.plan.spec.seed, "latents with a card")
        origins = np.array([str(kinds[i]).rpartition(" ")[2] for i in found.latents])
        shown: list[int] = []
        for origin in np.unique(origins):
            for use in np.unique(found.answer.verdicts.verdict):
                cell = found.latents[(origins == origin) & (found.answer.verdicts.verdict == use)]
                n = min(len(cell), self.plan.spec.use.shown_per_cell)
                shown += random.choice(cell, n, replace=False).tolist()
        return sorted(shown)

    def _kinds(self, place: Place) -> Any:
        """Return the kind of each latent, its class and origin; empty where it fires too rarely."""
        table = artefacts.read_table(self.store.path(self.plan.match[place]) / "latents.parquet")
        least = self.plan.spec.measurement.thresholds.min_firings
        kinds = (table["class"].astype(str) + " " + table["verdict"].astype(str)).to_numpy(object)
        kinds[~(table["n_active"].to_numpy(np.float64) >= least)] = ""
        return kinds


def is_left(store: Store, step: Step) -> bool:
    """Return whether a job is to be done: it was not, or it failed by a fault."""
    folder = store.find(step)
    return folder is None or is_fault(folder)


def model_of(plan: Plan, given: Materials, one: ArmModel) -> Any:
    """Return an arm's model, built again from its recipe, on the trial's device."""
    spec = plan.spec
    control = spec.arms[one.arm].control
    model, _ = build(given.reference, control, spec.seed, one.model_seed or 0, source=spec.model)
    if spec.device == "cpu":
        # few queries on many keys: the one-by-one form is up to 1.7 times as fast, with equal values
        model.config._attn_implementation = "eager"
    return model.to(spec.device)
