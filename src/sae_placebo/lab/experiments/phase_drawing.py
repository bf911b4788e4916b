"""A phase diagram as one page that opens without a network, and as SVG.

Color says which there is more of, composed latents or atomic ones; the two shares are written in each cell.
Where sweeps are of lambda and correlation, the analytic boundary is drawn on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sae_placebo.core.errors import StoreError
from sae_placebo.core.escaping import escaped
from sae_placebo.lab.experiments.phase import MEASURES, PhaseCell, PhaseDiagram, SeedMean
from sae_placebo.lab.experiments.sweeps import Axis
from sae_placebo.lab.generators.composed_sets import ComposedSetsSpec
from sae_placebo.lab.scores.closed_forms import composition_boundary

WIDE = 0.5
"""Intervals of (composed - atomic), which lies between -1 and 1, that are longer are hatched."""

_INK, _MUTED, _EMPTY = "#1b1f24", "#57606a", "#ffffff"
# blue and vermilion of Okabe and Ito's palette, as in the report, through a light gray
_ATOMIC, _MIDDLE, _COMPOSED = (0, 114, 178), (242, 242, 240), (213, 94, 0)
_CELL_W, _CELL_H, _LEFT, _TOP, _GAP, _LOW = 54.0, 38.0, 78.0, 64.0, 44.0, 62.0
_LOGARITHMIC = ("lambda",)
_WORDS = {
    "lambda": "λ, weight of L1",
    "correlation": "correlation f of the amplitudes",
    "width": "latents",
    "solo": "share of tokens with one item",
    "items": "items per set",
}
_COLUMNS = {
    "conjunction": "composed (share of live latents)",
    "atomic": "atomic (share of live latents)",
    "contrast": "composed − atomic",
    "mmcs": "MMCS",
    "ev": "explained variance",
    "l0": "L0",
}


def draw_phase(phase: PhaseDiagram, folder: Path) -> Path:
    """Write `phase.svg` and `phase.html` to `folder` and return the path of the page.

    Raises:
        StoreError: the folder cannot be written.
    """
    page = folder / "phase.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        drawing = svg(phase)
        (folder / "phase.svg").write_text(drawing, encoding="utf-8")
        page.write_text(html_page(phase, drawing), encoding="utf-8")
    except OSError as problem:
        raise StoreError(f"cannot write the diagram to {folder}: {problem}") from problem
    return page


@dataclass(frozen=True)
class _Panel:
    """Cells by (row, column), and what they have in common."""

    cells: Mapping[tuple[int, int], PhaseCell]
    title: str
    left: float
    top: float


def svg(phase: PhaseDiagram) -> str:
    """Return the diagram: rows, columns and panels are the sweeps, lambda and correlation first."""
    rows, columns, panels = _axes(phase)
    n_rows, n_columns = len(rows.values), len(columns.values)
    across = min(3, len(panels.values))
    panel_w = n_columns * _CELL_W + _GAP
    panel_h = n_rows * _CELL_H + _TOP + _LOW
    down = math.ceil(len(panels.values) / across)
    width, height = _LEFT + across * panel_w, down * panel_h + 66.0
    marks = [_title(width)]
    by_place = {tuple(cell.at.values()): cell for cell in phase.spec.cells}
    for i, value in enumerate(panels.values):
        place = {}
        for r, of_row in enumerate(rows.values):
            for c, of_column in enumerate(columns.values):
                at = {rows.name: of_row, columns.name: of_column, panels.name: value}
                place[r, c] = by_place[tuple(at[name] for name in phase.spec.names)]
        title = f"{value:g} {_words(panels.name)}" if panels.name else ""
        left, top = _LEFT + (i % across) * panel_w, _TOP + 20 + (i // across) * panel_h
        marks += _drawn(phase, _Panel(place, title, left, top), rows, columns, i % across == 0)
    marks += _legend(height - 50, _has_boundary(phase))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" '
        'font-family="system-ui, Helvetica, Arial, sans-serif" font-size="12">'
    )
    pattern = (
        '<defs><pattern id="wide" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><line x1="0" y1="0" x2="0" y2="6" stroke="#1b1f24" '
        'stroke-width="1.1" stroke-opacity=".45"/></pattern></defs>'
    )
    paper = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join(
        [head, "<title>Composed against atomic latents</title>", pattern, paper, *marks, "</svg>\n"]
    )


def html_page(phase: PhaseDiagram, drawing: str) -> str:
    """Return the page: the diagram, how to read it, every number with its interval, and the settings."""
    spec, done, seconds = phase.spec, phase.done, phase.seconds()
    generator = phase.spec.cells[0].generator
    fixed = {
        name: value
        for name, value in generator.model_dump(mode="json").items()
        if name not in spec.names and not (name == "d_in" and "items" in spec.names)
    }
    facts = [
        f"{len(done)} of {len(spec.cells)} cells are done, {sum(seconds):,.0f} s of one thread in all.",
        f"Each cell: {spec.seeds} SAEs of kind {spec.sae}, {spec.steps:,} steps of 512 tokens, scored on "
        f"{spec.heldout_tokens:,} held-out tokens, where a latent fires above {spec.firing_threshold:g}. "
        f"Means are over the {spec.seeds} seeds, intervals are 95% (Student).",
        "Generator: " + ", ".join(f"{name} = {value}" for name, value in fixed.items()) + ".",
    ]
    boundary = (
        "<p>The line is λ*(f): above it a dictionary of all pairs alone costs less, at its optimum, than a "
        "dictionary of all items alone. Below it, pairs pay only beside items, with width to spare. It is "
        "dashed where the SAE has fewer latents than there are pairs, so that the dictionary it speaks of "
        "does not fit.</p>"
        if _has_boundary(phase)
        else ""
    )
    table = _table(phase)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Composed against atomic latents</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, Helvetica, Arial, sans-serif; color: {_INK}; margin: 2rem auto;
  max-width: 1160px; padding: 0 1rem; }}
figure {{ margin: 1rem 0; overflow-x: auto; }} svg {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 3px 10px; text-align: right; border-bottom: 1px solid #dfe3e8; vertical-align: top; }}
th {{ position: sticky; top: 0; background: #fff; }} small {{ color: {_MUTED}; white-space: nowrap; }}
.scroll {{ overflow: auto; max-height: 70vh; }}
</style></head><body>
<h1>Composed against atomic latents</h1>
<p>A latent is <b>composed</b> if more than 30% of the variance of its firing is an interaction of features:
it fires for pairs. It is <b>atomic</b> if its decoder row has a cosine above 0.9 to a feature. It may be
both or neither, so the two shares need not sum to 1.</p>
<figure>{drawing}</figure>
<p>In each cell: composed / atomic, in percent of the live latents. Hatched: the interval of their difference
is longer than {WIDE:g}. A star marks settings at which the features are <b>not identifiable</b>: other
dictionaries give the very same activations, so that composed latents there are no error.</p>
{boundary}
{"".join(f"<p>{escaped(fact)}</p>" for fact in facts)}
<h2>Every cell</h2>
<p>Beside each mean: its interval over seeds and n, and below it the same SAE before training.</p>
<div class="scroll">{table}</div>
</body></html>
"""


