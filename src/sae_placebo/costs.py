"""What a trial will cost: its steps, which are done, and minutes from a short probe of this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_placebo import models
from sae_placebo.activations import FORWARD_ROWS
from sae_placebo.controls import build
from sae_placebo.devices import describe_device, settings
from sae_placebo.lazy import torch
from sae_placebo.nulls import placed
from sae_placebo.plans import Plan, plan_steps
from sae_placebo.progress import Progress
from sae_placebo.protocol import TrialSpec, load_trial
from sae_placebo.result_folders import in_the_way, store_folder
from sae_placebo.results import environment, trial_folder
from sae_placebo.sites import text_config
from sae_placebo.sizes import check_sizes
from sae_placebo.spec import generator
from sae_placebo.store import Step, Store
from sae_placebo.training import Fit
from sae_placebo.trial import Bench


@dataclass(frozen=True)
class Rates:
    """What this machine did in a short probe.

    Attributes:
        forward: Tokens per second through the model up to the last hookpoint.
        sae: Training tokens per second of each SAE, by label.
        build_seconds: Time to copy, change and hash the model once.
    """

    forward: float
    sae: Mapping[str, float]
    build_seconds: float


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
        probe: Time the model and the SAEs. A packaged model is converted first, and kept.
        progress: Where the conversion is shown.
    """
    spec = load_trial(source, overrides=overrides)
    root = store_folder(store)
    check_sizes(spec, root)
    plan, place = plan_steps(spec), Store(root, warn=progress.note)
    rates = None
    if probe and any(not place.has(step) for step in plan.steps()):
        with place.lock(), settings(spec.device):
            place.environment = environment() | describe_device(
                spec.device
            )  # a model that is converted here is kept
            rates = measure_rates(Bench(plan, place, progress))
    lines = [f"{'stage':<10} {'done':>9}  {'left: tokens':>14}  {'passes':>7}  {'minutes':>8}"]
    total = 0.0
    for stage, steps in _by_stage(plan):
        left = [step for step in steps if not place.has(step)]
        tokens, passes = _tokens(spec, stage) * _readings(left), _passes(spec, stage)
        minutes = "-"
        if rates is not None and left:
            seconds = len(left) * _seconds(spec, stage, rates)
            if stage in ("harvest", "train"):
                seconds += tokens / rates.forward
            total += seconds
            minutes = f"{seconds / 60:.1f}"
        done = f"{len(steps) - len(left)}/{len(steps)}"
        lines.append(
            f"{stage:<10} {done:>9}  {tokens:>14,}  {passes * len(left):>7,}  {minutes:>8}"
        )
    if rates is not None:
        speeds = ", ".join(f"{label} {rate:,.0f}" for label, rate in rates.sae.items())
        lines.append(
            f"about {total / 60:.1f} minutes are left. Probe: forward {rates.forward:,.0f} tokens/s; SAE "
            f"training {speeds} tokens/s; a control built in {rates.build_seconds:.1f} s."
        )
    elif not any(not place.has(step) for step in plan.steps()):
        lines.append("every stage is done.")
    if (taken := in_the_way(trial_folder(root, spec.name), spec)) is not None:
        lines.append(f"`run` will refuse this: {taken}.")
    return "\n".join(lines)


def _by_stage(plan: Plan) -> Iterator[tuple[str, list[Step]]]:
    stages: dict[str, list[Step]] = {}
    for step in plan.steps():
        stages.setdefault(step.stage, []).append(step)
    yield from stages.items()


def _tokens(spec: TrialSpec, stage: str) -> int:
    """Return the tokens that one step of a stage reads."""
    text = spec.text
    return {
        "tokenize": text.train_tokens + text.heldout_tokens,
        "harvest": text.heldout_tokens + spec.harvest.calibration_rows * text.context_tokens,
        "train": text.train_tokens,
        "measure": text.heldout_tokens,
    }.get(stage, 0)


def _readings(steps: Sequence[Step]) -> int:
    """Return how often steps of one stage read their tokens: SAEs of one harvest share a stream."""
    if steps and steps[0].stage == "train":
        return len({step.inputs for step in steps})
    return len(steps)


def _passes(spec: TrialSpec, stage: str) -> int:
    """Return the SAE training passes in one step: every SAE seed, and its Gaussian null."""
    recipes = len(spec.saes) * len(spec.hookpoints)
    return recipes * 2 * len(spec.sae_seeds) if stage == "train" else 0


# seconds per step that a probe would cost as much as the step itself; measured on 2 cores
_FIXED = {"model": 20.0, "tokenize": 5.0, "readability": 15.0, "text": 1.0, "measure": 5.0}


def _seconds(spec: TrialSpec, stage: str, rates: Rates) -> float:
    """Return how long one step of a stage will take, without reading activations."""
    if stage in _FIXED:
        return _FIXED[stage]
    if stage == "build":
        return rates.build_seconds
    passes = _passes(spec, stage) / len(spec.saes)
    return sum(passes * spec.text.train_tokens / rate for rate in rates.sae.values())


def measure_rates(bench: Bench) -> Rates:
    """Time a copy of the model, three forwards and three SAE steps on this machine."""
    spec = bench.spec
    _ = bench.given.reference  # loaded once, and converted once: not the cost of a control
    start = time.perf_counter()
    arm = next(arm for arm in spec.arms if arm != spec.trained_arm)
    control = spec.arms[arm].control
    model, _ = build(bench.given.reference, control, spec.seed, 0, source=spec.model)
    build_seconds = time.perf_counter() - start
    reader = models.Reader(model.to(spec.device), spec.hookpoints)
    ids = torch.randint(
        0,
        text_config(model).vocab_size,
        (FORWARD_ROWS, spec.text.context_tokens),
        generator=generator(spec.seed, "probe"),
    )
    forward = _rate(lambda: reader.read(ids), ids.numel())
    x = torch.randn(
        spec.training.batch_tokens, reader.d_in, generator=generator(spec.seed, "probe")
    ).to(spec.device)
    saes = {}
    for label, sae in spec.saes.items():
        fit = Fit(placed(sae.create(reader.d_in, 0), spec.device), spec.training, 1_000_000)
        saes[label] = _rate(lambda fit=fit: fit.step(x), len(x))
    return Rates(forward, saes, build_seconds)


def _rate(work: Any, n_tokens: int, repetitions: int = 3) -> float:
    work()
    start = time.perf_counter()
    for _ in range(repetitions):
        work()
    return repetitions * n_tokens / (time.perf_counter() - start)
