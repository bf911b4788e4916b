"""A 2 x 2 of arms is shown as a small table per metric: cells, effects at its margins, interaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_placebo.report.sections.base import View
from sae_placebo.report.sections.contrasts import (
    NO_REASON,
    Row,
    aa_estimate,
    bounds,
    covers_null,
    effect_estimate,
    null_of,
    scaled,
    within_aa,
)
from sae_placebo.report.sections.values import ArmValues, main_metrics
from sae_placebo.report.tables import Place, at, records
from sae_placebo.report.wording import (
    Estimate,
    counted,
    difference_unit,
    estimated,
    finite,
    metric_title,
    number,
)
from sae_placebo.stats.designs import Design


def shown_design(design: Design, places: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the template shows of a design, at the places that have a 2 x 2 of any metric."""
    return {
        "factors": [factor.name for factor in design.factors],
        "levels": [factor.levels for factor in design.factors],
        "missing": missing_arms(design),
        "places": [place for place in places if place["grids"]],
    }


def missing_arms(design: Design) -> list[dict[str, str]]:
    """Return, for each cell that has no arm, what to add to the trial file to fill it in."""
    return [{"cell": " and ".join(_cell_words(design, c)), "add": c.add} for c in design.lacking]


def _cell_words(design: Design, cell: Any) -> list[str]:
    pairs = zip(design.factors, cell.levels, strict=True)
    return [f"{factor.name} {level}" for factor, level in pairs]


def grids(view: View, design: Design, place: Place, values: ArmValues) -> list[dict[str, Any]]:
    """Return a 2 x 2 for each main metric of which at least two of the cells have a value.

    Args:
        view: Of the trial.
        design: The four cells.
        place: Hookpoint and SAE.
        values: The effects table's values at that place.
    """
    shown = []
    interactions = _interactions(view, design, place)
    for metric in main_metrics(values):
        arms = [cell.arm for cell in design.cells]
        if sum(values.value(arm, metric) is not None for arm in arms) < 2:
            continue
        unit = values.unit(metric)
        shown.append(
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
    return shown


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
    """Return the effect, arm minus control, and whether it is no larger than its A/A interval."""
    row = values.rows.get(((arm or "", control or ""), metric))
    if row is None:
        reason = "no such arm"
        if arm and control:
            reason = "not among the trial's contrasts"
        return {"value": Estimate("–", None, reason, "0"), "within_aa": False}
    return {"value": effect_estimate(row), "within_aa": bool(within_aa(row))}


def _interactions(view: View, design: Design, place: Place) -> dict[str, Row]:
    """Return the interaction of a design's four arms, by metric."""
    rows = records(at(view.tables.interactions, place))
    return {str(row["metric"]): scaled(row) for row in rows if _is_of(row, design)}


def _is_of(row: Mapping[str, Any], design: Design) -> bool:
    cells = row.get("cells")
    names = [] if cells is None or isinstance(cells, str) else [str(name) for name in cells]
    return design.quad is not None and names == list(design.quad)


def _interaction(design: Design, metric: str, row: Row | None) -> Estimate:
    if row is None:
        lacks = "one of the four arms is lacking"
        why = lacks if design.quad is None else "interactions.parquet has no such row"
        return Estimate("–", None, why, "0")
    models = row.get("n_models")
    models = [] if models is None or isinstance(models, str) else list(models)
    n = (
        f"{counted(row.get('n_documents'), 'document')}, "
        f"{counted(row.get('n_sae_seeds'), 'SAE seed')}, "
        f"models {', '.join(number(finite(int(n)), 0) for n in models) or 'not recorded'}"
    )
    reason = str(row.get("reason") or NO_REASON)
    return estimated(finite(row.get("effect")), *bounds(row), n, reason, signed=True)


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
    """Return the rows of a table of one contrast's main metrics.

    Args:
        view: Of the trial.
        pair: The contrast's arms, None where the design lacks one.
        values: The effects table's values at one place.
    """
    arm, control = pair
    shown = []
    for metric in main_metrics(values):
        row = values.rows.get(((arm or "", control or ""), metric))
        if row is None:
            continue
        shown.append(
            {
                "metric": metric_title(metric, row["unit"]),
                "id": metric,
                "unit": difference_unit(row["unit"]),
                "effect": effect_estimate(row),
                "within_aa": bool(within_aa(row)),
                "covers": covers_null(row),
                "values": [values.estimate(side, metric) for side in (arm, control)],
                "aa": aa_estimate(row),
            }
        )
    return shown
