"""The section that says where latents come from: verdicts per arm, the evidence for them, and decoys."""

from __future__ import annotations

from typing import Any

from sae_placebo.report.plots import Figure
from sae_placebo.report.sections.base import (
    SECTIONS,
    Content,
    Section,
    View,
    add_figure,
    arm_of,
)
from sae_placebo.report.sections.classes import arm_shares, share_cell, share_figure
from sae_placebo.report.sections.use_rows import ORIGINS
from sae_placebo.report.tables import Place, at, records
from sae_placebo.report.wording import Estimate, count, finite, interval, number

_PREFIX = "origin_"


def _evidence(view: View, place: Place, arms: list[str]) -> list[dict[str, Any]]:
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
                percent = 100 * n / int(sizes.get(arm, 0) or 1)
                cells.append(f"{count(n)} ({number(percent, 1)}%)" if arm in sizes else "–")
            rows.append({"verdict": verdict, "evidence": str(evidence), "cells": cells})
    return rows


def _stable(view: View, place: Place, arms: list[str]) -> list[dict[str, Any]]:
    """Return, per arm, the share of latents that are stable, and of these the shares by origin."""
    seeds, given = (arm_shares(view, place, prefix) for prefix in ("has_seed_", "stable_"))
    return [
        arm_of(view, arm)
        | {
            "seed": share_cell(seeds.get((arm, "partner"))),
            "cells": [share_cell(given.get((arm, origin))) for origin in ORIGINS],
        }
        for arm in arms
        if any((arm, origin) in given for origin in ORIGINS)
    ]


def _decoys(view: View, place: Place) -> list[dict[str, Any]]:
    """Return, per score and threshold, how many trained latents pass for which no decoy accounts."""
    rows = []
    for row in records(at(view.tables.decoys, place)):
        targets = int(row["n_targets"] or 0)
        n = f"{count(targets)} trained latents, {count(int(row['n_decoys'] or 0))} decoys"
        passing, low, high = (finite(row[name]) for name in ("passing", "low", "high"))
        if passing is None:
            shown = Estimate("none", None, str(row["reason"] or "no reason recorded"), n)
        else:
            bounds = None if low is None or high is None else interval(low, high, 0)
            shown = Estimate(count(int(passing)), bounds, row["remark"], n)
        threshold = finite(row["threshold"])
        rows.append(
            {
                "score": row["score"],
                "threshold": "–" if threshold is None else number(threshold, 3),
                "passing": shown,
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
        with_value = {key for key, share in known.items() if share["value"] is not None}
        judged = [arm for arm in arms if any((arm, verdict) in with_value for verdict in ORIGINS)]
        decoys = _decoys(view, place)
        if not judged and not decoys:
            continue
        figure = share_figure(view, known, judged, ORIGINS) if judged else None
        blocks.append(
            {
                "name": ", ".join(place),
                **add_figure(figures, f"origin-{len(figures)}", figure),
                "arms": [arm_of(view, arm) for arm in arms],
                "judged": [arm_of(view, arm) for arm in judged],
                "rows": [
                    arm_of(view, arm)
                    | {"cells": [share_cell(known.get((arm, verdict))) for verdict in ORIGINS]}
                    for arm in arms
                ],
                "stable": _stable(view, place, arms),
                "evidence": _evidence(view, place, judged),
                "decoys": decoys,
            }
        )
    values = {"blocks": blocks, "verdicts": ORIGINS, "n_places": len(view.tables.places)}
    return Content(values, figures)


SECTIONS.add(
    Section("origin", "Where do the latents come from?", ("effects", "latents"), build),
)
