"""`plan` and `status`: the steps of a trial, which are done, and minutes for the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sae_placebo.core.devices import describe_device, settings
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import Step, Store
from sae_placebo.core.time_left import WorkPiece
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.estimates import estimate, rates_key
from sae_placebo.trial.machine import Machine, load, save, usual_threads
from sae_placebo.trial.plan import Plan, plan_steps
from sae_placebo.trial.probes import probe
from sae_placebo.trial.question_estimates import lanes_of
from sae_placebo.trial.remaining import remaining
from sae_placebo.trial.result_folders import in_the_way, store_folder
from sae_placebo.trial.results import environment, trial_folder
from sae_placebo.trial.sizes import check_sizes, fit_tokens
from sae_placebo.trial.spec import TrialSpec, load_trial


def unfinished(spec: TrialSpec, store: str | Path) -> int:
    """Return how many steps of a trial are left."""
    place = Store(Path(store))
    return sum(not place.has(step) for step in plan_steps(spec).steps())


def plan_table(
    source: str | Path,
    store: str | Path,
    *,
    overrides: Sequence[str],
    probe: bool,
    progress: Progress,
) -> str:
    """Return the stages of a trial as text: done or to do, and the cost of what is left.

    Args:
        source: The trial file.
        store: Folder of artefacts.
        overrides: `dotted.key=value` settings.
        probe: Time the model and the SAEs; what is found is kept in the store, for `run`. A packaged
            model is converted first, and kept. Without, minutes are told where a probe was kept.
        progress: Where the conversion and the probes are shown.
    """
    spec = load_trial(source, overrides=overrides)
    root = store_folder(store)
    check_sizes(spec, root)
    plan, place = plan_steps(spec), Store(root, warn=progress.note)
    left = {step.key for step in plan.steps() if not place.has(step)}
    lines = [remaining(plan, place)]
    machine, pieces = None, list[WorkPiece]()
    if left and probe:
        machine = probed(plan, place, progress)
        left.discard(plan.model.key)  # it is converted now
    elif left:
        machine = load(place.root, rates_key(plan))
    if machine is not None:
        pieces = estimate(plan, lambda step: step.key in left, machine)
    lines.append(f"{'stage':<12} {'done':>9}  {'left: tokens':>14}  {'passes':>7}  {'minutes':>8}")
    by_stage = {
        stage: sum((p.seconds for p in pieces if p.stage == stage), 0.0)
        for stage in _stages(pieces)
    }
    for stage, steps in _by_stage(plan):
        waiting = [step for step in steps if step.key in left]
        tokens, passes = _tokens(spec, stage) * _readings(waiting), _passes(spec, stage)
        if stage == "harvest":
            tokens += _fitted_draws(plan, left) * spec.text.train_tokens
        done = f"{len(steps) - len(waiting)}/{len(steps)}"
        lines.append(
            f"{stage:<12} {done:>9}  {tokens:>14,}  {passes * len(waiting):>7,}  "
            f"{_minutes(by_stage.pop(stage, 0.0)):>8}"
        )
    for stage, seconds in by_stage.items():
        lines.append(f"{stage:<12} {'':>9}  {'':>14}  {'':>7}  {_minutes(seconds):>8}")
    if machine is not None:
        total = sum(piece.seconds for piece in pieces)
        lines.append(f"about {total / 60:.1f} minutes are left. {_told(machine)}")
    elif not left:
        lines.append("every stage is done.")
    if (taken := in_the_way(trial_folder(root, spec.name), spec)) is not None:
        lines.append(f"`run` will refuse this: {taken}.")
    return "\n".join(lines)


def probed(plan: Plan, place: Store, progress: Progress) -> Machine:
    """Return what this machine does for a trial, and keep it in the store."""
    spec = plan.spec
    with place.lock(), settings(spec.device):
        # a model that is converted here is kept
        place.environment = environment() | describe_device(spec.device)
        materials = Artefacts(plan, place, progress).materials
        _ = materials.source
        lanes = lanes_of(plan, usual_threads())
        asked = lanes if plan.use or plan.ties or plan.audit else 0
        found = probe(spec, lambda: materials.reference, rates_key(plan), progress, asked)
        save(found, place.root)
    return found


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}" if seconds else "-"


def _told(machine: Machine) -> str:
    """Return what was probed, in words."""
    speeds = ", ".join(f"{label} {1 / rate:,.0f}" for label, rate in machine.sae.items())
    told = (
        f"Probe, {machine.threads} threads: forward {1 / machine.reading:,.0f} tokens/s; SAE training "
        f"{speeds} tokens/s; a control built in {machine.build:.1f} s; products at "
        f"{machine.products / 1e9:,.0f} GFLOP/s; NumPy {machine.numbers:.2f} and Python "
        f"{machine.code:.2f} times as fast as where the constants were measured"
    )
    if machine.edit:
        told += (
            f"; behind the hookpoint {1 / machine.behind:,.0f} positions/s in whole rows and "
            f"{1 / machine.edit:,.0f} in edits of one token"
        )
    return told + "."


def _stages(pieces: Sequence[WorkPiece]) -> list[str]:
    return list(dict.fromkeys(piece.stage for piece in pieces))


def _by_stage(plan: Plan) -> Iterator[tuple[str, list[Step]]]:
    stages: dict[str, list[Step]] = {}
    for step in plan.steps():
        stages.setdefault(step.stage, []).append(step)
    yield from stages.items()


def _tokens(spec: TrialSpec, stage: str) -> int:
    """Return the tokens that one step of a stage reads."""
    text = spec.text
    fitted = fit_tokens(spec)
    return {
        "tokenize": text.train_tokens + text.heldout_tokens,
        "harvest": text.heldout_tokens + spec.harvest.calibration_rows * text.context_tokens,
        "train": text.train_tokens,
        "measure": text.heldout_tokens,
        "fit_text": fitted,
        "encode": fitted,
    }.get(stage, 0)


def _fitted_draws(plan: Plan, left: Collection[str]) -> int:
    """Return how many harvests are left that read the training tokens to fit draws to them."""
    drawn = {
        step.key
        for one, step in plan.harvest.items()
        if (data := plan.spec.arms[one.arm].data) is not None and data.of_activations
    }
    return len(drawn & set(left))


def _readings(steps: Sequence[Step]) -> int:
    """Return how often steps of one stage read their tokens: SAEs of one harvest share a stream."""
    if steps and steps[0].stage == "train":
        return len({step.inputs for step in steps})
    return len(steps)


def _passes(spec: TrialSpec, stage: str) -> int:
    """Return the SAE training passes in one step: every SAE seed, and its Gaussian null."""
    recipes = len(spec.saes) * len(spec.hookpoints)
    return recipes * (len(spec.sae_seeds) + 1) if stage == "train" else 0
