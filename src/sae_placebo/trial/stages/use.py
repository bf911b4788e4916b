"""The stage behind profiles: what a model does with the latents of one of its SAEs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sae_placebo.causal.examination import Examination, confirmed, examine
from sae_placebo.causal.use.base import Subject
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.progress import Track
from sae_placebo.core.spec import numpy_generator
from sae_placebo.latents.base import Encoded
from sae_placebo.latents.passages import passages_of
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.failures import Failures
from sae_placebo.trial.plan import Place
from sae_placebo.trial.stages.answers import answer
from sae_placebo.trial.table_files import write_table
from sae_placebo.trial.tables.use_files import write_use


def ask_use(
    artefacts: Artefacts, place: Place, model: Callable[[], Downstream], failures: Failures
) -> None:
    """Ask what an arm's model uses of one SAE's latents, and write the answer or why there is none.

    Args:
        artefacts: Of the trial.
        place: The SAE.
        model: Returns the model from the SAE's hookpoint on; where it cannot, that is the answer.
        failures: Keeps what goes wrong.
    """

    def work(subject: Subject, encoded: Encoded, draft: Path, track: Track) -> None:
        spec, kinds = artefacts.spec, _kinds(artefacts, place)
        found = examine(subject, encoded, kinds, spec.use, spec.circuits, spec.seed, track)
        shown = _shown(artefacts, found, kinds)
        with track("patch readers", len(shown), "latents") as advance:
            patched = confirmed(subject, encoded, found, shown, spec.circuits, spec.seed, advance)
        write_use(draft, found, spec.use, spec.circuits, spec.seed)
        passages = passages_of(encoded, shown, spec.measurement)
        write_table(draft / "use_passages.parquet", passages)
        write_table(draft / "patched.parquet", patched)

    answer(artefacts, artefacts.plan.use, place, model, failures, work)


def _shown(artefacts: Artefacts, found: Examination, kinds: Any) -> list[int]:
    """Return latents of every pair of origin and use, at random."""
    random = numpy_generator(artefacts.spec.seed, "latents with a card")
    origins = np.array([str(kinds[i]).rpartition(" ")[2] for i in found.latents])
    shown: list[int] = []
    for origin in np.unique(origins):
        for use in np.unique(found.answer.verdicts.verdict):
            cell = found.latents[(origins == origin) & (found.answer.verdicts.verdict == use)]
            n = min(len(cell), artefacts.spec.use.shown_per_cell)
            shown += random.choice(cell, n, replace=False).tolist()
    return sorted(shown)


def _kinds(artefacts: Artefacts, place: Place) -> Any:
    """Return the kind of each latent, its class and origin; empty where it fires too rarely."""
    table = artefacts.latents(place)
    least = artefacts.spec.measurement.thresholds.min_firings
    kinds = (table["class"].astype(str) + " " + table["origin"].astype(str)).to_numpy(object)
    kinds[~(table["n_active"].to_numpy(np.float64) >= least)] = ""
    return kinds
