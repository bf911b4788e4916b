"""Figures with a named row per arm or contrast, for when there are too many for a legend, and curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_placebo.report.palette import MUTED, ArmStyle
from sae_placebo.report.plots import Figure, label, layout_of, note
from sae_placebo.report.wording import interval, number, shorten

_ROW_PX = 30
_LETTERS = 56


@dataclass(frozen=True)
class DotRow:
    """One value with its interval, its own A/A band where there is one, and a name."""

    name: str
    style: ArmStyle
    value: float
    low: float | None
    high: float | None
    decimals: int
    n: str
    band: tuple[float, float] | None = None
    faint: bool = False
    """Drawn gray: no larger than its A/A interval."""


@dataclass(frozen=True)
class BaselineLine:
    """A value that holds for all rows, such as a baseline."""

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
    """Return one row per value: its name and number above, point and interval below.

    Args:
        rows: From the top down.
        axis: Title of the axis.
        lines: Vertical lines through all rows, named in the legend.
        floor: Value that the axis always shows; None: the rows decide.
        signed: Whether values are differences, written with their sign.
    """
    heights = [float(len(rows) - 1 - i) for i in range(len(rows))]
    ends = [v for r in rows for v in (r.value, r.low, r.high, *(r.band or ())) if v is not None]
    ends += [line.value for line in lines] + ([floor] if floor is not None else [])
    shown = [v for v in ends if math.isfinite(v)] or [0.0]
    low, high = min(shown), max(shown)
    room = 0.04 * ((high - low) or 1.0)
    legend = 26 if lines or any(row.band for row in rows) else 0
    data = [_bands(rows, heights)] if any(row.band for row in rows) else []
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
        yaxis={
            "range": [-0.6, len(rows) - 0.2],
            "fixedrange": True,
            "showticklabels": False,
            "showgrid": False,
            "zeroline": False,
        },
    )
    return {"data": data, "layout": layout}


def _names(row: DotRow, y: float, signed: bool) -> list[dict[str, Any]]:
    value = number(row.value, row.decimals, signed=signed)
    if row.low is not None and row.high is not None:
        value += f" {interval(row.low, row.high, row.decimals, signed=signed)}"
    else:
        value += " (no interval)"
    place = {"xref": "paper", "yref": "y", "y": y + 0.26, "font": {"size": 11}}
    letters = max(12, _LETTERS - len(value))
    strong = label(value) if row.faint else f"<b>{label(value)}</b>"
    return [
        note(label(shorten(row.name, letters)), x=0, xanchor="left", **place),
        note(strong, x=1, xanchor="right", **place),
    ]


def _point(row: DotRow, y: float, signed: bool) -> dict[str, Any]:
    color = MUTED if row.faint else row.style.color
    text = [f"<b>{label(row.name)}</b>", label(number(row.value, row.decimals, signed=signed))]
    if row.low is not None and row.high is not None:
        text[-1] += " " + label(interval(row.low, row.high, row.decimals, signed=signed))
    bars = {
        "type": "data",
        "array": [0 if row.high is None else round(row.high - row.value, 6)],
        "arrayminus": [0 if row.low is None else round(row.value - row.low, 6)],
        "visible": row.low is not None,
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "showlegend": False,
        "x": [round(row.value, 6)],
        "y": [y - 0.14],
        "text": ["<br>".join([*text, label(row.n)])],
        "hovertemplate": "%{text}<extra></extra>",
        "error_x": {**bars, "color": row.style.color, "thickness": 2, "width": 3},
        "marker": {
            "size": 8,
            "symbol": row.style.marker,
            "color": color,
            "line": {"color": row.style.color, "width": 1.5},
        },
    }


def _bands(rows: Sequence[DotRow], heights: Sequence[float]) -> dict[str, Any]:
    x: list[float | None] = []
    y: list[float | None] = []
    for row, height in zip(rows, heights, strict=True):
        if row.band:
            x += [round(row.band[0], 6), round(row.band[1], 6), None]
            y += [height - 0.14, height - 0.14, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "A/A interval",
        "showlegend": True,
        "x": x,
        "y": y,
        "line": {"color": MUTED, "width": 9},
        "opacity": 0.38,
        "hoverinfo": "skip",
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
    """One metric along the doses; None where a bound is not known."""

    name: str
    style: ArmStyle
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]
    arms: Sequence[str]
    n: Sequence[str]


def dose_curve(curves: Sequence[Curve], axis: str, unit: str) -> Figure:
    """Return one small plot of a metric against the dose, with intervals."""
    data = []
    for curve in curves:
        up = [0 if h is None else h - y for h, y in zip(curve.high, curve.y, strict=True)]
        down = [0 if w is None else y - w for w, y in zip(curve.low, curve.y, strict=True)]
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
                "error_y": {
                    "type": "data",
                    "array": [round(v, 6) for v in up],
                    "arrayminus": [round(v, 6) for v in down],
                    "thickness": 1.6,
                    "width": 3,
                    "color": curve.style.color,
                },
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
