"""Figures as plain plotly dictionaries: small, the same for the same input, and without imports.

Plotly reads part of HTML in every label, so that every text from the data passes `label`, and
none is ever put into a template.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_placebo.report.palette import MUTED, ArmStyle
from sae_placebo.report.wording import (
    decimals_for,
    interval,
    number,
    short_metric_title,
    shorten,
    unit_text,
    visible,
)

Figure = dict[str, Any]
_ROW_PX = 50
_LABEL_LETTERS = 29


@dataclass(frozen=True)
class ForestRow:
    """One effect with its own axis; numbers are in the metric's unit, None where missing."""

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
    n: str
    reason: str


Mark = tuple[ForestRow, float, float]
"""A row, half the width of its scale, and its height in the plot."""


@dataclass(frozen=True)
class Dot:
    """A value with its interval, in the unit of the plot's axis."""

    value: float
    low: float | None
    high: float | None
    n: str


@dataclass(frozen=True)
class Panel:
    """One arm's distribution: shares of latents per bin, in percent, and the null's."""

    arm: str
    shares: Sequence[float]
    null_shares: Sequence[float]
    median: float | None
    n: int


def label(text: Any) -> str:
    """Return `text` as plotly shows it literally: no tag, no entity, no control character."""
    return html.escape(visible(text), quote=True)


def _layout(height: int, margin: Mapping[str, int], **rest: Any) -> dict[str, Any]:
    return {
        "height": height,
        "autosize": True,
        "margin": dict(margin),
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#222222"},
        "dragmode": False,
        "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"},
        **rest,
    }


def _note(text: str, **place: Any) -> dict[str, Any]:
    return {"text": text, "showarrow": False, **place}


# --- effects ---------------------------------------------------------------------------------


def forest(
    rows: Sequence[ForestRow], arm: str, control: str, style: ArmStyle, level: str
) -> Figure:
    """Return one contrast's effects, a row each, every row on its own scale about its null.

    The null is one line through all rows. Each row's ends carry the value that they stand for, so
    that rows in different units share the picture and no axis.
    """
    spans = [_span(row) for row in rows]
    heights = [len(rows) - 1 - i for i in range(len(rows))]
    shapes: list[dict[str, Any]] = [_null_line()]
    notes = [
        _note(
            f"← lower in {label(shorten(arm, 16))}", xref="x", x=-0.03, xanchor="right", yref="y"
        ),
        _note(f"higher in {label(shorten(arm, 16))} →", xref="x", x=0.03, xanchor="left", yref="y"),
    ]
    for note in notes:
        note |= {"y": -0.62, "font": {"size": 12}}
    for row, span, y in zip(rows, spans, heights, strict=True):
        if row.effect is not None or row.aa_effect is not None:
            shapes.append(_track(y))
        notes += _row_notes(row, span, y)
    shown = list(zip(rows, spans, heights, strict=True))
    known = [mark for mark in shown if mark[0].low is not None and mark[0].high is not None]
    alone = [mark for mark in shown if mark not in known]
    data = [
        _aa_marks(shown),
        _points(known, style, f"effect, {level}", hollow=False),
        _points(alone, style, "effect, no interval", hollow=True),
    ]
    return {
        "data": [trace for trace in data if trace["x"]],
        "layout": _layout(
            _ROW_PX * len(rows) + 76,
            {"l": 2, "r": 2, "t": 44, "b": 32},
            shapes=shapes,
            annotations=notes,
            xaxis={
                "range": [-1.32, 1.32],
                "fixedrange": True,
                "showgrid": False,
                "zeroline": False,
                "showticklabels": False,
                "title": {
                    "text": f"effect: {label(shorten(arm, 20))} − {label(shorten(control, 24))}",
                    "standoff": 4,
                },
            },
            yaxis={
                "range": [-0.9, len(rows) - 0.28],
                "fixedrange": True,
                "showgrid": False,
                "zeroline": False,
                "showticklabels": False,
            },
        ),
    }


def _span(row: ForestRow) -> float:
    """Half the width of the row's scale: the farthest mark from the null."""
    marks = (row.effect, row.low, row.high, row.aa_effect, row.aa_low, row.aa_high)
    far = max((abs(m - row.null) for m in marks if m is not None), default=0.0)
    return far if far > 0 else 1.0


def _null_line() -> dict[str, Any]:
    line = {"color": MUTED, "width": 1.5, "dash": "dash"}
    ends = {"xref": "x", "x0": 0, "x1": 0, "yref": "paper", "y0": 0.0, "y1": 1.0}
    return {"type": "line", "layer": "below", "line": line} | ends


def _track(y: float) -> dict[str, Any]:
    line = {"color": "rgba(128,128,128,0.35)", "width": 1}
    place = {"x0": -1, "x1": 1, "y0": y - 0.12, "y1": y - 0.12}
    return {"type": "line", "layer": "below", "line": line} | place


