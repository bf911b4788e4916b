"""The section on where an SAE misleads: audits of the trained arm's SAE and a placebo's, with nulls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_placebo.core.lazy import pandas
from sae_placebo.report.plots import Figure, folded, label, layout_of
from sae_placebo.report.sections.base import (
    SECTIONS,
    Content,
    Section,
    View,
    add_figure,
    arm_of,
    by_arm,
)
from sae_placebo.report.tables import at, mapping, places, records
from sae_placebo.report.wording import (
    Estimate,
    bounded,
    counted,
    estimated,
    finite,
    fitting,
    title,
)

_ACTED_ON, _PER_AUDIT = 8, 2
"""Most numbers that the list of what to act on names, in all and of one audit."""
_OPEN = 5
"""Numbers of an audit that are shown at once; the rest is folded."""
WORSE, LEVEL, BETTER = "worse than its null", "level with its null", "better than its null"


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, what to act on and then every audit."""
    table = view.tables.audits
    described = mapping(view.tables.trial.get("audits"))
    figures: dict[str, Figure] = {}
    blocks = []
    for position, place in enumerate(places(table)):
        rows = by_arm(view, at(table, place))
        audits = []
        for name in dict.fromkeys(str(name) for part in rows.values() for name in part["audit"]):
            description = mapping(described.get(name))
            curves = [
                add_figure(figures, f"misleading-{position}-{name}-{of}", figure)
                | {"name": title(of)}
                for of, figure in _curves(view, name, description, rows).items()
            ]
            audits.append(_audit(name, description, rows) | {"figures": curves})
        blocks.append(
            {
                "name": ", ".join(place),
                "arms": [arm_of(view, arm) for arm in rows],
                "others": [arm_of(view, arm) for arm in rows if arm != view.trained],
                "audits": audits,
                "actions": _actions(view, audits, list(rows)),
            }
        )
    return Content({"blocks": blocks, "n_places": len(blocks)}, figures)


# --- one audit --------------------------------------------------------------------------------


def _audit(name: str, description: Mapping[str, Any], arms: Mapping[str, Any]) -> dict[str, Any]:
    """Return one audit: a row per number, a cell per arm.

    Args:
        name: Of the audit.
        description: What the trial recorded of the audit.
        arms: The rows of all audits at one place, by arm.
    """
    quantities = {str(q["name"]): q for q in description.get("quantities", ())}
    points = {arm: _points(of_arm, name) for arm, of_arm in arms.items()}
    named = dict.fromkeys([*quantities, *(key for of_arm in points.values() for key in of_arm)])
    rows = []
    for key in named:
        # a finding about one label is called quantity/label
        stem, _, of_label = key.partition("/")
        quantity = quantities.get(stem, {})
        cells = [_cell(points[arm].get(key), quantity) for arm in arms]
        if all(cell["row"] is None for cell in cells):
            continue
        words = {k: str(quantity.get(k, "")) for k in ("unit", "definition", "null", "advice")}
        rows.append({"name": key, **words, "is_main": not of_label, "cells": cells})
    main = [row for row in rows if row["is_main"]]
    return {
        "name": name,
        "open": main[:_OPEN],
        "folded": [*main[_OPEN:], *(row for row in rows if not row["is_main"])],
        "title": str(description.get("title", title(name))),
        "question": str(description.get("question", "")),
        "source": str(description.get("source", "")),
        "rows": rows,
    }


def _points(rows: Any, audit: str) -> dict[str, dict[str, Any]]:
    """Return the findings of one audit that are no point of a curve, by name."""
    findings = rows[(rows["audit"] == audit) & ~np.isfinite(rows["at"].astype(float))]
    return {str(row["name"]): row for row in records(findings)}


def _cell(row: dict[str, Any] | None, quantity: Mapping[str, Any]) -> dict[str, Any]:
    """Return one number as it is shown, its null, and whether it is worse than that."""
    if row is None:
        nothing = Estimate("–", None, "not asked of this arm", "0")
        return {"row": None, "value": nothing, "null": "", "state": "", "gap": 0.0}
    value, low, high = (finite(row.get(key)) for key in ("value", "low", "high"))
    n = counted(row.get("n") or 0, str(row.get("of") or "tokens").removesuffix("s"))
    missing = "no interval" if value is not None else str(row.get("reason") or "not estimable")
    state, gap = _state(row, str(quantity.get("better", "neither")))
    return {
        "row": row,
        "value": estimated(value, low, high, n, missing),
        "null": _null(row),
        "state": state,
        "gap": gap,
    }


def _null(row: Mapping[str, Any]) -> str:
    null, low, high = (finite(row.get(key)) for key in ("null", "null_low", "null_high"))
    return "" if null is None else bounded(null, low, high, fitting(null, low, high))


