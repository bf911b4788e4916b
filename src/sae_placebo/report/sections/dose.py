"""The section on how many blocks must be re-drawn: each metric along arms that re-draw ever more of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from sae_placebo.report.dots import Curve, dose_curve
from sae_placebo.report.plots import Figure
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View, add_figure
from sae_placebo.report.sections.values import ArmValues, main_metrics, values_at
from sae_placebo.report.wording import Estimate, metric_title, number
from sae_placebo.stats.designs import Design

AXIS = "last blocks re-drawn"
TO_ADD = (
    'cascade_1 = {control = "cascade", last = 1}',
    'cascade_2 = {control = "cascade", last = 2}',
)
_EXACT = 8
"""Number of doses up to which all orders of their values are tried."""


def rank_correlation(doses: Sequence[float], values: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation; None with fewer than three doses, or where all values are equal.

    Args:
        doses: Distinct doses.
        values: The value at each dose; equal ones share the mean of their ranks.
    """
    if len(doses) < 3 or len(set(values)) < 2:
        return None
    x, y = _ranks(doses), _ranks(values)
    middle = (len(x) + 1) / 2
    top = sum((a - middle) * (b - middle) for a, b in zip(x, y, strict=True))
    size = sum((a - middle) ** 2 for a in x) * sum((b - middle) ** 2 for b in y)
    return top / math.sqrt(size)


def _ranks(values: Sequence[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (1 + sum(other == value for other in values)) / 2
        for value in values
    ]


def orders_as_extreme(doses: Sequence[float], values: Sequence[float]) -> tuple[int, int] | None:
    """Return how many orders of the values correlate as strongly, and how many orders there are.

    None is returned where there is no correlation, or where there are too many orders to try them all.
    """
    rho = rank_correlation(doses, values)
    if rho is None or len(values) > _EXACT:
        return None
    orders = [rank_correlation(doses, order) or 0.0 for order in itertools.permutations(values)]
    return sum(abs(order) >= abs(rho) - 1e-9 for order in orders), len(orders)


def _monotone(doses: Sequence[float], values: Sequence[float]) -> Estimate | None:
    rho = rank_correlation(doses, values)
    if rho is None:
        return None
    extreme = orders_as_extreme(doses, values)
    remark = "null 0, no interval"
    if extreme:
        remark += f"; {extreme[0]:,} of {extreme[1]:,} orders are as monotone"
    return Estimate(number(rho, 2, signed=True), None, remark, f"{len(doses)} doses")


def _panel(
    view: View, design: Design, metric: str, values: ArmValues
) -> tuple[dict[str, Any], Figure] | None:
    """Return what the template shows of one metric, and its curve; None with fewer than two values."""
    cells = [cell for cell in design.cells if values.value(cell.arm, metric) is not None]
    if len(cells) < 2:
        return None
    doses = [float(cell.levels[0]) for cell in cells]
    points = [values.value(cell.arm, metric) or 0.0 for cell in cells]
    ends = [values.bounds(cell.arm, metric) for cell in cells]
    estimates = [values.estimate(cell.arm, metric) for cell in cells]
    names = [str(cell.arm) for cell in cells]
    curve = Curve(
        name="cascade",
        style=view.styles[names[-1]],
        x=doses,
        y=points,
        low=[low for low, _ in ends],
        high=[high for _, high in ends],
        arms=names,
        n=[e.n if e else "" for e in estimates],
    )
    unit = values.unit(metric)
    panel = {
        "metric": metric_title(metric, unit),
        "id": metric,
        "rank": _monotone(doses, points),
        "cells": {cell.levels[0]: e for cell, e in zip(cells, estimates, strict=True)},
    }
    return panel, dose_curve([curve], AXIS, unit)


def build(view: View) -> Content:
    """Return a small plot per metric and place, and the numbers as a table."""
    figures: dict[str, Figure] = {}
    shown = []
    for design in view.designs("cascade"):
        for place in view.tables.places:
            values = values_at(view, place)
            panels = []
            for metric in main_metrics(values):
                drawn = _panel(view, design, metric, values)
                if drawn is not None:
                    panel, figure = drawn
                    panels.append(panel | add_figure(figures, f"dose-{len(figures)}", figure))
            if panels:
                doses = [cell.levels[0] for cell in design.cells]
                shown.append(
                    {
                        "title": design.title,
                        "place": ", ".join(place),
                        "panels": panels,
                        "doses": doses,
                        "rows": [_row(panel, doses) for panel in panels],
                        "arms": [
                            {"dose": c.levels[0], "name": c.arm, "index": view.index(c.arm)}
                            for c in design.cells
                            if c.arm
                        ],
                    }
                )
    values_ = {"curves": shown, "to_add": TO_ADD, "n_places": len(view.tables.places)}
    return Content(values_, figures)


def _row(panel: dict[str, Any], doses: Sequence[str]) -> dict[str, Any]:
    missing = Estimate("–", None, "not measured", "0")
    cells = [panel["cells"].get(dose) or missing for dose in doses]
    return {"metric": panel["metric"], "rank": panel["rank"], "cells": cells}


SECTIONS.add(Section("dose", "How many blocks must be re-drawn", ("effects", "trial"), build))