def _axes(phase: PhaseDiagram) -> tuple[Axis, Axis, Axis]:
    """Return what rows, columns and panels are; an empty name: a single one."""
    first = {"lambda": 0, "correlation": 1}
    axes = sorted(phase.spec.axes, key=lambda axis: first.get(axis.name, 2))
    # one sweep alone reads better from left to right
    if len(axes) == 1:
        axes.insert(0, Axis(name="", values=(0,)))
    while len(axes) < 3:
        axes.append(Axis(name="", values=(0,)))
    return axes[0], axes[1], axes[2]


def _drawn(
    phase: PhaseDiagram, panel: _Panel, rows: Axis, columns: Axis, with_title: bool
) -> list[str]:
    n_rows = len(rows.values)
    width, height = len(columns.values) * _CELL_W, n_rows * _CELL_H
    marks = [_text(panel.left + width / 2, panel.top - 12, panel.title, weight=600)]
    labels: list[str] = []
    for (r, c), cell in panel.cells.items():
        # values rise upwards
        x, y = panel.left + c * _CELL_W, panel.top + (n_rows - 1 - r) * _CELL_H
        for mark in _cell(phase, cell, x, y):
            # numbers lie above the boundary
            (labels if mark.startswith("<text") else marks).append(mark)
    for r, value in enumerate(rows.values):
        y = panel.top + (n_rows - r - 0.5) * _CELL_H + 4
        if rows.name:
            marks.append(_text(panel.left - 7, y, f"{value:g}", anchor="end", color=_MUTED))
    for c, value in enumerate(columns.values):
        x = panel.left + (c + 0.5) * _CELL_W
        ambiguous = [not panel.cells[r, c].generator.truth.is_identifiable for r in range(n_rows)]
        label = f"{value:g}" + ("*" if all(ambiguous) else "")
        marks.append(_text(x, panel.top + height + 17, label, color=_MUTED))
    x = panel.left + width / 2
    marks.append(_text(x, panel.top + height + 38, _words(columns.name)))
    if with_title and rows.name:
        x, y = panel.left - 50, panel.top + height / 2
        turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"'
        marks.append(_text(x, y, _words(rows.name), extra=turned))
    return marks + _boundary(phase, panel, rows, columns) + labels


