"""Where latents come from: verdicts per arm, what speaks for them, and what decoys leave over."""

from __future__ import annotations

from typing import Any

from sae_placebo.report.plots import Dot, Figure, shares
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.classes import arm_shares
from sae_placebo.report.sections.use_rows import ORIGINS
from sae_placebo.report.tables import at, records
from sae_placebo.report.wording import Estimate, count, finite, fitting, interval, number

_PREFIX = "origin_"

_PERCENT = 100.0


def _cell(found: dict[str, Any] | None) -> Estimate:
    if found is None or found["value"] is None:
        reason = "not recorded" if found is None else found["reason"]
        return Estimate("–", None, reason, "" if found is None else found["n"])
    value, low, high = (
        None if found[name] is None else _PERCENT * found[name] for name in ("value", "low", "high")
    )
    if low is None or high is None:
        return Estimate(f"{number(value, 1)}%", None, found["reason"], found["n"])
    places = fitting(value, low, high)
    around = interval(low, high, places, unit="%")
    return Estimate(f"{number(value, places)}%", around, None, found["n"])


def _dot(found: dict[str, Any]) -> Dot:
    low, high = (
        None if found[name] is None else _PERCENT * found[name] for name in ("low", "high")
    )
    return Dot(_PERCENT * found["value"], low, high, f"n = {found['n']}")


def _evidence(view: View, place: tuple[str, str], arms: list[str]) -> list[dict[str, Any]]:
    """Return, per verdict and evidence, how many of each arm's latents there are."""
    latents = at(view.tables.latents, place)
    latents = latents[latents["arm"].isin(arms) & latents["origin"].notna()]
    if not len(latents):
        return []
    sizes = latents.groupby("arm").size()
    table = latents.groupby(["origin", "evidence", "arm"]).size().unstack("arm").fillna(0)
    rows = []
    for verdict in ORIGINS:
        if verdict not in table.index.get_level_values(0):
            continue
        part = table.loc[verdict]
        for evidence in part.sum(axis=1).sort_values(ascending=False, kind="stable").index:
            cells = []
            for arm in arms:
                n = int(part.loc[evidence].get(arm, 0))
                share = _PERCENT * n / int(sizes.get(arm, 0) or 1)
                cells.append(f"{count(n)} ({number(share, 1)}%)" if arm in sizes else "–")
            rows.append({"verdict": verdict, "evidence": str(evidence), "cells": cells})
    return rows


def _decoys(view: View, place: tuple[str, str]) -> list[dict[str, Any]]:
    rows = []
    for row in records(at(view.tables.decoys, place)):
        targets = int(row["n_targets"] or 0)
        n = f"{count(targets)} trained latents, {count(int(row['n_decoys'] or 0))} decoys"
        passing, low, high = (finite(row[name]) for name in ("passing", "low", "high"))
        if passing is None:
            said = Estimate("none", None, str(row["reason"] or "no reason recorded"), n)
        else:
            around = None if low is None or high is None else interval(low, high, 0)
            said = Estimate(count(int(passing)), around, row["remark"], n)
        threshold = finite(row["threshold"])
        rows.append(
            {
                "score": row["score"],
                "threshold": "–" if threshold is None else number(threshold, 3),
                "passing": said,
                "decoys": "–" if passing is None else count(int(row["decoys_passing"] or 0)),
                "rate": finite(row["rate"]) or 0.0,
                "placebo": row["placebo"],
            }
        )
    return rows


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, verdict shares as plot and table, evidence and decoys."""
    figures: dict[str, Figure] = {}
    blocks = []
    for place in view.tables.places:
        known = arm_shares(view, place, _PREFIX)
        arms = [arm for arm in view.arms if any(a == arm for a, _ in known)]
        told = [
            a for a in arms if any(known.get((a, v), {}).get("value") is not None for v in ORIGINS)
        ]
        decoys = _decoys(view, place)
        if not told and not decoys:
            continue
        dots = {
            a: {
                v: _dot(known[a, v])
                for v in ORIGINS
                if known.get((a, v), {}).get("value") is not None
            }
            for a in told
        }
        key = f"origin-{len(figures)}"
        if told:
            figures[key] = shares(
                list(ORIGINS), dots, {a: view.styles[a] for a in told}, view.level
            )
        blocks.append(
            {
                "name": ", ".join(place),
                "figure": key if told else None,
                "height": figures[key]["layout"]["height"] if told else 0,
                "arms": [{"name": a, "index": view.index(a)} for a in arms],
                "told": [{"name": a, "index": view.index(a)} for a in told],
                "rows": [
                    {
                        "name": a,
                        "index": view.index(a),
                        "cells": [_cell(known.get((a, v))) for v in ORIGINS],
                    }
                    for a in arms
                ],
                "evidence": _evidence(view, place, told),
                "decoys": decoys,
            }
        )
    return Content(
        {"blocks": blocks, "verdicts": ORIGINS, "n_places": len(view.tables.places)}, figures
    )


SECTIONS.add(
    Section("origin", "Where do the latents come from?", ("effects", "latents"), build),
)
