"""A 2x2 of arms as a small table per metric: cells, margins as effects, and the interaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_placebo.report.sections.base import View
from sae_placebo.report.sections.contrasts import (
    NO_REASON,
    Row,
    bounds,
    covers_null,
    effect_estimate,
    in_percent,
    null_of,
    within_aa,
)
from sae_placebo.report.sections.values import ArmValues, Place, main_metrics
from sae_placebo.report.tables import at, records
from sae_placebo.report.wording import (
    Estimate,
    counted,
    difference_unit,
    finite,
    fitting,
    interval,
    metric_title,
    number,
)
from sae_placebo.stats.designs import Design


def missing_arms(design: Design) -> list[dict[str, str]]:
    """Return what to add to the trial file to fill in the cells that have no arm."""
    return [{"cell": " and ".join(_cell_words(design, c)), "add": c.add} for c in design.lacking]


def _cell_words(design: Design, cell: Any) -> list[str]:
    pairs = zip(design.factors, cell.levels, strict=True)
    return [f"{factor.name} {level}" for factor, level in pairs]


def grids(view: View, design: Design, place: Place, values: ArmValues) -> list[dict[str, Any]]:
    """Return a 2x2 per metric for which at least two of the cells have a value."""
    found = []
    interactions = _interactions(view, design, place)
    for metric in main_metrics(values):
        arms = [cell.arm for cell in design.cells]
        if sum(values.value(arm, metric) is not None for arm in arms) < 2:
            continue
        unit = values.unit(metric)
        found.append(
            {
                "metric": metric_title(metric, unit),
                "id": metric,
                "unit": unit,
                "difference": difference_unit(unit),
                "rows": _rows(view, design, metric, values),
                "columns_effect": [_effect(values, arms[j], arms[j + 2], metric) for j in (0, 1)],
                "interaction": _interaction(design, metric, interactions.get(metric)),
                "says": _says(design, interactions.get(metric)),
            }
        )
    return found


def _rows(view: View, design: Design, metric: str, values: ArmValues) -> list[dict[str, Any]]:
    rows = []
    for i, level in enumerate(design.factors[0].levels):
        cells = design.cells[2 * i : 2 * i + 2]
        rows.append(
            {
                "level": level,
                "cells": [
                    {
                        "arm": cell.arm or "",
                        "index": view.index(cell.arm),
                        "value": values.estimate(cell.arm, metric)
                        or Estimate("–", None, "not measured" if cell.arm else "no such arm", "0"),
                    }
                    for cell in cells
                ],
                "effect": _effect(values, cells[0].arm, cells[1].arm, metric),
            }
        )
    return rows


def _effect(values: ArmValues, arm: str | None, control: str | None, metric: str) -> dict[str, Any]:
    """Return the effect arm - control, and whether it is within A/A."""
    row = values.rows.get(((arm or "", control or ""), metric))
    if row is None:
        reason = "no such arm"
        if arm and control:
            reason = "not among the trial's contrasts"
        return {"value": Estimate("–", None, reason, "0"), "within_aa": False}
    return {"value": effect_estimate(row), "within_aa": bool(within_aa(row))}


def _interactions(view: View, design: Design, place: Place) -> dict[str, Row]:
    rows = records(at(view.tables.interactions, place))
    of_design = [row for row in rows if _same(row, design)]
    return {str(row["metric"]): _scaled(row) for row in of_design}


def _same(row: Mapping[str, Any], design: Design) -> bool:
    cells = row.get("cells")
    names = [] if cells is None or isinstance(cells, str) else [str(name) for name in cells]
    return design.quad is not None and names == list(design.quad)


def _scaled(row: Row) -> Row:
    if not in_percent(row["metric"], row["unit"]):
        return row
    sizes = ("effect", "low", "high", "se", "null")
    percent = {k: 100 * v for k in sizes if (v := finite(row.get(k))) is not None}
    return {**row, **percent, "unit": "%"}


def _interaction(design: Design, metric: str, row: Row | None) -> Estimate:
    if row is None:
        lacks = "one of the four arms is lacking"
        why = lacks if design.quad is None else "interactions.parquet has no such row"
        return Estimate("–", None, why, "0")
    low, high = bounds(row)
    places = fitting(finite(row.get("effect")), low, high)
    models = row.get("n_models")
    models = [] if models is None or isinstance(models, str) else list(models)
    n = (
        f"{counted(row.get('n_documents'), 'document')}, "
        f"{counted(row.get('n_sae_seeds'), 'SAE seed')}, "
        f"models {', '.join(number(finite(int(n)), 0) for n in models) or 'not recorded'}"
    )
    return Estimate(
        number(finite(row.get("effect")), places, signed=True),
        None if low is None else interval(low, high, places, signed=True),
        None if low is not None else str(row.get("reason") or NO_REASON),
        n,
    )


def _says(design: Design, row: Row | None) -> str:
    """Return what the interaction's interval says, in words."""
    if row is None or covers_null(row) is None:
        return ""
    first, second = (factor.name for factor in design.factors)
    if covers_null(row):
        return (
            f"Cannot tell whether {first} and {second} do anything together beyond what each adds."
        )
    more = (finite(row.get("effect")) or 0.0) > null_of(row)
    side = "higher" if more else "lower"
    levels = design.factors[0].levels
    return (
        f"The effect of {second} is {side} with {first} {levels[0]} than with {first} {levels[1]}: "
        "the two do not simply add up."
    )


def named_row(view: View, pair: Sequence[str | None], values: ArmValues) -> list[dict[str, Any]]:
    """Return one contrast's main metrics as a table."""
    arm, control = pair
    found = []
    for metric in main_metrics(values):
        row = values.rows.get(((arm or "", control or ""), metric))
        if row is None:
            continue
        found.append(
            {
                "metric": metric_title(metric, row["unit"]),
                "id": metric,
                "unit": difference_unit(row["unit"]),
                "effect": effect_estimate(row),
                "within_aa": bool(within_aa(row)),
                "covers": covers_null(row),
                "values": [values.estimate(side, metric) for side in (arm, control)],
                "row": row,
            }
        )
    return found
