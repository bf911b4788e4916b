"""Descriptions of metrics, as a trial recorded them beside its numbers."""

from __future__ import annotations

from typing import Any

_METRIC_KEYS = ("unit", "better", "null", "definition", "source")


def metric_terms(recorded: Any) -> list[dict[str, Any]]:
    """Return the metrics' descriptions; what one lacks is "not recorded".

    Args:
        recorded: `metrics` of trial.json: by name, the unit, better, null, definition, source and reads.
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
