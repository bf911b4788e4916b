"""A phase diagram as panels of cells: what is drawn in each, and where the analytic boundary runs.

Rows, columns and panels are the sweeps, lambda and correlation first. The interactive page and the static
picture of `phase_drawing` both show these panels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from sae_placebo.lab.experiments.phase import MEASURES, PhaseCell, PhaseDiagram, SeedMean
from sae_placebo.lab.experiments.sweeps import Axis
from sae_placebo.lab.generators.composed_sets import ComposedSetsSpec
from sae_placebo.lab.scores.closed_forms import composition_boundary

WIDE = 0.5
"""Intervals of (composed - atomic), which lies between -1 and 1, that are longer are hatched."""

COLUMNS = {
    "conjunction": "composed (share of live latents)",
    "atomic": "atomic (share of live latents)",
    "contrast": "composed − atomic",
    "mmcs": "MMCS",
    "ev": "explained variance",
    "l0": "L0",
}
"""What each measure is called."""

_LOGARITHMIC = ("lambda",)
_WORDS = {
    "lambda": "λ, weight of L1",
    "correlation": "correlation f of the amplitudes",
    "width": "latents",
    "solo": "share of tokens with one item",
    "items": "items per set",
}


class Mark(NamedTuple):
    """What is drawn of one cell; a cell that is not done yet has no label and no contrast."""

    details: str
    """Lines that say where the cell is and what was measured there, with intervals and n."""
    label: str = ""
    """Both shares, in percent; a dash where they cannot be estimated."""
    contrast: float | None = None
    """Composed less atomic, -1 to 1, which is the cell's color."""
    is_wide: bool = False
    """Whether the interval of `contrast` is longer than `WIDE`."""


class Boundary(NamedTuple):
    """The line lambda*(f), in columns and rows counted from the first, which lies at 0."""

    columns: list[float]
    rows: list[float]
    fits: bool
    """Whether the SAE has a latent for every pair, so that the dictionary of all pairs fits."""


class Panel(NamedTuple):
    """A grid of cells that share a value of the third sweep, which is the title; empty: there is none."""

    title: str
    marks: list[list[Mark]]
    """By row, from the bottom, and column."""
    rows: list[str]
    """The values of the rows; empty where rows are no sweep."""
    columns: list[str]
    """The values of the columns, with a star where the features are not identifiable."""
    boundary: Boundary | None
    """None where no line is known, or it runs outside."""


def panels_of(phase: PhaseDiagram) -> list[Panel]:
    """Return the panels of a diagram, one for every value of the third sweep."""
    rows, columns, panels = axes_of(phase)
    by_place = {tuple(cell.at.values()): cell for cell in phase.spec.cells}

    def cell_at(panel: int | float, row: int | float, column: int | float) -> PhaseCell:
        at = {panels.name: panel, rows.name: row, columns.name: column}
        return by_place[tuple(at[name] for name in phase.spec.names)]

    def column_name(panel: int | float, column: int | float) -> str:
        made = [cell_at(panel, row, column).generator for row in rows.values]
        return f"{column:g}" + ("" if any(one.truth.is_identifiable for one in made) else "*")

    return [
        Panel(
            f"{value:g} {words(panels.name)}" if panels.name else "",
            [[_mark(phase, cell_at(value, r, c)) for c in columns.values] for r in rows.values],
            [f"{row:g}" for row in rows.values] if rows.name else [],
            [column_name(value, column) for column in columns.values],
            _boundary(phase, cell_at(value, rows.values[0], columns.values[0]), rows, columns),
        )
        for value in panels.values
    ]


def words(name: str) -> str:
    """Return what a setting is called on an axis."""
    return _WORDS.get(name, name)


def in_words(mean: SeedMean) -> str:
    """Return a mean with its interval and n, or why there is none."""
    if mean.mean is None:
        return f"none ({mean.reason})"
    if mean.low is None or mean.high is None:
        return f"{mean.mean:.3f} (n = {mean.n}, no interval: {mean.reason})"
    return f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}] (n = {mean.n})"


