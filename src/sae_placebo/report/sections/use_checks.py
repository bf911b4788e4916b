"""What the test of use finds of directions that nobody trained, and what the SAE leaves out and is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_placebo.core.errors import NotEstimable
from sae_placebo.report.palette import MUTED, ArmStyle
from sae_placebo.report.plots import (
    Figure,
    cumulative,
    error_bars,
    folded,
    label,
    layout_of,
    note,
)
from sae_placebo.report.sections.base import View, arm_of, by_arm
from sae_placebo.report.sections.use_rows import of_full_swap, p_value, part, percent, recorded
from sae_placebo.report.tables import Place, at, known_values, records
from sae_placebo.report.wording import Estimate, count, counted, finite, number
from sae_placebo.stats.proportions import wilson

_CONTROLS = {
    "untrained": "untrained dictionary",
    "covariance": "covariance direction",
    "pseudo": "pseudo-latent",
}
"""The kinds of control directions in a record, and the term of each."""
_FEWEST = 3
"""Pseudo-latents that an arm must have for the distribution of their p-values to be drawn."""


def build(view: View, place: Place) -> tuple[dict[str, Any], dict[str, Figure | None]]:
    """Return what the template shows of one hookpoint and SAE, and its figures by name."""
    tested = [record for record in recorded(view, place) if not record.get("refused")]
    uniform, distribution = _pseudo(view, place, tested)
    missed, effects = _errors(view, place)
    shown = {"pseudo": uniform, "errors": missed, "costlier": _costlier(view, tested)}
    return shown, {"pseudo": distribution, "errors": effects}


def _costlier(view: View, tested: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, by arm, what is costlier than null directions and used: latents, then control directions."""
    rows = []
    for record in tested:
        own = _bounded(part(record, "costlier"))
        if own is None:
            continue
        arm, n = arm_of(view, str(record["arm"])), counted(record.get("n_latents"), "latent")
        used = _bounded(part(part(record, "shares"), "used"))
        rows.append(
            arm
            | {"term": "", "costlier": percent(own, n), "used": percent(used, n), "margin": None}
        )
        rows += [
            arm | _control(part(record, kind), term)
            for kind, term in _CONTROLS.items()
            if part(record, kind)
        ]
        rows += [arm | groups for groups in _groups(part(record, "groups"))]
    return rows


def _control(found: Mapping[str, Any], term: str) -> dict[str, Any]:
    """Return what the template shows of one kind of control directions."""
    n = counted(found.get("n"), "direction")
    costlier, used, margin = (
        _bounded(part(found, name)) for name in ("costlier", "used", "margin")
    )
    hits = f"{count(found.get('n_used'))} of {n}"
    return {
        "term": term,
        "costlier": percent(costlier, n),
        "used": percent(used, hits),
        "margin": percent(margin, n, "not compared"),
    }


