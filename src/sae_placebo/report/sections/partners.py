"""Is it in the placebo too: how many latents have a partner elsewhere, beside what chance gives."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.report.palette import MUTED
from sae_placebo.report.plots import Figure, folded, layout_of
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.values import Place, values_at
from sae_placebo.report.tables import at
from sae_placebo.report.wording import Estimate, counted, finite, interval, number
from sae_placebo.stats.proportions import wilson

COLUMNS = (
    *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "latent", "class"),
    *("comparison", "other", "correlation", "null_correlation", "has_partner"),
    *("null_has_partner", "shared", "reason"),
)
"""Of the table `partners`: one row per latent and SAE that it is held against."""
METRIC = "has_placebo_partner"
"""Metric that has the share of an arm with its interval over documents and seeds, where there is one."""
COMPARISONS = {
    "placebo": "in the placebo",
    "aa": "in another re-draw (A/A)",
    "seed": "in the other SAE seed",
}
_GRID = np.linspace(0, 1, 101)
_LATENTS_ALONE = "latents alone"
_DASHES = {"placebo": "solid", "aa": "dash", "seed": "longdash"}


def _table(view: View) -> pandas.DataFrame:
    found = getattr(view.tables, "partners", None)
    if found is None:
        found = pandas.DataFrame(columns=list(COLUMNS))
    return found.reindex(columns=list(COLUMNS))


def _known(column: pandas.Series) -> np.ndarray:
    values = pandas.to_numeric(column, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    return np.asarray(values[np.isfinite(values)])


def _share(column: pandas.Series, reasons: pandas.Series) -> Estimate:
    """Return a share of latents in percent, with Wilson's interval over latents."""
    values = _known(column)
    n, hits = len(values), int(values.sum())
    try:
        low, high = wilson(hits, n)
    except NotEstimable:
        stated = [str(reason) for reason in reasons.dropna().unique()]
        return Estimate("–", None, stated[0] if stated else "no latent to judge", "0 latents")
    ends = interval(100 * low, 100 * high, 1, unit="%")
    return Estimate(
        f"{number(100 * hits / n, 1)}%", f"{ends}, {_LATENTS_ALONE}", None, counted(n, "latent")
    )


def _row(view: View, place: Place, arm: str, comparison: str, own: Any) -> dict[str, Any]:
    share = _share(own["has_partner"], own["reason"])
    if comparison == "placebo":
        known = values_at(view, place)
        value, (low, high) = known.value(arm, METRIC), known.bounds(arm, METRIC)
        if value is not None and low is not None and high is not None:
            ends = interval(100 * low, 100 * high, 1, unit="%")
            share = Estimate(f"{number(100 * value, 1)}%", ends, None, share.n)
    found = _known(own["correlation"])
    return {
        "arm": arm,
        "index": view.index(arm),
        "comparison": COMPARISONS.get(comparison, comparison),
        "n_pairs": counted(len(own[["model_seed", "sae_seed", "other"]].drop_duplicates()), "pair"),
        "share": share,
        "null": _share(own["null_has_partner"], own["reason"]),
        "median": Estimate(
            number(float(np.median(found)) if len(found) else None, 2),
            None,
            "half of the latents lie below",
            counted(len(found), "latent"),
        ),
    }


def _classes(view: View, table: Any) -> list[dict[str, Any]]:
    """Return, per arm and class, the share of latents that the other SAE seed has too."""
    seeds = table[(table["comparison"] == "seed") & table["shared"].notna()]
    return [
        {
            "arm": arm,
            "index": view.index(arm),
            "id": str(kind),
            "kind": str(kind).replace("_", " "),
            "share": _share(own["shared"], own["reason"]),
        }
        for arm in view.arms
        for kind, own in seeds[seeds["arm"] == arm].groupby("class", sort=True)
    ]


def _above(values: np.ndarray) -> list[float]:
    """Return the percentage of values at or above each point of the grid."""
    order = np.sort(values)
    found = 100 * (1 - np.searchsorted(order, _GRID, side="left") / max(1, len(order)))
    return [round(float(share), 3) for share in found]


def _figure(view: View, groups: dict[tuple[str, str], Any]) -> Figure | None:
    data = []
    for (arm, comparison), own in groups.items():
        values = _known(own["correlation"])
        if len(values):
            name = f"{arm}, {COMPARISONS.get(comparison, comparison)}"
            line = {"color": view.styles[arm].color, "dash": _DASHES.get(comparison, "dashdot")}
            data.append(_line(name, _above(values), {**line, "width": 2}))
    nulls = [_known(own["null_correlation"]) for own in groups.values()]
    null = np.concatenate(nulls) if nulls else np.zeros(0)
    if not data:
        return None
    if len(null):
        data.append(
            _line(
                "null: moved in time", _above(null), {"color": MUTED, "dash": "dot", "width": 1.8}
            )
        )
    legend = 20 * len(data)
    layout = layout_of(
        300 + legend,
        {"l": 48, "r": 10, "t": legend + 8, "b": 48},
        xaxis={
            "title": {"text": "correlation with the best partner, at least"},
            "range": [0, 1],
            "fixedrange": True,
        },
        yaxis={"title": {"text": "latents (%)"}, "range": [0, 102], "fixedrange": True},
    )
    layout["legend"] |= {"orientation": "v", "traceorder": "normal"}
    return {"data": data, "layout": layout}


def _line(name: str, shares: list[float], line: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": folded(name, 46),
        "x": [round(float(x), 2) for x in _GRID],
        "y": shares,
        "line": line,
        "hovertemplate": "%{y}% of latents at %{x} or more<extra></extra>",
    }


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, shares beside their null, all correlations, seeds by class."""
    table = _table(view)
    figures: dict[str, Figure] = {}
    blocks = []
    places = table[["hookpoint", "sae"]].dropna().drop_duplicates().itertuples(index=False)
    for place in [(str(h), str(s)) for h, s in places]:
        own = at(table, place)
        groups = {
            (arm, comparison): rows
            for arm in view.arms
            for comparison in dict.fromkeys([*COMPARISONS, *own["comparison"].dropna().unique()])
            if len(rows := own[(own["arm"] == arm) & (own["comparison"] == comparison)])
        }
        if not groups:
            continue
        figure = _figure(view, groups)
        key = f"partners-{len(figures)}" if figure else None
        if figure and key:
            figures[key] = figure
        blocks.append(
            {
                "hookpoint": place[0],
                "sae": place[1],
                "figure": key,
                "height": finite(figure["layout"]["height"]) if figure else None,
                "rows": [
                    _row(view, place, arm, comparison, rows)
                    for (arm, comparison), rows in groups.items()
                ],
                "classes": _classes(view, own),
            }
        )
    return Content({"blocks": blocks, "n_places": len(blocks)}, figures)


SECTIONS.add(Section("partners", "Is it in the placebo too?", ("effects",), build))
