"""The section on partners: how many latents another SAE has too, and how many it would have by chance."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float64

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import pandas
from sae_placebo.report.palette import MUTED
from sae_placebo.report.plots import Figure, cumulative, folded
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View, add_figure
from sae_placebo.report.sections.use_rows import ALONE
from sae_placebo.report.sections.values import values_at
from sae_placebo.report.tables import Place, at, known_values, places
from sae_placebo.report.wording import Estimate, counted, estimated, interval, number
from sae_placebo.stats.proportions import wilson

COLUMNS = (
    *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "latent", "class"),
    *("comparison", "other", "correlation", "null_correlation", "has_partner"),
    *("null_has_partner", "shared", "reason"),
)
"""Columns of the table `partners` that are read; it has a row per latent and SAE compared with it."""
METRIC = "has_placebo_partner"
"""Metric that is an arm's share, with its interval over documents and seeds, where there is one."""
COMPARISONS = {
    "placebo": "in the placebo",
    "aa": "in another re-draw (A/A)",
    "seed": "in the other SAE seed",
}
_GRID = np.linspace(0, 1, 101)
_DASHES = {"placebo": "solid", "aa": "dash", "seed": "longdash"}


def _share(column: pandas.Series, reasons: pandas.Series) -> Estimate:
    """Return a share of latents in percent, with Wilson's interval over latents.

    Args:
        column: 1 or 0 of each latent; missing where it is not known.
        reasons: Why it is not known, of each latent.
    """
    known = known_values(column)
    n, hits = len(known), int(known.sum())
    try:
        low, high = wilson(hits, n)
    except NotEstimable:
        stated = [str(reason) for reason in reasons.dropna().unique()]
        return Estimate("–", None, stated[0] if stated else "no latent to judge", "0 latents")
    ends = interval(100 * low, 100 * high, 1, unit="%")
    return Estimate(f"{number(100 * hits / n, 1)}%", f"{ends}, {ALONE}", None, counted(n, "latent"))


def _row(view: View, place: Place, arm: str, comparison: str, rows: Any) -> dict[str, Any]:
    """Return one arm's latents in one comparison: share with a partner, its null, and correlations."""
    share = _share(rows["has_partner"], rows["reason"])
    if comparison == "placebo":
        values = values_at(view, place)
        value, (low, high) = values.value(arm, METRIC), values.bounds(arm, METRIC)
        if value is not None and low is not None and high is not None:
            percent = 100 * value, 100 * low, 100 * high
            share = estimated(*percent, share.n, "no interval", decimals=1, unit="%")
    known = known_values(rows["correlation"])
    pairs = rows[["model_seed", "sae_seed", "other"]].drop_duplicates()
    return {
        "arm": arm,
        "index": view.index(arm),
        "comparison": COMPARISONS.get(comparison, comparison),
        "n_pairs": counted(len(pairs), "pair"),
        "share": share,
        "null": _share(rows["null_has_partner"], rows["reason"]),
        "median": Estimate(
            number(float(np.median(known)) if len(known) else None, 2),
            None,
            "half of the latents lie below",
            counted(len(known), "latent"),
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
            "share": _share(rows["shared"], rows["reason"]),
        }
        for arm in view.arms
        for kind, rows in seeds[seeds["arm"] == arm].groupby("class", sort=True)
    ]


def _above(correlations: Float64[np.ndarray, " latent"]) -> list[float]:
    """Return the percentage of correlations at or above each point of the grid."""
    below = np.searchsorted(np.sort(correlations), _GRID, side="left")
    shares = 100 * (1 - below / max(1, len(correlations)))
    return [round(float(share), 3) for share in shares]


def _figure(view: View, groups: dict[tuple[str, str], Any]) -> Figure | None:
    """Return a line per arm and comparison, and the null's; None where no latent has a correlation."""
    data = []
    for (arm, comparison), rows in groups.items():
        known = known_values(rows["correlation"])
        if len(known):
            name = f"{arm}, {COMPARISONS.get(comparison, comparison)}"
            look = {"color": view.styles[arm].color, "dash": _DASHES.get(comparison, "dashdot")}
            data.append(_line(name, _above(known), {**look, "width": 2}))
    if not data:
        return None
    null = np.concatenate([known_values(rows["null_correlation"]) for rows in groups.values()])
    if len(null):
        line = {"color": MUTED, "dash": "dot", "width": 1.8}
        data.append(_line("null: moved in time", _above(null), line))
    return cumulative(data, 300, "correlation with the best partner, at least", "latents (%)")


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
    """Return, per hookpoint and SAE, shares and their nulls, correlations, and shared latents by class."""
    table = view.tables.partners
    figures: dict[str, Figure] = {}
    blocks = []
    for place in places(table):
        latents = at(table, place)
        comparisons = dict.fromkeys([*COMPARISONS, *latents["comparison"].dropna().unique()])
        groups = {
            (arm, comparison): rows
            for arm in view.arms
            for comparison in comparisons
            if len(rows := latents[(latents["arm"] == arm) & (latents["comparison"] == comparison)])
        }
        if not groups:
            continue
        blocks.append(
            {
                "hookpoint": place[0],
                "sae": place[1],
                **add_figure(figures, f"partners-{len(figures)}", _figure(view, groups)),
                "rows": [
                    _row(view, place, arm, comparison, rows)
                    for (arm, comparison), rows in groups.items()
                ],
                "classes": _classes(view, latents),
            }
        )
    return Content({"blocks": blocks, "n_places": len(blocks)}, figures)


SECTIONS.add(Section("partners", "Is it in the placebo too?", ("effects",), build))
