"""Baselines are fitted beside the SAEs of every arm, and bits are counted for all of them.

The trained arm comes first: the method that is best there is the one that all arms are compared beyond.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sae_placebo.baselines.base import BASELINES, BaselinesSpec
from sae_placebo.baselines.compare import BaselinesResult, compare_baselines
from sae_placebo.baselines.given import Given
from sae_placebo.baselines.savings import ABOUT_ONE, beyond_methods, refused, saved
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.progress import Advance
from sae_placebo.core.sealing import write_json
from sae_placebo.stats.effects import document_weights
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import ArmModel
from sae_placebo.trial.stages.jobs import each_job
from sae_placebo.trial.table_files import write_replicates, write_table


def fit_baselines(artefacts: Artefacts) -> None:
    """Fit baselines on every arm's activations that has none, and count bits beside its SAEs."""
    spec = artefacts.spec
    # each is fitted and coded, and most are then coded with latents; those without atoms are not
    n = 2 * len(BASELINES) - 2 + len(spec.saes) * len(spec.sae_seeds)
    left = {
        s.key: at for at, s in artefacts.plan.baselines.items() if artefacts.store.find(s) is None
    }
    trained = ArmModel(spec.trained_arm, None)
    batches = [
        [at for at in left.values() if (at[0] == trained) == first] for first in (True, False)
    ]
    for at in left.values():
        artefacts.shelf.announce([artefacts.activations_key(*at)])
    label = f"compare baselines on {len(left)} models"

    def work(at: tuple[ArmModel, str], advance: Advance) -> None:
        with artefacts.shelf.serving([artefacts.activations_key(*at)]):
            _compare(artefacts, *at, advance)

    each_job(artefacts.progress, label, batches, n, work)


def _compare(artefacts: Artefacts, one: ArmModel, hookpoint: str, advance: Advance) -> None:
    spec, shared = artefacts.spec, artefacts.shared(one, hookpoint)
    saes = {
        (label, seed): artefacts.encoded((one, hookpoint, label, seed))
        for label in spec.saes
        for seed in spec.sae_seeds_of(one.arm, label)
    }
    is_trained = one == ArmModel(spec.trained_arm, None)
    given = Given(
        artefacts.directions(one, "embedding", hookpoint),
        artefacts.text_to_fit_on(one, hookpoint),
        None if is_trained else artefacts.chosen_method(hookpoint),
    )
    with artefacts.store.write(artefacts.plan.baselines[one, hookpoint]) as draft:
        try:
            found = compare_baselines(
                artefacts.activations(one, hookpoint),
                shared.tokens,
                shared.folds,
                {f"{label}/{seed}": encoded for (label, seed), encoded in saes.items()},
                given,
                spec.seed,
                _settings(artefacts),
                advance,
            )
        except NotEstimable as refusal:
            found = refused(str(refusal))
        write_json(draft / "choice.json", dataclasses.asdict(found.marginal.best))
        write_table(draft / "baselines.parquet", found.table)
        tables, replicates = _measured(artefacts, found, list(saes), shared.tokens.n_documents)
        for name, table in tables.items():
            write_table(draft / f"{name}.parquet", table)
        write_replicates(draft, replicates)


def _measured(
    artefacts: Artefacts, found: BaselinesResult, saes: list[tuple[str, int]], n_documents: int
) -> tuple[dict[str, pandas.DataFrame], dict[str, np.ndarray]]:
    """Return the two tables about single SAEs, and their values under weights by `label/seed/name`."""
    spec, measurements = artefacts.spec, []
    replicates: dict[str, np.ndarray] = {}
    beyond: list[dict[str, Any]] = []
    weights = document_weights(n_documents, spec.measurement.replicates, spec.seed)
    for label, seed in saes:
        name = f"{label}/{seed}"
        table, drawn = saved(found, name, weights, spec.baselines)
        measurements.append(table.assign(sae=label, sae_seed=seed))
        rows, more = beyond_methods(found, name, weights)
        beyond += [
            {"sae": label, "sae_seed": seed, **dict.fromkeys(ABOUT_ONE), **row} for row in rows
        ]
        replicates |= {f"{name}/{key}": values for key, values in (drawn | more).items()}
    tables = {"measurements": pandas.concat(measurements, ignore_index=True)}
    return tables | {"marginal": pandas.DataFrame(beyond)}, replicates


def _settings(artefacts: Artefacts) -> BaselinesSpec:
    """Return the settings; a dictionary's own bits are spread over the training tokens."""
    given, tokens = artefacts.spec.baselines, artefacts.spec.text.train_tokens
    if given.stream_tokens is not None:
        return given
    return given.model_copy(update={"stream_tokens": tokens})
