"""Every SAE encodes the held-out activations once, and every metric is measured on its codes."""

from __future__ import annotations

import dataclasses
import functools

from sae_placebo.core.lazy import torch
from sae_placebo.core.workers import Workers
from sae_placebo.latents.code_files import write_codes
from sae_placebo.latents.measurement import measure
from sae_placebo.models.activation_files import read_activations, read_gaussian, read_lookup
from sae_placebo.stats.effects import document_weights
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import Place
from sae_placebo.trial.table_files import write_replicates, write_table


def measure_saes(artefacts: Artefacts) -> None:
    """Measure every SAE that was not, as many at a time as there are threads."""
    store, plan = artefacts.store, artefacts.plan
    left = {step.key: place for place, step in plan.measure.items() if not store.find(step)}
    if not left:
        return
    jobs = [functools.partial(_measure, artefacts, place) for place in left.values()]
    n = len(artefacts.heldout[artefacts.spec.hookpoints[0]].usable)
    _ = artefacts.materials.readability  # read once, before the threads ask for it
    label = f"measure {len(jobs)} SAEs"
    with artefacts.progress.track(label, n * len(jobs)) as advance, Workers() as workers:
        for _ in workers.each(jobs):
            advance(n)


def _measure(artefacts: Artefacts, place: Place) -> None:
    """Encode the held-out activations with one SAE and write its tables."""
    one, hookpoint, label, _ = place
    plan, store, spec = artefacts.plan, artefacts.store, artefacts.spec
    tokens = dataclasses.replace(
        artefacts.heldout[hookpoint],
        rows=artefacts.materials.rows_of(one)["heldout"],
        readability=artefacts.materials.readability,
    )
    trained = store.path(plan.train[one])
    # read anew and not shared: as many copies as there are threads, and none that stays
    activations = read_activations(store.path(plan.harvest[one]), hookpoint)
    with store.write(plan.measure[place]) as draft:
        measured = measure(
            artefacts.sae(place),
            activations[torch.from_numpy(tokens.usable)],
            tokens,
            read_lookup(trained, hookpoint),
            read_gaussian(trained, hookpoint, label),
            document_weights(len(tokens.rows.names), spec.measurement.replicates, spec.seed),
            spec.measurement,
        )
        write_table(draft / "measurements.parquet", measured.measurements)
        write_table(draft / "coverage.parquet", measured.coverage)
        write_codes(draft, measured.codes)
        write_replicates(draft, measured.replicates)
