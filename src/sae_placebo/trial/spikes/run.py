"""Plant features into a finished trial's activations, train its recipe on them, and say what comes back."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from sae_placebo.core import interrupts
from sae_placebo.core.devices import describe_device, settings
from sae_placebo.core.errors import NotEstimable, SpecError, StoreError
from sae_placebo.core.progress import Progress
from sae_placebo.core.sealing import fact, read_json, sealed
from sae_placebo.core.spec import digest
from sae_placebo.core.store import Store, explained, write_json
from sae_placebo.lab.spikes.outcomes import Thresholds
from sae_placebo.lab.spikes.recovery import codes_on
from sae_placebo.models.activation_files import read_calibrations
from sae_placebo.report import build_report
from sae_placebo.report.spike_files import PAIRS, RECORD
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import plan_steps
from sae_placebo.trial.result_folders import store_folder
from sae_placebo.trial.results import environment, is_result_of, trial_folder
from sae_placebo.trial.spec import TrialSpec, load_trial
from sae_placebo.trial.spikes.planning import (
    Asked,
    SpikePlan,
    Subject,
    check_asked,
    grid_of,
    kinds_of,
    matched_kinds,
    require_trained,
    seeds_of,
    subject_of,
)
from sae_placebo.trial.spikes.summary import (
    in_words,
    limit_from,
    reached_l0,
    summary_of,
    table_of,
    unmatched,
)
from sae_placebo.trial.spikes.trainings import Trainings
from sae_placebo.trial.table_files import read_table, write_table


@dataclass(frozen=True)
class Spikes:
    """What came back of planted features, read from its folder.

    Attributes:
        folder: `<store>/spikes/<trial>/<name>/`.
        report: The trial's report, which shows it; None where the trial has no results of its settings yet.
    """

    folder: Path
    report: Path | None = None

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """Return what was planted where, and how the trainings were made."""
        found: dict[str, Any] = read_json(self.folder / RECORD)
        return found

    @property
    def table(self) -> Any:
        """Return a DataFrame with one row per planted feature, or per planted pair."""
        return read_table(self.folder / f"{self.record['task']}.parquet")

    @property
    def summary(self) -> Any:
        """Return a DataFrame of shares, limits and nulls with their intervals and n."""
        return read_table(self.folder / "summary.parquet")

    def text(self) -> str:
        """Return the summary as lines for a terminal."""
        return in_words(self.record, self.summary)


def spikes(
    source: TrialSpec | Mapping[str, Any] | str | Path,
    store: str | Path = "runs",
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    wait_seconds: float = 0.0,
    **asked: Unpack[Asked],
) -> Spikes:
    """Plant features of known frequency and magnitude, and return what the trial's SAE recipe finds of them.

    The arm's activations are read anew, features are added to them, and SAEs are trained as in the trial. The
    result of each training is kept, so that a stopped call goes on; other settings get a folder of their own.

    Args:
        source: Path of a trial file (TOML), its content as tables, or a checked `TrialSpec`.
        store: The store of the trial, with its activations and SAEs.
        overrides: `dotted.key=value` settings that replace the file's.
        progress: Where progress is shown; nowhere by default.
        wait_seconds: How long to wait for another process that holds the store.
        asked: Any of arm, hookpoint, sae, frequencies, magnitudes, repeats, seeds, composed, kinds and
            together; see `Asked`.

    Raises:
        SpecError: the trial has no such arm, hookpoint or SAE, or a number is out of its range.
        StoreError: the trial's activations or SAEs are not in the store, or it cannot be written.
    """
    spec, root = load_trial(source, overrides=overrides), store_folder(store)
    progress = progress or Progress()
    check_asked(asked)
    subject = subject_of(spec, asked)
    trial_plan, place = plan_steps(spec), Store(root, progress.note)
    require_trained(trial_plan, place, subject, _command(source, root, overrides))
    place.environment = environment() | describe_device(spec.device)
    with place.lock(wait_seconds), settings(spec.device), interrupts.listening():
        artefacts = Artefacts(trial_plan, place, progress)
        plan = _planned(artefacts, subject, asked)
        _check_judged(artefacts, plan)
        folder = root / "spikes" / spec.name / plan.name
        trained = Trainings(artefacts, plan, folder).run()
        _write(place, folder, plan, spec, trained)
        report = _reported(trial_folder(root, spec.name), spec, progress)
    return Spikes(folder, report)


def _reported(results: Path, spec: TrialSpec, progress: Progress) -> Path | None:
    """Write the trial's report anew, which then shows what was planted; None where there are no results."""
    try:
        return build_report(results) if is_result_of(results, spec) else None
    except StoreError as error:
        progress.note(f"spikes: the trial's report was not written anew: {error}")
        return None


