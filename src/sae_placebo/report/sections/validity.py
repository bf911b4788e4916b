"""The section that says, for each headline, what was measured of its validity, and what was not.

What was measured lies in `assets/validity.json` and `assets/calibration.json`, which the scripts in
`benchmarks/` write; what the trial itself compares is in its tables. No number stands in this file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.calibrated import measured
from sae_placebo.report.sections.contrasts import bounds, covers_null
from sae_placebo.report.tables import records
from sae_placebo.report.wording import Estimate, count, finite, interval, number

FILE = Path(__file__).parent.parent / "assets" / "validity.json"
KINDS = {
    "aa": "A/A: intervals that leave 0 out where nothing differs",
    "coverage": "coverage: intervals that hold a planted truth",
    "power": "power: planted effects that are found",
}
"""What can be measured of a headline's validity."""
_MOST_AA, _LEAST_COVERAGE = 0.07, 0.93
"""An A/A rate surely above the one, or a coverage surely below the other, is an alarm."""


@dataclass(frozen=True)
class Headline:
    """A headline, and where a trial shows it.

    Attributes:
        title: Its name.
        metrics: Patterns of the metrics of the effects table that carry it.
        table: The table that has rows where the trial shows it, if that is not the effects table.
    """

    title: str
    metrics: tuple[str, ...] = ()
    table: str = ""


HEADLINES: Mapping[str, Headline] = {
    "explained": Headline("Share explained", ("origin_explained",)),
    "not_explained": Headline("Share not explained", ("origin_not_explained",)),
    "used": Headline("Used", table="use"),
    "not_used": Headline("Not used", table="use"),
    "tied": Headline("Tied to circuitry", table="ties"),
    "marginal_structure": Headline(
        "Marginal structure", ("bits_added_by_latents", "marginal_structure_*")
    ),
    "classes": Headline("Shares of classes", ("share_*",)),
}
"""Every headline, by the name under which its measurements are kept."""


def build(view: View) -> Content:
    """Return a row per headline that the trial shows, and those of which something was not measured."""
    kept: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    effects = records(view.tables.effects)
    rows = []
    for name, headline in HEADLINES.items():
        mine = [row for row in effects if _carries(headline, str(row["metric"]))]
        if mine or (headline.table and len(getattr(view.tables, headline.table))):
            rows.append(_row(headline, dict(kept.get(name, {})), mine, view))
    untested = [row["title"] for row in rows if row["nothing"]]
    partly = [row["title"] for row in rows if row["lacks"] and not row["nothing"]]
    return Content(
        {"rows": rows, "kinds": list(KINDS.values()), "untested": untested, "partly": partly}, {}
    )


def _carries(headline: Headline, metric: str) -> bool:
    return any(fnmatchcase(metric, pattern) for pattern in headline.metrics)


def _row(
    headline: Headline, kept: dict[str, Any], effects: list[dict[str, Any]], view: View
) -> dict[str, Any]:
    if "aa" not in kept:
        kept |= _calibrated(headline)
    cells = [_cell(kind, kept.get(kind)) for kind in KINDS]
    lacks = [kind for kind in KINDS if kind not in kept]
    return {
        "title": headline.title,
        "cells": cells,
        "own": _own(headline, effects, view),
        "lacks": bool(lacks),
        "nothing": len(lacks) == len(KINDS),
        "commands": list(dict.fromkeys(str(one["command"]) for one in kept.values())),
    }


def _calibrated(headline: Headline) -> dict[str, Any]:
    """Return the A/A rate of a headline's metrics in the A/A trials that come with the package."""
    rows = [row for name, row in measured().items() if _carries(headline, name)]
    rows = [row for row in rows if finite(row["share"]) is not None and row["n_trials"]]
    n = sum(int(row["n_trials"]) for row in rows)
    if not n:
        return {}
    share = sum(float(row["share"]) * int(row["n_trials"]) for row in rows) / n
    se = sum((finite(row["se"]) or 0.0) * int(row["n_trials"]) for row in rows) / n
    many = f" of {len(rows)} metrics" if len(rows) > 1 else ""
    low, high = max(share - 1.96 * se, 0.0), min(share + 1.96 * se, 1.0)
    return {
        "aa": {
            "value": share,
            "low": low,
            "high": high,
            "n": n,
            "of": f"A/A trials{many} on `pylm`",
        }
        | {"command": "python benchmarks/calibration.py"}
    }


def _cell(kind: str, one: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return one measurement as it is shown, and whether it is an alarm."""
    if one is None:
        return {"estimate": None, "alarm": True}
    value, low, high = (finite(one[name]) for name in ("value", "low", "high"))
    ends = [None if x is None else 100 * x for x in (low, high)]
    shown = Estimate(
        f"{number(None if value is None else 100 * value, 1)}%",
        interval(ends[0], ends[1], 1, unit="%"),
        str(one["of"]),
        count(one["n"]),
    )
    bad = (kind == "aa" and low is not None and low > _MOST_AA) or (
        kind == "coverage" and high is not None and high < _LEAST_COVERAGE
    )
    return {"estimate": shown, "alarm": bad}


def _own(headline: Headline, effects: list[dict[str, Any]], view: View) -> str:
    """Return how many of the trial's own A/A intervals of a headline leave the null out, in words."""
    outside: dict[tuple[str, ...], bool] = {}
    for row in effects:
        apart = covers_null(row, "aa_")
        if bounds(row, "aa_")[0] is not None and apart is not None:
            key = tuple(str(row[name]) for name in ("control", "hookpoint", "sae", "metric"))
            outside[key] = not apart
    if headline.table == "ties":
        for row in records(view.tables.ties):
            low, high = finite(row["low"]), finite(row["high"])
            known = low is not None and high is not None
            if row["comparison"] == "aa" and row["measure"] == "tied" and known:
                key = tuple(str(row[name]) for name in ("control", "hookpoint", "sae", "measure"))
                outside[key] = not (low or 0.0) <= 0 <= (high or 0.0)
    if not outside:
        return "no A/A"
    return f"{count(sum(outside.values()))} of {count(len(outside))}"


SECTIONS.add(Section("validity", "Were the headlines tested?", (), build))
