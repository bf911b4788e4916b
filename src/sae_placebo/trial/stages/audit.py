"""The stage that asks where SAEs mislead: one job per SAE that is audited, one model at a time."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from sae_placebo.audits import AUDITS
from sae_placebo.audits.base import Audited, Case, audit, refused
from sae_placebo.causal.use.base import Subject
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.progress import Progress
from sae_placebo.core.store import Store
from sae_placebo.data.labels.truth import TokenLabels
from sae_placebo.latents.base import Encoded, TokenTable
from sae_placebo.trial.faults import Failure, Faults, write_refusal
from sae_placebo.trial.plan import ArmModel, Place, Plan
from sae_placebo.trial.stages.arm_models import each_place, is_left
from sae_placebo.trial.stages.materials import Materials
from sae_placebo.trial.stages.profile import Profiles
from sae_placebo.trial.tables.audit import write_audited


@dataclass
class Auditing:
    """The stage that audits SAEs of the arms chosen, one job per SAE.

    Args:
        plan: The trial's plan.
        store: Where artefacts are.
        given: Has the readability of labels.
        profiles: Reads the SAEs.
        progress: Where progress is shown.
        faults: Keeps what goes wrong in single jobs.
    """

    plan: Plan
    store: Store
    given: Materials
    profiles: Profiles
    progress: Progress
    faults: Faults

    def run(self) -> None:
        """Audit every SAE of the arms chosen that was not audited."""
        plan = self.plan
        if any(is_left(self.store, step) for step in plan.audit.values()):
            _ = self.given.readability  # read once, before several threads ask for it
        each_place(plan.audit, plan, self.store, self.given, self.progress, self._audit)

    def _audit(self, place: Place, model: Any) -> None:
        one, hookpoint, sae, _ = place
        reading = self.profiles.reading(*place)
        where = f"{one.label}, {hookpoint}, {sae}"
        failures, behind = list[Failure](), list[Downstream]()
        why = self.faults.attempt(
            f"audit: {where}", lambda: behind.append(Downstream(model, hookpoint))
        )
        case = Case(
            reading=reading,
            subject=Subject(behind[0], reading.tokens, reading.activations) if behind else None,
            no_subject=why.reason if why else "",
            labels=self._labels(reading.tokens),
            others=self._others(place),
            spec=self.plan.spec.audit,
            seed=self.plan.spec.seed,
            letters=self.given.readability is None,
            track=self.progress.track,
        )
        with self.store.write(self.plan.audit[place]) as draft:
            found: dict[str, Audited] = {}
            for name in AUDITS:
                with self.progress.track(f"audit {name}: {where}", 1, "audit") as advance:
                    work = functools.partial(self._one, case, name, found)
                    failure = self.faults.attempt(f"audit {name}: {where}", work)
                    if failure is not None:
                        found[name] = refused(name, failure.reason)
                        failures.append(failure)
                    advance(1)
            write_audited(draft, found)
            if why is not None and why.is_fault:
                failures.append(why)
            if any(failure.is_fault for failure in failures):
                reasons = [failure.reason for failure in failures]
                write_refusal(draft, "; ".join(reasons), is_fault=True)

    def _one(self, case: Case, name: str, found: dict[str, Audited]) -> None:
        found |= audit(case, (name,))

    def _others(self, place: Place) -> dict[str, Encoded]:
        """Return SAEs of the same activations, by architecture and seed."""
        one, hookpoint, *_ = place
        others = [p for p in self.plan.measure if p[:2] == (one, hookpoint) and p != place]
        return {
            f"{sae}, seed {seed}": self._read(one, hookpoint, sae, seed) for *_, sae, seed in others
        }

    def _read(self, one: ArmModel, hookpoint: str, sae: str, seed: int) -> Encoded:
        return self.profiles.reading(one, hookpoint, sae, seed)

    def _labels(self, tokens: TokenTable) -> TokenLabels | None:
        readability = self.given.readability
        if readability is None or tokens.labels is None:
            return None
        return readability.truth(tokens.labels, tokens.places)
