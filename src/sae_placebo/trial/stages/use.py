"""The stage behind profiles: what a model does with the latents of its SAEs, one job per SAE."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_placebo.causal.examination import Examination, confirmed, examine
from sae_placebo.causal.use.base import Subject
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.progress import Progress
from sae_placebo.core.spec import numpy_generator
from sae_placebo.core.store import Store
from sae_placebo.latents.passages import passages_of
from sae_placebo.trial import artefacts
from sae_placebo.trial.faults import Faults, write_refusal
from sae_placebo.trial.plan import Place, Plan
from sae_placebo.trial.stages.arm_models import each_place
from sae_placebo.trial.stages.profile import Profiles
from sae_placebo.trial.tables.use_files import write_use


@dataclass
class Uses:
    """The stage that asks models what they do with the latents of their SAEs, one job per SAE.

    Args:
        plan: The trial's plan.
        store: Where artefacts are.
        profiles: Reads the SAEs.
        progress: Where progress is shown.
        faults: Keeps what goes wrong in single jobs.
    """

    plan: Plan
    store: Store
    profiles: Profiles
    progress: Progress
    faults: Faults

    def run(self) -> None:
        """Ask about every SAE of the arms chosen that was not asked about."""
        given, plan = self.profiles.given, self.plan
        each_place(plan.use, plan, self.store, given, self.progress, self._ask)

    def _ask(self, place: Place, model: Any) -> None:
        label = f"{place[0].label}, {', '.join(place[1:3])}"
        with self.store.write(self.plan.use[place]) as draft:
            work = functools.partial(self._examine, place, model, draft, label)
            failure = self.faults.attempt(f"use: {label}", work)
            if failure is not None:
                write_refusal(draft, *failure)

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
        table = artefacts.read_table(self.store.path(self.plan.profile[place]) / "latents.parquet")
        least = self.plan.spec.measurement.thresholds.min_firings
        kinds = (table["class"].astype(str) + " " + table["origin"].astype(str)).to_numpy(object)
        kinds[~(table["n_active"].to_numpy(np.float64) >= least)] = ""
        return kinds
