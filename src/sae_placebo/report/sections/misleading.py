"""Where this SAE misleads: audits of the trained model's SAE and the placebo's, beside their nulls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_placebo.core.lazy import pandas
from sae_placebo.report.plots import Figure, folded, label, layout_of
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.use_rows import arm_of, arms_in, here, places
from sae_placebo.report.tables import records
from sae_placebo.report.wording import Estimate, counted, finite, fitting, interval, number, title

_ACTED_ON, _PER_AUDIT = 8, 2
"""Numbers that the list of what to do names, at most: in all, and of one audit."""
_OPEN = 5
"""Numbers of an audit that stand open; the rest is folded."""
WORSE, LEVEL, BETTER = "worse than its null", "level with its null", "better than its null"


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, what to act on and then every audit."""
    table = view.tables.audits
    told = _told(view)
    figures: dict[str, Figure] = {}
    blocks = []
    for number_of, place in enumerate(places(table)):
        arms = [arm for arm in arms_in(view, table) if len(here(table, place, arm))]
        own = {arm: here(table, place, arm) for arm in arms}
        shown = []
        for name in dict.fromkeys(name for rows in own.values() for name in rows["audit"]):
            one = _audit(view, str(name), told.get(str(name), {}), own)
            curves = _curves(view, str(name), told.get(str(name), {}), own)
            one["figures"] = []
            for what, figure in curves.items():
                known = f"misleading-{number_of}-{name}-{what}"
                figures[known] = figure
                one["figures"].append(
                    {"key": known, "height": figure["layout"]["height"], "name": title(what)}
                )
            shown.append(one)
        blocks.append(
            {
                "name": ", ".join(place),
                "arms": [arm_of(view, arm) for arm in arms],
                "others": [arm_of(view, arm) for arm in arms if arm != view.trained],
                "audits": shown,
                "actions": _actions(view, shown, arms),
            }
        )
    return Content({"blocks": blocks, "n_places": len(blocks)}, figures)


def _told(view: View) -> Mapping[str, dict[str, Any]]:
    """Return what the trial's record says of every audit."""
    found = view.tables.trial.get("audits")
    return found if isinstance(found, dict) else {}


# --- one audit --------------------------------------------------------------------------------


def _audit(view: View, name: str, told: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return one audit: a row per number, a cell per arm."""
    quantities = {str(q["name"]): q for q in told.get("quantities", ())}
    points = {arm: _points(rows, name) for arm, rows in own.items()}
    named = list(dict.fromkeys([*quantities, *(key for found in points.values() for key in found)]))
    rows = []
    for key in named:
        # of one label, a finding is called quantity/label
        stem, _, label_of = key.partition("/")
        about = quantities.get(stem, {})
        cells = [_cell(points[arm].get(key), about) for arm in own]
        if all(cell["row"] is None for cell in cells):
            continue
        rows.append(
            {
                "name": key,
                "unit": str(about.get("unit", "")),
                "definition": str(about.get("definition", "")),
                "null": str(about.get("null", "")),
                "advice": str(about.get("advice", "")),
                "is_main": not label_of,
                "cells": cells,
            }
        )
    main = [row for row in rows if row["is_main"]]
    return {
        "name": name,
        "open": main[:_OPEN],
        "folded": [*main[_OPEN:], *(row for row in rows if not row["is_main"])],
        "title": str(told.get("title", title(name))),
        "question": str(told.get("question", "")),
        "source": str(told.get("source", "")),
        "rows": rows,
    }


def _points(rows: Any, audit: str) -> dict[str, dict[str, Any]]:
    """Return the findings of one audit that are no point of a curve, by name."""
    found = rows[(rows["audit"] == audit) & ~np.isfinite(rows["at"].astype(float))]
    return {str(row["name"]): row for row in records(found)}


def _cell(row: dict[str, Any] | None, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return one number as shown, its null, and whether it is worse than that."""
    if row is None:
        nothing = Estimate("–", None, "not asked of this arm", "0")
        return {"row": None, "value": nothing, "null": "", "state": "", "gap": 0.0}
    value, low, high = (finite(row.get(key)) for key in ("value", "low", "high"))
    said = counted(row.get("n") or 0, str(row.get("of") or "tokens").removesuffix("s"))
    if value is None:
        shown = Estimate("–", None, str(row.get("reason") or "not estimable"), said)
    elif low is None or high is None:
        shown = Estimate(number(value, fitting(value, None, None)), None, "no interval", said)
    else:
        decimals = fitting(value, low, high)
        shown = Estimate(number(value, decimals), interval(low, high, decimals), None, said)
    state, gap = _state(row, str(about.get("better", "neither")))
    return {"row": row, "value": shown, "null": _null(row), "state": state, "gap": gap}


def _null(row: Mapping[str, Any]) -> str:
    null, low, high = (finite(row.get(key)) for key in ("null", "null_low", "null_high"))
    if null is None:
        return ""
    if low is None or high is None:
        return number(null, fitting(null, None, None))
    decimals = fitting(null, low, high)
    return f"{number(null, decimals)} {interval(low, high, decimals)}"


def _state(row: Mapping[str, Any], better: str) -> tuple[str, float]:
    """Return on which side of its null a number surely lies, and by how many of its half-widths."""
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


def _actions(view: View, shown: list[dict[str, Any]], arms: list[str]) -> list[dict[str, Any]]:
    """Return what the trained arm's numbers ask for: those surely worse than their null, worst first."""
    if view.trained not in arms:
        return []
    at = arms.index(view.trained)
    found = [
        {
            "audit": one["title"],
            "name": row["name"],
            "value": row["cells"][at]["value"],
            "null": row["cells"][at]["null"],
            "advice": row["advice"],
            "gap": row["cells"][at]["gap"],
            "others": [cell["value"] for i, cell in enumerate(row["cells"]) if i != at],
        }
        for one in shown
        for row in one["rows"]
        if row["cells"][at]["state"] == WORSE and row["advice"] and row["is_main"]
    ]
    kept: list[dict[str, Any]] = []
    for row in sorted(found, key=lambda row: -float(row["gap"])):
        if sum(other["audit"] == row["audit"] for other in kept) < _PER_AUDIT:
            kept.append(row)
    return kept[:_ACTED_ON]


# --- curves -----------------------------------------------------------------------------------


def _curves(
    view: View, audit: str, told: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Figure]:
    """Return a figure per number of an audit that is measured along something."""
    along = {str(q["name"]): str(q.get("along", "")) for q in told.get("quantities", ())}
    lines: dict[str, list[dict[str, Any]]] = {}
    for arm, rows in own.items():
        found = rows[(rows["audit"] == audit) & np.isfinite(rows["at"].astype(float))]
        for name, part in found.groupby("name", sort=False):
            part = part.sort_values("at", kind="stable")
            lines.setdefault(str(name), []).extend(_traces(view, arm, part))
    return {name: _figure(name, along.get(name, ""), traces) for name, traces in lines.items()}


def _traces(view: View, arm: str, part: pandas.DataFrame) -> list[dict[str, Any]]:
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
