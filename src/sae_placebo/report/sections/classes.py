"""How many latents of each class an arm has."""

from __future__ import annotations

from typing import Any

from sae_placebo.report.plots import Dot, Figure, shares
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.contrasts import bounds, sample
from sae_placebo.report.tables import at, records
from sae_placebo.report.wording import Estimate, finite, fitting, interval, number

_KNOWN = ("dead", "ultra_rare", "dense", "single_token", "token_family", "other")
_MANY = 6
"""Arms above which they are the table's rows, so that it needs no scrolling."""
STARRED = ("single_token", "arbitrary_subset")
"""The classes that Bricken et al. (2023) saw in a model with random weights."""
_SMALL = 0.01
"""Share that a class must reach in some arm to be drawn; the table holds the others too."""
_FEW = 8
"""Classes up to which all are drawn, whatever their shares."""
_COUNTED = "counted on these latents"
_NO_EFFECTS = "share_ effects missing: counted from the latents table"


def class_names() -> tuple[str, ...]:
    """Return the classes in the order in which the decision list tries them."""
    try:
        from sae_placebo.latents.classes.classification import CLASS_NAMES
    except ImportError:
        return _KNOWN
    return tuple(CLASS_NAMES)


def arm_shares(
    view: View, place: tuple[str, str], prefix: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return (arm, what stands behind the prefix) -> value, bounds, reason and n, each value once."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in records(at(view.tables.effects, place)):
        metric = str(row["metric"])
        if not metric.startswith(prefix):
            continue
        for side, name in (("arm", str(row["arm"])), ("control", str(row["control"]))):
            value, (low, high) = finite(row[f"{side}_value"]), bounds(row, f"{side}_")
            known = found.get((name, metric[len(prefix) :]))
            if known is not None and (value is None or known["value"] is not None):
                continue
            found[name, metric[len(prefix) :]] = {
                "value": value,
                "low": low,
                "high": high,
                "reason": None if low is not None else str(row["reason"] or "no reason recorded"),
                "n": sample(row),
            }
    return found


def _known(view: View, place: tuple[str, str]) -> tuple[dict[tuple[str, str], Any], dict[str, int]]:
    """Return what is known of every arm and class, and the latents of each arm."""
    latents = at(view.tables.latents, place)
    counts = latents.groupby(["arm", "class"]).size().to_dict() if len(latents) else {}
    totals = latents.groupby("arm").size().to_dict() if len(latents) else {}
    known = arm_shares(view, place, "share_")
    for (arm, kind), n in counts.items():
        counted = {
            "value": n / totals[arm],
            "low": None,
            "high": None,
            "reason": _NO_EFFECTS,
            "n": "",
        }
        known.setdefault((str(arm), str(kind)), counted)
    return known, {str(arm): int(n) for arm, n in totals.items()}


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, the shares as plot and tables."""
    figures: dict[str, Figure] = {}
    blocks = []
    for place in view.tables.places:
        known, totals = _known(view, place)
        if not known:
            continue
        kinds = [k for k in class_names() if any(kind == k for _, kind in known)]
        kinds += sorted({kind for _, kind in known} - set(kinds))
        arms = [arm for arm in view.arms if any(a == arm for a, _ in known)]
        drawn = _drawn(kinds, known)
        dots = {
            arm: {
                k: _dot(known[arm, k], totals.get(arm))
                for k in drawn
                if known.get((arm, k), {}).get("value") is not None
            }
            for arm in arms
        }
        key = f"classes-{len(figures)}"
        figures[key] = shares(drawn, dots, {a: view.styles[a] for a in arms}, view.level)
        blocks.append(
            {
                "hookpoint": place[0],
                "sae": place[1],
                "figure": key,
                "height": figures[key]["layout"]["height"],
                "arms": [
                    {"name": a, "index": view.styles[a].index, "n": totals.get(a)} for a in arms
                ],
                "turned": len(arms) > _MANY,
                "kinds": kinds,
                "small": [kind for kind in kinds if kind not in drawn],
                "rows": [
                    {
                        "kind": kind,
                        "drawn": kind in drawn,
                        "cells": [_cell(known.get((a, kind)), totals.get(a)) for a in arms],
                    }
                    for kind in kinds
                ],
                "starred": _starred(known, arms, totals, view),
                "sensitivity": _sensitivity(view, place),
            }
        )
    values = {
        "blocks": blocks,
        "n_places": len(view.tables.places),
        "unclaimed": unclaimed(),
        "starred_names": STARRED,
    }
    return Content(values, figures)


def unclaimed() -> dict[str, str]:
    """Return why planted latents of a class are not recovered, for the classes where they are not."""
    try:
        from sae_placebo.latents.classes.classification import CLASSES
    except ImportError:
        return {}
    return {kind.name: kind.unclaimed for kind in CLASSES if not kind.claimed}


def _drawn(kinds: list[str], known: dict[tuple[str, str], Any]) -> list[str]:
    if len(kinds) <= _FEW:
        return kinds
    return [
        kind
        for kind in kinds
        if kind in STARRED
        or any((one["value"] or 0) >= _SMALL for (_, k), one in known.items() if k == kind)
    ]


def _starred(
    known: dict[tuple[str, str], Any], arms: list[str], totals: dict[str, int], view: View
) -> list[dict[str, Any]]:
    """Return the starred classes by arm, as counts and shares; nothing where neither is known."""
    if not any(kind == STARRED[1] for _, kind in known):
        return []
    rows = []
    for arm in arms:
        cells = []
        for kind in STARRED:
            found, total = known.get((arm, kind)), totals.get(arm)
            number_of = (
                found["value"] * total if found and found["value"] is not None and total else None
            )
            cells.append(
                {
                    "share": _cell(found, total),
                    "count": None if number_of is None else f"{round(number_of):,} of {total:,}",
                }
            )
        rows.append({"name": arm, "index": view.styles[arm].index, "cells": cells})
    return rows


def _sensitivity(view: View, place: tuple[str, str]) -> dict[str, Any] | None:
    """Return the latents that change class when a threshold moves, over all arms; most first."""
    table = getattr(view.tables, "sensitivity", None)
    if table is None or not len(table):
        return None
    table = at(table, place)
    moved: dict[str, dict[str, dict[str, Any]]] = {}
    for row in records(table):
        side = "up" if (finite(row["change"]) or 0) > 0 else "down"
        one = moved.setdefault(str(row["threshold"]), {}).setdefault(
            side, {"moved": 0, "n": 0, "to": row["moved_to"], "most": {}, "reason": None}
        )
        count = int(finite(row["n_moved"]) or 0)
        one["reason"] = row.get("reason") or one["reason"]
        one["moved"] += count
        one["n"] += int(finite(row["n_latents"]) or 0)
        if row["most_moved"]:
            one["most"][row["most_moved"]] = one["most"].get(row["most_moved"], 0) + count
    rows: list[dict[str, Any]] = [
        {
            "threshold": name,
            "most": max((one["moved"] for one in sides.values()), default=0),
            "cells": [_moved(sides.get(side)) for side in ("down", "up")],
        }
        for name, sides in moved.items()
    ]
    rows.sort(key=lambda row: int(row["most"]), reverse=True)
    return {
        "rows": [row for row in rows if row["most"]],
        "still": [row["threshold"] for row in rows if not row["most"]],
    }


def _moved(side: dict[str, Any] | None) -> dict[str, Any]:
    if side is None or not side["n"]:
        return {"share": Estimate("–", None, "no latents", "0 latents"), "most": None}
    if side["reason"] and not side["moved"]:
        share = Estimate("–", None, str(side["reason"]), f"{side['n']:,} latents")
        return {"share": share, "most": None}
    value = f"{number(100 * side['moved'] / side['n'], 1)}%"
    n = f"{side['n']:,} latents that fire, in all arms"
    most = max(side["most"], key=lambda name: side["most"][name]) if side["most"] else None
    return {
        "share": Estimate(value, None, _COUNTED, n),
        "most": most.replace("_", " ").replace(" > ", " → ") if most else None,
    }


def _n(total: Any, sample_text: str) -> str:
    latents = f"{int(total):,} latents" if total else "latents not counted"
    return f"{latents}; {sample_text}" if sample_text else latents


def _dot(found: dict[str, Any], total: Any) -> Dot:
    low, high = found["low"], found["high"]
    return Dot(
        100 * found["value"],
        None if low is None else 100 * low,
        None if high is None else 100 * high,
        f"n = {_n(total, found['n'])}",
    )


def _cell(found: dict[str, Any] | None, total: Any) -> Estimate:
    if found is None:
        # a class that no latent of the arm is in has no row in a count
        return Estimate("–", None, "not recorded", _n(total, ""))
    low, high = found["low"], found["high"]
    if found["value"] is None:
        return Estimate("–", None, found["reason"] or "not estimable", _n(total, found["n"]))
    if low is None:
        return Estimate(
            f"{number(100 * found['value'], 1)}%", None, found["reason"], _n(total, found["n"])
        )
    places = fitting(100 * found["value"], 100 * low, 100 * high)
    return Estimate(
        f"{number(100 * found['value'], places)}%",
        interval(100 * low, 100 * high, places, unit="%"),
        None,
        _n(total, found["n"]),
    )


SECTIONS.add(Section("classes", "Class shares per arm", ("effects", "latents"), build))
