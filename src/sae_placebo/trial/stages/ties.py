"""The stage that asks which latents of one SAE are tied to circuitry, where use is not asked as well."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sae_placebo.causal.circuits.ties import ties
from sae_placebo.causal.use.base import Subject, latent_directions
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.lazy import pandas
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.failures import Failures, write_refusal
from sae_placebo.trial.plan import Place
from sae_placebo.trial.table_files import write_table


def ask_ties(
    artefacts: Artefacts, place: Place, model: Callable[[], Downstream], failures: Failures
) -> None:
    """Ask which latents of one SAE are tied to circuitry, and write the answer or why there is none.

    Args:
        artefacts: Of the trial.
        place: The SAE.
        model: Returns the model from the SAE's hookpoint on; where it cannot, that is the answer.
        failures: Keeps what goes wrong.
    """
    label = f"{place[0].label}, {', '.join(place[1:3])}"
    with artefacts.store.write(artefacts.plan.ties[place]) as draft:
        work = functools.partial(_asked, artefacts, place, model, draft, label)
        failure = failures.attempt(f"ties: {label}", work)
        if failure is not None:
            write_refusal(draft, *failure)


def _asked(
    artefacts: Artefacts, place: Place, model: Callable[[], Downstream], draft: Path, label: str
) -> None:
    spec, encoded = artefacts.spec, artefacts.encoded(place)
    subject = Subject(model(), encoded.tokens, encoded.activations)

    def track(what: str, total: int, unit: str) -> Any:
        return artefacts.progress.track(f"{what}: {label}", total, unit)

    encoder = encoded.sae.params["W_enc"].detach().float()
    found = ties(subject, encoder, latent_directions(encoded), spec.circuits, spec.seed, track)
    table = pandas.DataFrame({"latent": np.arange(len(found.tied))} | asdict(found))
    write_table(draft / "ties.parquet", table)
