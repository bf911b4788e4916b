"""A phase diagram as one page that opens without a network, and as SVG.

Color says which there is more of, composed latents or atomic ones; the two shares are written in each cell.
Where sweeps are of lambda and correlation, the analytic boundary is drawn on top.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from sae_placebo.core.errors import StoreError
from sae_placebo.core.escaping import escaped
from sae_placebo.core.pictures import INK, MUTED, plain_style, svg_of
from sae_placebo.lab.experiments.phase import MEASURES, PhaseDiagram, SeedMean
from sae_placebo.lab.experiments.phase_panels import (
    COLUMNS,
    WIDE,
    Mark,
    Panel,
    axes_of,
    has_boundary,
    panels_of,
    words,
)
from sae_placebo.report.build import embed_json, page_policy, page_scripts
from sae_placebo.report.plots import label

# blue and vermilion of Okabe and Ito's palette, as in the report, through a light gray
_ATOMIC, _MIDDLE, _COMPOSED = (0, 114, 178), (242, 242, 240), (213, 94, 0)
_TITLE = "Composed / atomic, % of live latents"
SCALE = {-1: "all atomic", 0: "as many", 1: "all composed"}
"""What (composed - atomic) means at the ends and in the middle of its colors."""
_WIDE = f"interval longer than {WIDE:g}"
_STAR = "* not identifiable"
_LINES = {
    True: "λ*(f): above it, pairs alone cost less than items alone",
    False: "the same, but pairs do not fit this width",
}
_HATCH = "#7a7d80"
_PATTERN = {"shape": "/", "size": 6, "solidity": 0.2, "fgcolor": "#5a5d60", "bgcolor": "#00000000"}
_FILLED = {"fill": "toself", "fillpattern": _PATTERN, "line": {"width": 0}}
_BARE = {"showgrid": False, "zeroline": False}


def draw_phase(phase: PhaseDiagram, folder: Path) -> Path:
    """Write `phase.html` and `phase.svg` to `folder` and return the path of the page.

    Raises:
        StoreError: the folder cannot be written.
        MissingExtra: matplotlib is not installed, so that the page is written and `phase.svg` is not.
    """
    page = folder / "phase.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page.write_text(html_page(phase), encoding="utf-8")
        drawing = svg_of(static(phase), "Composed against atomic latents")
        (folder / "phase.svg").write_text(drawing, encoding="utf-8")
    except OSError as problem:
        raise StoreError(f"cannot write the diagram to {folder}: {problem}") from problem
    return page


def color_of(contrast: int | float) -> str:
    """Return the color of (composed - atomic), from blue at -1 to vermilion at 1."""
    end = _COMPOSED if contrast > 0 else _ATOMIC
    share = min(1.0, abs(contrast))
    mixed = (round(m + share * (e - m)) for m, e in zip(_MIDDLE, end, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _places(panel: Panel) -> list[tuple[int, int, Mark]]:
    """Return the cells of a panel, each with its row and column."""
    return [(r, c, mark) for r, row in enumerate(panel.marks) for c, mark in enumerate(row)]


def _shade(mark: Mark) -> str:
    """Return the color of a cell."""
    return "#ffffff" if mark.contrast is None else color_of(mark.contrast)


def _ink(mark: Mark) -> str:
    """Return the color of a cell's numbers, which can be read on the cell's own color."""
    if mark.contrast is None:
        return MUTED
    return "#ffffff" if abs(mark.contrast) > 0.72 else INK


# --- static ------------------------------------------------------------------------------------------


@plain_style()
def static(phase: PhaseDiagram) -> Any:
    """Return the diagram as a `matplotlib.figure.Figure`, one panel for every value of the third sweep.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    (rows, columns, _), panels = axes_of(phase), panels_of(phase)
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    width = max(across * (len(columns.values) * 0.6 + 0.5) + 1.4, 6.5)
    height = down * (len(rows.values) * 0.4 + 0.9) + 1.2
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(_TITLE)
    colors = LinearSegmentedColormap.from_list("phase", [color_of(value) for value in SCALE])
    shades = ScalarMappable(Normalize(-1, 1), colors)
    grid = figure.subplots(down, across, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel, shades)
        axes.set_xlabel(words(columns.name))
    for row in grid:
        row[0].set_ylabel(words(rows.name))
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    bar = figure.colorbar(shades, ax=figure.axes, fraction=0.03, aspect=25)
    bar.set_ticks(list(SCALE), labels=list(SCALE.values()))
    bar.outline.set_visible(False)
    handles = [Patch(fc=color_of(0), ec=_HATCH, hatch="////", lw=0, label=_WIDE)]
    handles += [Line2D([], [], ls="", label=_STAR)]
    for fits, name in _LINES.items() if has_boundary(phase) else ():
        handles.append(Line2D([], [], c=INK, lw=1.7, ls="-" if fits else "--", label=name))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, labelcolor=MUTED)
    return figure


