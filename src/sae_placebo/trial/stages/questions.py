"""Every arm's model is built once more for all that is asked of it: use of latents, and audits of SAEs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core import memory
from sae_placebo.core.lanes import in_lanes
from sae_placebo.core.lazy import torch
from sae_placebo.core.store import Step, Store
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.failures import Failures, is_fault
from sae_placebo.trial.plan import ArmModel, Place
from sae_placebo.trial.stages.arm_models import models_asked
from sae_placebo.trial.stages.audit import audit_sae
from sae_placebo.trial.stages.ties import ask_ties
from sae_placebo.trial.stages.use import ask_use


def ask_arms(artefacts: Artefacts, failures: Failures) -> None:
    """Ask each arm's model what is left to ask: what it uses of each SAE's latents, ties, then every audit.

    Arms are asked side by side. How many threads an arm has depends on the whole plan, not on what is
    left of it, so that a trial that was stopped goes on with the same bits.

    Args:
        artefacts: Of the trial, up to its profiles.
        failures: Keeps what goes wrong in single jobs.
    """
    plan, store = artefacts.plan, artefacts.store
    used, tied, audited = (_left(store, steps) for steps in (plan.use, plan.ties, plan.audit))
    arms = list(dict.fromkeys(place[0] for place in (*used, *tied, *audited)))
    if not arms:
        return
    if audited:
        _ = artefacts.materials.readability  # read once, before several threads ask for it
    keys = {}
    for one in arms:
        keys[one] = [artefacts.activations_key(one, name) for name in artefacts.spec.hookpoints]
        artefacts.shelf.announce(keys[one])
    building = threading.Lock()

    def job(one: ArmModel) -> None:
        questions = [(ask_use, used), (ask_ties, tied), (audit_sae, audited)]
        hookpoints = {p[1] for p in (*used, *tied, *audited) if p[0] == one}
        with building:
            model = _built(
                artefacts, one, [n for n in artefacts.spec.hookpoints if n in hookpoints]
            )
        with artefacts.shelf.serving(keys[one]):
            for ask, places in questions:
                for place in (place for place in places if place[0] == one):
                    ask(artefacts, place, functools.partial(model.behind, place[1]), failures)
                    memory.give_back()

    size = sum(p.numel() * p.element_size() for p in artefacts.materials.reference.parameters())
    lanes = plan.lanes(torch.get_num_threads(), size)
    in_lanes([functools.partial(job, one) for one in arms], lanes)


@dataclass
class _Asked:
    """An arm's models while it is asked, by hookpoint, and their parts behind hookpoints."""

    models: Mapping[str, Any]
    parts: dict[str, Downstream] = field(default_factory=dict)

    def behind(self, hookpoint: str) -> Downstream:
        """Return the model from a hookpoint on, made when it is first needed."""
        if hookpoint not in self.parts:
            self.parts[hookpoint] = Downstream(self.models[hookpoint], hookpoint)
        return self.parts[hookpoint]


def _built(artefacts: Artefacts, one: ArmModel, hookpoints: Sequence[str]) -> _Asked:
    device = artefacts.spec.device
    with artefacts.progress.track(f"build {one.label} again", 1, "model") as advance:
        models = models_asked(artefacts, one, hookpoints)
        for model in models.values():
            if device == "cpu":
                # few queries on many keys: the one-by-one form is up to 1.7 times as fast, with equal values
                model.config._attn_implementation = "eager"
            model.to(device)
        advance(1)
    return _Asked(models)


def _left(store: Store, steps: Mapping[Place, Step]) -> list[Place]:
    """Return the SAEs that are not done or failed by a fault; of those that share an artefact, one."""
    left: dict[str, Place] = {}
    for place, step in steps.items():
        folder = store.find(step)
        if folder is None or is_fault(folder):
            left[step.key] = place
    return list(left.values())
