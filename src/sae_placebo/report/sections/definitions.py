"""The section that defines every term of the report: what it is, its unit, its null and its source.

Each has an anchor, `term-<kind>-<name>`, to which the tables of the other sections link. So has every
name that a table holds and nothing describes.
"""

from __future__ import annotations

from sae_placebo.report.glossary import Group, glossary
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.terms import metric_terms
from sae_placebo.report.tables import mapping
from sae_placebo.report.wording import control_kind

_OF_SAES = "sae"
"""What the table of baselines calls an SAE, which is no baseline but a word of the report."""


def build(view: View) -> Content:
    """Return the report's words, the metrics and controls that the trial has, and all other terms."""
    used = set(view.tables.effects["metric"].dropna())
    used |= set(view.tables.measurements["metric"].dropna())
    metrics = metric_terms(view.tables.trial.get("metrics"))
    known = {term["name"] for term in metrics}
    groups = {group.kind: group for group in glossary({})}
    controls = _controls(view)
    spec = mapping(view.tables.trial.get("spec"))
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
        "thresholds": mapping(mapping(spec.get("measurement")).get("thresholds")),
    }
    return Content(values, {})


def _controls(view: View) -> set[str]:
    """Return the kinds of all controls of the trial."""
    return {
        control_kind(described[slot])
        for described in map(mapping, mapping(view.tables.trial.get("arms")).values())
        for slot in ("control", "data", "dictionary")
        if described.get(slot)
    }


def _unknown(view: View, groups: dict[str, Group]) -> list[tuple[str, str]]:
    """Return the kind and name of every class, score and baseline that is in the tables and undescribed."""
    held = {
        "class": {*view.tables.latents["class"], *view.tables.partners["class"]},
        "score": set(view.tables.decoys["score"]),
        "baseline": set(view.tables.baselines["baseline"]) - {_OF_SAES},
    }
    # the names of effects on shares also name classes
    held["class"] |= {
        str(name).removeprefix("share_")
        for name in view.tables.effects["metric"].dropna()
        if str(name).startswith("share_")
    }
    return [
        (kind, name)
        for kind, names in held.items()
        for name in sorted(name for name in names if isinstance(name, str))
        if name not in {term.name for term in groups[kind].terms}
    ]


SECTIONS.add(Section("definitions", "Definitions", ("trial",), build))
