"""Stages that ask an arm's model: every SAE that is left, its model built once, arms side by side."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from sae_placebo.controls import build
from sae_placebo.core import memory
from sae_placebo.core.lanes import in_lanes
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import Step, Store
from sae_placebo.trial.faults import is_fault
from sae_placebo.trial.plan import ArmModel, Place, Plan
from sae_placebo.trial.stages.materials import Materials


def each_place(
    steps: Mapping[Place, Step],
    plan: Plan,
    store: Store,
    given: Materials,
    progress: Progress,
    work: Callable[[Place, Any], None],
) -> None:
    """Do `work` for every SAE that is left, with its arm's model; `lanes` arms are done at a time.

    How many threads an arm has depends on the whole plan, not on what is left of it, so that a trial that
    was stopped goes on with the same bits.
    """
    left = {step.key: place for place, step in steps.items() if is_left(store, step)}
    if not left:
        return
    places, building = list(left.values()), threading.Lock()

    def job(one: ArmModel) -> None:
        with building, progress.track(f"build {one.label} again", 1, "model") as advance:
            model = _model(plan, given, one)
            advance(1)
        for place in places:
            if place[0] == one:
                work(place, model)
                memory.give_back()

    size = sum(p.numel() * p.element_size() for p in given.reference.parameters())
    arms = list(dict.fromkeys(place[0] for place in places))
    lanes = plan.lanes(torch.get_num_threads(), size, steps)
    in_lanes([functools.partial(job, one) for one in arms], lanes)


def is_left(store: Store, step: Step) -> bool:
    """Return whether a job is to be done: it was not, or it failed by a fault."""
    folder = store.find(step)
    return folder is None or is_fault(folder)


def _model(plan: Plan, given: Materials, one: ArmModel) -> Any:
    """Return an arm's model, built again from its recipe, on the trial's device."""
    spec = plan.spec
    control = spec.arms[one.arm].control
    model, _ = build(given.reference, control, spec.seed, one.model_seed or 0, source=spec.model)
    if spec.device == "cpu":
        # few queries on many keys: the one-by-one form is up to 1.7 times as fast, with equal values
        model.config._attn_implementation = "eager"
    return model.to(spec.device)
