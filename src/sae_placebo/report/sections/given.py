"""The section on SAEs that were read instead of trained: what their files say, and what was found of them."""

from __future__ import annotations

from typing import Any

from sae_placebo.report.sections.base import SECTIONS, Content, Section, View, arm_of
from sae_placebo.report.wording import finite, number

_ASKED = (
    ("hook", "read at"),
    ("model", "of the model"),
    ("prepend_bos", "BOS in front"),
    ("context_tokens", "tokens in a context"),
    ("positions", "positions used"),
    ("excluded_tokens", "tokens left out"),
    ("model_arguments", "model loaded with"),
)


def _row(view: View, arm: str, one: dict[str, Any]) -> dict[str, Any]:
    stated = finite(one["l0_stated"])
    said = [f"{words}: {one[name]}" for name, words in _ASKED if one[name] not in (None, {}, [])]
    return {
        "arm": arm_of(view, arm),
        "sae": f"{one['sae']}, seed {one['sae_seed']}",
        "path": one["path"],
        "format": f"{one['format']}, {one['kind']}",
        "d_sae": f"{one['d_sae']:,}",
        "l0": number(finite(one["l0"]), 1),
        "stated": "not stated" if stated is None else f"{stated:g}",
        "explained": number(100 * (finite(one["explained_variance"]) or 0.0), 1) + "%",
        "said": said,
        "notes": one["notes"],
    }


def build(view: View) -> Content:
    """Return a row per given SAE, and the arm that trains its recipe on the trained model."""
    arms = view.tables.trial.get("arms", {})
    rows = [
        _row(view, arm, one)
        for arm, about in arms.items()
        for record in about.get("records", [])
        for one in record.get("given", [])
    ]
    retrained = [
        arm_of(view, arm)
        for arm, about in arms.items()
        if (about.get("dictionary") or {}).get("kind") == "retrained"
    ]
    return Content({"rows": rows, "retrained": retrained}, {})


SECTIONS.add(Section("given", "SAEs that were given", (), build))