def _cell(phase: PhaseDiagram, cell: PhaseCell, x: int | float, y: int | float) -> list[str]:
    box = f'x="{x:.1f}" y="{y:.1f}" width="{_CELL_W - 1}" height="{_CELL_H - 1}"'
    where = ", ".join(f"{name} {value:g}" for name, value in cell.at.items())
    if cell.key not in phase.found:
        empty = f'<rect {box} fill="{_EMPTY}" stroke="#dfe3e8" stroke-dasharray="3 3">'
        return [f"{empty}<title>{escaped(where)}: not done yet</title></rect>"]
    found = phase.score(cell, "contrast")
    if found.mean is None:
        empty = f'<rect {box} fill="{_EMPTY}" stroke="{_MUTED}">'
        reason = escaped(f"{where}: {found.reason}")
        middle = _text(x + _CELL_W / 2, y + _CELL_H / 2 + 4, "–", color=_MUTED)
        return [f"{empty}<title>{reason}</title></rect>", middle]
    words = [f"{where}, n = {found.n} seeds"]
    words += [f"{_COLUMNS[name]}: {in_words(phase.score(cell, name))}" for name in MEASURES]
    title = f"<title>{escaped(chr(10).join(words))}</title>"
    marks = [f'<rect {box} fill="{color_of(found.mean)}">{title}</rect>']
    if found.spread is not None and found.spread > WIDE:
        marks.append(f'<rect {box} fill="url(#wide)" pointer-events="none"/>')
    composed, atomic = (phase.score(cell, name).mean or 0.0 for name in ("conjunction", "atomic"))
    ink = "#ffffff" if abs(found.mean) > 0.72 else _INK
    label = f"{100 * composed:.0f} / {100 * atomic:.0f}"
    halo = ' pointer-events="none" font-size="11.5"'
    # behind the numbers goes the color of the cell, so that a line across does not hide them
    if ink == _INK:
        halo += f' stroke="{color_of(found.mean)}" stroke-width="3" paint-order="stroke"'
    marks.append(_text(x + _CELL_W / 2, y + _CELL_H / 2 + 4, label, color=ink, extra=halo))
    return marks


def _boundary(phase: PhaseDiagram, panel: _Panel, rows: Axis, columns: Axis) -> list[str]:
    """Return lambda*(f) across a panel, where it lies inside; nothing for other sweeps."""
    cell = panel.cells[0, 0]
    generator = cell.generator
    if not _has_boundary(phase) or not _holds(cell):
        return []
    assert isinstance(generator, ComposedSetsSpec)
    low, high = columns.values[0], columns.values[-1]
    points = []
    n_rows = len(rows.values)
    for i in range(101):
        f = low + (high - low) * i / 100
        value = composition_boundary(f)
        if value <= 0:
            continue
        up = _position(value, rows)
        if -0.5 <= up <= n_rows - 0.5:
            x = panel.left + (_position(f, columns) + 0.5) * _CELL_W
            points.append(f"{x:.1f},{panel.top + (n_rows - up - 0.5) * _CELL_H:.1f}")
    if not points:
        return []
    dashed = ' stroke-dasharray="7 5"' if cell.sae.d_sae < generator.items**2 else ""
    line = f'<polyline points="{" ".join(points)}" fill="none" stroke-linejoin="round" '
    return [
        f'{line}stroke="#ffffff" stroke-width="5" stroke-opacity=".8" pointer-events="none"/>',
        f'{line}stroke="{_INK}" stroke-width="2.2" pointer-events="none"{dashed}/>',
    ]


def _holds(cell: PhaseCell) -> bool:
    """Whether lambda* was derived for such tokens: two items of uniform amplitudes on every one."""
    made = cell.generator
    if not isinstance(made, ComposedSetsSpec):
        return False
    at_right_angles = made.d_in >= 2 * made.items
    return made.amplitude == "uniform" and made.solo == 0 and at_right_angles


def _has_boundary(phase: PhaseDiagram) -> bool:
    swept = {"lambda", "correlation"} <= set(phase.spec.names)
    return swept and any(_holds(cell) for cell in phase.spec.cells)


