"""An attribution graph as an SVG picture: tokens from left to right, depth upwards."""

from __future__ import annotations

import math
from collections.abc import Collection

from sae_placebo.causal.circuits.graph import Edge, Graph, Node
from sae_placebo.core.escaping import escaped

_WIDTH, _HEIGHT = 1000, 600
_LEFT, _RIGHT, _TOP, _BOTTOM = 104, 24, 46, 66
_ROWS = 3
_EXCITES, _INHIBITS, _LATENT, _ERROR, _TOKEN, _LOGIT = (
    *("#2b6cb0", "#c53030", "#2f855a"),
    *("#a0aec0", "#4a5568", "#6b46c1"),
)
_COLORS = {"latent": _LATENT, "error": _ERROR, "token": _TOKEN, "logit": _LOGIT}
_Point = tuple[float, float]


def draw(graph: Graph, faded: Collection[tuple[str, int]] = ()) -> str:
    """Return the graph as SVG text, 1,000 by 600, with every text from data escaped.

    Only positions that hold a node have a column; dots stand for those left out.

    Args:
        graph: What to draw.
        faded: (hookpoint, latent) of latents that do not pass the placebo: drawn pale, and so are the
            edges that touch them.
    """
    columns = _columns(graph)
    points = _points(graph, columns)
    pale = [
        node.kind == "latent" and (graph.hookpoints[node.depth - 1], node.index) in set(faded)
        for node in graph.nodes
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" font-family="sans-serif" font-size="11">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        *_depths(graph),
        *_axis(graph, columns),
    ]
    for edge in reversed(graph.edges):
        is_pale = pale[edge.source] or pale[edge.target]
        parts.append(_curve(edge, points[edge.source], points[edge.target], is_pale, graph))
    order = sorted(range(len(graph.nodes)), key=lambda i: -graph.nodes[i].influence)
    parts += [_mark(graph.nodes[i], points[i], pale[i], graph) for i in order]
    parts += [_label(graph.nodes[i], points[i], pale[i], graph) for i in order]
    return "\n".join([*parts, _legend(any(pale)), "</svg>"])


# --- where -------------------------------------------------------------------------------------------


def _columns(graph: Graph) -> dict[int, tuple[float, float]]:
    """Return the left edge and width of each position's column, wider where more nodes share a cell."""
    cells: dict[tuple[int, int], int] = {}
    for node in graph.nodes:
        cells[node.position, node.depth] = cells.get((node.position, node.depth), 0) + 1
    positions = sorted({position for position, _ in cells})
    top = len(graph.hookpoints) + 1
    wide = {
        p: max(
            math.ceil(n / (1 if depth in (0, top) else _ROWS))
            for (q, depth), n in cells.items()
            if q == p
        )
        for p in positions
    }
    unit = (_WIDTH - _LEFT - _RIGHT) / max(sum(wide.values()), 1)
    found, x = {}, float(_LEFT)
    for p in positions:
        found[p] = (x, unit * wide[p])
        x += unit * wide[p]
    return found


def _level(graph: Graph, depth: int) -> float:
    step = (_HEIGHT - _TOP - _BOTTOM - 40) / (len(graph.hookpoints) + 1)
    return _HEIGHT - _BOTTOM - 10 - depth * step


def _points(graph: Graph, columns: dict[int, tuple[float, float]]) -> list[_Point]:
    step = _level(graph, 0) - _level(graph, 1)
    cells: dict[tuple[int, int], list[int]] = {}
    for i, node in enumerate(graph.nodes):
        cells.setdefault((node.position, node.depth), []).append(i)
    points: list[_Point] = [(0.0, 0.0)] * len(graph.nodes)
    for (position, depth), members in cells.items():
        left, width = columns[position]
        end = depth in (0, len(graph.hookpoints) + 1)
        rows = 1 if end else min(_ROWS, len(members))
        per_row = math.ceil(len(members) / rows)
        # left to right by influence, so that the largest of a cell does not hide others
        members = sorted(members, key=lambda i: -graph.nodes[i].influence)
        for k, i in enumerate(members):
            row, column = k % rows, k // rows
            x = left + width * (column + 0.5) / per_row
            x += 0 if end else (row - (rows - 1) / 2) * min(width / per_row * 0.22, 14)
            y = _level(graph, depth) + (row - (rows - 1) / 2) * min(step * 0.2, 40)
            points[i] = (x, y)
    return points


# --- what --------------------------------------------------------------------------------------------


def _depths(graph: Graph) -> list[str]:
    found = []
    for depth, name in enumerate(("tokens", *graph.hookpoints, "next token")):
        y = _level(graph, depth)
        found.append(
            f'<line x1="{_LEFT - 6}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#edf2f7"/>'
            f'<text x="{_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end" fill="#4a5568">{escaped(name)}</text>'
        )
    return found