def _row_notes(row: ForestRow, span: float, y: float) -> list[dict[str, Any]]:
    unit = unit_text(row.unit)
    name = short_metric_title(row.metric, row.unit)
    if unit and len(name) + len(unit) + 2 <= _LABEL_LETTERS:
        name = f"{name}, {unit}"
    places = row.decimals
    value = number(row.effect, places, signed=True)
    if row.effect is None:
        value = "not estimable"
    elif row.low is not None and row.high is not None:
        value += f" {interval(row.low, row.high, places, signed=True)}"
    else:
        value += " (no interval)"
    digits = decimals_for(0.0, span)
    ends = [
        _note(number(row.null - span, digits, signed=True), xanchor="right", x=-1.02),
        _note(number(row.null + span, digits, signed=True), xanchor="left", x=1.02),
    ]
    if row.effect is None and row.aa_effect is None:
        ends = [_note(label(shorten(row.reason, 50)), xanchor="center", x=0)]
    for end in ends:
        end |= {"xref": "x", "yref": "y", "y": y - 0.12, "font": {"size": 10.5}}
    line = {"yref": "y", "y": y + 0.26, "xref": "paper"}
    return [
        _note(label(shorten(name, _LABEL_LETTERS)), x=0, xanchor="left", **line),
        _note(f"<b>{label(value)}</b>", x=1, xanchor="right", **line),
        *ends,
    ]


def _points(marks: Sequence[Mark], style: ArmStyle, name: str, hollow: bool) -> dict[str, Any]:
    shown = [mark for mark in marks if mark[0].effect is not None]
    up, down, hover, x = [], [], [], []
    for row, span, _ in shown:
        effect = row.effect if row.effect is not None else row.null
        x.append(round((effect - row.null) / span, 5))
        up.append(0.0 if row.high is None else round((row.high - effect) / span, 5))
        down.append(0.0 if row.low is None else round((effect - row.low) / span, 5))
        hover.append(_forest_hover(row))
    bars = {"type": "data", "array": up, "arrayminus": down, "visible": not hollow}
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
            "color": "rgba(0,0,0,0)" if hollow else style.color,
            "line": {"color": style.color, "width": 2},
        },
    }


def _forest_hover(row: ForestRow) -> str:
    places = row.decimals
    unit = unit_text(row.unit)
    lines = [f"<b>{label(row.metric)}</b>"]
    value = f"{number(row.effect, places, signed=True)} {unit}".strip()
    if row.low is not None and row.high is not None:
        value += f", {interval(row.low, row.high, places, signed=True)}"
    else:
        value += f", no interval: {shorten(row.reason, 60)}"
    lines += [label(value), label(f"null {number(row.null, places)}"), label(row.n)]
    if row.aa_effect is not None:
        aa = f"A/A {number(row.aa_effect, places, signed=True)}"
        if row.aa_low is not None and row.aa_high is not None:
            aa += f" {interval(row.aa_low, row.aa_high, places, signed=True)}"
        lines.append(label(aa))
    return "<br>".join(lines)


def _aa_marks(marks: Sequence[Mark]) -> dict[str, Any]:
    x: list[float | None] = []
    y: list[float | None] = []
    for row, span, height in marks:
        if row.aa_low is None or row.aa_high is None:
            continue
        ends = [(bound - row.null) / span for bound in (row.aa_low, row.aa_high)]
        x += [round(ends[0], 5), round(ends[1], 5), None]
        y += [height - 0.12, height - 0.12, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "A/A interval",
        "x": x,
        "y": y,
        "line": {"color": MUTED, "width": 11},
        "opacity": 0.38,
        "hoverinfo": "skip",
    }


# --- class shares ----------------------------------------------------------------------------


def shares(
    classes: Sequence[str],
    dots: Mapping[str, Mapping[str, Dot]],
    styles: Mapping[str, ArmStyle],
    level: str,
) -> Figure:
    """Return each class's share of latents in percent, one point with its interval per arm."""
    arms = list(dots)
    step = 1.0 / (len(arms) + 1.4)
    tops = {kind: len(classes) - i for i, kind in enumerate(classes)}
    data = []
    highest = 1.0
    for i, arm in enumerate(arms):
        kinds = [kind for kind in classes if kind in dots[arm]]
        points = [dots[arm][kind] for kind in kinds]
        bounds = [p.high if p.high is not None else p.value for p in points]
        highest = max([highest, *bounds])
        data.append(
            _share_trace(arm, points, [tops[k] - (i + 1.2) * step for k in kinds], styles[arm])
        )
    notes = [
        _note(
            f"<b>{label(kind.replace('_', ' '))}</b>",
            **{"xref": "paper", "x": 0, "xanchor": "left", "yref": "y", "y": top - 0.3 * step},
        )
        for kind, top in tops.items()
    ]
    layout = _layout(
        int(len(classes) * (24 + 17 * len(arms)) + 64 + 20 * len(arms)),
        {"l": 8, "r": 14, "t": 20 * len(arms) + 8, "b": 48},
        annotations=notes,
        xaxis={
            "title": {"text": f"share of all latents (%), with {label(level)}"},
            "range": [0, min(100.5, highest * 1.06)],
            "fixedrange": True,
            "zeroline": True,
        },
        yaxis={
            "range": [-0.02, len(classes) + 0.08],
            "fixedrange": True,
            "showticklabels": False,
            "showgrid": True,
            "zeroline": False,
            "tickvals": list(range(len(classes) + 1)),
        },
    )
    layout["legend"] |= {"orientation": "v", "traceorder": "normal"}
    return {"data": data, "layout": layout}