def has_boundary(phase: PhaseDiagram) -> bool:
    """Return whether the analytic boundary was derived for cells of this diagram."""
    swept = {"lambda", "correlation"} <= set(phase.spec.names)
    return swept and any(_holds(cell) for cell in phase.spec.cells)


def axes_of(phase: PhaseDiagram) -> tuple[Axis, Axis, Axis]:
    """Return what rows, columns and panels are; an empty name: a single one."""
    first = {"lambda": 0, "correlation": 1}
    axes = sorted(phase.spec.axes, key=lambda axis: first.get(axis.name, 2))
    # one sweep alone reads better from left to right
    if len(axes) == 1:
        axes.insert(0, Axis(name="", values=(0,)))
    while len(axes) < 3:
        axes.append(Axis(name="", values=(0,)))
    return axes[0], axes[1], axes[2]


def _mark(phase: PhaseDiagram, cell: PhaseCell) -> Mark:
    where = ", ".join(f"{name} {value:g}" for name, value in cell.at.items())
    if cell.key not in phase.found:
        return Mark(f"{where}: not done yet")
    contrast = phase.score(cell, "contrast")
    if contrast.mean is None:
        return Mark(f"{where}: {contrast.reason}", "–")
    lines = [f"{where}, n = {contrast.n} seeds"]
    lines += [f"{COLUMNS[name]}: {in_words(phase.score(cell, name))}" for name in MEASURES]
    composed, atomic = (phase.score(cell, name).mean or 0.0 for name in ("conjunction", "atomic"))
    is_wide = contrast.spread is not None and contrast.spread > WIDE
    label = f"{100 * composed:.0f} / {100 * atomic:.0f}"
    return Mark("\n".join(lines), label, contrast.mean, is_wide)


def _boundary(phase: PhaseDiagram, cell: PhaseCell, rows: Axis, columns: Axis) -> Boundary | None:
    """Return lambda*(f) across the panel of a cell, where it lies inside; None for other sweeps."""
    made = cell.generator
    if not has_boundary(phase) or not _holds(cell):
        return None
    assert isinstance(made, ComposedSetsSpec)
    line = _line(rows, columns)
    if not line:
        return None
    fits = cell.sae.d_sae >= made.items**2
    return Boundary([column for column, _ in line], [row for _, row in line], fits)


@functools.cache
def _line(rows: Axis, columns: Axis) -> list[tuple[float, float]]:
    """Return the columns and rows through which lambda*(f) passes."""
    low, high = columns.values[0], columns.values[-1]
    line = []
    for i in range(101):
        f = low + (high - low) * i / 100
        value = composition_boundary(f)
        row = _position(value, rows) if value > 0 else math.inf
        if -0.5 <= row <= len(rows.values) - 0.5:
            line.append((_position(f, columns), row))
    return line


def _holds(cell: PhaseCell) -> bool:
    """Whether lambda* was derived for such tokens: two items of uniform amplitudes on every one."""
    made = cell.generator
    if not isinstance(made, ComposedSetsSpec):
        return False
    at_right_angles = made.d_in >= 2 * made.items
    return made.amplitude == "uniform" and made.solo == 0 and at_right_angles


def _position(value: int | float, axis: Axis) -> float:
    """Return where a value lies among the axis's values, 0 at the first; beyond them, extrapolated."""
    scale: Callable[[float], float] = math.log if axis.name in _LOGARITHMIC else float
    known = [scale(one) for one in axis.values]
    if len(known) == 1:
        return 0.0 if scale(value) == known[0] else math.inf
    at = scale(value)
    i = next((i for i in range(1, len(known) - 1) if at < known[i]), len(known) - 1)
    return i - 1 + (at - known[i - 1]) / (known[i] - known[i - 1])
