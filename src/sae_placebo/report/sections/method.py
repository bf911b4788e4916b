"""How it was done: the diagnostics card of each arm, and every setting as run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.diagnostics import cards
from sae_placebo.report.sections.recorded import mapping, saes_of, splits_of, text_of
from sae_placebo.report.wording import finite, title


def _facts(view: View) -> list[dict[str, str]]:
    trial = view.tables.trial
    spec = mapping(trial.get("spec"))
    text = {**mapping(spec.get("text")), **mapping(trial.get("text"))}
    facts: list[tuple[str, Any]] = [
        ("Model", spec.get("model")),
        ("Hookpoints", spec.get("hookpoints") or [place[0] for place in view.tables.places]),
        ("Text", {k: v for k, v in text.items() if not isinstance(v, Mapping) and v is not None}),
        *((f"Text, {title(name).lower()} split", v) for name, v in splits_of(trial).items()),
        *((f"SAE {name}".strip(), settings) for name, settings in saes_of(spec).items()),
        ("Training", spec.get("training")),
        *_masks(trial.get("masks")),
        ("Harvest", spec.get("harvest")),
        ("Measurement", spec.get("measurement")),
        ("Precision", trial.get("precision") or spec.get("dtype")),
        ("SAE seeds", spec.get("sae_seeds")),
        ("Model seeds", spec.get("model_seeds")),
        ("Seed of the trial", spec.get("seed")),
        ("Statistics", spec.get("statistics")),
        ("Confidence of intervals", trial.get("confidence")),
        ("Versions", trial.get("versions")),
        ("Seconds per stage", _rounded(trial.get("seconds"))),
    ]
    return [
        {"name": name, "text": text_of(value)}
        for name, value in facts
        if value not in (None, "", {}, [], ())
    ]


def _masks(value: Any) -> list[tuple[str, Any]]:
    masks = mapping(value)
    if masks and all(isinstance(v, Mapping) for v in masks.values()):
        return [(f"Masked positions, {title(split).lower()}", v) for split, v in masks.items()]
    return [("Masked positions", value)]


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    known = finite(value)
    return round(known, 1) if known is not None else value


def build(view: View) -> Content:
    """Return the diagnostics and the settings."""
    spec = view.tables.trial.get("spec")
    values = {
        "facts": _facts(view),
        "cards": cards(view),
        "spec": json.dumps(spec, indent=2, sort_keys=True, ensure_ascii=False) if spec else "",
    }
    return Content(values, {})


SECTIONS.add("method", Section("method", "How it was done", ("trial",), build))
