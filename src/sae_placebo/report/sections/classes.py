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
_NO_EFFECTS = "share_ effects missing: counted from the latents table"


def class_names() -> tuple[str, ...]:
    """Return the classes in the order in which the decision list tries them."""
    try:
        from sae_placebo.classification import CLASS_NAMES
    except ImportError:
        return _KNOWN
    return tuple(CLASS_NAMES)


def _from_effects(view: View, place: tuple[str, str]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return (arm, class) -> value, bounds, reason and n, each arm's value once."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in records(at(view.tables.effects, place)):
        metric = str(row["metric"])
        if not metric.startswith("share_"):
            continue
        for side, name in (("arm", str(row["arm"])), ("control", str(row["control"]))):
            value, (low, high) = finite(row[f"{side}_value"]), bounds(row, f"{side}_")
            if value is None or (name, metric[6:]) in found:
                continue
            found[name, metric[6:]] = {
                "value": value,
                "low": low,
                "high": high,
                "reason": None if low is not None else str(row["reason"] or "no reason recorded"),
                "n": sample(row),
            }
    return found


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, the shares as plot and table."""
    figures: dict[str, Figure] = {}
    blocks = []
    for place in view.tables.places:
        latents = at(view.tables.latents, place)
        counts = latents.groupby(["arm", "class"]).size().to_dict() if len(latents) else {}
        totals = latents.groupby("arm").size().to_dict() if len(latents) else {}
        known = _from_effects(view, place)
        for (arm, kind), n in counts.items():
            known.setdefault(
                (str(arm), str(kind)),
                {
                    "value": n / totals[arm],
                    "low": None,
                    "high": None,
                    "reason": _NO_EFFECTS,
                    "n": "",
                },
            )
        if not known:
            continue
        kinds = [k for k in class_names() if any(kind == k for _, kind in known)]
        kinds += sorted({kind for _, kind in known} - set(kinds))
        arms = [arm for arm in view.arms if any(a == arm for a, _ in known)]
        dots = {
            arm: {k: _dot(known[arm, k], totals.get(arm)) for k in kinds if (arm, k) in known}
            for arm in arms
        }
        key = f"classes-{len(figures)}"
        figures[key] = shares(kinds, dots, {a: view.styles[a] for a in arms}, view.level)
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
                "rows": [
                    {
                        "kind": kind,
                        "cells": [_cell(known.get((a, kind)), totals.get(a)) for a in arms],
                    }
                    for kind in kinds
                ],
            }
        )
    return Content({"blocks": blocks, "n_places": len(view.tables.places)}, figures)


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


SECTIONS.add("classes", Section("classes", "Class shares per arm", ("effects", "latents"), build))
