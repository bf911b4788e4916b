"""The part of the section on circuits about ties: shares per arm, contrasts with each re-draw, and A/A."""

from __future__ import annotations

from typing import Any

from sae_placebo.core.lazy import pandas
from sae_placebo.report.plots import Dot, Figure
from sae_placebo.report.sections.base import View, arm_of, arms_in
from sae_placebo.report.sections.classes import in_class_order
from sae_placebo.report.sections.use_rows import share_dots
from sae_placebo.report.tables import Place, at, records
from sae_placebo.report.wording import Estimate, counted, estimated, finite

FEWEST_DRAWN = 20
"""Latents of a class that some arm must have for the class to be drawn."""
MEASURES = {
    "tied": "tied: written and read",
    "written": "a head or MLP writes it",
    "read": "something reads it",
}
_ALL, _EVERYTHING = "all", "all latents"
_DIGITS = 1


def ties(view: View, place: Place) -> tuple[dict[str, Any], Figure | None]:
    """Return what a template needs to show of the ties at one place, and the figure of the shares."""
    table = at(view.tables.ties, place)
    shares = table[table["comparison"] == "share"]
    arms = arms_in(view, shares)
    by_key = {(row["arm"], row["measure"], row["class"]): row for row in records(shares)}
    kinds = in_class_order(kind for _, _, kind in by_key if kind != _ALL)
    rows = [
        {"name": name, "kind": None, "cells": [_share(by_key.get((a, m, _ALL))) for a in arms]}
        for m, name in MEASURES.items()
    ]
    rows += [
        {"name": kind, "kind": kind, "cells": [_share(by_key.get((a, "tied", kind))) for a in arms]}
        for kind in kinds
    ]
    drawn = [k for k in kinds if any(_n(by_key.get((a, "tied", k))) >= FEWEST_DRAWN for a in arms)]
    dots = {
        arm: {_EVERYTHING: _dot(by_key.get((arm, "tied", _ALL)))}
        | {kind: _dot(by_key.get((arm, "tied", kind))) for kind in drawn}
        for arm in arms
    }
    axis = f"share tied to circuitry, with {view.level}"
    figure = share_dots(view, [_EVERYTHING, *drawn], dots, axis) if arms else None
    shown = {
        "rows": rows if arms else [],
        "arms": [arm_of(view, arm) for arm in arms],
        "few": [kind for kind in kinds if kind not in drawn],
        "fewest": FEWEST_DRAWN,
        "measures": list(MEASURES.values()),
        "against": _against(table),
        "lacking": [row["reason"] for row in records(table) if _is_lacking(row)],
    }
    return shown, figure


def _is_lacking(row: dict[str, Any]) -> bool:
    return row["comparison"] == "contrast" and row["control"] is None


def _against(table: pandas.DataFrame) -> list[dict[str, Any]]:
    """Return a row per contrast and per A/A, with a cell for each measure."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in records(table[table["class"] == _ALL]):
        if row["comparison"] != "share" and not _is_lacking(row):
            key = row["comparison"], row["arm"], row["control"]
            found.setdefault(key, {})[row["measure"]] = row
    return [
        {
            "name": f"{control}, re-draw − re-draw" if kind == "aa" else f"{arm} − {control}",
            "is_aa": kind == "aa",
            "cells": [_difference(cells.get(measure)) for measure in MEASURES],
        }
        for (kind, arm, control), cells in found.items()
    ]


def _n(row: dict[str, Any] | None) -> int:
    return 0 if row is None else int(row["n_latents"])


def _of(row: dict[str, Any], of: str = "") -> str:
    return f"{counted(row[f'{of}latents'], 'latent')} of {counted(row[f'{of}saes'], 'SAE')}"


def _scaled(row: dict[str, Any]) -> tuple[float | None, float | None, float | None]:
    value, low, high = (
        None if (one := finite(row[name])) is None else 100 * one
        for name in ("value", "low", "high")
    )
    return value, low, high


def _share(row: dict[str, Any] | None) -> Estimate:
    if row is None:
        return Estimate("–", None, "none was judged", "0 latents")
    reason = str(row["reason"] or "not estimable")
    return estimated(*_scaled(row), _of(row, "n_"), reason, decimals=_DIGITS, unit="%")


def _difference(row: dict[str, Any] | None) -> Estimate:
    if row is None:
        return Estimate("–", None, "not counted", "0 latents")
    n = f"{_of(row, 'n_')}, {_of(row, 'control_')}"
    reason = str(row["reason"] or "not estimable")
    return estimated(*_scaled(row), n, reason, decimals=_DIGITS, unit=" points", signed=True)


def _dot(row: dict[str, Any] | None) -> Dot | None:
    if row is None:
        return None
    value, low, high = _scaled(row)
    if value is None or low is None or high is None:
        return None
    return Dot(value, low, high, _of(row, "n_"))
