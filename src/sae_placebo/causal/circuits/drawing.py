"""An attribution graph as a picture: tokens from left to right, depth upwards.

`draw` gives an interactive figure, by plotly, and `draw_static` one to print, by matplotlib. Both show the
same marks at the same places.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sae_placebo.causal.circuits.graph import Edge, Graph, Node
from sae_placebo.core.escaping import escaped, visible
from sae_placebo.core.pictures import GRID, INK, MUTED, plain_style

_ROWS = 3
_SIZE = "size: influence on the next token"
_PALE, _FAINT = "latent no better than the placebo", "#a0aec0"
_SIGNS = {"raises": "#2b6cb0", "lowers": "#c53030"}
# color, shape in plotly and in matplotlib, width in radii of the circle of a latent
_LOOKS = {
    "token": ("#4a5568", "square", "s", 1.6),
    "error": ("#a0aec0", "diamond", "D", 1.6),
    _PALE: ("rgba(47, 133, 90, 0.18)", "circle", "o", 2.0),
    "latent": ("#2f855a", "circle", "o", 2.0),
    "next token": ("#6b46c1", "square", "s", 1.6),
}
_IN_LEGEND = ("latent", "error", _PALE)


class _Mark(NamedTuple):
    """A node: its width in pixels, what is written above it, and what the pointer shows of it."""

    x: float
    y: float
    side: float
    label: str
    details: str


class _Curve(NamedTuple):
    """An edge: four points of a cubic curve, raises or lowers, its width in pixels."""

    corners: Float[np.ndarray, "4 2"]
    sign: str
    width: float
    opacity: float
    details: str


class _Picture(NamedTuple):
    """What is drawn where: x counts columns from the left, y is the depth.

    Of marks of one look the largest comes first, and of curves the weakest, so that none hides another.
    """

    marks: dict[str, list[_Mark]]
    curves: list[_Curve]
    tokens: dict[float, str]
    depths: list[str]
    width: int


def draw(graph: Graph, faded: Collection[tuple[str, int]] = ()) -> Any:
    """Return the graph as an interactive `plotly.graph_objects.Figure`, with all text from data escaped.

    Only positions that hold a node have a column; dots before a token stand for those left out. Blue
    edges raise their target and red ones lower it; the flow along an edge is its width. The pointer shows
    what a node or an edge is, with its numbers.

    Args:
        graph: What to draw.
        faded: (hookpoint, latent) of latents that do not pass the placebo: drawn pale, and so are the
            edges that touch them.
    """
    import plotly.graph_objects as go

    picture = _picture(graph, faded)
    figure = go.Figure(layout={"template": "none", "hovermode": "closest", "height": 600})
    for curve in picture.curves:
        x, y = _along(curve.corners).T.tolist()
        line = {"color": _SIGNS[curve.sign], "width": curve.width}
        told = {"hovertext": _markup(curve.details), "hoverinfo": "text", "legendgroup": curve.sign}
        style = {"mode": "lines", "line": line, "opacity": curve.opacity, "showlegend": False}
        figure.add_scatter(x=x, y=y, **style, **told)
    for sign, color in _SIGNS.items():
        line = {"color": color, "width": 3}
        figure.add_scatter(x=[None], y=[None], mode="lines", line=line, name=sign, legendgroup=sign)
    for name, marks in picture.marks.items():
        x, y, sides, labels, details = map(list, zip(*marks, strict=True))
        color, symbol, _, _ = _LOOKS[name]
        outline = {"color": _LOOKS["latent"][0] if name == _PALE else "#fff", "width": 1}
        halo = {"shadow": "0 0 2px #fff, 0 0 3px #fff", "color": _FAINT if name == _PALE else INK}
        figure.add_scatter(
            **{"x": x, "y": y, "mode": "markers+text", "textposition": "top center"},
            **{"text": list(map(_markup, labels)), "textfont": {"size": 11, **halo}},
            **{"hovertext": list(map(_markup, details)), "hoverinfo": "text", "name": name},
            marker={"color": color, "symbol": symbol, "size": sides, "opacity": 1, "line": outline},
            showlegend=name in _IN_LEGEND,
        )
    for axis, ticks in (
        (figure.layout.xaxis, picture.tokens),
        (figure.layout.yaxis, dict(enumerate(picture.depths))),
    ):
        names = [_markup(text) for text in ticks.values()]
        axis.update(tickvals=list(ticks), ticktext=names, zeroline=False, automargin=True)
    figure.update_xaxes(range=[0, picture.width], tickangle=-35, showgrid=False)
    figure.update_yaxes(range=[-0.2, len(picture.depths) - 0.6], gridcolor=GRID)
    above = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "itemsizing": "constant"}
    title = {"text": f"{_SIZE};  ", "font": {"size": 12}}
    figure.update_layout(legend={**above, "title": title}, margin={"t": 70, "b": 20})
    return figure


@plain_style()
def draw_static(graph: Graph, faded: Collection[tuple[str, int]] = ()) -> Any:
    """Return the same picture as a `matplotlib.figure.Figure`, which `core.pictures.svg_of` saves.

    Args:
        graph: What to draw.
        faded: As in `draw`; the outlines of these latents are dashed besides.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    picture = _picture(graph, faded)
    figure = Figure(figsize=(10.4, 6.25), layout="constrained")
    axes = figure.subplots()
    for curve in picture.curves:
        path = Path(curve.corners, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
        style = {"ec": _SIGNS[curve.sign], "lw": 0.75 * curve.width, "alpha": curve.opacity}
        axes.add_patch(PathPatch(path, fill=False, **style))
    handles: list[Any] = [Line2D([], [], c=color, lw=3, label=s) for s, color in _SIGNS.items()]
    for name, marks in picture.marks.items():
        x, y, sides, labels, _ = zip(*marks, strict=True)
        pale, (color, _, marker, _) = name == _PALE, _LOOKS[name]
        green = _LOOKS["latent"][0]
        style = (
            {"fc": (green, 0.18), "ec": green, "ls": "--"} if pale else {"fc": color, "ec": "#fff"}
        )
        # 0.75 points are a pixel
        areas = np.square(np.multiply(sides, 0.75))
        drawn = axes.scatter(x, y, areas, marker=marker, lw=0.8, zorder=3, label=name, **style)
        handles += [drawn] if name in _IN_LEGEND else []
        for place, side, label in zip(zip(x, y, strict=True), sides, labels, strict=True):
            above = {"textcoords": "offset points", "ha": "center", "va": "bottom", "zorder": 4}
            halo = {"fc": "#fff", "ec": "none", "alpha": 0.6, "pad": 0.4}
            ink = {"color": _FAINT if pale else INK, "fontsize": 7.5, "bbox": halo}
            axes.annotate(label, place, (0, 0.375 * side + 1), **above, **ink)
    axes.set(xlim=(0, picture.width), ylim=(-0.2, len(picture.depths) - 0.6))
    turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor", "family": "monospace"}
    axes.set_xticks(list(picture.tokens), list(picture.tokens.values()), **turned, color=INK)
    axes.set_yticks(range(len(picture.depths)), picture.depths)
    axes.grid(axis="y")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), fontsize=8)
    figure.text(0.99, 0.985, _SIZE, ha="right", va="top", color=MUTED, fontsize=8)
    return figure


