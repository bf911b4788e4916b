"""The whole experiment, in order. Read this first.

A trial asks what sparse autoencoders (SAEs) find in a trained language model that they do not find
in a placebo: the same model with its weights re-drawn. Every arm reads the same tokens in the same
order, and its SAEs start from the same bits; only the model differs.

    protocol -> tokenize -> for each arm and re-draw: build, harvest, train
             -> for each SAE: measure, encode, profile -> for each arm: baselines
             -> for some SAEs: use, ties, audit
             -> compare -> report

Arms that read the same activations are trained in one pass. Each step's result is an artefact, keyed by
everything that decides it, and a training keeps checkpoints: a stopped trial goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_placebo.core import checkpoints, interrupts, memory
from sae_placebo.core.devices import describe_device, settings
from sae_placebo.core.errors import SpecError, StoreError
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import Store
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.failures import Failures
from sae_placebo.trial.plan import plan_steps
from sae_placebo.trial.remaining import expected, outlook_of, remaining
from sae_placebo.trial.result_folders import in_the_way, store_folder
from sae_placebo.trial.results import (
    Trial,
    environment,
    report_page,
    trial_folder,
    write_results,
)
from sae_placebo.trial.sizes import check_sizes
from sae_placebo.trial.spec import TrialSpec, load_trial
from sae_placebo.trial.stages.baselines import fit_baselines
from sae_placebo.trial.stages.build import build_arms, build_measured
from sae_placebo.trial.stages.encode import encode_saes
from sae_placebo.trial.stages.harvest import harvest_arms
from sae_placebo.trial.stages.measure import measure_saes
from sae_placebo.trial.stages.profile import profile_saes
from sae_placebo.trial.stages.questions import ask_arms
from sae_placebo.trial.stages.train import train_arms


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
    if progress is not None and not isinstance(progress, Progress):
        raise SpecError(f"progress is a Progress or None; found {progress!r:.80}")
    if not isinstance(replace, bool):
        raise SpecError(f"replace is True or False; found {replace!r:.80}")
    spec = load_trial(source, overrides=overrides)
    progress = progress or Progress()
    root = store_folder(store)
    check_sizes(spec, root)
    if (taken := in_the_way(trial_folder(root, spec.name), spec, replace)) is not None:
        raise StoreError(taken)
    # what does not count is told where it is made anew
    plan, unheard = plan_steps(spec), Store(root)
    outlook = outlook_of(plan, unheard)
    progress.note(f"{remaining(plan, unheard)}; {expected(outlook)}")
    place = Store(root, progress.note)
    place.environment = environment() | describe_device(spec.device)
    with (
        memory.explained(),
        place.lock(wait_seconds),
        settings(spec.device),
        interrupts.listening(),
        progress.whole(outlook),
    ):
        checkpoints.clear(place)
        artefacts = Artefacts(plan, place, progress)
        _check(artefacts)
        _ = artefacts.materials.tokens  # too little text should be told before a model is built
        build_measured(
            artefacts
        )  # a model that cannot be had should be told before any is trained on
        for arms in plan.groups:  # arms that read the same activations
            models = build_arms(artefacts, arms)
            if models is not None:
                reader = harvest_arms(artefacts, arms, models)
                train_arms(artefacts, arms, reader)
                del models, reader
            memory.give_back()
        measure_saes(artefacts)
        encode_saes(artefacts)
        profile_saes(artefacts)
        fit_baselines(artefacts)
        failures = Failures(progress.note)
        ask_arms(artefacts, failures)
        with progress.track("compare and report", 1, "trial") as advance:
            trial = write_results(plan, place)
            advance(1)
    failures.raised(report_page(trial.folder))
    return trial


def _check(artefacts: Artefacts) -> None:
    """Hash the artefacts that are there; what is damaged is named, and made again."""
    unheard = Store(artefacts.store.root)  # what does not count is told where it is made anew
    there = [step for step in artefacts.plan.steps() if unheard.has(step)]
    if not there:
        return
    with artefacts.progress.track("check what is there", len(there), "artefacts") as advance:
        for step in there:
            artefacts.store.find(step)
            advance(1)
