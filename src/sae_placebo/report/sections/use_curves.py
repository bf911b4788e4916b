"""How the verdicts of use depend on the smallest effect of interest, and what removing many at once costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_placebo.report.palette import ArmStyle
from sae_placebo.report.plots import Figure, error_bars, folded, label, layout_of, note
from sae_placebo.report.sections.base import View, arm_of
from sae_placebo.report.sections.use_rows import (
    USES,
    of_full_swap,
    part,
    percent,
    recorded,
    use_limit,
)
from sae_placebo.report.tables import Place
from sae_placebo.report.wording import Estimate, count, counted, finite, number
from sae_placebo.stats.proportions import wilson

_INK = "#5a6069"
Line = tuple[str, ArmStyle, list[float], list[tuple[float, float, float]], str]
"""Arm, its look, places along the axis, shares with their bounds, and the n of each point in words."""


def build(view: View, place: Place) -> tuple[dict[str, Any], dict[str, Figure | None]]:
    """Return what the template shows of one hookpoint and SAE, and its figures by name."""
    tested = [record for record in recorded(view, place) if not record.get("refused")]
    moved, figures = _sensitivity(view, tested)
    removed, removal = _joint(view, tested)
    return {"sensitivity": moved, "joint": removed}, figures | {"joint": removal}


# --- how the shares move with the limit ------------------------------------------------------


def _sensitivity(
    view: View, tested: list[dict[str, Any]]
) -> tuple[dict[str, Any] | None, dict[str, Figure | None]]:
    """Return the shares of each verdict at every limit, as a table, and a figure per verdict."""
    curves = []
    for record in tested:
        curve, n = part(record, "sensitivity"), finite(record.get("n_latents"))
        limits = curve.get("limits")
        if limits and n and all(len(curve.get(use) or ()) == len(limits) for use in USES):
            curves.append((str(record["arm"]), curve, int(n)))
    if not curves:
        return None, {}
    limits = [float(x) for x in curves[0][1]["limits"]]
    curves = [entry for entry in curves if [float(x) for x in entry[1]["limits"]] == limits]
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
        figures[f"moved_{use}"] = _moved(use, lines, use_limit(view, "least_effect"))
    return {"rows": rows, "arms": [arm_of(view, arm) for arm, _, _ in curves]}, figures


def _bounds(share: Any, n: int) -> tuple[float, float, float]:
    """Return an unweighted share of latents with the bounds of Wilson's interval."""
    hits = round(float(share) * n)
    low, high = wilson(hits, n)
    return hits / n, low, high


def _moved(use: str, lines: list[Line], least: float | None) -> Figure:
    """Return a figure of one verdict's share against the limit; a line marks the trial's own limit."""
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


def _joint(view: View, tested: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, Figure | None]:
    """Return what removing many latents at once costs, by arm, as a table and a figure."""
    rows, lines, stars, limits = [], [], [], []
    for record in tested:
        arm, joint, worst = str(record["arm"]), part(record, "joint"), part(record, "worst")
        full, limit = finite(joint.get("full_nats")), finite(joint.get("limit_nats"))
        if not joint or not full or limit is None:
            reason = str(part(record, "reasons").get("joint") or "not measured")
            rows.append(arm_of(view, arm) | {"missing": reason})
            continue
        limits.append(100 * limit / full)
        points = _points(joint, full)
        n = f"{counted(joint.get('n_documents'), 'document')}, {count(joint.get('n_tokens'))} tokens"
        lines.append((arm, view.styles[arm], [x for x, _ in points], [y for _, y in points], n))
        survive = int(finite(joint.get("survive")) or 0)
        at_star = dict(points).get(float(survive))
        if at_star:
            stars.append((survive, at_star[0], view.styles[arm]))
        rows.append(_joint_row(view, arm, joint, worst, full, n))
    if not rows:
        return None, None
    shown = {"rows": rows, "points": [_joint_points(view, line) for line in lines]}
    return shown, _removal(lines, stars, limits) if lines else None


def _points(
    joint: Mapping[str, Any], full: float
) -> list[tuple[float, tuple[float, float, float]]]:
    """Return how many are removed at once, and the cost with its bounds as shares of a full swap."""
    columns = [joint.get(name) or [] for name in ("sizes", "cost", "low", "high")]
    points = []
    for size, *costs in zip(*columns, strict=False):
        known = [finite(x) for x in costs]
        if size and known[0] is not None:
            cost, low, high = (known[0] if x is None else x for x in known)
            points.append((float(size), (cost / full, low / full, high / full)))
    return points


def _joint_row(
    view: View, arm: str, joint: Mapping[str, Any], worst: Mapping[str, Any], full: float, n: str
) -> dict[str, Any]:
    """Return one arm's row: how many can go at once, what that costs, and what the worst masks cost.

    Args:
        view: Of the trial.
        arm: Name of the arm.
        joint: What was recorded of the joint removal.
        worst: What was recorded of the worst masks; empty where none were sought.
        full: Cost of a full swap, in nats.
        n: What the costs were computed over, in words.
    """
    known = dict(_points(joint, full)).get(float(joint.get("survive") or 0))
    share = finite((worst.get("shares") or [None])[-1])
    tokens = "not tried" if not worst else f"{count(worst.get('n_tokens'))} tokens"
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
            tokens,
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
    """Return the number of documents with which an n in words begins."""
    digits = n.split(" ", 1)[0].replace(",", "")
    return float(digits) if digits.isdigit() else None


def _removal(
    lines: list[Line], stars: list[tuple[int, float, ArmStyle]], limits: list[float]
) -> Figure:
    """Return a figure of the cost of removing ever more latents at once.

    Args:
        lines: A curve per arm.
        stars: Per arm, the most that can go at once, its cost, and the arm's look.
        limits: Per arm, the cost that is within the limit, in percent of a full swap.
    """
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
    """Return one arm's curve with its intervals, in percent; what is below `least` is drawn there."""
    arm, style, x, shares, n = line
    points = [tuple(max(100 * v, least) for v in bounded_share) for bounded_share in shares]
    values, lows, highs = ([point[i] for point in points] for i in range(3))
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": folded(arm, 34),
        "showlegend": True,
        "x": [round(v, 6) for v in x],
        "y": [round(y, 6) for y in values],
        "text": [
            label(f"{arm}: {number(y, 2)}% at {v:.2g}, {n}") for v, y in zip(x, values, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
        "error_y": error_bars(values, lows, highs, 6, color=style.color, thickness=1.2, width=2),
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
