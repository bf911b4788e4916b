"""Metrics and classes of latents as described: by the trial's record, and by the decision list."""

from __future__ import annotations

from typing import Any

_METRIC_KEYS = ("unit", "better", "null", "definition", "source")


def metric_terms(recorded: Any) -> list[dict[str, Any]]:
    """Return each metric's own description, as the trial recorded it beside its numbers.

    Args:
        recorded: `metrics` of trial.json: name to unit, better, null, definition, source.
    """
    if not isinstance(recorded, dict):
        return []
    return [
        {
            **{key: str(term.get(key) or "not recorded") for key in _METRIC_KEYS},
            "name": str(name),
            "reads": _words(term.get("reads")),
        }
        for name, term in recorded.items()
        if isinstance(term, dict)
    ]


def _words(value: Any) -> str:
    """Return what of the model a metric reads, in words; empty where it is not recorded."""
    if isinstance(value, list | tuple):
        return ", ".join(str(word) for word in value) or "neither"
    return str(value or "")


def class_terms() -> list[dict[str, str]]:
    """Return the classes of latents with their rules, in the order in which they are tried."""
    try:
        from sae_placebo.latents.classes.classification import CLASSES
    except ImportError:
        return []
    return [
        {
            "name": kind.name,
            "definition": kind.definition,
            # what others reported, never an answer about this trial
            "on_random": kind.on_random_models.removeprefix("Yes: "),
        }
        for kind in CLASSES
    ]
