"""What the verdicts of use hang on: the smallest effect of interest, and removing many at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_placebo.report.palette import ArmStyle
from sae_placebo.report.plots import Figure, folded, label, layout_of, note
from sae_placebo.report.sections.base import View
from sae_placebo.report.sections.use_rows import (
    USES,
    Place,
    arm_of,
    of_full_swap,
    part,
    percent,
    recorded,
)
from sae_placebo.report.wording import Estimate, count, counted, finite, number
from sae_placebo.stats.proportions import wilson

_INK = "#5a6069"
_FEWEST = 3
Line = tuple[str, ArmStyle, list[float], list[tuple[float, float, float]], str]
"""Arm, its look, places along the axis, values with bounds in percent, and the n of each point."""


def build(view: View, place: Place) -> tuple[dict[str, Any], dict[str, Figure | None]]:
    """Return what the template shows of one hookpoint and SAE, and its figures by name."""
    told = [one for one in recorded(view, place) if not one.get("refused")]
    moved, figures = _sensitivity(view, told)
    removed, removal = _joint(view, told)
    return {"sensitivity": moved, "joint": removed}, figures | {"joint": removal}


# --- how the shares move with the limit ------------------------------------------------------


def _sensitivity(
    view: View, told: list[dict[str, Any]]
) -> tuple[dict[str, Any] | None, dict[str, Figure | None]]:
    curves = []
    for one in told:
        curve, n = part(one, "sensitivity"), finite(one.get("n_latents"))
        limits = curve.get("limits")
        if limits and n and all(len(curve.get(use) or ()) == len(limits) for use in USES):
            curves.append((str(one["arm"]), curve, int(n)))
    if not curves:
        return None, {}
    limits = [float(x) for x in curves[0][1]["limits"]]
    curves = [one for one in curves if [float(x) for x in one[1]["limits"]] == limits]
    rows = []
    for i, limit in enumerate(limits):
        cells = [
            percent(_bounds(curve[use][i], n), f"{round(n * curve[use][i])} of {count(n)}")
            for _, curve, n in curves
            for use in USES
        ]
        rows.append({"limit": f"{100 * limit:.2g}%", "cells": cells})
    figures: dict[str, Figure | None] = {}
    for use in USES:
        lines: list[Line] = [
            (
                arm,
                view.styles[arm],
                [100 * x for x in limits],
                [_bounds(x, n) for x in curve[use]],
                f"n = {count(n)} asked",
            )
            for arm, curve, n in curves
        ]
        figures[f"moved_{use}"] = _moved(use, lines, _least(view))
    return {"rows": rows, "arms": [arm_of(view, arm) for arm, _, _ in curves]}, figures


def _bounds(share: Any, n: int) -> tuple[float, float, float]:
    """Return an unweighted share of latents with Wilson's interval."""
    hits = round(float(share) * n)
    low, high = wilson(hits, n)
    return hits / n, low, high


def _least(view: View) -> float | None:
    spec = view.tables.trial.get("spec")
    found = spec.get("use") if isinstance(spec, dict) else None
    return finite(found.get("least_effect")) if isinstance(found, dict) else None


def _moved(use: str, lines: list[Line], least: float | None) -> Figure:
    layout = layout_of(
        270 + 20 * len(lines),
        {"l": 46, "r": 8, "t": 40 + 20 * len(lines), "b": 62},
        xaxis=_log_axis("smallest effect of interest<br>(% of a full swap)"),
        yaxis={"title": {"text": "latents asked (%)"}, "range": [-2, 102], "fixedrange": True},
        annotations=[
            note(
                f"<b>{use.replace('_', ' ')}</b>",
                **{"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": 1},
                **{"yanchor": "bottom", "yshift": 2},
            )
        ],
        shapes=[],
    )
    if least:
        layout["shapes"].append(_vertical(100 * least))
        layout["annotations"].append(
            note(
                "this trial's limit",
                **{"x": float(np.log10(100 * least)), "xanchor": "left", "xshift": 3},
                **{"yref": "paper", "y": 1, "yanchor": "top", "font": {"size": 10.5}},
            )
        )
    layout["legend"] |= {"orientation": "v", "y": 1 + 24 / (168.0), "traceorder": "normal"}
    return {"data": [_curve(line) for line in lines], "layout": layout}


# --- removing many at once -------------------------------------------------------------------


def _joint(view: View, told: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, Figure | None]:
    rows, lines, notes, limits = [], [], [], []
    for one in told:
        arm, joint, worst = str(one["arm"]), part(one, "joint"), part(one, "worst")
        full, limit = finite(joint.get("full_nats")), finite(joint.get("limit_nats"))
        if not joint or not full or limit is None:
            reason = str(part(one, "reasons").get("joint") or "not measured")
            rows.append(arm_of(view, arm) | {"missing": reason})
            continue
        limits.append(100 * limit / full)
        points = _points(joint, full)
        n = f"{counted(joint.get('n_documents'), 'document')}, {count(joint.get('n_tokens'))} tokens"
        lines.append((arm, view.styles[arm], [x for x, _ in points], [y for _, y in points], n))
        survive = int(finite(joint.get("survive")) or 0)
        at_star = dict(points).get(float(survive))
        if at_star:
            notes.append((survive, at_star[0], view.styles[arm]))
        rows.append(_joint_row(view, arm, joint, worst, full, n))
    if not rows:
        return None, None
    shown = {"rows": rows, "points": [_joint_points(view, line) for line in lines]}
    return shown, _removal(lines, notes, limits) if lines else None


