"""Were the arms matched: the L0 that each arm reached, beside the trained arm's."""

from __future__ import annotations

from typing import Any

from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.tables import Tables, at, records
from sae_placebo.report.wording import Estimate, count, counted, finite, number

_PERCENT = 100.0


def unmatched(tables: Tables) -> list[str]:
    """Return the arms whose L0 is not the trained arm's, at any place, in the order of the table."""
    found = [str(row["arm"]) for row in records(tables.matching) if row["matched"] is False]
    return list(dict.fromkeys(found))


def _reached(row: dict[str, Any]) -> Estimate:
    n = f"{counted(row['n_saes'] or 0, 'SAE')}, {count(row['n_tokens'] or 0)} tokens"
    value, least, most = (finite(row[name]) for name in ("l0", "l0_least", "l0_most"))
    if value is None:
        return Estimate("–", None, str(row["reason"] or "not measured"), n)
    said = "one SAE, no range"
    if least is not None and most is not None and (row["n_saes"] or 0) > 1:
        said = f"single SAEs: {number(least, 2)} to {number(most, 2)}"
    return Estimate(number(value, 2), None, said, n)


def _away(row: dict[str, Any], column: str, missing: str) -> Estimate:
    """Return a relative difference in percent; it has no interval, since it is what it is."""
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
    """Return a table per hookpoint and SAE, and which arms are off."""
    places = []
    for place in view.tables.places:
        found = records(at(view.tables.matching, place))
        found.sort(key=lambda row: view.arms.index(row["arm"]) if row["arm"] in view.arms else 0)
        if found:
            rows = [_row(view, row) for row in found]
            off = [row for row in rows if row["alarm"]]
            tolerance = f"{_PERCENT * (finite(found[0]['tolerance']) or 0.0):g}%"
            places.append(
                {"name": ", ".join(place), "rows": rows, "off": off, "tolerance": tolerance}
            )
    return Content({"places": places}, {})


SECTIONS.add(Section("matching", "Were the arms matched?", ("matching",), build))
