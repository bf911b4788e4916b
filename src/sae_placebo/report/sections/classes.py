"""The section that says how many latents of each class every arm has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sae_placebo.latents.classes.classification import CLASS_NAMES, CLASSES
from sae_placebo.report.plots import Dot, Figure, shares
from sae_placebo.report.sections.base import (
    SECTIONS,
    Content,
    Section,
    View,
    add_figure,
    arm_of,
)
from sae_placebo.report.sections.contrasts import bounds, sample
from sae_placebo.report.tables import Place, at, records
from sae_placebo.report.wording import Estimate, estimated, finite, number

_MANY = 6
"""Number of arms above which they are the table's rows, so that it needs no scrolling."""
STARRED = ("single_token", "arbitrary_subset")
"""The classes that Bricken et al. (2023) saw in a model with random weights."""
_REPLICATED = "replicated_"
_AMONG_REPLICATED = {"with_rule": "described by a rule", "unnamed": "unexplained, and no rule"}
_SMALL = 0.01
"""Share that a class must reach in some arm to be drawn; the table holds the others too."""
_FEW = 8
"""Number of classes up to which all are drawn, whatever their shares."""
_COUNTED = "counted on these latents"
_NO_EFFECTS = "share_ effects missing: counted from the latents table"

ArmShares = dict[tuple[str, str], dict[str, Any]]
"""A share by arm and kind: its value, low, high, the reason for having no interval, and its n in words."""


def in_class_order(kinds: Iterable[str]) -> list[str]:
    """Return classes in the order in which the decision list tries them, unknown ones last by name."""
    given = set(kinds)
    return [*(kind for kind in CLASS_NAMES if kind in given), *sorted(given - set(CLASS_NAMES))]


def arm_shares(view: View, place: Place, prefix: str) -> ArmShares:
    """Return each arm's shares at one place, as the effects table holds them on either side.

    Args:
        view: Of the trial.
        place: Hookpoint and SAE.
        prefix: Beginning of the metrics' names; what follows it is the kind.
    """
    recorded: ArmShares = {}
    for row in records(at(view.tables.effects, place)):
        metric = str(row["metric"])
        if not metric.startswith(prefix):
            continue
        for side in ("arm", "control"):
            at_kind = str(row[side]), metric.removeprefix(prefix)
            value, (low, high) = finite(row[f"{side}_value"]), bounds(row, f"{side}_")
            known = recorded.get(at_kind)
            if known is not None and (value is None or known["value"] is not None):
                continue
            recorded[at_kind] = {
                "value": value,
                "low": low,
                "high": high,
                "reason": None if low is not None else _own_reason(row, at_kind[0]),
                "n": sample(row),
            }
    return recorded


def _own_reason(row: Mapping[str, Any], arm: str) -> str:
    """Return why one arm of an effect has no share; an effect's reason names the arm of each part."""
    said, before = str(row["reason"] or "no reason recorded"), f"{arm}: "
    return next((p.removeprefix(before) for p in said.split("; ") if p.startswith(before)), said)


def share_figure(view: View, known: ArmShares, arms: Sequence[str], kinds: Sequence[str]) -> Figure:
    """Return a figure with a row per kind and, in it, each arm's share in percent."""
    dots: dict[str, dict[str, Dot]] = {}
    for arm in arms:
        of_arm = {kind: known[arm, kind] for kind in kinds if (arm, kind) in known}
        dots[arm] = {
            kind: _dot(share) for kind, share in of_arm.items() if share["value"] is not None
        }
    return shares(list(kinds), dots, {arm: view.styles[arm] for arm in arms}, view.level)


def share_cell(share: Mapping[str, Any] | None, n: str = "latents not counted") -> Estimate:
    """Return a share in percent, as it is shown; `n` is that of a share that is not recorded."""
    if share is None:
        # a kind that no latent of the arm is of has no row in a count
        return Estimate("–", None, "not recorded", n)
    value, low, high = _in_percent(share)
    reason = share["reason"] or "not estimable"
    decimals = 1 if low is None else None
    return estimated(value, low, high, share["n"], reason, decimals=decimals, unit="%")


def _dot(share: Mapping[str, Any]) -> Dot:
    value, low, high = _in_percent(share)
    return Dot(value, low, high, f"n = {share['n']}")


def _in_percent(share: Mapping[str, Any]) -> list[Any]:
    return [None if share[k] is None else 100 * share[k] for k in ("value", "low", "high")]


def _known(view: View, place: Place) -> tuple[ArmShares, dict[str, int]]:
    """Return the share of every arm and class, and how many latents each arm has.

    A share that the effects table lacks is counted from the table of latents.
    """
    latents = at(view.tables.latents, place)
    counts = latents.groupby(["arm", "class"]).size().to_dict() if len(latents) else {}
    sizes = latents.groupby("arm").size().to_dict() if len(latents) else {}
    known = arm_shares(view, place, "share_")
    for (arm, kind), n in counts.items():
        counted = {"value": n / sizes[arm], "low": None, "high": None, "reason": _NO_EFFECTS}
        known.setdefault((str(arm), str(kind)), counted | {"n": ""})
    totals = {str(arm): int(n) for arm, n in sizes.items()}
    for (arm, _), share in known.items():
        share["n"] = "; ".join(filter(None, (_latents(totals.get(arm)), share["n"])))
    return known, totals


