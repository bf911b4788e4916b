"""The section that says whether each metric's intervals can be trusted, by A/A trials of a small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.tables import records
from sae_placebo.report.wording import Estimate, count, finite, number

FILE = Path(__file__).parent.parent / "assets" / "calibration.json"
WORDS = {
    "within": "calibrated: 3% to 7%",
    "too wide": "errs wide: real differences are missed more often than stated",
    "too narrow": "untrusted: leaves zero out too often",
    "not told apart": "as far as these trials tell, calibrated",
}
_PERCENT = 100.0


def measured() -> dict[str, dict[str, Any]]:
    """Return how often A/A trials left zero out, by metric; nothing where they were not run."""
    if not FILE.exists():
        return {}
    rows: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return {str(row["metric"]): row for row in rows}


def _row(metric: str, known: dict[str, Any] | None) -> dict[str, Any]:
    if known is None:
        return {"metric": metric, "share": None, "said": "not tried: no A/A trials of this metric"}
    share, se = finite(known["share"]), finite(known["se"])
    n = f"{count(int(known['n_trials'] or 0))} A/A trials"
    if share is None:
        reason = str(known["reason"] or "nothing varied")
        return {"metric": metric, "share": None, "said": f"cannot be told: {reason}"}
    error = None if se is None else f"standard error {number(_PERCENT * se, 1)}%"
    words = WORDS.get(str(known["verdict"]), str(known["verdict"]))
    cell = Estimate(f"{number(_PERCENT * share, 1)}%", None, error, n)
    alarm = known["verdict"] == "too narrow"
    return {"metric": metric, "share": cell, "said": words, "alarm": alarm}


def build(view: View) -> Content:
    """Return a row per metric of this trial, and the metrics whose intervals are too narrow."""
    by_metric = measured()
    metrics = dict.fromkeys(str(row["metric"]) for row in records(view.tables.effects))
    rows = [_row(metric, by_metric.get(metric)) for metric in metrics]
    untrusted = [row["metric"] for row in rows if row.get("alarm")]
    return Content({"rows": rows if by_metric else [], "untrusted": untrusted}, {})


SECTIONS.add(Section("calibrated", "Can the intervals be trusted?", ("effects",), build))