def _position(value: int | float, axis: Axis) -> float:
    """Return where a value lies among the axis's values, 0 at the first; beyond them, extrapolated."""
    scale: Callable[[float], float] = math.log if axis.name in _LOGARITHMIC else float
    known = [scale(one) for one in axis.values]
    if len(known) == 1:
        return 0.0 if scale(value) == known[0] else math.inf
    at = scale(value)
    i = next((i for i in range(1, len(known) - 1) if at < known[i]), len(known) - 1)
    return i - 1 + (at - known[i - 1]) / (known[i] - known[i - 1])


def color_of(contrast: int | float) -> str:
    """Return the color of (composed - atomic), from blue at -1 to vermilion at 1."""
    end = _COMPOSED if contrast > 0 else _ATOMIC
    share = min(1.0, abs(contrast))
    mixed = (round(m + share * (e - m)) for m, e in zip(_MIDDLE, end, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def in_words(found: SeedMean) -> str:
    """Return a mean with its interval and n, or why there is none."""
    if found.mean is None:
        return f"none ({found.reason})"
    if found.low is None or found.high is None:
        return f"{found.mean:.3f} (n = {found.n}, no interval: {found.reason})"
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] (n = {found.n})"


def _legend(y: int | float, boundary: bool) -> list[str]:
    left, length, steps = _LEFT, 264.0, 44
    marks = [
        f'<rect x="{left + i * length / steps:.1f}" y="{y:.0f}" width="{length / steps + 0.3:.1f}" '
        f'height="12" fill="{color_of(2 * (i + 0.5) / steps - 1)}"/>'
        for i in range(steps)
    ]
    for share, words in ((0.0, "all atomic"), (0.5, "as many"), (1.0, "all composed")):
        anchor = ("start", "middle", "end")[round(2 * share)]
        marks.append(_text(left + share * length, y + 28, words, anchor=anchor, color=_MUTED))
    x = left + length + 36
    marks += [
        f'<rect x="{x}" y="{y - 2:.0f}" width="22" height="16" fill="#f2f2f0"/>',
        f'<rect x="{x}" y="{y - 2:.0f}" width="22" height="16" fill="url(#wide)"/>',
        _text(x + 30, y + 10, f"interval longer than {WIDE:g}", anchor="start", color=_MUTED),
        _text(x, y + 30, "* not identifiable", anchor="start", color=_MUTED),
    ]
    if boundary:
        x += 200
        for row, dash, words in (
            (4, "", "λ*(f): above it, pairs alone cost less than items alone"),
            (24, ' stroke-dasharray="7 5"', "the same, but pairs do not fit this width"),
        ):
            marks.append(
                f'<line x1="{x}" y1="{y + row:.0f}" x2="{x + 34}" y2="{y + row:.0f}" '
                f'stroke="{_INK}" stroke-width="2.2"{dash}/>'
            )
            marks.append(_text(x + 42, y + row + 5, words, anchor="start", color=_MUTED))
    return marks


def _table(phase: PhaseDiagram) -> str:
    names = [*phase.spec.names, *(_COLUMNS[name] for name in MEASURES), "s"]
    head = "".join(f"<th>{escaped(_WORDS.get(name, name))}</th>" for name in names)
    lines = []
    for cell, seconds in zip(phase.done, phase.seconds(), strict=True):
        values = [f"{value:g}" for value in cell.at.values()]
        values += [
            f"{_in_cell(phase.score(cell, name))}<br>{_in_cell(phase.null(cell, name), True)}"
            for name in MEASURES
        ]
        lines.append("".join(f"<td>{value}</td>" for value in [*values, f"{seconds:.1f}"]))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _in_cell(found: SeedMean, untrained: bool = False) -> str:
    before = "untrained " if untrained else ""
    if found.mean is None:
        return f"<small>{before}none: {escaped(str(found.reason))}</small>"
    if found.low is None or found.high is None:
        between = f"<span title='{escaped(str(found.reason))}'>no interval</span>"
    else:
        between = f"{found.low:.2f} to {found.high:.2f}"
    mean = f"{found.mean:.2f}" if untrained else f"<b>{found.mean:.2f}</b>"
    return f"<small>{before}</small>{mean} <small>{between}, n {found.n}</small>"


def _words(name: str) -> str:
    return _WORDS.get(name, name)


def _title(width: int | float) -> str:
    words = "Composed / atomic, % of live latents"
    return _text(width / 2, 26, words, weight=600, extra=' font-size="15"')


def _text(
    x: int | float,
    y: int | float,
    words: str,
    *,
    anchor: str = "middle",
    color: str = _INK,
    weight: int = 400,
    extra: str = "",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" '
        f'font-weight="{weight}"{extra}>{escaped(words)}</text>'
    )
