"""Forest plots show one contrast's effects, a row each, every row on its own scale about its null."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_placebo.core.escaping import visible
from sae_placebo.report.palette import MUTED, ArmStyle
from sae_placebo.report.plots import Figure, aa_bands, bare_axis, label, layout_of, note
from sae_placebo.report.wording import (
    bounded,
    decimals_for,
    difference_unit,
    interval,
    number,
    short_metric_title,
    shorten,
    unit_text,
    wrapped,
)

_ROW_PX = 50
# on a phone that is 390 px wide: the plot's width, and that of a letter of a row's name and value
_WIDTH_PX, _NAME_PX, _VALUE_PX = 350, 6.4, 7.2
_TITLE_LETTERS = 44
_REACH = 1.44
"""Half of the axis in units of a row's scale; beyond 1 is room for the numbers at its ends."""


@dataclass(frozen=True)
class ForestRow:
    """One effect with its own axis; numbers are in the metric's unit, and None where they are missing.

    Attributes:
        metric: Name of the metric.
        unit: Its unit.
        null: Effect where there is nothing; the middle of the axis.
        effect: The first arm's value minus the second's.
        low: Lower bound of the effect's interval.
        high: Upper bound of the effect's interval.
        aa_effect: Effect between two re-draws of one control.
        aa_low: Lower bound of that effect's interval.
        aa_high: Upper bound of that effect's interval.
        decimals: Of the effect and its bounds.
        aa_decimals: Of the A/A effect and its bounds.
        n: What the effect was computed over, in words.
        reason: Why there is no effect or no interval.
        within_aa: Whether the effect is no larger than its A/A interval, and so no finding.
    """

    metric: str
    unit: str
    null: float
    effect: float | None
    low: float | None
    high: float | None
    aa_effect: float | None
    aa_low: float | None
    aa_high: float | None
    decimals: int
    aa_decimals: int
    n: str
    reason: str
    within_aa: bool = False


Mark = tuple[ForestRow, float, float]
"""A row of the plot, half the width of its scale, and its height in the plot."""


def forest(
    rows: Sequence[ForestRow], arm: str, control: str, style: ArmStyle, level: str
) -> Figure:
    """Return a figure of one contrast's effects, a row each, every row on its own scale about its null.

    The null is one line through all rows. Each row's ends carry the value that they stand for, so
    that rows in different units share the picture and no axis.

    Args:
        rows: From the top down.
        arm: The contrast's first arm.
        control: The contrast's second arm.
        style: Look of the points.
        level: How an interval is called, such as "95% interval".
    """
    # a name that is too long for its side of the plot stands in the heading and the axis title
    first = label(arm) if len(arm) <= 16 else "first arm"
    title = _title(arm, control)
    spans = [_span(row) for row in rows]
    heights = [float(len(rows) - 1 - i) for i in range(len(rows))]
    shapes: list[dict[str, Any]] = []
    notes = [
        note(f"← lower in {first}", xref="x", x=-0.03, xanchor="right", yref="y"),
        note(f"higher in {first} →", xref="x", x=0.03, xanchor="left", yref="y"),
    ]
    for side in notes:
        side |= {"y": -0.62, "font": {"size": 12}}
    for row, span, y in zip(rows, spans, heights, strict=True):
        if row.effect is not None or row.aa_effect is not None:
            shapes += [_null_line(y), _track(y)]
        notes += _row_notes(row, span, y)
    shown = list(zip(rows, spans, heights, strict=True))
    known = [mark for mark in shown if mark[0].low is not None and mark[0].high is not None]
    alone = [mark for mark in shown if mark not in known]
    beyond = [mark for mark in known if not mark[0].within_aa]
    within = [mark for mark in known if mark[0].within_aa]
    data = [
        _aa_marks(shown),
        _points(beyond, style, f"effect, {level}", style.color),
        _points(within, style, f"effect within A/A, {level}", MUTED),
        _points(alone, style, "effect, no interval", None),
    ]
    return {
        "data": [trace for trace in data if trace["x"]],
        "layout": layout_of(
            _ROW_PX * len(rows) + 60 + 16 * len(title),
            {"l": 2, "r": 2, "t": 44, "b": 16 + 16 * len(title)},
            shapes=shapes,
            annotations=notes,
            xaxis=bare_axis(-_REACH, _REACH)
            | {"title": {"text": "<br>".join(title), "standoff": 4, "font": {"size": 12}}},
            yaxis=bare_axis(-0.9, len(rows) - 0.28),
        ),
    }


def _title(arm: str, control: str) -> list[str]:
    """Return "effect: arm − control" in as many lines as a narrow screen needs."""
    whole = f"effect: {visible(arm)} − {visible(control)}"
    return [label(line) for line in wrapped(shorten(whole, 230), _TITLE_LETTERS)]