def _draw_panel(axes: Any, panel: Panel, shades: Any) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    n_rows, n_columns = len(panel.marks), len(panel.columns)
    values = np.array([[mark.contrast for mark in row] for row in panel.marks], dtype=float)
    sides = np.arange(n_columns + 1) - 0.5, np.arange(n_rows + 1) - 0.5
    shown = {"cmap": shades.cmap, "norm": shades.norm, "edgecolors": "#fff", "linewidth": 1}
    axes.pcolormesh(*sides, np.ma.masked_invalid(values), **shown)
    for r, c, mark in _places(panel):
        if mark.contrast is None:
            outline = {"fill": False, "ec": MUTED, "ls": "-" if mark.label else ":"}
            axes.add_patch(Rectangle((c - 0.46, r - 0.44), 0.92, 0.88, lw=0.8, **outline))
        if mark.is_wide:
            hatched = {"fill": False, "hatch": "////", "lw": 0, "ec": _HATCH}
            axes.add_patch(Rectangle((c - 0.5, r - 0.5), 1, 1, **hatched))
        # behind the numbers goes the color of the cell, so that a line across does not hide them
        behind = {"fc": _shade(mark), "ec": "none", "pad": 1}
        middle = {"ha": "center", "va": "center", "fontsize": 8, "zorder": 4}
        axes.text(c, r, mark.label, color=_ink(mark), bbox=behind, **middle)
    if panel.boundary is not None:
        halo = [Stroke(linewidth=4, foreground="#ffffff", alpha=0.8), Normal()]
        style = {"c": INK, "lw": 1.7, "ls": "-" if panel.boundary.fits else "--", "zorder": 3}
        axes.plot(panel.boundary.columns, panel.boundary.rows, path_effects=halo, **style)
    axes.set(title=panel.title, xlim=(-0.5, n_columns - 0.5), ylim=(-0.5, n_rows - 0.5))
    axes.set_xticks(range(n_columns), panel.columns)
    axes.set_yticks(range(len(panel.rows)), panel.rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


# --- interactive -------------------------------------------------------------------------------------


def interactive(phase: PhaseDiagram) -> Any:
    """Return the diagram as a `plotly.graph_objects.Figure`; the pointer shows all numbers of a cell."""
    from plotly.subplots import make_subplots

    (rows, columns, _), panels = axes_of(phase), panels_of(phase)
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    titles = [label(panel.title) for panel in panels]
    # pixels: cells are 40 high, and 90 between panels hold the title of one and the axis of the other
    height = down * 40 * len(rows.values) + (down - 1) * 90
    gaps = {"horizontal_spacing": 0.06, "vertical_spacing": 90 / height if down > 1 else 0}
    figure = make_subplots(down, across, subplot_titles=titles, **gaps)
    for i, panel in enumerate(panels):
        _add_panel(figure, panel, {"row": i // across + 1, "col": i % across + 1})
    named = {"x": [None], "y": [None], "mode": "lines", "hoverinfo": "skip"}
    figure.add_scatter(name=_WIDE, **_FILLED, **named)
    figure.add_scatter(name=_STAR, line={"width": 0}, **named)
    for fits, name in _LINES.items() if has_boundary(phase) else ():
        figure.add_scatter(name=name, line=_boundary_line(fits), **named)
    figure.update_xaxes(title=label(words(columns.name)), fixedrange=True, **_BARE)
    figure.update_yaxes(fixedrange=True, **_BARE)
    figure.update_yaxes(title=label(words(rows.name)), col=1)
    bar = {"tickvals": list(SCALE), "ticktext": list(SCALE.values()), "len": 0.9}
    scale = [[(value + 1) / 2, color_of(value)] for value in SCALE]
    figure.update_layout(
        **{"template": "none", "dragmode": False, "title": {"text": _TITLE}},
        **{"height": height + 190, "margin": {"l": 70, "r": 20, "t": 90, "b": 100}},
        legend={"orientation": "h", "y": -62 / height, "yanchor": "top"},
        coloraxis={"cmin": -1, "cmax": 1, "colorscale": scale, "colorbar": bar},
    )
    return figure


def _boundary_line(fits: bool) -> dict[str, Any]:
    return {"color": INK, "width": 2.2, "dash": "solid" if fits else "dash"}


def _add_panel(figure: Any, panel: Panel, place: dict[str, int]) -> None:
    figure.add_heatmap(
        z=[[mark.contrast for mark in row] for row in panel.marks],
        hovertext=[[_markup(mark.details) for mark in row] for row in panel.marks],
        **{"hoverinfo": "text", "coloraxis": "coloraxis", "xgap": 1, "ygap": 1, **place},
    )
    drawn = {"mode": "lines", "hoverinfo": "skip", "showlegend": False, **place}
    axes = {"xref": figure.data[-1].xaxis, "yref": figure.data[-1].yaxis}
    shapes, notes = list(figure.layout.shapes), list(figure.layout.annotations)
    x: list[float | None] = []
    y: list[float | None] = []
    for r, c, mark in _places(panel):
        if mark.is_wide:
            x += [c - 0.5, c + 0.5, c + 0.5, c - 0.5, c - 0.5, None]
            y += [r - 0.5, r - 0.5, r + 0.5, r + 0.5, r - 0.5, None]
        if mark.contrast is None:
            corners = {"x0": c - 0.46, "x1": c + 0.46, "y0": r - 0.44, "y1": r + 0.44}
            outline = {"color": MUTED, "width": 1, "dash": "solid" if mark.label else "dot"}
            shapes.append({"type": "rect", "line": outline, **corners, **axes})
        if mark.label:
            style = {"font": {"size": 11, "color": _ink(mark)}, "bgcolor": _shade(mark)}
            text = {"text": mark.label, "showarrow": False, "borderpad": 1}
            notes.append({"x": c, "y": r, **text, **style, **axes})
    figure.update_layout(shapes=shapes, annotations=notes)
    if x:
        figure.add_scatter(x=x, y=y, **_FILLED, **drawn)
    if panel.boundary is not None:
        path = {"x": panel.boundary.columns, "y": panel.boundary.rows}
        figure.add_scatter(**path, line={"color": "rgba(255,255,255,.8)", "width": 5}, **drawn)
        figure.add_scatter(**path, line=_boundary_line(panel.boundary.fits), **drawn)
    for update, names, n in (
        (figure.update_xaxes, panel.columns, len(panel.columns)),
        (figure.update_yaxes, panel.rows, len(panel.marks)),
    ):
        ticks = {"tickvals": list(range(len(names))), "ticktext": names}
        update(range=[-0.5, n - 0.5], **ticks, **place)


def _markup(lines: str) -> str:
    return "<br>".join(label(line) for line in lines.split("\n"))


# --- the page ----------------------------------------------------------------------------------------


def html_page(phase: PhaseDiagram) -> str:
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
        if has_boundary(phase)
        else ""
    )
    scripts = page_scripts(with_plots=True)
    figure = interactive(phase)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Composed against atomic latents</title>
<meta http-equiv="Content-Security-Policy" content="{page_policy(scripts)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, Helvetica, Arial, sans-serif; color: {INK}; margin: 2rem auto;
  max-width: 1260px; padding: 0 1rem; }}
