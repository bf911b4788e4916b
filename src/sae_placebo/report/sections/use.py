"""The section on use: where latents come from, crossed with whether the model uses them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_placebo.report.plots import Figure
from sae_placebo.report.sections import use_checks, use_curves, use_record
from sae_placebo.report.sections.base import (
    SECTIONS,
    Content,
    Section,
    View,
    arm_of,
    by_arm,
)
from sae_placebo.report.sections.classes import in_class_order
from sae_placebo.report.sections.use_rows import (
    CARRIED,
    ORIGINS,
    UNJUDGED,
    USES,
    Key,
    asked,
    card_anchors,
    cell_anchor,
    dot,
    effective,
    key,
    of_full_swap,
    p_value,
    percent,
    placed,
    recorded,
    share,
    share_dots,
    use_limit,
    use_places,
    weighted_share,
    weights,
)
from sae_placebo.report.tables import Place, at, records
from sae_placebo.report.wording import Estimate, count

_LISTED = 40
"""Latents of the cell `CARRIED` that this section lists; the section of cards has all of them."""
_FEWEST_DRAWN = 5
"""Latents of a class with a verdict, over all arms, below which the class is not drawn."""
_AXIS = "share of firing latents, with 95% interval"


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, the table of origin and use, and the numbers that explain it."""
    table, cards = asked(view), card_anchors(view)
    figures: dict[str, Figure] = {}
    blocks = []
    for position, place in enumerate(use_places(view)):
        rows = by_arm(view, at(table, place))
        if not rows and not recorded(view, place):
            continue
        classes, of_classes = _classes(view, rows)
        block: dict[str, Any] = {
            "name": ", ".join(place),
            "refused": _refused(view, place),
            "grids": [_grid(view, place, arm, of_arm) for arm, of_arm in rows.items()],
            "carried": [_carried(view, place, arm, of_arm, cards) for arm, of_arm in rows.items()],
            "classes": classes,
            "reasons": _reasons(rows),
            "arms": [arm_of(view, arm) for arm in rows],
        }
        drawn = {"uses": _uses(view, rows), "classes": of_classes}
        for module in (use_curves, use_checks):
            shown, pictures = module.build(view, place)
            block |= shown
            drawn |= pictures
        block["figures"] = placed(figures, f"use-{position}", drawn)
        blocks.append(block)
    values = {"blocks": blocks, "n_places": len(blocks), "uses": USES, "limits": _limits(view)}
    return Content(values | {"record": use_record.record()}, figures)


def _limits(view: View) -> dict[str, str]:
    """Return the trial's limits of the verdict, in percent of a full swap."""
    values = {name: use_limit(view, name) for name in ("least_effect", "negligible")}
    return {name: f"{100 * value:g}%" for name, value in values.items() if value is not None}


def _refused(view: View, place: Place) -> list[dict[str, Any]]:
    """Return the arms in which the test of use was refused, and why."""
    return [
        arm_of(view, str(record["arm"])) | {"reason": str(record["refused"]).removesuffix(".")}
        for record in recorded(view, place)
        if record.get("refused")
    ]


# --- the table -------------------------------------------------------------------------------


def _grid(view: View, place: Place, arm: str, rows: Any) -> dict[str, Any]:
    """Return one arm's table of origin and use: weighted shares of the latents with a verdict."""
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
    """Return the latents of the cell `CARRIED`, those of the least effect first, and their share."""
    holds = ((rows["origin"] == CARRIED[0]) & (rows["use"] == CARRIED[1])).to_numpy()
    carried = rows[holds].sort_values(["effect", "latent"], kind="stable")
    listed = []
    for row in records(carried.iloc[:_LISTED]):
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
    n = f"{count(int(holds.sum()))} of {count(len(rows))} asked"
    return arm_of(view, arm) | {
        "share": percent(weighted_share(holds, weights(rows)), n),
        "listed": listed,
        "rest": len(carried) - len(listed),
        "link": cell_anchor(view, place, arm, *CARRIED),
    }


# --- shares ----------------------------------------------------------------------------------


def _uses(view: View, rows: dict[str, Any]) -> Figure | None:
    """Return a figure of the shares of the three verdicts of use, by arm."""
    dots = {
        arm: {use: dot((of_arm["use"] == use).to_numpy(), weights(of_arm)) for use in USES}
        for arm, of_arm in rows.items()
    }
    return share_dots(view, USES, dots, _AXIS)


def _classes(view: View, rows: dict[str, Any]) -> tuple[dict[str, Any], Figure | None]:
    """Return, per class of latent and arm, the shares of the three uses, and a figure of one."""
    kinds = in_class_order(str(kind) for of_arm in rows.values() for kind in of_arm["class"])
    parts = {
        kind: {arm: of_arm[of_arm["class"] == kind] for arm, of_arm in rows.items()}
        for kind in kinds
    }
    drawn = [kind for kind in kinds if sum(map(len, parts[kind].values())) >= _FEWEST_DRAWN]
    dots = {
        arm: {
            kind: dot((parts[kind][arm]["use"] == "used").to_numpy(), weights(parts[kind][arm]))
            for kind in drawn
        }
        for arm in rows
    }
    figure = share_dots(view, drawn, dots, "share used of a class, with 95% interval")
    shown = {
        "rows": [
            {"kind": kind, "cells": list(map(_three, parts[kind].values()))} for kind in kinds
        ],
        "few": [kind for kind in kinds if kind not in drawn],
        "fewest": _FEWEST_DRAWN,
    }
    return shown, figure


def _three(rows: Any) -> list[Estimate]:
    """Return the shares of the three verdicts of use, as they are shown."""
    return [share((rows["use"] == use).to_numpy(), weights(rows)) for use in USES]


def _reasons(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Return why latents are undetermined, by arm, as shares of all latents with a verdict.

    The reason that the most latents have, over all arms, comes first.
    """
    totals: dict[str, float] = {}
    for of_arm in rows.values():
        undetermined = of_arm[of_arm["use"] == "undetermined"]
        reasons = undetermined["use_reason"].fillna("")
        for reason, weight in zip(reasons, weights(undetermined), strict=True):
            totals[str(reason)] = totals.get(str(reason), 0.0) + float(weight)
    return [
        {
            "reason": reason or "no reason recorded",
            "cells": [
                share(_is_undetermined_by(of_arm, reason), weights(of_arm))
                for of_arm in rows.values()
            ],
        }
        for reason in sorted(totals, key=lambda name: -totals[name])
    ]


def _is_undetermined_by(rows: Any, reason: str) -> Any:
    undetermined = rows["use"] == "undetermined"
    return (undetermined & (rows["use_reason"].fillna("") == reason)).to_numpy()


SECTIONS.add(Section("use", "Does the model use it?", (), build))