def _share_trace(
    arm: str, points: Sequence[Dot], heights: Sequence[float], style: ArmStyle
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(shorten(arm, 40)),
        "x": [round(p.value, 4) for p in points],
        "y": [round(y, 4) for y in heights],
        "text": [label(f"{arm}: {number(p.value)}%, {p.n}") for p in points],
        "hovertemplate": "%{text}<extra></extra>",
        "error_x": {
            "type": "data",
            "array": [0 if p.high is None else round(p.high - p.value, 4) for p in points],
            "arrayminus": [0 if p.low is None else round(p.value - p.low, 4) for p in points],
            "color": style.color,
            "thickness": 2,
            "width": 3,
        },
        "marker": {"size": 8, "symbol": style.marker, "color": style.color},
    }


# --- token entropy ---------------------------------------------------------------------------


def entropy_panels(
    edges: Sequence[float], panels: Sequence[Panel], styles: Mapping[str, ArmStyle]
) -> Figure:
    """Return one histogram per arm over the same bits, the random-position null outlined on each."""
    gap, total = 0.11, len(panels)
    size = (1 - gap * (total - 1)) / total if total > 1 else 1.0
    ceiling = max((max([*p.shares, *p.null_shares], default=0.0) for p in panels), default=1.0)
    layout = _layout(
        150 * total + 100,
        {"l": 48, "r": 8, "t": 56, "b": 44},
        bargap=0,
        showlegend=True,
        xaxis={
            "title": {"text": "token entropy of a latent (bits)"},
            "range": [edges[0], edges[-1]],
            "fixedrange": True,
            "anchor": f"y{total}" if total > 1 else "y",
            "zeroline": False,
        },
        shapes=[],
        annotations=[],
    )
    data: list[dict[str, Any]] = []
    for i, panel in enumerate(panels):
        axis = "y" if i == 0 else f"y{i + 1}"
        top = 1 - i * (size + gap)
        layout["yaxis" + axis[1:]] = {
            "domain": [max(0.0, round(top - size, 4)), round(top, 4)],
            "range": [0, max(ceiling * 1.08, 1e-6)],
            "fixedrange": True,
            "nticks": 4,
            "title": {"text": "latents (%)", "standoff": 4},
            "rangemode": "tozero",
        }
        data += _panel_traces(edges, panel, axis, styles[panel.arm], first=i == 0)
        shapes, notes = _panel_marks(panel, axis, top, styles[panel.arm])
        layout["shapes"] += shapes
        layout["annotations"] += notes
    # above the name of the first panel
    layout["legend"] |= {"y": 1 + 22 / (150 * total)}
    return {"data": data, "layout": layout}


def _panel_traces(
    edges: Sequence[float], panel: Panel, axis: str, style: ArmStyle, first: bool
) -> list[dict[str, Any]]:
    width = edges[1] - edges[0]
    bars = {
        "type": "bar",
        "name": label(shorten(panel.arm, 40)),
        "x": [round(edge + width / 2, 4) for edge in edges[:-1]],
        "y": [round(share, 3) for share in panel.shares],
        "width": width,
        "yaxis": axis,
        "showlegend": False,
        "marker": {"color": style.color, "line": {"width": 0}},
        "opacity": 0.75,
        "hovertemplate": "%{x} bits: %{y}% of latents<extra></extra>",
    }
    # Steps are drawn by hand: plotly's own would start and end half a bin off.
    x: list[float] = []
    y: list[float] = []
    for left, right, share in zip(edges[:-1], edges[1:], panel.null_shares, strict=True):
        x += [round(left, 4), round(right, 4)]
        y += [round(share, 3)] * 2
    null = {
        "type": "scatter",
        "mode": "lines",
        "name": "null: random positions, same n",
        "legendgroup": "null",
        "showlegend": first,
        "x": x,
        "y": y,
        "yaxis": axis,
        "line": {"color": MUTED, "width": 1.8, "dash": "dot"},
        "hoverinfo": "skip",
    }
    return [bars, null] if any(panel.null_shares) else [bars]


def _panel_marks(
    panel: Panel, axis: str, top: float, style: ArmStyle
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    name = f"<b>{label(shorten(panel.arm, 26))}</b> (n = {panel.n:,})"
    place = {"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": top}
    notes = [_note(name, yanchor="bottom", **place)]
    shapes = []
    if panel.median is not None:
        line = {"color": style.color, "width": 2}
        shapes.append(
            {"type": "line", "xref": "x", "yref": f"{axis} domain", "y0": 0, "y1": 1}
            | {"x0": panel.median, "x1": panel.median, "line": line}
        )
        text = f"median {number(panel.median, 1)}"
        place = {"xref": "x", "x": panel.median, "xanchor": "left", "yref": f"{axis} domain"}
        notes.append(_note(text, y=1, yanchor="top", xshift=3, **place))
    return shapes, notes
