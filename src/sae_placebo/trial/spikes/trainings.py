"""Trainings with spikes planted, one after the other; the result of each is kept as soon as it is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_placebo.core.lazy import torch
from sae_placebo.core.sealing import read_json, seal_is_broken, sealed, write_json
from sae_placebo.core.spec import generator
from sae_placebo.core.store import explained
from sae_placebo.core.time_left import clock_text
from sae_placebo.lab.spikes.keys import TokenKeys
from sae_placebo.lab.spikes.pairs import pair_rows
from sae_placebo.lab.spikes.planting import Planting
from sae_placebo.lab.spikes.recovery import codes_on, recovered
from sae_placebo.models.activation_files import read_calibrations
from sae_placebo.report.spike_files import PAIRS
from sae_placebo.report.wording import counted
from sae_placebo.saes import SAE
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.training import Fit, step_all
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.probes import seconds_of
from sae_placebo.trial.spikes.activations import TOGETHER, ArmActivations, read_activations
from sae_placebo.trial.spikes.planning import DECOYS, SpikePlan, Training
from sae_placebo.trial.stages.explained_variance_null import placed

Row = dict[str, Any]


@dataclass
class Trainings:
    """The trainings of one plan, and what is kept of them.

    Attributes:
        artefacts: Of the trial.
        plan: What is planted.
        folder: Where results are kept.
    """

    artefacts: Artefacts
    plan: SpikePlan
    folder: Path
    _arm: ArmActivations | None = None
    _without: dict[int, SAE] = field(default_factory=dict)

    def run(self) -> list[Row]:
        """Do what is left, and return what each training found: its `rows`, and facts about it."""
        trainings, store = self.plan.trainings(), self.artefacts.store
        with explained(store.root):
            (self.folder / "trainings").mkdir(parents=True, exist_ok=True)
        found = {one.index: self._kept(one) for one in trainings}
        left = [one for one in trainings if found[one.index] is None]
        self.artefacts.progress.note(self._announced(trainings, left))
        for one in left:
            found[one.index] = self._keep(one, self._train(one, len(trainings)))
        return [row for row in found.values() if row is not None]

    # --- what is kept ------------------------------------------------------------------------------

    def _path(self, one: Training) -> Path:
        return self.folder / "trainings" / f"{one.index:04d}.json"

    def _keep(self, one: Training, row: Row) -> Row:
        with explained(self.artefacts.store.root):
            self.artefacts.store.check_lock()
            write_json(self._path(one), sealed({"key": self.plan.key, **row}))
        return row

    def _kept(self, one: Training) -> Row | None:
        """Return what a training before found; None where there is nothing, or nothing whole."""
        path, store = self._path(one), self.artefacts.store
        try:
            found = read_json(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            found = None
        whole = isinstance(found, dict) and found.get("key") == self.plan.key and "seal" in found
        if whole and not seal_is_broken(found):
            return {name: value for name, value in found.items() if name not in ("key", "seal")}
        aside = store.shown(store.set_aside(path))
        store.warn(
            f"{store.shown(path)} was not what was written; it now lies in {aside}, and that training is "
            "done again"
        )
        return None

    # --- how long it takes -------------------------------------------------------------------------

    def _announced(self, trainings: list[Training], left: list[Training]) -> str:
        """Return how many trainings the plan needs, and about how long those take that are left."""
        n, kinds = sum(len(one.spikes) for one in trainings), ", ".join(self.plan.saes)
        tokens = int(
            self.artefacts.materials.rows_of(self.plan.subject.one)["train"].usable().sum()
        )
        said = (
            f"spikes: {counted(n, 'feature')} {'is' if n == 1 else 'are'} planted in "
            f"{counted(len(trainings), 'training')} of {tokens:,} tokens ({kinds}); "
        )
        if not left:
            return f"{said}all are done"
        done = len(trainings) - len(left)
        first = {one.kind: one for one in reversed(left)}
        rates = {kind: self._rate(one) for kind, one in sorted(first.items())}
        seconds = self._reading_seconds(tokens) + sum(tokens * rates[one.kind] for one in left)
        speeds = ", ".join(f"{kind} {1 / rate:,.0f}" for kind, rate in rates.items())
        return (
            f"{said}{f'{done:,} are done; ' if done else ''}about {clock_text(seconds)} left, by a probe "
            f"of this machine ({speeds} tokens/s)"
        )

    def _rate(self, one: Training) -> float:
        """Return the seconds per token of planting and of a training step, timed at its start."""
        spec, subject = self.artefacts.spec, self.plan.subject
        harvested = self.artefacts.store.path(self.artefacts.plan.harvest[subject.one])
        d_in, size = (
            len(read_calibrations(harvested)[subject.hookpoint].mean),
            spec.training.batch_tokens,
        )
        fit = Fit(
            placed(self.plan.saes[one.kind].create(d_in, 0), spec.device), spec.training, 1_000_000
        )
        x = torch.randn(TOGETHER * size, d_in, generator=generator(spec.seed, "probe", one.kind))
        batch, keys, workspace = x[:size].to(spec.device), TokenKeys.plain(len(x)), Workspace()
        plan = Planting.of(one.spikes, one.seed, d_in, 1.0)
        planting = seconds_of(lambda: plan.plant(x, keys)) / len(x)
        return planting + seconds_of(lambda: step_all([fit], batch, workspace)) / size

    def _reading_seconds(self, tokens: int) -> float:
        """Return about how long it takes to read the training tokens, by how long the held-out ones took."""
        plan, store, one = self.artefacts.plan, self.artefacts.store, self.plan.subject.one
        heldout = self.artefacts.materials.rows_of(one)["heldout"].usable().sum()
        return store.seconds(plan.harvest[one]) * tokens / max(int(heldout), 1)

    # --- one training ------------------------------------------------------------------------------

    @property
    def arm(self) -> ArmActivations:
        """Return the arm's activations, read when they are first needed."""
        if self._arm is None:
            self._arm = read_activations(self.artefacts, self.plan.subject)
        return self._arm

    def without(self, sae_seed: int) -> SAE:
        """Return the trial's own SAE, which was trained on the same activations without spikes."""
        if sae_seed not in self._without:
            subject = self.plan.subject
            place = (subject.one, subject.hookpoint, subject.sae, sae_seed)
            self._without[sae_seed] = self.artefacts.sae(place)
        return self._without[sae_seed]

    def _train(self, one: Training, n: int) -> Row:
        arm, start = self.arm, time.perf_counter()
        plan = arm.plan(list(one.spikes), one.seed)
        label = f"train {one.kind} with {len(one.spikes)} spikes, {one.index + 1} of {n}"
        with self.artefacts.progress.track(label, arm.n_tokens) as advance:
            sae = arm.train(plan, self.plan.saes[one.kind], one.sae_seed, advance)
        look: Callable[..., Row] = self._pairs if self.plan.task == PAIRS else self._features
        return {
            "kind": one.kind,
            "training": one.index,
            "seed": one.seed,
            "sae_seed": one.sae_seed,
            "scale": arm.scale,
            "energy_share": plan.energy_share,
            "largest_cosine": plan.largest_cosine,
            "heldout_tokens": len(arm.kept.heldout),
            **look(sae, plan, one),
            "seconds": time.perf_counter() - start,
        }

    def _features(self, sae: SAE, plan: Any, one: Training) -> Row:
        kept = self.arm.kept
        found = recovered(
            sae,
            kept.planted(plan),
            plan,
            kept.heldout_keys,
            self.plan.thresholds,
            decoys=DECOYS,
            without=self.without(one.sae_seed),
        )
        return {"rows": found.table()}

    def _pairs(self, sae: SAE, plan: Any, one: Training) -> Row:
        kept = self.arm.kept
        codes = codes_on(sae, kept.planted(plan))
        active = plan.active(kept.heldout_keys)
        rows = pair_rows(sae, codes, plan, active, self.plan.thresholds)
        return {"rows": rows, "l0": float((codes > 0).sum() / codes.shape[0])}
