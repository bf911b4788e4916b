"""The state of a trial in a store is told at once, by manifests and file sizes, before anything is loaded."""

from __future__ import annotations

from sae_placebo.core import checkpoints
from sae_placebo.core.manifests import MANIFEST
from sae_placebo.core.store import Store
from sae_placebo.core.time_left import Outlook, clock_text
from sae_placebo.trial.estimates import estimate, rates_key
from sae_placebo.trial.machine import load
from sae_placebo.trial.plan import VERSIONS, Plan


def remaining(plan: Plan, store: Store) -> str:
    """Return how many steps are done and from where a run goes on; hashes no file.

    Artefacts of stages that this version does not have are said to be old, and left where they are.
    """
    strange = sorted(path for path in store.root.glob("*") if path.name not in VERSIONS)
    old = [path for path in strange if any(path.glob(f"*/{MANIFEST}"))]
    said = _remaining(plan, store)
    if old:
        folders = ", ".join(repr(str(path)) for path in old)
        said += f"; {folders}, of an older version of sae-placebo, is not read and can be deleted"
    return said


def _remaining(plan: Plan, store: Store) -> str:
    steps = list(plan.steps())
    left = [step for step in steps if not store.has(step)]
    n = len(steps)
    if not left:
        return f"all {n} steps are done"
    begun = checkpoints.begun(store, {step.key for step in left})
    if len(left) == n and not begun:
        return f"none of {n} steps is done"
    told = f"{n - len(left)} of {n} steps are done; goes on at {left[0].stage} of {left[0].name}"
    whole = plan.spec.text.train_tokens * len(plan.spec.hookpoints)
    phases = {
        "train": ("a training", plan.spec.text.train_tokens),
        "null": ("training on the Gaussian null", whole),
        "moments": ("counting moments", plan.spec.text.train_tokens),
        "source": ("counting moments", plan.spec.text.train_tokens),
    }
    for name, phase, done in begun:
        what, total = phases.get(phase, ("work", whole))
        told += (
            f"; {what} of {name} stopped at {min(done / total, 1):.0%} goes on from its checkpoint"
        )
    return told


def outlook_of(plan: Plan, store: Store) -> Outlook:
    """Return what is left of a trial by its plan, with the rates that `plan` kept in the store, if any."""
    steps = list(plan.steps())
    left = {step.key for step in steps if not store.has(step)}
    machine = load(store.root, rates_key(plan))
    pieces = estimate(plan, lambda step: step.key in left, machine)
    done = (step for step in steps if step.key not in left)
    spent = sum((store.seconds(step) for step in done), 0.0)
    return Outlook(pieces, spent, rough=machine is None)


def expected(outlook: Outlook) -> str:
    """Return how long the rest is expected to take, and what that is of."""
    how = (
        "from counts and a usual machine, so roughly; `sae-placebo plan` times this one"
        if outlook.rough
        else "from the probe of this machine that `plan` kept"
    )
    return f"about {clock_text(outlook.seconds_left)} are left, {how}"
