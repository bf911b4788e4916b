"""The section on how the trial was done: the diagnostics card of each arm, and every setting as run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sae_placebo.core.escaping import visible
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.diagnostics import cards
from sae_placebo.report.sections.recorded import (
    environments_of,
    saes_of,
    shared_of,
    splits_of,
    text_of,
)
from sae_placebo.report.tables import mapping
from sae_placebo.report.wording import finite, title


def _facts(view: View) -> list[dict[str, str]]:
    """Return the name and text of every setting and fact that the trial recorded."""
    trial = view.tables.trial
    spec = mapping(trial.get("spec"))
    text = {**mapping(spec.get("text")), **mapping(trial.get("text"))}
    facts: list[tuple[str, Any]] = [
        ("Model", spec.get("model")),
        ("Model, note", trial.get("model_note")),
        ("Hookpoints", spec.get("hookpoints") or [place[0] for place in view.tables.places]),
        ("Text", {k: v for k, v in text.items() if not isinstance(v, Mapping) and v is not None}),
        *((f"Text, {title(name).lower()} split", v) for name, v in splits_of(trial).items()),
        ("Text, documents left out", mapping(trial.get("text")).get("skipped")),
        ("Text, held out and trained on", mapping(trial.get("text")).get("shared")),
        *((f"SAE {name}".strip(), settings) for name, settings in saes_of(spec).items()),
        ("Training", spec.get("training")),
        ("Masked positions", None if _by_split(trial.get("masks")) else trial.get("masks")),
        ("Harvest", spec.get("harvest")),
        ("Measurement", spec.get("measurement")),
        ("Precision", _precision(trial.get("precision")) or spec.get("dtype")),
        ("SAE seeds", spec.get("sae_seeds")),
        ("Model seeds", spec.get("model_seeds")),
        ("Seed of the trial", spec.get("seed")),
        ("Statistics", spec.get("statistics")),
        ("Confidence of intervals", trial.get("confidence")),
        ("Versions", trial.get("versions")),
        *_environments(view),
        ("Seconds per stage", _rounded(trial.get("seconds"))),
    ]
    return [
        {"name": name, "text": text_of(value)}
        for name, value in facts
        if value not in (None, "", {}, [], ())
    ]


def _by_split(value: Any) -> dict[str, Mapping[str, Any]]:
    """Return the recorded masks by split, training text first; nothing where they are not by split."""
    splits = {str(k): v for k, v in mapping(value).items() if isinstance(v, Mapping)}
    return dict(sorted(splits.items(), key=lambda split: split[0] != "train"))


def _masks(value: Any) -> dict[str, Any] | None:
    """Return the masked tokens as rows with a column per split, and the rules in words."""
    splits = _by_split(value)
    if not splits:
        return None
    every = [*splits.values(), {k: v for k, v in mapping(value).items() if k not in splits}]
    rules = dict.fromkeys(text_of(m["rule"]) for m in every if m.get("rule"))
    keys = dict.fromkeys(str(k) for m in splits.values() for k in m if k != "rule")
    return {
        "rules": list(rules),
        "splits": list(splits),
        "rows": [
            {"name": _mask_name(key), "cells": [text_of(m.get(key)) for m in splits.values()]}
            for key in sorted(keys, key=_mask_rank)
        ],
    }


def _mask_rank(key: str) -> int:
    """Return the rank of a mask in the table: what every model leaves out first, norm outliers last."""
    if key.startswith("outlier_norm"):
        return 3
    return {"position_0": 0, "padding": 1}.get(key, 2)


def _mask_name(key: str) -> str:
    """Return a mask in words; hookpoints and models keep their names."""
    if key == "position_0":
        return "position 0"
    name, _, where = key.partition(" ")
    if name != "outlier_norm" or not where:
        return visible(key)
    return f"norm outliers, {visible(where.replace(' ', ', ', 1))}"


def _precision(value: Any) -> Any:
    """Return how exact float32 products were, as a sentence; as recorded where a part of it is missing."""
    facts = mapping(value)
    fast, default, bound = (finite(facts.get(k)) for k in ("fast_error", "default_error", "bound"))
    if fast is None or default is None or bound is None or "fast" not in facts:
        return value
    used = "was used" if facts["fast"] else "was not used"
    unit = f" ({text_of(facts['unit'])})" if facts.get("unit") else ""
    return (
        f"float32; the fast product {used}: its error is {_power(fast)} against {_power(default)} "
        f"of the default, limit {_power(bound).replace('.0e', 'e')}{unit}"
    )


def _power(value: float) -> str:
    """Return a small number as text, such as 4.0e-7."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _environments(view: View) -> list[tuple[str, Any]]:
    every = environments_of(view.tables.trial)
    if len(every) == 1:
        return [("Environment of the artefacts", every[0])]
    return [(f"Environment {i} of {len(every)}", each) for i, each in enumerate(every, 1)]


def _mixed_environments(view: View) -> dict[str, Any] | None:
    """Return in how many environments artefacts were made and where they differ; None if in one."""
    every = environments_of(view.tables.trial)
    if len(every) < 2:
        return None
    keys = dict.fromkeys(key for each in every for key in each)
    differ = {k: dict.fromkeys(text_of(each.get(k)) for each in every) for k in keys}
    parts = [f"{visible(k)} ({' or '.join(v)})" for k, v in differ.items() if len(v) > 1]
    return {"n": len(every), "differ": ", ".join(parts)}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    known = finite(value)
    return round(known, 1) if known is not None else value


def build(view: View) -> Content:
    """Return the diagnostics of every arm, what was masked, and the settings."""
    spec = view.tables.trial.get("spec")
    values = {
        "facts": _facts(view),
        "masks": _masks(view.tables.trial.get("masks")),
        "mixed": _mixed_environments(view),
        "cards": cards(view),
        "shared": shared_of(view.tables.trial),
        "spec": json.dumps(spec, indent=2, sort_keys=True, ensure_ascii=False) if spec else "",
    }
    return Content(values, {})


SECTIONS.add(Section("settings", "How it was done", ("trial",), build))
