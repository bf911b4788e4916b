"""The section that says whether the arms were matched: the L0 of each arm, and how far apart they are."""

from __future__ import annotations

from typing import Any

from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.tables import Tables, at, records
from sae_placebo.report.wording import Estimate, count, counted, finite, number

_PERCENT = 100.0


def unmatched(tables: Tables) -> list[str]:
    """Return the arms whose L0 does not match the trained arm's at some place, in the table's order."""
    arms = [str(row["arm"]) for row in records(tables.matching) if row["matched"] is False]
    return list(dict.fromkeys(arms))


def _reached(row: dict[str, Any]) -> Estimate:
    n = f"{counted(row['n_saes'] or 0, 'SAE')}, {count(row['n_tokens'] or 0)} tokens"
    value, least, most = (finite(row[name]) for name in ("l0", "l0_least", "l0_most"))
    if value is None:
        return Estimate("–", None, str(row["reason"] or "not measured"), n)
    spread = "one SAE, no range"
    if least is not None and most is not None and (row["n_saes"] or 0) > 1:
        spread = f"single SAEs: {number(least, 2)} to {number(most, 2)}"
    return Estimate(number(value, 2), None, spread, n)


def _away(row: dict[str, Any], column: str, missing: str) -> Estimate:
    """Return a relative difference in percent; it is of these SAEs, and so has no interval."""
    value, n = finite(row[column]), f"{counted(row['n_saes'] or 0, 'SAE')}"
    if value is None:
        return Estimate("–", None, missing, n)
    return Estimate(f"{number(_PERCENT * value, 1, signed=True)}%", None, "of its mean L0", n)


def _row(view: View, row: dict[str, Any]) -> dict[str, Any]:
    verdict = {True: "matched", False: "not matched"}.get(row["matched"], "cannot tell")
    target = finite(row["target"])
    is_trained = row["arm"] == view.trained
    return {
        "arm": row["arm"],
        "index": view.index(row["arm"]),
        "target": "none" if target is None else f"{target:g}",
        "l0": _reached(row),
        "to_target": _away(row, "relative_to_target", "no L0 was asked for"),
        "to_trained": None
        if is_trained
        else _away(row, "relative_to_trained", str(row["reason"] or "not measured")),
        "verdict": "the reference" if is_trained else verdict,
        "alarm": row["matched"] is False,
    }


def build(view: View) -> Content:
    """Return a table per hookpoint and SAE, and which arms are not matched."""
    places = []
    for place in view.tables.places:
        recorded = records(at(view.tables.matching, place))
        recorded.sort(key=lambda row: view.arms.index(row["arm"]) if row["arm"] in view.arms else 0)
        if recorded:
            rows = [_row(view, row) for row in recorded]
            off = [row for row in rows if row["alarm"]]
            tolerance = f"{_PERCENT * (finite(recorded[0]['tolerance']) or 0.0):g}%"
            places.append(
                {"name": ", ".join(place), "rows": rows, "off": off, "tolerance": tolerance}
            )
    return Content({"places": places}, {})


SECTIONS.add(Section("matching", "Were the arms matched?", ("matching",), build))
