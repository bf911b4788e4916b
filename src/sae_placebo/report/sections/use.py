"""Does the model use it: where latents come from, crossed with whether the model uses them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_placebo.report.plots import Figure
from sae_placebo.report.sections import use_checks, use_curves, use_record
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.classes import class_names
from sae_placebo.report.sections.use_rows import (
    CARRIED,
    ORIGINS,
    UNJUDGED,
    USES,
    Key,
    Place,
    arm_of,
    arms_in,
    asked,
    card_anchors,
    cell_anchor,
    dot,
    effective,
    here,
    key,
    of_full_swap,
    p_value,
    percent,
    places,
    recorded,
    share,
    share_dots,
    weighted_share,
    weights,
)
from sae_placebo.report.tables import records
from sae_placebo.report.wording import Estimate, count, finite

_LISTED = 40
"""Latents of the named cell that the section lists itself; the cards' section has all."""
_FEWEST_DRAWN = 5
"""Latents asked of a class, over all arms, that a row of the picture needs."""
_AXIS = "share of firing latents, with 95% interval"


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, the table of origin and use, and what stands behind it."""
    table, cards = asked(view), card_anchors(view)
    figures: dict[str, Figure] = {}
    blocks = []
    for number_of, place in enumerate(_places(view)):
        arms = [arm for arm in arms_in(view, table) if len(here(table, place, arm))]
        own = {arm: here(table, place, arm) for arm in arms}
        if not own and not recorded(view, place):
            continue
        block: dict[str, Any] = {
            "name": ", ".join(place),
            "refused": _refused(view, place),
            "grids": [_grid(view, place, arm, rows) for arm, rows in own.items()],
            "carried": [_carried(view, place, arm, rows, cards) for arm, rows in own.items()],
            "classes": _classes(view, own),
            "reasons": _reasons(view, own),
            "arms": [arm_of(view, arm) for arm in arms],
        }
        drawn = {"uses": _uses(view, own), "classes": block["classes"].pop("figure")}
        for module in (use_curves, use_checks):
            shown, pictures = module.build(view, place)
            block |= shown
            drawn |= pictures
        block["figures"] = {}
        for name, figure in drawn.items():
            if figure:
                known = f"use-{number_of}-{name}"
                figures[known] = figure
                block["figures"][name] = {"key": known, "height": figure["layout"]["height"]}
        blocks.append(block)
    values = {"blocks": blocks, "n_places": len(blocks), "uses": USES, "limits": _limits(view)}
    return Content(values | {"record": use_record.record()}, figures)


def _places(view: View) -> list[Place]:
    """Return every hookpoint and SAE that was asked about, those of which nothing came with them."""
    told = view.tables.trial.get("use")
    named = [
        (str(one.get("hookpoint")), str(one.get("sae")))
        for one in (told if isinstance(told, list) else [])
        if isinstance(one, dict)
    ]
    return list(dict.fromkeys([*places(view.tables.use), *named]))


def _limits(view: View) -> dict[str, str]:
    """Return the trial's limits of the verdict, in percent of a full swap."""
    spec = view.tables.trial.get("spec")
    found = spec.get("use") if isinstance(spec, dict) else None
    known = found if isinstance(found, dict) else {}
    values = {name: finite(known.get(name)) for name in ("least_effect", "negligible")}
    return {name: f"{100 * value:g}%" for name, value in values.items() if value is not None}


def _refused(view: View, place: Place) -> list[dict[str, Any]]:
    return [
        arm_of(view, str(one["arm"])) | {"reason": str(one["refused"]).removesuffix(".")}
        for one in recorded(view, place)
        if one.get("refused")
    ]


# --- the table -------------------------------------------------------------------------------


def _grid(view: View, place: Place, arm: str, rows: Any) -> dict[str, Any]:
    weight = weights(rows)
    origins = [*ORIGINS, *([UNJUDGED] if (rows["origin"] == UNJUDGED).any() else [])]
    n = len(rows)

    def cell(origin: str | None, use: str | None) -> dict[str, Any]:
        holds = np.ones(n, dtype=bool)
        holds &= True if origin is None else (rows["origin"] == origin).to_numpy()
        holds &= True if use is None else (rows["use"] == use).to_numpy()
        linked = origin is not None and use is not None and holds.any()
        return {
            "share": share(holds, weight, f"{count(int(holds.sum()))} asked"),
            "link": cell_anchor(view, place, arm, str(origin), str(use)) if linked else None,
            "n": count(int(holds.sum())),
            "carried": (origin, use) == CARRIED,
            "margin": origin is None or use is None,
        }

    return arm_of(view, arm) | {
        "n": count(n),
        "stands_for": count(weight.sum()),
        "effective": count(effective(weight)),
        "rows": [
            {"origin": origin, "cells": [cell(origin, use) for use in (*USES, None)]}
            for origin in origins
        ],
        "sums": [cell(None, use) for use in USES],
    }