def _points(joint: dict[str, Any], full: float) -> list[tuple[float, tuple[float, float, float]]]:
    """Return how many are removed at once and what that costs, with bounds, as shares of a full swap."""
    columns = [joint.get(name) or [] for name in ("sizes", "cost", "low", "high")]
    found = []
    for size, *costs in zip(*columns, strict=False):
        known = [finite(x) for x in costs]
        if size and known[0] is not None:
            cost, low, high = (known[0] if x is None else x for x in known)
            found.append((float(size), (cost / full, low / full, high / full)))
    return found


def _joint_row(
    view: View, arm: str, joint: dict[str, Any], worst: dict[str, Any], full: float, n: str
) -> dict[str, Any]:
    known = dict(_points(joint, full)).get(float(joint.get("survive") or 0))
    share = finite((worst.get("shares") or [None])[-1])
    said = "not tried" if not worst else f"{count(worst.get('n_tokens'))} tokens"
    left = "–" if not worst else count(worst.get("survive"))
    verdict = "within the limit" if worst.get("holds") else "still above the limit"
    return arm_of(view, arm) | {
        "missing": None,
        "survive": count(joint.get("survive")),
        "of": count(max(joint.get("sizes") or [0])),
        "cost": of_full_swap(*known, n=joint.get("n_documents")) if known else _nothing(n),
        "limit": f"{100 * float(joint['limit_nats']) / full:.2g}%",
        "full": Estimate(f"{number(full, 2)} nats", None, "the unit, a mean", n),
        "worst": Estimate(
            "–" if share is None else f"{number(100 * share, 2)}%",
            None,
            f"a maximum found: {verdict}" if share is not None else "no worst masks were sought",
            said,
        ),
        "left": left,
    }


def _nothing(n: str) -> Estimate:
    return Estimate("–", None, "nothing can be removed", n)


def _joint_points(view: View, line: Line) -> dict[str, Any]:
    arm, _, sizes, costs, n = line
    cells = [
        {"size": count(size), "cost": of_full_swap(*cost, n=_documents(n))}
        for size, cost in zip(sizes, costs, strict=True)
    ]
    return arm_of(view, arm) | {"cells": cells}


def _documents(n: str) -> float | None:
    found = n.split(" ", 1)[0].replace(",", "")
    return float(found) if found.isdigit() else None


def _removal(
    lines: list[Line], stars: list[tuple[int, float, ArmStyle]], limits: list[float]
) -> Figure:
    limit = max(limits)
    data = [_curve(line, least=limit / 1000) for line in lines]
    ends = [x for _, _, sizes, _, _ in lines for x in sizes]
    span = [min(ends, default=1.0), max(ends, default=1.0)]
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"limit: {limit:.2g}%",
            "x": span,
            "y": [limit, limit],
            "line": {"color": _INK, "width": 1.6, "dash": "dash"},
            "hoverinfo": "skip",
        }
    )
    marks = {
        "type": "scatter",
        "mode": "markers+text",
        "name": "S*: the most that can go at once",
        "x": [size for size, _, _ in stars],
        "y": [round(max(100 * cost, limit / 1000), 6) for _, cost, _ in stars],
        "text": [f"<b>S* = {count(size)}</b>" for size, _, _ in stars],
        "textposition": "bottom right",
        "marker": {
            "size": 15,
            "symbol": "circle-open",
            "color": [style.color for _, _, style in stars],
            "line": {"width": 2.5},
        },
        "hoverinfo": "skip",
    }
    legend = 20 * (len(data) + 1)
    layout = layout_of(
        330 + legend,
        {"l": 62, "r": 12, "t": legend + 8, "b": 50},
        xaxis=_log_axis("latents removed, least used first"),
        yaxis=_log_axis("cost (% of a full swap)"),
    )
    layout["legend"] |= {"orientation": "v", "traceorder": "normal"}
    return {"data": [*data, *([marks] if stars else [])], "layout": layout}


# --- what the curves share -------------------------------------------------------------------


def _curve(line: Line, least: float = 0.0) -> dict[str, Any]:
    """Return one arm's curve with its intervals; nothing is drawn below `least`, in percent."""
    arm, style, x, found, n = line
    points = [tuple(max(100 * v, least) for v in one) for one in found]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": folded(arm, 34),
        "showlegend": True,
        "x": [round(v, 6) for v in x],
        "y": [round(y, 6) for y, _, _ in points],
        "text": [
            label(f"{arm}: {number(y, 2)}% at {v:.2g}, {n}")
            for v, (y, _, _) in zip(x, points, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "error_y": {
            "type": "data",
            "array": [round(high - y, 6) for y, _, high in points],
            "arrayminus": [round(y - low, 6) for y, low, _ in points],
            "color": style.color,
            "thickness": 1.2,
            "width": 2,
        },
        "line": {"color": style.color, "width": 2},
        "marker": {"size": 6, "symbol": style.marker, "color": style.color},
    }


def _log_axis(text: str) -> dict[str, Any]:
    return {
        "title": {"text": text, "font": {"size": 12}},
        "type": "log",
        "dtick": 1,
        "tickformat": "~g",
        "fixedrange": True,
        "zeroline": False,
    }


def _vertical(x: float) -> dict[str, Any]:
    line = {"color": _INK, "width": 1.6, "dash": "dash"}
    return {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": line}