def _latents(total: int | None) -> str:
    return f"{total:,} latents" if total else "latents not counted"


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, the shares as plot and tables."""
    figures: dict[str, Figure] = {}
    blocks = []
    for place in view.tables.places:
        known, totals = _known(view, place)
        if not known:
            continue
        kinds = in_class_order(kind for _, kind in known)
        arms = [arm for arm in view.arms if any(a == arm for a, _ in known)]
        drawn = _drawn(kinds, known)
        figure = share_figure(view, known, arms, drawn)
        cells = {
            kind: [share_cell(known.get((a, kind)), _latents(totals.get(a))) for a in arms]
            for kind in kinds
        }
        blocks.append(
            {
                "hookpoint": place[0],
                "sae": place[1],
                **add_figure(figures, f"classes-{len(figures)}", figure),
                "arms": [arm_of(view, arm) | {"n": totals.get(arm)} for arm in arms],
                "turned": len(arms) > _MANY,
                "kinds": kinds,
                "small": [kind for kind in kinds if kind not in drawn],
                "rows": [
                    {"kind": kind, "drawn": kind in drawn, "cells": cells[kind]} for kind in kinds
                ],
                "starred": _starred(known, arms, totals, view),
                "replicated": _replicated(view, place, arms),
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
    """Return, for each class whose planted latents are not recovered, why they are not."""
    return {kind.name: kind.unclaimed for kind in CLASSES if not kind.claimed}


def _drawn(kinds: list[str], known: ArmShares) -> list[str]:
    """Return the classes to draw: all if they are few, else the starred ones and those of some size."""
    if len(kinds) <= _FEW:
        return kinds
    large = {kind for (_, kind), share in known.items() if (share["value"] or 0) >= _SMALL}
    return [kind for kind in kinds if kind in STARRED or kind in large]


def _starred(
    known: ArmShares, arms: list[str], totals: dict[str, int], view: View
) -> list[dict[str, Any]]:
    """Return the starred classes by arm, as counts and shares; nothing where neither is known."""
    if not any(kind == STARRED[1] for _, kind in known):
        return []
    rows = []
    for arm in arms:
        cells = []
        for kind in STARRED:
            share, total = known.get((arm, kind)), totals.get(arm)
            counted = None
            if share and share["value"] is not None and total:
                counted = f"{round(share['value'] * total):,} of {total:,}"
            cells.append({"share": share_cell(share, _latents(total)), "count": counted})
        rows.append(arm_of(view, arm) | {"cells": cells})
    return rows


def _replicated(view: View, place: Place, arms: list[str]) -> dict[str, Any] | None:
    """Return what each arm's replicated latents are: their classes, and whether a rule describes them."""
    known = arm_shares(view, place, _REPLICATED)
    kinds = list(dict.fromkeys(kind for _, kind in known))
    if not kinds:
        return None
    cells = {a: [share_cell(known.get((a, k)), "latents not counted") for k in kinds] for a in arms}
    return {
        "kinds": [_AMONG_REPLICATED.get(kind, kind.replace("_", " ")) for kind in kinds],
        "rows": [arm_of(view, arm) | {"cells": cells[arm]} for arm in arms],
    }


def _sensitivity(view: View, place: Place) -> dict[str, Any] | None:
    """Return how many latents change class when a threshold moves, over all arms; most first."""
    table = view.tables.sensitivity
    if not len(table):
        return None
    moved: dict[str, dict[str, dict[str, Any]]] = {}
    for row in records(at(table, place)):
        direction = "up" if (finite(row["change"]) or 0) > 0 else "down"
        side = moved.setdefault(str(row["threshold"]), {}).setdefault(
            direction, {"moved": 0, "n": 0, "most": {}, "reason": None}
        )
        count = int(finite(row["n_moved"]) or 0)
        side["reason"] = row.get("reason") or side["reason"]
        side["moved"] += count
        side["n"] += int(finite(row["n_latents"]) or 0)
        if row["most_moved"]:
            side["most"][row["most_moved"]] = side["most"].get(row["most_moved"], 0) + count
    rows: list[dict[str, Any]] = [
        {
            "threshold": name,
            "most": max((side["moved"] for side in sides.values()), default=0),
            "cells": [_moved(sides.get(direction)) for direction in ("down", "up")],
        }
        for name, sides in moved.items()
    ]
    rows.sort(key=lambda row: int(row["most"]), reverse=True)
    return {
        "rows": [row for row in rows if row["most"]],
        "still": [row["threshold"] for row in rows if not row["most"]],
    }


def _moved(side: dict[str, Any] | None) -> dict[str, Any]:
    """Return the share of latents that one move of a threshold moves, and where most of them go."""
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


SECTIONS.add(Section("classes", "Class shares per arm", ("effects", "latents"), build))