def _axis(graph: Graph, columns: dict[int, tuple[float, float]]) -> list[str]:
    found, before = [], -1
    y = _level(graph, 0) + 22
    for position, (left, width) in columns.items():
        x = left + width / 2
        text = _printable(graph.tokens[position])
        if position > before + 1:
            found.append(
                f'<text x="{left:.1f}" y="{y:.1f}" fill="#a0aec0" text-anchor="middle">⋯</text>'
            )
        before = position
        found.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="#1a202c" text-anchor="end" '
            f'font-family="monospace" transform="rotate(-35 {x:.1f} {y:.1f})">{escaped(text)}'
            f"<title>position {position}</title></text>"
        )
    return found


def _curve(edge: Edge, start: _Point, end: _Point, pale: bool, graph: Graph) -> str:
    (x, y), (u, v) = start, end
    largest = max(one.flow for one in graph.edges)
    width = 0.6 + 4.4 * math.sqrt(edge.flow / largest)
    opacity = (0.1 if pale else 0.2) + (0.08 if pale else 0.4) * math.sqrt(edge.flow / largest)
    color = _EXCITES if edge.weight > 0 else _INHIBITS
    middle = (y + v) / 2
    names = " to ".join(_name(graph.nodes[i], graph) for i in (edge.source, edge.target))
    return (
        f'<path d="M{x:.1f} {y:.1f}C{x:.1f} {middle:.1f} {u:.1f} {middle:.1f} {u:.1f} {v:.1f}" '
        f'fill="none" stroke="{color}" stroke-width="{width:.2f}" stroke-opacity="{opacity:.2f}">'
        f"<title>{escaped(names)}: {edge.weight:+.3g}, {edge.flow:.1%} of the flow</title></path>"
    )


def _radius(node: Node) -> float:
    return 4 + 18 * math.sqrt(min(node.influence, 0.5))


def _mark(node: Node, point: _Point, pale: bool, graph: Graph) -> str:
    (x, y), r = point, _radius(node)
    style = f'fill="{_COLORS[node.kind]}" stroke="#fff"'
    if pale:
        style = f'fill="{_LATENT}" fill-opacity="0.18" stroke="{_LATENT}" stroke-dasharray="3 2"'
    title = (
        f"<title>{escaped(_name(node, graph))}: activation {node.activation:.3g}, "
        f"influence {node.influence:.1%}{', no better than the placebo' if pale else ''}</title>"
    )
    if node.kind == "latent":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" {style}>{title}</circle>'
    turned = f' transform="rotate(45 {x:.1f} {y:.1f})"' if node.kind == "error" else ""
    side = r * 1.6
    return (
        f'<rect x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}" '
        f"{style}{turned}>{title}</rect>"
    )


def _label(node: Node, point: _Point, pale: bool, graph: Graph) -> str:
    (x, y), r = point, _radius(node)
    if node.kind == "latent":
        color = "#a0aec0" if pale else "#1a202c"
        return (
            f'<text x="{x:.1f}" y="{y - r - 2:.1f}" text-anchor="middle" font-size="10" '
            f'fill="{color}" stroke="#fff" stroke-width="2.5" paint-order="stroke">{node.index}</text>'
        )
    if node.kind == "logit":
        text = f"{_printable(graph.logit_texts[node.index])} {node.activation:.0%}"
        return (
            f'<text x="{x:.1f}" y="{y - r - 5:.1f}" text-anchor="middle" font-family="monospace" '
            f'fill="#1a202c">{escaped(text)}</text>'
        )
    return ""


def _name(node: Node, graph: Graph) -> str:
    at = f"{_printable(graph.tokens[node.position])} ({node.position})"
    if node.kind == "logit":
        return f"next token {_printable(graph.logit_texts[node.index])}"
    if node.kind == "token":
        return f"token {at}"
    place = f"{graph.hookpoints[node.depth - 1]} at {at}"
    return f"latent {node.index}, {place}" if node.kind == "latent" else f"error, {place}"


def _printable(text: str, most: int = 12) -> str:
    """Return a token's text with blanks shown and without what XML does not allow."""
    shown = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    shown = "".join(c if c.isprintable() else "·" for c in shown)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _legend(any_pale: bool) -> str:
    entries = [
        (f'<circle cx="6" cy="-4" r="5" fill="{_LATENT}"/>', "latent"),
        (
            f'<rect x="2" y="-8" width="8" height="8" fill="{_ERROR}" transform="rotate(45 6 -4)"/>',
            "error",
        ),
        (f'<line x1="0" x2="14" y1="-4" y2="-4" stroke="{_EXCITES}" stroke-width="3"/>', "raises"),
        (f'<line x1="0" x2="14" y1="-4" y2="-4" stroke="{_INHIBITS}" stroke-width="3"/>', "lowers"),
    ]
    if any_pale:
        entries.append(
            (
                f'<circle cx="6" cy="-4" r="5" fill="{_LATENT}" fill-opacity="0.18" stroke="{_LATENT}" '
                'stroke-dasharray="3 2"/>',
                "latent no better than the placebo",
            )
        )
    parts = []
    x = float(_LEFT)
    for mark, text in entries:
        parts.append(
            f'<g transform="translate({x:.0f} 18)">{mark}<text x="19" y="0">{text}</text></g>'
        )
        x += 40 + 6.2 * len(text)
    parts.append(
        f'<text x="{x + 6:.0f}" y="18" fill="#718096">size: influence on the next token</text>'
    )
    return "".join(parts)
