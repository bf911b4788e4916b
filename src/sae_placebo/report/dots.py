"""Figures with a named row per arm or contrast, where a legend would be too long, and dose curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_placebo.report.palette import MUTED, ArmStyle
from sae_placebo.report.plots import (
    Figure,
    aa_bands,
    bare_axis,
    error_bars,
    label,
    layout_of,
    note,
)
from sae_placebo.report.wording import bounded, number, shorten

_ROW_PX = 30
_LETTERS = 56


@dataclass(frozen=True)
class DotRow:
    """One value with its interval and, where there is one, its A/A interval.

    Attributes:
        name: Of the row.
        style: Of the arm.
        value: In the unit of the axis, as all of these numbers are.
        low: Lower bound of its interval; None where it has none.
        high: Upper bound of its interval; None where it has none.
        decimals: Of the numbers that are written.
        n: What the value was computed over, in words.
        band: Bounds of the A/A interval; None where there is none.
        faint: Whether the value is no larger than its A/A interval; its point is then gray.
    """

    name: str
    style: ArmStyle
    value: float
    low: float | None
    high: float | None
    decimals: int
    n: str
    band: tuple[float, float] | None = None
    faint: bool = False


@dataclass(frozen=True)
class BaselineLine:
    """A value that all rows are compared with; `dash` is plotly's name of the line's pattern."""

    name: str
    value: float
    dash: str


def dot_rows(
    rows: Sequence[DotRow],
    axis: str,
    lines: Sequence[BaselineLine] = (),
    floor: float | None = None,
    signed: bool = False,
) -> Figure:
    """Return a figure with a row per value: name and number above, point and interval below.

    Args:
        rows: From the top down.
        axis: Title of the axis.
        lines: Vertical lines through all rows, named in the legend.
        floor: Value that the axis always shows; where None, the rows alone decide what it shows.
        signed: Whether values are differences, written with their sign.
    """
    heights = [float(len(rows) - 1 - i) for i in range(len(rows))]
    ends = [v for r in rows for v in (r.value, r.low, r.high, *(r.band or ())) if v is not None]
    ends += [line.value for line in lines] + ([floor] if floor is not None else [])
    shown = [v for v in ends if math.isfinite(v)] or [0.0]
    low, high = min(shown), max(shown)
    room = 0.04 * ((high - low) or 1.0)
    legend = 26 if lines or any(row.band for row in rows) else 0
    bands = [(*r.band, y - 0.14) for r, y in zip(rows, heights, strict=True) if r.band]
    data = [aa_bands(bands, 6, width=9, showlegend=True)] if bands else []
    data += [_line(line, len(rows)) for line in lines]
    data += [_point(row, y, signed) for row, y in zip(rows, heights, strict=True)]
    notes = [mark for row, y in zip(rows, heights, strict=True) for mark in _names(row, y, signed)]
    layout = layout_of(
        _ROW_PX * len(rows) + 70 + legend,
        {"l": 4, "r": 4, "t": legend + 6, "b": 46},
        annotations=notes,
        xaxis={
            "title": {"text": axis, "font": {"size": 12}},
            "range": [round(low - room, 6), round(high + room, 6)],
            "fixedrange": True,
            "zeroline": True,
            "zerolinecolor": MUTED,
            "zerolinewidth": 2,
        },
        yaxis=bare_axis(-0.6, len(rows) - 0.2),
    )
    return {"data": data, "layout": layout}


def _names(row: DotRow, y: float, signed: bool) -> list[dict[str, Any]]:
    """Return a row's name and, at the other end, its number with its interval."""
    value = bounded(row.value, row.low, row.high, row.decimals, signed, " (no interval)")
    place = {"xref": "paper", "yref": "y", "y": y + 0.26, "font": {"size": 11}}
    letters = max(12, _LETTERS - len(value))
    strong = label(value) if row.faint else f"<b>{label(value)}</b>"
    return [
        note(label(shorten(row.name, letters)), x=0, xanchor="left", **place),
        note(strong, x=1, xanchor="right", **place),
    ]


def _point(row: DotRow, y: float, signed: bool) -> dict[str, Any]:
    color = MUTED if row.faint else row.style.color
    value = bounded(row.value, row.low, row.high, row.decimals, signed)
    look = {"color": row.style.color, "thickness": 2, "width": 3}
    return {
        "type": "scatter",
        "mode": "markers",
        "showlegend": False,
        "x": [round(row.value, 6)],
        "y": [y - 0.14],
        "text": [f"<b>{label(row.name)}</b><br>{label(value)}<br>{label(row.n)}"],
        "hovertemplate": "%{text}<extra></extra>",
        "error_x": error_bars(
            [row.value], [row.low], [row.high], 6, visible=row.low is not None, **look
        ),
        "marker": {
            "size": 8,
            "symbol": row.style.marker,
            "color": color,
            "line": {"color": row.style.color, "width": 1.5},
        },
    }


def _line(line: BaselineLine, n_rows: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{label(line.name)} {number(line.value, 3)}",
        "showlegend": True,
        "x": [round(line.value, 6)] * 2,
        "y": [-0.6, n_rows - 0.2],
        "line": {"color": "#5a6069", "width": 1.6, "dash": line.dash},
        "hoverinfo": "skip",
    }


@dataclass(frozen=True)
class Curve:
    """One metric along the doses: a point per arm.

    Attributes:
        name: Of the curve.
        style: Its look.
        x: Dose of each point.
        y: Value of each point.
        low: Lower bound of each; None where there is none.
        high: Upper bound of each; None where there is none.
        arms: Name of each point's arm.
        n: What each value was computed over, in words.
    """

    name: str
    style: ArmStyle
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]
    arms: Sequence[str]
    n: Sequence[str]


def dose_curve(curves: Sequence[Curve], axis: str, unit: str) -> Figure:
    """Return a small plot of one metric against the dose, with intervals.

    Args:
        curves: Lines; a legend names them where there are several.
        axis: Title of the axis of doses.
        unit: Title of the axis of values.
    """
    data = []
    for curve in curves:
        look = {"thickness": 1.6, "width": 3, "color": curve.style.color}
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": label(curve.name),
                "showlegend": len(curves) > 1,
                "x": list(curve.x),
                "y": [round(y, 6) for y in curve.y],
                "text": [
                    f"<b>{label(arm)}</b><br>{number(y, 3)}<br>{label(n)}"
                    for arm, y, n in zip(curve.arms, curve.y, curve.n, strict=True)
                ],
                "hovertemplate": "%{text}<extra></extra>",
                "error_y": error_bars(curve.y, curve.low, curve.high, 6, **look),
                "line": {"color": curve.style.color, "width": 2},
                "marker": {"size": 7, "symbol": curve.style.marker, "color": curve.style.color},
            }
        )
    ticks = sorted({x for curve in curves for x in curve.x})
    layout = layout_of(
        230,
        {"l": 46, "r": 8, "t": 24 if len(curves) > 1 else 8, "b": 48},
        xaxis={
            "title": {"text": axis, "font": {"size": 11}},
            "tickvals": ticks,
            "fixedrange": True,
            "zeroline": False,
        },
        yaxis={
            "title": {"text": label(unit), "font": {"size": 11}, "standoff": 4},
            "fixedrange": True,
            "zeroline": False,
            "nticks": 5,
        },
    )
    return {"data": data, "layout": layout}
