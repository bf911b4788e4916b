"""Placebo-controlled trials for sparse autoencoders on language models.

`run` is the whole experiment; `sae_placebo.trial.run` is the file to read first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sae_placebo.core.threads import sleep_soon

if TYPE_CHECKING:
    from sae_placebo.controls import CONTROLS, Control
    from sae_placebo.core.errors import PlaceboError
    from sae_placebo.latents.metrics import METRICS, Metric
    from sae_placebo.models.loading import Reader, load_model, load_tokenizer
    from sae_placebo.report import build_report
    from sae_placebo.saes import SAE, SAES
    from sae_placebo.saes.formats import Given, read_sae
    from sae_placebo.trial.examine import Examined, ExamineSpec, examine
    from sae_placebo.trial.results import Trial
    from sae_placebo.trial.run import run
    from sae_placebo.trial.spec import TrialSpec, load_trial
    from sae_placebo.trial.spikes.run import spikes

__version__ = "0.1.0"

sleep_soon()  # libraries read it when they are loaded, so it comes before all of them

# each name loads its module when it is first asked for, so that the import itself is instant
_HOMES = {
    "CONTROLS": "controls",
    "METRICS": "latents.metrics",
    "SAE": "saes",
    "SAES": "saes",
    "Control": "controls",
    "ExamineSpec": "trial.examine",
    "Examined": "trial.examine",
    "Given": "saes.formats",
    "Metric": "latents.metrics",
    "PlaceboError": "core.errors",
    "Reader": "models.loading",
    "Trial": "trial.results",
    "TrialSpec": "trial.spec",
    "build_report": "report",
    "examine": "trial.examine",
    "load_model": "models.loading",
    "load_tokenizer": "models.loading",
    "load_trial": "trial.spec",
    "read_sae": "saes.formats",
    "run": "trial.run",
    "spikes": "trial.spikes.run",
}

__all__ = [
    "CONTROLS",
    "METRICS",
    "SAE",
    "SAES",
    "Control",
    "ExamineSpec",
    "Examined",
    "Given",
    "Metric",
    "PlaceboError",
    "Reader",
    "Trial",
    "TrialSpec",
    "build_report",
    "examine",
    "load_model",
    "load_tokenizer",
    "load_trial",
    "read_sae",
    "run",
    "spikes",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sae_placebo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sae_placebo.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
