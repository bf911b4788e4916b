"""The section that says what may be claimed of the trained arm: what differs from every fair placebo."""

from __future__ import annotations

import itertools
from fnmatch import fnmatchcase
from typing import Any

from sae_placebo.report.sections.base import SECTIONS, Content, Section, View, arm_of
from sae_placebo.report.sections.contrasts import Row, asks_of_given, bounds, in_percent, scaled
from sae_placebo.report.tables import at, records
from sae_placebo.report.wording import (
    Estimate,
    counted,
    difference_unit,
    estimated,
    finite,
    metric_title,
)

FIRST = (
    *("mean_token_entropy_bits", "explained_variance_above_gaussian"),
    *("origin_explained", "origin_not_explained", "stable_not_explained"),
    *("bits_added_by_latents", "marginal_structure_above_gaussian", "marginal_structure_envelope"),
    *("has_seed_partner", "coverage_context", "replicated_with_rule", "replicated_unnamed"),
    "share_*",
)
"""Patterns of the metrics that are shown first; the others are folded."""


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, each metric's smallest effect against the fair placebos."""
    blocks, table = [], view.tables.claims
    claimants = [arm for arm in view.arms if arm in set(table["arm"])]
    for place, arm in itertools.product(view.tables.places, claimants):
        here = at(table, place)
        rows = [_row(view, row) for row in records(here[here["arm"] == arm])]
        if not rows:
            continue
        first = [row for row in rows if row["first"]]
        known = {name for row in rows for name in row["placebos"]}
        blocks.append(
            {
                "name": ", ".join(place),
                "arm": arm_of(view, arm),
                "asks": asks_of_given(view, arm, next(iter(known), "")),
                "rows": sorted(first, key=lambda row: not row["claimed"]),
                "others": [row for row in rows if not row["first"]],
                "placebos": [arm_of(view, arm) for arm in view.arms if arm in known],
                "n": counted(len(rows), "number"),
                "n_claimed": sum(row["claimed"] for row in rows),
            }
        )
    several = len(view.tables.places) * len(claimants) > 1
    return Content({"blocks": blocks, "several": several}, {})


def _row(view: View, row: Row) -> dict[str, Any]:
    shown, metric = scaled(row), str(row["metric"])
    unit = str(shown["unit"])
    return {
        "metric": metric,
        "title": metric_title(metric, unit),
        "first": any(fnmatchcase(metric, pattern) for pattern in FIRST),
        "claimed": bool(row["claimed"]),
        "effect": _effect(shown),
        "unit": difference_unit(unit) if in_percent(metric, row["unit"]) else unit,
        "against": arm_of(view, str(row["against"])),
        "reason": "" if row["claimed"] else _why_not(row),
        "placebos": list(row["placebos"]),
    }


def _why_not(row: Row) -> str:
    """Return why an effect is not claimed; by how much the text moves it stands where it is withheld."""
    reason = str(row["reason"])
    if "withheld" in reason:
        return f"withheld against {row['against']}: twice the text to fit on still moves it"
    return reason


def _effect(row: Row) -> Estimate:
    sample = f"{counted(len(row['placebos']), 'fair placebo')}"
    return estimated(finite(row["effect"]), *bounds(row), sample, "none: see why not", signed=True)


SECTIONS.add(Section("claims", "What may be claimed", ("claims",), build))
