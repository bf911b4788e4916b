"""The report's figures are plain plotly dictionaries: small, and the same for the same input.

Plotly itself is not imported to make them. It reads part of HTML in every label, so that every text
from the data passes `label`, and none is ever put into one of plotly's text templates.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_placebo.core.escaping import visible
from sae_placebo.report.palette import MUTED, ArmStyle
from sae_placebo.report.wording import number, shorten, wrapped

Figure = dict[str, Any]


@dataclass(frozen=True)
class Dot:
    """A value with its interval, in the unit of the plot's axis; a missing bound is None."""

    value: float
    low: float | None
    high: float | None
    n: str


@dataclass(frozen=True)
class Panel:
    """One arm's distribution of token entropy over its latents.

    Attributes:
        arm: Name of the arm.
        shares: Share of the arm's latents in each bin, in percent.
        null_shares: The same of the null: as many random positions as each latent has active ones.
        median: Median in bits; None where no latent has an entropy.
        n: Latents that have an entropy.
    """

    arm: str
    shares: Sequence[float]
    null_shares: Sequence[float]
    median: float | None
    n: int


def label(text: Any) -> str:
    """Return `text` as plotly shows it literally: no tag, no entity, no control character."""
    return html.escape(visible(text), quote=True)


def folded(text: str, width: int) -> str:
    """Return `text` as a label of at most two lines; only what is longer than both is cut."""
    return "<br>".join(label(line) for line in wrapped(shorten(visible(text), 2 * width), width))


def layout_of(height: int, margin: Mapping[str, int], **rest: Any) -> dict[str, Any]:
    """Return a figure's layout: what all figures share, and `rest`, which takes precedence.

    Args:
        height: In pixels; the width is that of the page.
        margin: In pixels: `l`, `r`, `t` and `b`.
        **rest: Further entries of plotly's layout.
    """
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


def note(text: str, **place: Any) -> dict[str, Any]:
    """Return a text in the plot; `text` is markup, so data in it has passed `label`."""
    return {"text": text, "showarrow": False, **place}


def bare_axis(low: float, high: float) -> dict[str, Any]:
    """Return an axis from `low` to `high` that shows no ticks and no grid, and cannot be zoomed."""
    return {
        "range": [low, high],
        "fixedrange": True,
        "showticklabels": False,
        "showgrid": False,
        "zeroline": False,
    }


def cumulative(data: list[dict[str, Any]], height: int, x: str, y: str) -> Figure:
    """Return a figure of lines that are percentages over 0 to 1, with a legend above them.

    Args:
        data: Traces, a line each.
        height: Height without the legend, in pixels.
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
    """
    legend = 20 * len(data)
    layout = layout_of(
        height + legend,
        {"l": 48, "r": 10, "t": legend + 8, "b": 48},
        xaxis={"title": {"text": x}, "range": [0, 1], "fixedrange": True},
        yaxis={"title": {"text": y}, "range": [0, 102], "fixedrange": True},
    )
    layout["legend"] |= {"orientation": "v", "traceorder": "normal"}
    return {"data": data, "layout": layout}


def error_bars(
    values: Sequence[float],
    lows: Sequence[float | None],
    highs: Sequence[float | None],
    decimals: int,
    **look: Any,
) -> dict[str, Any]:
    """Return the bars of several points from their bounds; a bound that is None has no bar.

    Args:
        values: Where the points are.
        lows: Lower bound of each.
        highs: Upper bound of each.
        decimals: Decimals to which the lengths of bars are rounded.
        **look: Further entries, such as `color`, `thickness` and `width`.
    """
    up = [0 if h is None else round(h - v, decimals) for v, h in zip(values, highs, strict=True)]
    down = [0 if w is None else round(v - w, decimals) for v, w in zip(values, lows, strict=True)]
    return {"type": "data", "array": up, "arrayminus": down, **look}


def aa_bands(
    bands: Sequence[tuple[float, float, float]], decimals: int, width: int, **rest: Any
) -> dict[str, Any]:
    """Return A/A intervals as thick gray lines, all in one trace.

    Args:
        bands: Lower bound, upper bound and height in the plot of each.
        decimals: Decimals to which the bounds are rounded.
        width: Of a line, in pixels.
        **rest: Further entries of the trace.
    """
    x: list[float | None] = []
    y: list[float | None] = []
    for low, high, height in bands:
        x += [round(low, decimals), round(high, decimals), None]
        y += [height, height, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "A/A interval",
        **rest,
        "x": x,
        "y": y,
        "line": {"color": MUTED, "width": width},
        "opacity": 0.38,
        "hoverinfo": "skip",
    }


_NAMED = 6
"""Number of arms above which rows carry their names: nobody keeps a legend of that length in mind."""
_PANEL_PX = 150
_NAME_PX = 150


# --- class shares ----------------------------------------------------------------------------