# --- where -------------------------------------------------------------------------------------------


def _picture(graph: Graph, faded: Collection[tuple[str, int]]) -> _Picture:
    columns = _columns(graph)
    points = _points(graph, columns)
    looks = [_look(node, graph, faded) for node in graph.nodes]
    marks: dict[str, list[_Mark]] = {name: [] for name in _LOOKS if name in looks}
    for i in sorted(range(len(graph.nodes)), key=lambda i: -graph.nodes[i].influence):
        marks[looks[i]].append(_mark(graph.nodes[i], points[i], looks[i], graph))
    curves = [
        _curve(edge, points, _PALE in (looks[edge.source], looks[edge.target]), graph)
        for edge in reversed(graph.edges)
    ]
    tokens, before = {}, -1
    for position, (left, width) in columns.items():
        gap = "⋯ " if position > before + 1 else ""
        tokens[left + width / 2] = gap + _printable(graph.tokens[position])
        before = position
    depths = ["tokens", *map(visible, graph.hookpoints), "next token"]
    return _Picture(marks, curves, tokens, depths, sum(width for _, width in columns.values()))


def _rows(graph: Graph, depth: int, n: int) -> int:
    """Return in how many rows the `n` nodes of a cell stand: tokens and logits have one."""
    return 1 if depth in (0, len(graph.hookpoints) + 1) else min(_ROWS, n)


