"""Baselines are fitted beside the SAEs of every arm, and bits are counted for all of them."""

from __future__ import annotations

import numpy as np

from sae_placebo.baselines.base import BASELINES, BaselinesSpec
from sae_placebo.baselines.compare import BaselinesResult, compare_baselines
from sae_placebo.baselines.savings import refused, saved
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.core.progress import Advance
from sae_placebo.stats.effects import document_weights
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import ArmModel
from sae_placebo.trial.stages.jobs import each_job
from sae_placebo.trial.table_files import write_replicates, write_table


def fit_baselines(artefacts: Artefacts) -> None:
    """Fit baselines on every arm's activations that has none, and count bits beside its SAEs."""
    spec = artefacts.spec
    n = len(BASELINES) + len(spec.saes) * len(spec.sae_seeds)
    left = {
        s.key: at for at, s in artefacts.plan.baselines.items() if artefacts.store.find(s) is None
    }
    for at in left.values():
        artefacts.shelf.announce([artefacts.activations_key(*at)])
    label = f"compare baselines on {len(left)} models"

    def work(at: tuple[ArmModel, str], advance: Advance) -> None:
        with artefacts.shelf.serving([artefacts.activations_key(*at)]):
            _compare(artefacts, *at, advance)

    each_job(artefacts.progress, label, [list(left.values())], n, work)


def _compare(artefacts: Artefacts, one: ArmModel, hookpoint: str, advance: Advance) -> None:
    spec, shared = artefacts.spec, artefacts.shared(one, hookpoint)
    saes = {
        (label, seed): artefacts.encoded((one, hookpoint, label, seed))
        for label in spec.saes
        for seed in spec.sae_seeds
    }
    embedding = artefacts.head(one, "embedding")
    with artefacts.store.write(artefacts.plan.baselines[one, hookpoint]) as draft:
        try:
            found = compare_baselines(
                artefacts.activations(one, hookpoint),
                shared.tokens,
                shared.folds,
                {f"{label}/{seed}": encoded for (label, seed), encoded in saes.items()},
                embedding,
                spec.seed,
                _settings(artefacts),
                advance,
            )
        except NotEstimable as refusal:
            found = refused(str(refusal))
        write_table(draft / "baselines.parquet", found.table)
        tables, replicates = _measured(artefacts, found, list(saes), shared.tokens.n_documents)
        write_table(draft / "measurements.parquet", pandas.concat(tables, ignore_index=True))
        write_replicates(draft, replicates)


def _measured(
    artefacts: Artefacts, found: BaselinesResult, saes: list[tuple[str, int]], n_documents: int
) -> tuple[list[pandas.DataFrame], dict[str, np.ndarray]]:
    """Return each SAE's metrics, and their values under document weights by `label/seed/metric`."""
    spec, tables, replicates = artefacts.spec, [], dict[str, np.ndarray]()
    weights = document_weights(n_documents, spec.measurement.replicates, spec.seed)
    for label, seed in saes:
        table, drawn = saved(found, f"{label}/{seed}", weights, spec.baselines)
        tables.append(table.assign(sae=label, sae_seed=seed))
        replicates |= {f"{label}/{seed}/{name}": values for name, values in drawn.items()}
    return tables, replicates


def _settings(artefacts: Artefacts) -> BaselinesSpec:
    """Return the settings; a dictionary's own bits are spread over the training tokens."""
    given, tokens = artefacts.spec.baselines, artefacts.spec.text.train_tokens
    if given.stream_tokens is not None:
        return given
    return given.model_copy(update={"stream_tokens": tokens})