def shares(
    classes: Sequence[str],
    dots: Mapping[str, Mapping[str, Dot]],
    styles: Mapping[str, ArmStyle],
    level: str,
) -> Figure:
    """Return a figure with a row per class and, in it, a point with its interval per arm.

    Args:
        classes: Rows, from the top down.
        dots: By arm and class: the share of latents in percent.
        styles: By arm.
        level: How an interval is called, such as "95% interval".
    """
    arms = list(dots)
    step = 1.0 / (len(arms) + 1.4)
    tops = {kind: len(classes) - i for i, kind in enumerate(classes)}
    data = []
    lowest, highest = 0.0, 1.0
    for i, arm in enumerate(arms):
        kinds = [kind for kind in classes if kind in dots[arm]]
        points = [dots[arm][kind] for kind in kinds]
        lowest = min([lowest, *(p.low for p in points if p.low is not None)])
        highest = max([highest, *(p.value if p.high is None else p.high for p in points)])
        data.append(
            _share_trace(arm, points, [tops[k] - (i + 1.2) * step for k in kinds], styles[arm])
        )
    named = len(arms) > _NAMED
    notes = [*_class_names(tops, step), *(_row_names(arms, tops, step) if named else [])]
    legend = 0 if named else sum(20 if len(arm) <= 40 else 36 for arm in arms)
    layout = layout_of(
        int(len(classes) * (24 + 17 * len(arms)) + 64 + legend),
        {"l": _NAME_PX if named else 8, "r": 14, "t": legend + 8, "b": 48},
        annotations=notes,
        showlegend=not named,
        xaxis={
            "title": {"text": f"share of all latents, with {label(level)}"},
            # an interval may reach below 0 or beyond 100: it is shown as it is
            "range": [lowest - 0.02 * (highest - lowest), highest + 0.04 * (highest - lowest)],
            "ticksuffix": "%",
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


def _class_names(tops: Mapping[str, int], step: float) -> list[dict[str, Any]]:
    """Return the name of each class, above its row."""
    place = {"xref": "x", "x": 0, "xanchor": "left", "xshift": 3, "yref": "y"}
    return [
        note(f"<b>{label(kind.replace('_', ' '))}</b>", **place, y=top - 0.3 * step)
        for kind, top in tops.items()
    ]


def _row_names(arms: Sequence[str], tops: Mapping[str, int], step: float) -> list[dict[str, Any]]:
    """Return the name of each row's arm, left of the axis."""
    place = {"xref": "paper", "x": 0, "xanchor": "right", "xshift": -4, "yref": "y"}
    return [
        note(label(shorten(visible(arm), 24)), y=round(top - (i + 1.2) * step, 4), **place)
        | {"font": {"size": 10.5}}
        for top in tops.values()
        for i, arm in enumerate(arms)
    ]


def _share_trace(
    arm: str, points: Sequence[Dot], heights: Sequence[float], style: ArmStyle
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": folded(arm, 40),
        "x": [round(p.value, 4) for p in points],
        "y": [round(y, 4) for y in heights],
        "text": [label(f"{arm}: {number(p.value)}%, {p.n}") for p in points],
        "hovertemplate": "%{text}<extra></extra>",
        "error_x": error_bars(
            [p.value for p in points],
            [p.low for p in points],
            [p.high for p in points],
            4,
            color=style.color,
            thickness=2,
            width=3,
        ),
        "marker": {"size": 8, "symbol": style.marker, "color": style.color},
    }


# --- token entropy ---------------------------------------------------------------------------


def entropy_panels(
    edges: Sequence[float], panels: Sequence[Panel], styles: Mapping[str, ArmStyle]
) -> Figure:
    """Return one histogram per arm, all over the same bins, with the null as an outline on each.

    Args:
        edges: Of the bins, in bits, evenly spaced; one more than there are bins.
        panels: From the top down.
        styles: By arm.
    """
    total = len(panels)
    height = _PANEL_PX if total <= _NAMED else _PANEL_PX - 40
    # room for a panel's name, the same in pixels however many there are
    gap = 0.11 if total <= 3 else 50 / (height * total)
    size = (1 - gap * (total - 1)) / total if total > 1 else 1.0
    ceiling = max((max([*p.shares, *p.null_shares], default=0.0) for p in panels), default=1.0)
    layout = layout_of(
        height * total + 100,
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
            "title": {"text": "latents (%)" if total <= _NAMED else "%", "standoff": 4},
            "rangemode": "tozero",
        }
        data += _panel_traces(edges, panel, axis, styles[panel.arm], first=i == 0)
        shapes, notes = _panel_marks(panel, axis, top, styles[panel.arm])
        layout["shapes"] += shapes
        layout["annotations"] += notes
    # above the name of the first panel
    layout["legend"] |= {"y": 1 + 22 / (height * total)}
    return {"data": data, "layout": layout}


def _panel_traces(
    edges: Sequence[float], panel: Panel, axis: str, style: ArmStyle, first: bool
) -> list[dict[str, Any]]:
    width = edges[1] - edges[0]
    bars = {
        "type": "bar",
        "name": folded(panel.arm, 40),
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
    median = "" if panel.median is None else f", median {number(panel.median, 1)}"
    name = f"<b>{folded(panel.arm, 34)}</b>{'<br>' if len(panel.arm) > 16 else ' '}"
    name += f"(n = {panel.n:,}{median})"
    place = {"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": top}
    notes = [note(name, yanchor="bottom", **place)]
    shapes = []
    if panel.median is not None:
        line = {"color": style.color, "width": 2}
        shapes.append(
            {"type": "line", "xref": "x", "yref": f"{axis} domain", "y0": 0, "y1": 1}
            | {"x0": panel.median, "x1": panel.median, "line": line}
        )
    return shapes, notes