def _state(row: Mapping[str, Any], better: str) -> tuple[str, float]:
    """Return whether a number is surely worse or better than its null, and how far apart they are.

    Args:
        row: The finding.
        better: Which direction is better: `higher`, `lower` or `neither`.

    Returns:
        `WORSE`, `LEVEL` or `BETTER`, or nothing where it cannot be said; and the distance of the two
        in half-widths of the number's interval.
    """
    keys = ("value", "low", "high", "null")
    value, low, high, null = (finite(row.get(key)) for key in keys)
    if value is None or low is None or high is None or null is None or better == "neither":
        return "", 0.0
    bounds = (finite(row.get("null_low")), finite(row.get("null_high")))
    under, over = (null if x is None else x for x in bounds)
    gap = abs(value - null) / max((high - low) / 2, 1e-12)
    if low > over:
        return (WORSE if better == "lower" else BETTER), gap
    if high < under:
        return (WORSE if better == "higher" else BETTER), gap
    return LEVEL, gap


def _actions(view: View, audits: list[dict[str, Any]], arms: list[str]) -> list[dict[str, Any]]:
    """Return the trained arm's numbers that are surely worse than their null, with advice, worst first."""
    if view.trained not in arms:
        return []
    trained = arms.index(view.trained)
    worse = [
        {
            "audit": audit["title"],
            "name": row["name"],
            "value": row["cells"][trained]["value"],
            "null": row["cells"][trained]["null"],
            "advice": row["advice"],
            "gap": row["cells"][trained]["gap"],
            "others": [cell["value"] for i, cell in enumerate(row["cells"]) if i != trained],
        }
        for audit in audits
        for row in audit["rows"]
        if row["cells"][trained]["state"] == WORSE and row["advice"] and row["is_main"]
    ]
    kept: list[dict[str, Any]] = []
    for row in sorted(worse, key=lambda row: -float(row["gap"])):
        if sum(other["audit"] == row["audit"] for other in kept) < _PER_AUDIT:
            kept.append(row)
    return kept[:_ACTED_ON]


# --- curves -----------------------------------------------------------------------------------


def _curves(
    view: View, audit: str, description: Mapping[str, Any], arms: Mapping[str, Any]
) -> dict[str, Figure]:
    """Return a figure per number of an audit that is measured along something, with a line per arm."""
    along = {str(q["name"]): str(q.get("along", "")) for q in description.get("quantities", ())}
    lines: dict[str, list[dict[str, Any]]] = {}
    for arm, rows in arms.items():
        points = rows[(rows["audit"] == audit) & np.isfinite(rows["at"].astype(float))]
        for name, part in points.groupby("name", sort=False):
            part = part.sort_values("at", kind="stable")
            lines.setdefault(str(name), []).extend(_traces(view, arm, part))
    return {name: _figure(name, along.get(name, ""), traces) for name, traces in lines.items()}


def _traces(view: View, arm: str, part: pandas.DataFrame) -> list[dict[str, Any]]:
    """Return one arm's curve with its intervals, and its null's as a dotted line where it has one."""
    style = view.styles[arm]
    x, y = (part[key].astype(float).tolist() for key in ("at", "value"))
    up, down = (part[key].astype(float).to_numpy() for key in ("high", "low"))
    values = np.array(y)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": folded(arm, 34),
        "x": x,
        "y": y,
        "line": {"color": style.color, "width": 2},
        "marker": {"color": style.color, "size": 6},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": (up - values).tolist(),
            "arrayminus": (values - down).tolist(),
            "color": style.color,
            "thickness": 1,
            "width": 2,
        },
        "hovertemplate": f"%{{x:.3g}}: %{{y:.4g}}<extra>{label(arm)}</extra>",
    }
    nulls = part["null"].astype(float).to_numpy()
    if not np.isfinite(nulls).any():
        return [trace]
    null = {
        "type": "scatter",
        "mode": "lines",
        "name": folded(f"{arm}, null", 34),
        "x": x,
        "y": [None if not np.isfinite(v) else float(v) for v in nulls],
        "line": {"color": style.color, "width": 1.5, "dash": "dot"},
        "hovertemplate": f"%{{x:.3g}}: %{{y:.4g}}<extra>{label(arm)}, null</extra>",
    }
    return [trace, null]


def _figure(name: str, along: str, traces: list[dict[str, Any]]) -> Figure:
    legend = 18 * len(traces)
    layout = layout_of(
        240 + legend,
        {"l": 60, "r": 12, "t": 14 + legend, "b": 46},
        xaxis={"title": {"text": label(along or "at")}, "fixedrange": True},
        yaxis={"title": {"text": title(name)}, "fixedrange": True, "rangemode": "tozero"},
    )
    layout["legend"] |= {"orientation": "v", "traceorder": "normal"}
    return {"data": traces, "layout": layout}


SECTIONS.add(Section("misleading", "Where this SAE misleads", (), build))