def _groups(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the row of groups of related latents; none where there is no group."""
    used, n = finite(found.get("used")), finite(found.get("n"))
    if not n or used is None:
        return []
    share = (used / n, *wilson(used, n))
    shown = percent(share, f"{count(used)} of {counted(n, 'group')}")
    return [{"term": "group", "costlier": None, "used": shown, "margin": None}]


def _bounded(share: Mapping[str, Any]) -> tuple[float, float, float] | None:
    found = tuple(finite(share.get(name)) for name in ("share", "low", "high"))
    return None if None in found else (float(found[0]), float(found[1]), float(found[2]))  # type: ignore[arg-type]


# --- directions that mean nothing ------------------------------------------------------------


def _pseudo(
    view: View, place: Place, tested: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], Figure | None]:
    """Return how the p-values of pseudo-latents are distributed, by arm, as a table and a figure."""
    rows = []
    for record in tested:
        pseudo = part(record, "pseudo")
        n, below = finite(pseudo.get("n")), finite(pseudo.get("below_5_percent"))
        if not n or below is None:
            continue
        hits = round(below * n)
        low, high = wilson(hits, int(n))
        ks, directions = finite(pseudo.get("ks_p")), counted(n, "direction")
        rows.append(
            arm_of(view, str(record["arm"]))
            | {
                "share": percent((hits / n, low, high), f"{hits} of {count(n)}"),
                "ks": Estimate(
                    number(ks, 2), None, "Kolmogorov-Smirnov p, no interval", directions
                ),
                "off": low > 0.05,
                "uneven": ks is not None and ks < 0.05,
            }
        )
    table = at(view.tables.directions, place)
    p_values = {
        arm: np.sort(known_values(of_arm["p"]))
        for arm, of_arm in by_arm(view, table[table["kind"] == "pseudo"]).items()
    }
    lines = [(arm, view.styles[arm], p) for arm, p in p_values.items() if len(p) >= _FEWEST]
    return rows, _distribution(lines) if lines else None


def _distribution(lines: list[tuple[str, ArmStyle, Any]]) -> Figure:
    """Return the distribution of p-values of each arm, from its look and sorted p-values."""
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "uniform: as it must be",
            "x": [0, 1],
            "y": [0, 100],
            "line": {"color": MUTED, "width": 1.8, "dash": "dot"},
            "hoverinfo": "skip",
        }
    ]
    for arm, style, p in lines:
        reached = 100 * np.arange(1, len(p) + 1) / len(p)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": folded(f"{arm}, n = {len(p)}", 40),
                "x": [0, *(round(float(x), 4) for x in p), 1],
                "y": [0, *(round(float(y), 3) for y in reached), 100],
                "line": {"color": style.color, "width": 2, "shape": "hv"},
                "hovertemplate": "%{y}% have p of %{x} or less<extra></extra>",
            }
        )
    return cumulative(data, 280, "p-value of a pseudo-latent, at most", "directions (%)")


# --- what the SAE misses ---------------------------------------------------------------------


def _errors(view: View, place: Place) -> tuple[list[dict[str, Any]], Figure | None]:
    """Return the effects of error directions, by arm, as tables and a figure."""
    table = at(view.tables.directions, place)
    shown, data = [], []
    for arm, of_arm in by_arm(view, table[table["kind"] == "error"]).items():
        rows, style = records(of_arm.sort_values("index", kind="stable")), view.styles[arm]
        p = known_values(of_arm["p"])
        beat = int((p <= 0.05).sum())
        try:
            bounds = wilson(beat, len(p))
            share = (beat / len(p), *bounds)
        except NotEstimable:
            share = None
        shown.append(
            arm_of(view, arm)
            | {
                "beat": percent(share, f"{beat} of {counted(len(rows), 'direction')}"),
                "rows": [_missed(row) for row in rows],
            }
        )
        data += [_legend(arm, style), _missed_points(arm, rows, style)]
    return shown, _missed_figure(data) if data else None


def _missed(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the template shows of one error direction."""
    variance, documents = finite(row["variance"]), row["documents"]
    effect = of_full_swap(row["effect"], row["effect_low"], row["effect_high"], documents)
    share = "–" if variance is None else f"{number(100 * variance, 1)}%"
    return {
        "index": count((finite(row["index"]) or 0) + 1),
        "variance": Estimate(share, None, "of these tokens, as it is", effect.n),
        "effect": effect,
        "null": of_full_swap(row["null_effect"], n=row["null_firings"]),
        "at_nulls": of_full_swap(row["effect_at_nulls"], n=row["null_firings"]),
        "p": p_value(row["p"], None),
    }


def _missed_points(arm: str, rows: list[dict[str, Any]], style: ArmStyle) -> dict[str, Any]:
    """Return one arm's error directions as points, filled where they cost more than their nulls."""
    known = [r for r in rows if finite(r["effect"]) is not None and finite(r["variance"])]
    y, low, high = (
        [100 * float(r["effect"] if finite(r[name]) is None else r[name]) for r in known]
        for name in ("effect", "effect_low", "effect_high")
    )
    beats = [(finite(r["p"]) or 1.0) <= 0.05 for r in known]
    symbols = [
        style.marker if beat else f"{style.marker.removesuffix('-open')}-open" for beat in beats
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "showlegend": False,
        "x": [round(100 * float(r["variance"]), 4) for r in known],
        "y": [round(effect, 6) for effect in y],
        "text": [
            f"{label(arm)}, direction {count(float(r['index']) + 1)}: p {number(finite(r['p']), 2)}"
            for r in known
        ],
        "hovertemplate": "%{text}, %{y}%<extra></extra>",
        "error_y": error_bars(y, low, high, 6, color=style.color, thickness=1.6, width=3),
        "marker": {"size": 9, "symbol": symbols, "color": style.color},
    }


def _legend(arm: str, style: ArmStyle) -> dict[str, Any]:
    """Return an arm's entry in the legend, whose marker is filled whatever the arm's points are."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": folded(arm, 40),
        "x": [None],
        "y": [None],
        "marker": {"size": 9, "symbol": style.marker, "color": style.color},
    }


def _missed_figure(data: list[dict[str, Any]]) -> Figure:
    legend = 10 * len(data) + 20
    layout = layout_of(
        290 + legend,
        {"l": 62, "r": 12, "t": legend + 8, "b": 48},
        showlegend=True,
        xaxis={
            "title": {"text": "share of the error's variance (%)"},
            "fixedrange": True,
            "rangemode": "tozero",
        },
        yaxis={
            "title": {"text": "effect (% of a full swap)"},
            "fixedrange": True,
            "rangemode": "tozero",
        },
        annotations=[
            note(
                "filled: costlier than its nulls (p ≤ .05); open: not",
                **{"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": 1},
                **{"yanchor": "bottom", "font": {"size": 11}},
            )
        ],
    )
    layout["legend"] |= {"orientation": "v", "traceorder": "normal", "y": 1 + 20 / 234}
    return {"data": data, "layout": layout}
