"""Every term that the report uses: what it is, its unit, its null, where it comes from.

Each has an anchor, `term-<kind>-<name>`, that the tables of the other sections link to; so have names
that a table holds and nothing describes.
"""

from __future__ import annotations

from typing import Any

from sae_placebo.report.glossary import Group, glossary
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.terms import metric_terms
from sae_placebo.report.wording import control_kind

_OF_SAES = "sae"
"""How the table of methods names an SAE, which has a word of its own."""


def build(view: View) -> Content:
    """Return the report's words, the metrics and controls that the trial has, and all other terms."""
    used = set(view.tables.effects["metric"].dropna())
    used |= set(view.tables.measurements["metric"].dropna())
    metrics = metric_terms(view.tables.trial.get("metrics"))
    known = {term["name"] for term in metrics}
    groups = {group.kind: group for group in glossary({})}
    controls = _controls(view)
    groups["control"] = groups["control"]._replace(
        terms=tuple(term for term in groups["control"].terms if term.name in controls)
    )
    values = {
        "words": groups.pop("word"),
        "metrics": [term for term in metrics if term["name"] in used or not used],
        "reads": any(term["reads"] for term in metrics),
        "undefined": sorted(str(m) for m in used - known),
        "groups": [group for group in groups.values() if group.terms],
        "unknown": _unknown(view, groups),
        "thresholds": _thresholds(view),
    }
    return Content(values, {})


def _controls(view: View) -> set[str]:
    """Return the kinds of all controls of the trial."""
    arms = view.tables.trial.get("arms")
    return {
        control_kind(described[slot])
        for described in (arms.values() if isinstance(arms, dict) else ())
        if isinstance(described, dict)
        for slot in ("control", "data", "dictionary")
        if described.get(slot)
    }


def _unknown(view: View, groups: dict[str, Group]) -> list[tuple[str, str]]:
    """Return kind and name of what the tables hold and no group describes."""
    held = {
        "class": {*view.tables.latents["class"], *view.tables.partners["class"]},
        "score": set(view.tables.decoys["score"]),
        "method": set(view.tables.methods["method"]) - {_OF_SAES},
    }
    # classes are also known by the shares that arms are compared by
    held["class"] |= {
        str(name).removeprefix("share_")
        for name in view.tables.effects["metric"].dropna()
        if str(name).startswith("share_")
    }
    return [
        (kind, name)
        for kind, names in held.items()
        for name in sorted(str(one) for one in names if isinstance(one, str))
        if name not in {term.name for term in groups[kind].terms}
    ]


def _thresholds(view: View) -> dict[str, Any]:
    spec = view.tables.trial.get("spec")
    measurement = spec.get("measurement") if isinstance(spec, dict) else None
    found = measurement.get("thresholds") if isinstance(measurement, dict) else None
    return found if isinstance(found, dict) else {}


SECTIONS.add(Section("definitions", "Definitions", ("trial",), build))