def _carried(
    view: View, place: Place, arm: str, rows: Any, cards: dict[tuple[Key, int], str]
) -> dict[str, Any]:
    """Return the latents of the named cell, those that stand for the most latents first."""
    holds = ((rows["origin"] == CARRIED[0]) & (rows["use"] == CARRIED[1])).to_numpy()
    found = rows[holds].assign(weight=weights(rows[holds]))
    found = found.sort_values(["effect", "latent"], kind="stable")
    listed = []
    for row in records(found.iloc[:_LISTED]):
        latent = int(row["latent"])
        listed.append(
            {
                "latent": latent,
                "card": cards.get((key(row), latent)),
                "class": str(row["class"]),
                "evidence": str(row["evidence"] or "none recorded"),
                "effect": of_full_swap(
                    row["effect"], row["effect_low"], row["effect_high"], row["effect_documents"]
                ),
                "p": p_value(row["use_p"], row["n_nulls"]),
                "n_active": count(row["n_active"]),
            }
        )
    said = f"{count(int(holds.sum()))} of {count(len(rows))} asked"
    return arm_of(view, arm) | {
        "share": percent(weighted_share(holds, weights(rows)), said),
        "listed": listed,
        "rest": len(found) - len(listed),
        "link": cell_anchor(view, place, arm, *CARRIED),
    }


# --- shares ----------------------------------------------------------------------------------


def _uses(view: View, own: dict[str, Any]) -> Figure | None:
    dots = {
        arm: {use: dot((rows["use"] == use).to_numpy(), weights(rows)) for use in USES}
        for arm, rows in own.items()
    }
    return share_dots(view, USES, dots, _AXIS)


def _classes(view: View, own: dict[str, Any]) -> dict[str, Any]:
    """Return, per class of latent and arm, the shares of the three uses."""
    held = {str(kind) for rows in own.values() for kind in rows["class"]}
    kinds = [k for k in class_names() if k in held] + sorted(held - set(class_names()))
    sizes = {k: sum(int((rows["class"] == k).sum()) for rows in own.values()) for k in kinds}
    parts = {
        (arm, kind): rows[rows["class"] == kind] for arm, rows in own.items() for kind in kinds
    }
    rows_shown = [
        {
            "kind": kind,
            "cells": [_three(parts[arm, kind]) for arm in own],
        }
        for kind in kinds
    ]
    drawn = [kind for kind in kinds if sizes[kind] >= _FEWEST_DRAWN]
    dots = {
        arm: {
            kind: dot((parts[arm, kind]["use"] == "used").to_numpy(), weights(parts[arm, kind]))
            for kind in drawn
        }
        for arm in own
    }
    figure = share_dots(view, drawn, dots, "share used of a class, with 95% interval")
    few = [kind for kind in kinds if kind not in drawn]
    return {"rows": rows_shown, "figure": figure, "few": few, "fewest": _FEWEST_DRAWN}


def _three(rows: Any) -> list[Estimate]:
    return [share((rows["use"] == use).to_numpy(), weights(rows)) for use in USES]


def _reasons(view: View, own: dict[str, Any]) -> list[dict[str, Any]]:
    """Return why latents are undetermined, the most frequent first, as shares of all asked."""
    totals: dict[str, float] = {}
    for rows in own.values():
        left = rows[rows["use"] == "undetermined"]
        for reason, one in zip(left["use_reason"].fillna(""), weights(left), strict=True):
            totals[str(reason)] = totals.get(str(reason), 0.0) + float(one)
    return [
        {
            "reason": reason or "no reason recorded",
            "cells": [
                share(
                    (
                        (rows["use"] == "undetermined") & (rows["use_reason"].fillna("") == reason)
                    ).to_numpy(),
                    weights(rows),
                )
                for rows in own.values()
            ],
        }
        for reason in sorted(totals, key=lambda name: -totals[name])
    ]


SECTIONS.add(Section("use", "Does the model use it?", (), build))