def _span(row: ForestRow) -> float:
    """Return half the width of a row's scale: how far its farthest mark is from its null."""
    marks = (row.effect, row.low, row.high, row.aa_effect, row.aa_low, row.aa_high)
    far = max((abs(m - row.null) for m in marks if m is not None), default=0.0)
    return far if far > 0 else 1.0


def _null_line(y: float) -> dict[str, Any]:
    """Return a row's piece of the null line, which ends below the row's text so as not to cross it."""
    line = {"color": MUTED, "width": 1.5, "dash": "dash"}
    ends = {"xref": "x", "x0": 0, "x1": 0, "yref": "y", "y0": y - 0.44, "y1": y + 0.14}
    return {"type": "line", "layer": "below", "line": line} | ends


def _track(y: float) -> dict[str, Any]:
    line = {"color": "rgba(128,128,128,0.35)", "width": 1}
    place = {"x0": -1, "x1": 1, "y0": y - 0.12, "y1": y - 0.12}
    return {"type": "line", "layer": "below", "line": line} | place


def _row_notes(row: ForestRow, span: float, y: float) -> list[dict[str, Any]]:
    """Return a row's texts: its name and effect above, the values of its scale's ends below."""
    unit = unit_text(row.unit)
    value = "not estimable"
    if row.effect is not None:
        value = bounded(row.effect, row.low, row.high, row.decimals, True, " (no interval)")
        value += " pp" if unit == "%" else ""
    name = short_metric_title(row.metric, row.unit)
    letters = int((_WIDTH_PX - _VALUE_PX * len(value)) / _NAME_PX)
    if unit not in ("", "%") and len(name) + len(unit) + 2 <= letters:
        name = f"{name}, {unit}"
    digits = min(4, decimals_for(0.0, span))
    ends = [
        note(number(row.null - span, digits, signed=True), xanchor="right", x=-1.02),
        note(number(row.null + span, digits, signed=True), xanchor="left", x=1.02),
    ]
    if row.effect is None and row.aa_effect is None:
        ends = [note(label(shorten(row.reason, 50)), xanchor="center", x=0)]
    for end in ends:
        end |= {"xref": "x", "yref": "y", "y": y - 0.12, "font": {"size": 10.5}}
    line = {"yref": "y", "y": y + 0.26, "xref": "paper"}
    return [
        note(label(shorten(name, letters)), x=0, xanchor="left", **line),
        note(
            label(value) if row.within_aa else f"<b>{label(value)}</b>",
            x=1,
            xanchor="right",
            **line,
        ),
        *ends,
    ]


def _points(marks: Sequence[Mark], style: ArmStyle, name: str, fill: str | None) -> dict[str, Any]:
    """Return effects as points with their intervals; without `fill` they are hollow and have none."""
    shown = [mark for mark in marks if mark[0].effect is not None]
    up, down, hover, x = [], [], [], []
    for row, span, _ in shown:
        effect = row.effect if row.effect is not None else row.null
        x.append(round((effect - row.null) / span, 5))
        up.append(0.0 if row.high is None else round((row.high - effect) / span, 5))
        down.append(0.0 if row.low is None else round((effect - row.low) / span, 5))
        hover.append(_forest_hover(row))
    bars = {"type": "data", "array": up, "arrayminus": down, "visible": fill is not None}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(name),
        "x": x,
        "y": [y - 0.12 for _, _, y in shown],
        "text": hover,
        "hovertemplate": "%{text}<extra></extra>",
        "error_x": {**bars, "color": style.color, "thickness": 2.5, "width": 4},
        "marker": {
            "size": 9,
            "symbol": style.marker,
            "color": "rgba(0,0,0,0)" if fill is None else fill,
            "line": {"color": style.color, "width": 2},
        },
    }


def _forest_hover(row: ForestRow) -> str:
    places = row.decimals
    unit = difference_unit(row.unit)
    value = f"{number(row.effect, places, signed=True)} {unit}".strip()
    if row.low is not None and row.high is not None:
        value += f", {interval(row.low, row.high, places, signed=True)}"
    else:
        value += f", no interval: {shorten(row.reason, 60)}"
    lines = [f"<b>{label(row.metric)}</b>", label(value)]
    lines += [label(f"null {number(row.null, places)}"), label(row.n)]
    if row.aa_effect is not None:
        aa = bounded(row.aa_effect, row.aa_low, row.aa_high, row.aa_decimals, signed=True)
        lines.append(label(f"A/A {aa}"))
    if row.within_aa:
        lines.append("within A/A: no finding")
    return "<br>".join(lines)


def _aa_marks(marks: Sequence[Mark]) -> dict[str, Any]:
    bands = [
        ((row.aa_low - row.null) / span, (row.aa_high - row.null) / span, height - 0.12)
        for row, span, height in marks
        if row.aa_low is not None and row.aa_high is not None
    ]
    return aa_bands(bands, 5, width=11)
