"""The stage that asks which latents of one SAE are tied to circuitry, where use is not asked as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sae_placebo.causal.circuits.ties import ties
from sae_placebo.causal.use.base import Subject, latent_directions
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.lazy import pandas
from sae_placebo.core.progress import Track
from sae_placebo.latents.base import Encoded
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.failures import Failures
from sae_placebo.trial.plan import Place
from sae_placebo.trial.stages.answers import answer
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

    def work(subject: Subject, encoded: Encoded, draft: Path, track: Track) -> None:
        spec, encoder = artefacts.spec, encoded.sae.params["W_enc"].detach().float()
        found = ties(subject, encoder, latent_directions(encoded), spec.circuits, spec.seed, track)
        table = pandas.DataFrame({"latent": np.arange(len(found.tied))} | asdict(found))
        write_table(draft / "ties.parquet", table)

    answer(artefacts, artefacts.plan.ties, place, model, failures, work)