def _command(source: Any, root: Path, overrides: Sequence[str]) -> str:
    """Return the command that runs the trial to its end."""
    file = str(source) if isinstance(source, str | Path) else "TRIAL"
    changes = [word for setting in overrides for word in ("--set", setting)]
    return shlex.join(["sae-placebo", "run", file, "--store", str(root), *changes])


def _planned(artefacts: Artefacts, subject: Subject, asked: Asked) -> SpikePlan:
    """Return everything that decides the result."""
    spec, plan = artefacts.spec, artefacts.plan
    harvested = artefacts.store.path(plan.harvest[subject.one])
    own, l0 = spec.saes[subject.sae], _l0(artefacts, subject)
    kinds = kinds_of(asked.get("kinds"))
    return SpikePlan(
        subject=subject,
        grid=grid_of(asked, len(read_calibrations(harvested)[subject.hookpoint].mean)),
        seeds=seeds_of(asked.get("seeds")),
        saes=matched_kinds(kinds, own, l0) if asked.get("composed") else {own.kind: own},
        thresholds=Thresholds(),
        inputs=(plan.train[subject.one].key, *(step.key for step in plan.harvests)),
        sae_seeds=spec.sae_seeds,
        l0=l0,
    )


def _l0(artefacts: Artefacts, subject: Subject) -> float:
    """Return the L0 that the trial's SAE was asked for, or else that it has on the held-out tokens."""
    target = artefacts.spec.saes[subject.sae].l0_target()
    if target is not None:
        return target
    place = (subject.one, subject.hookpoint, subject.sae, artefacts.spec.sae_seeds[0])
    heldout = artefacts.activations(subject.one, subject.hookpoint)
    codes = codes_on(artefacts.sae(place), heldout)
    return round(float(codes.nnz / codes.shape[0]), 2)


def _check_judged(artefacts: Artefacts, plan: SpikePlan) -> None:
    """Refuse frequencies of which none can be judged on the held-out tokens; say which ones cannot.

    Raises:
        SpecError: all are too rare.
    """
    n = len(artefacts.heldout[plan.subject.hookpoint].places)
    least = plan.thresholds.least_tokens
    rare = [f for f in plan.grid.frequencies if f * n < least]
    if not rare:
        return
    listed = ", ".join(f"{f:g}" for f in rare)
    said = (
        f"a feature is judged on {least} held-out tokens or more, and of {n:,} those of frequency {listed} "
        "are expected on fewer"
    )
    if len(rare) == len(plan.grid.frequencies):
        raise SpecError(f"{said}: plant more frequent ones, {least / n:.2g} or more")
    artefacts.progress.note(f"spikes: {said}; most of them will not be judged")


def _write(
    store: Store,
    folder: Path,
    plan: SpikePlan,
    spec: TrialSpec,
    trained: Sequence[Mapping[str, Any]],
) -> None:
    """Write the tables, then the record, which names and seals them."""
    rows = [dict(one) for one in trained]
    tables = {plan.task: table_of(plan, rows), "summary": summary_of(plan, rows)}
    record = plan.settings | {
        "trial": spec.name,
        "protocol": digest(spec.model_dump(mode="json")),
        "n_trainings": len(rows),
        "n_spikes": sum(len(one.spikes) for one in plan.trainings()),
        "heldout_tokens": rows[0]["heldout_tokens"],
        "scale": rows[0]["scale"],
        "seconds": sum(row["seconds"] for row in rows),
        "environment": dict(store.environment),
    }
    if plan.task == PAIRS:
        l0, tolerance = reached_l0(rows), spec.measurement.l0_tolerance
        record |= {"l0": l0, "l0_target": plan.l0, "l0_tolerance": tolerance}
        record["unmatched"] = unmatched(l0, plan.l0, tolerance)
    else:
        record["limit"] = _limit_record(rows)
    with explained(store.root):
        store.check_lock()
        (folder / RECORD).unlink(missing_ok=True)
        for name, table in tables.items():
            draft = folder / f".{name}.parquet"
            write_table(draft, table)
            draft.replace(folder / f"{name}.parquet")
        files = {f"{name}.parquet": fact(folder / f"{name}.parquet") for name in tables}
        write_json(folder / RECORD, sealed(record | {"files": files}))


def _limit_record(trained: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the coefficients of the fitted detection limit, and what it was fitted on."""
    try:
        limit = limit_from(trained)
    except NotEstimable as reason:
        return {"reason": str(reason)}
    return {
        "coefficients": limit.coefficients.tolist(),
        "n": limit.n,
        "n_detected": limit.n_detected,
        "unit": limit.unit,
        "certain": list(limit.certain),
    }
