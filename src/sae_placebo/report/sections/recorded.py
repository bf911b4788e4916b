"""Parts of `trial.json`, read so that any of them may be missing or of another shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_placebo.core.escaping import visible
from sae_placebo.data.copies import COUNTED, warning
from sae_placebo.report.tables import mapping
from sae_placebo.report.wording import count, finite, title


def arm_facts(trial: Mapping[str, Any], arm: str) -> Mapping[str, Any]:
    """Return what the trial recorded about an arm; empty where it recorded nothing."""
    return mapping(mapping(trial.get("arms")).get(arm))


def arm_records(trial: Mapping[str, Any], arm: str) -> list[dict[str, Any]]:
    """Return one record per model of an arm, with the keys of its recipe among its own."""
    records = map(mapping, arm_facts(trial, arm).get("records") or [])
    return [{**mapping(record.get("recipe")), **record} for record in records]


def shared_of(trial: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the arms that were not trained anew: which arm each is the same as, and why."""
    recorded = trial.get("shared")
    entries = [mapping(e) for e in recorded] if isinstance(recorded, list) else []
    return [
        {
            "arm": visible(entry["arm"]),
            "same_as": visible(entry["same_as"]),
            "why": visible(entry.get("why") or "no reason was recorded").rstrip("."),
        }
        for entry in entries
        if entry.get("arm") and entry.get("same_as")
    ]


def picked(records: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Any:
    """Return the first value that a record has under one of `keys`; None where none has any."""
    for record in records:
        for key in keys:
            if record.get(key) not in (None, ""):
                return record[key]
    return None


def names_of(value: Any) -> list[str]:
    """Return a recorded list as texts; a mapping of names to reasons is listed with its reasons."""
    if value is None or value == "":
        return []
    if isinstance(value, Mapping):
        return [f"{name} ({text_of(why)})" for name, why in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [text_of(v) for v in value]
    return [text_of(value)]


def text_of(value: Any) -> str:
    """Return a setting as short text: entries separated by commas, each key followed by its value."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(
            f"{title(k).lower()} {text_of(v)}" for k, v in value.items() if v is not None
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(text_of(v) for v in value) or "none"
    return visible(value)


def splits_of(trial: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the counts of each split of the text, such as `train`, by its name."""
    text = mapping(trial.get("text"))
    others = ("splits", "skipped", "shared")
    splits = {k: v for k, v in text.items() if isinstance(v, Mapping) and k not in others}
    return splits | {k: mapping(v) for k, v in mapping(text.get("splits")).items()}


def repeated_of(trial: Mapping[str, Any]) -> str | None:
    """Return a sentence on held-out text that is in the training text too; None where there is little."""
    counts = {k: finite(v) for k, v in mapping(mapping(trial.get("text")).get("shared")).items()}
    known = {k: v for k, v in counts.items() if v is not None}
    return warning(known) if known.keys() >= COUNTED else None


def outliers_of(masks: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Return the hookpoint, the model's label and the tokens left out for their norm, of one split."""
    outliers = []
    for key, value in masks.items():
        parts, n = str(key).split(" ", 2), finite(value)
        if len(parts) == 3 and parts[0] == "outlier_norm" and n is not None:
            outliers.append((parts[1], parts[2], n))
    return [entry for entry in outliers if not entry[1].startswith("any arm")]


def environments_of(trial: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the distinct environments in which artefacts were made, each as one flat mapping."""
    recorded = trial.get("environments")
    environments: list[dict[str, Any]] = []
    for entry in recorded if isinstance(recorded, list) else []:
        flat: dict[str, Any] = {}
        for key, value in mapping(entry).items():
            flat.update(value if isinstance(value, Mapping) else {key: value})
        if flat and flat not in environments:
            environments.append(flat)
    return environments


def saes_of(spec: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return each SAE's settings by its name; the name of a trial's only SAE may be empty."""
    saes = spec.get("saes") or spec.get("sae")
    if not isinstance(saes, Mapping) or not saes:
        return {}
    if all(isinstance(v, Mapping) for v in saes.values()):
        return dict(saes)
    return {"": saes}