def _columns(graph: Graph) -> dict[int, tuple[int, int]]:
    """Return the left edge and width of each position's column, wider where more nodes share a cell."""
    widths: dict[int, int] = {}
    cells = Counter((node.position, node.depth) for node in graph.nodes)
    for (position, depth), n in sorted(cells.items()):
        widths[position] = max(widths.get(position, 0), math.ceil(n / _rows(graph, depth, n)))
    lefts = itertools.accumulate(widths.values(), initial=0)
    return {p: (left, width) for (p, width), left in zip(widths.items(), lefts, strict=False)}


def _points(graph: Graph, columns: dict[int, tuple[int, int]]) -> list[tuple[float, float]]:
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    # left to right by influence, so that the largest of a cell does not hide others
    for i in sorted(range(len(graph.nodes)), key=lambda i: -graph.nodes[i].influence):
        cells[graph.nodes[i].position, graph.nodes[i].depth].append(i)
    points = [(0.0, 0.0)] * len(graph.nodes)
    # a row is set off against the next, so that the numbers of one stand beside the circles of the other
    shift = min(0.22, sum(width for _, width in columns.values()) / 62)
    for (position, depth), members in cells.items():
        left, width = columns[position]
        rows = _rows(graph, depth, len(members))
        for k, i in enumerate(members):
            column, row = divmod(k, rows)
            off = row - (rows - 1) / 2
            x = left + width * (column + 0.5 + off * shift) / math.ceil(len(members) / rows)
            points[i] = (x, depth - off * 0.2)
    return points


# --- what --------------------------------------------------------------------------------------------


def _look(node: Node, graph: Graph, faded: Collection[tuple[str, int]]) -> str:
    if node.kind == "latent" and (graph.hookpoints[node.depth - 1], node.index) in faded:
        return _PALE
    return "next token" if node.kind == "logit" else node.kind


def _mark(node: Node, point: tuple[float, float], look: str, graph: Graph) -> _Mark:
    label = str(node.index) if node.kind == "latent" else ""
    if node.kind == "logit":
        label = f"{_printable(graph.logit_texts[node.index])} {node.activation:.0%}"
    side = _LOOKS[look][-1] * (4 + 18 * math.sqrt(min(node.influence, 0.5)))
    rest = ", no better than the placebo" if look == _PALE else ""
    numbers = f"activation {node.activation:.3g}, influence {node.influence:.1%}{rest}"
    return _Mark(*point, side, label, f"{_name(node, graph)}: {numbers}")


def _curve(edge: Edge, points: list[tuple[float, float]], pale: bool, graph: Graph) -> _Curve:
    (x, y), (u, v) = points[edge.source], points[edge.target]
    corners = np.array([(x, y), (x, (y + v) / 2), (u, (y + v) / 2), (u, v)])
    share = math.sqrt(edge.flow / max(other.flow for other in graph.edges))
    opacity = 0.1 + 0.08 * share if pale else 0.2 + 0.4 * share
    names = " to ".join(_name(graph.nodes[i], graph) for i in (edge.source, edge.target))
    details = f"{names}: {edge.weight:+.3g}, {edge.flow:.1%} of the flow"
    sign = "raises" if edge.weight > 0 else "lowers"
    return _Curve(corners, sign, 0.6 + 4.4 * share, opacity, details)


def _along(corners: Float[np.ndarray, "4 2"]) -> Float[np.ndarray, "point 2"]:
    """Return points along a cubic curve: plotly shows an edge's details at each of them."""
    t = np.linspace(0, 1, 25)[:, None]
    weights = (1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3
    along: Float[np.ndarray, "point 2"] = np.hstack(weights) @ corners
    return along.round(4)


def _name(node: Node, graph: Graph) -> str:
    at = f"{_printable(graph.tokens[node.position])} ({node.position})"
    if node.kind == "logit":
        return f"next token {_printable(graph.logit_texts[node.index])}"
    if node.kind == "token":
        return f"token {at}"
    place = f"{graph.hookpoints[node.depth - 1]} at {at}"
    return f"latent {node.index}, {place}" if node.kind == "latent" else f"error, {place}"


def _printable(text: str, most: int = 12) -> str:
    """Return a token's text with blanks shown and without characters that cannot be."""
    shown = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    shown = "".join(c if c.isprintable() else "·" for c in shown)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _markup(text: str) -> str:
    """Return `text` as plotly shows it literally: it reads tags and, beside MathJax, TeX in dollars."""
    return escaped(text).replace("$", "&#36;")