figure {{ margin: 1rem 0; overflow-x: auto; }} .plot {{ min-width: 900px; }}
table {{ border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 3px 10px; text-align: right; border-bottom: 1px solid #dfe3e8; vertical-align: top; }}
th {{ position: sticky; top: 0; background: #fff; }} small {{ color: {MUTED}; white-space: nowrap; }}
.scroll {{ overflow: auto; max-height: 70vh; }}
</style></head><body>
<h1>Composed against atomic latents</h1>
<p>A latent is <b>composed</b> if more than 30% of the variance of its firing is an interaction of features:
it fires for pairs. It is <b>atomic</b> if its decoder row has a cosine above 0.9 to a feature. It may be
both or neither, so the two shares need not sum to 1.</p>
<figure><div class="plot" data-figure="phase" style="height: {figure.layout.height}px"></div></figure>
<p>In each cell: composed / atomic, in percent of the live latents; the pointer shows the rest. Hatched: the
interval of their difference is longer than {WIDE:g}. A star marks settings at which the features are
<b>not identifiable</b>: other dictionaries give the very same activations, so that composed latents there are
no error. Empty: not done yet. A dash: the shares cannot be estimated, for the reason in the table.</p>
{boundary}
{"".join(f"<p>{escaped(fact)}</p>" for fact in facts)}
<h2>Every cell</h2>
<p>Beside each mean: its interval over seeds and n, and below it the same SAE before training.</p>
<div class="scroll">{_table(phase)}</div>
<script type="application/json" id="figures">{embed_json({"phase": figure.to_plotly_json()})}</script>
{"".join(f"<script>{script}</script>" for script in scripts)}
</body></html>
"""


def _table(phase: PhaseDiagram) -> str:
    names = [*map(words, phase.spec.names), *(COLUMNS[name] for name in MEASURES), "s"]
    head = "".join(f"<th>{escaped(name)}</th>" for name in names)
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


def _in_cell(mean: SeedMean, untrained: bool = False) -> str:
    before = "untrained " if untrained else ""
    if mean.mean is None:
        return f"<small>{before}none: {escaped(str(mean.reason))}</small>"
    if mean.low is None or mean.high is None:
        between = f"<span title='{escaped(str(mean.reason))}'>no interval</span>"
    else:
        between = f"{mean.low:.2f} to {mean.high:.2f}"
    middle = f"{mean.mean:.2f}" if untrained else f"<b>{mean.mean:.2f}</b>"
    return f"<small>{before}</small>{middle} <small>{between}, n {mean.n}</small>"
