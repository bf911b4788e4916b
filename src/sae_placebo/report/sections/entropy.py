"""How spread over tokens the latents of each arm are, beside random positions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sae_placebo.core.lazy import pandas
from sae_placebo.report.plots import Figure, Panel, entropy_panels
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.tables import at
from sae_placebo.report.wording import Estimate, count, counted, number

_VALUE, _NULL = "token_entropy_bits", "token_entropy_null_bits"
_SEEDS = ["model_seed", "sae_seed"]


def _edges(usable: pandas.DataFrame) -> list[float]:
    """Return bins of a half bit (a quarter where all is narrow) that hold every value."""
    top = float(np.nanmax(usable[[_VALUE, _NULL]].to_numpy(dtype=float)))
    width = 0.5 if top > 4 else 0.25
    return [round(width * i, 4) for i in range(max(4, math.floor(top / width) + 1) + 1)]


def _percent(column: pandas.Series, edges: list[float]) -> list[float]:
    values = column.dropna().to_numpy(dtype=float)
    found = np.histogram(values, bins=np.asarray(edges))[0]
    return [float(share) for share in 100 * found / max(1, found.sum())]


def _median(column: pandas.Series) -> float | None:
    return float(column.median()) if column.notna().any() else None


def _estimate(usable: pandas.DataFrame, column: str) -> Estimate:
    """Return the median over latents, with the range of the medians of single SAEs."""
    n = counted(int(usable[column].notna().sum()), "latent")
    medians = usable.groupby(_SEEDS, dropna=False)[column].median().dropna()
    value = number(_median(usable[column]), 2)
    if len(medians) < 2:
        return Estimate(value, None, "one SAE" if len(medians) else "no latent left", n)
    ends = f"{number(float(medians.min()), 2)} to {number(float(medians.max()), 2)}"
    return Estimate(value, f"{ends}, {len(medians)} SAEs", None, n)


def _row(arm: str, index: int, own: pandas.DataFrame) -> dict[str, Any]:
    usable = own[own[_VALUE].notna()]
    left_out = own[own[_VALUE].isna()]["class"].fillna("unclassified").value_counts().sort_index()
    values = usable[_VALUE].to_numpy(dtype=float)
    quarters = np.quantile(values, [0.25, 0.75]) if len(values) else None
    return {
        "arm": arm,
        "index": index,
        "n": count(len(usable)),
        "left_out": count(int(left_out.sum())),
        "why": ", ".join(f"{n:,} {str(kind).replace('_', ' ')}" for kind, n in left_out.items()),
        "median": _estimate(usable, _VALUE),
        "middle": "–"
        if quarters is None
        else f"{number(float(quarters[0]), 1)} to {number(float(quarters[1]), 1)}",
        "null": _estimate(usable, _NULL),
        "gap": _estimate(usable.assign(gap=usable[_NULL] - usable[_VALUE]), "gap"),
    }


def _panel(arm: str, usable: pandas.DataFrame, edges: list[float]) -> Panel:
    return Panel(
        arm=arm,
        shares=_percent(usable[_VALUE], edges),
        null_shares=_percent(usable[_NULL], edges),
        median=_median(usable[_VALUE]),
        n=int(usable[_VALUE].notna().sum()),
    )


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, the distributions as plot and table."""
    figures: dict[str, Figure] = {}
    blocks = []
    for place in view.tables.places:
        latents = at(view.tables.latents, place)
        bits = {k: latents[k].to_numpy(dtype=np.float64, na_value=np.nan) for k in (_VALUE, _NULL)}
        latents = latents.assign(**bits)
        usable = latents[latents[_VALUE].notna()]
        if not len(latents):
            continue
        own = {arm: latents[latents["arm"] == arm] for arm in view.arms}
        own = {arm: table for arm, table in own.items() if len(table)}
        block: dict[str, Any] = {
            "hookpoint": place[0],
            "sae": place[1],
            "figure": None,
            "rows": [_row(arm, view.styles[arm].index, table) for arm, table in own.items()],
        }
        if len(usable):
            edges, key = _edges(usable), f"entropy-{len(figures)}"
            panels = [_panel(a, t[t[_VALUE].notna()], edges) for a, t in own.items()]
            figures[key] = entropy_panels(edges, panels, view.styles)
            block |= {"figure": key, "height": figures[key]["layout"]["height"]}
        blocks.append(block)
    return Content({"blocks": blocks, "n_places": len(view.tables.places)}, figures)


SECTIONS.add(Section("entropy", "Token entropy", ("latents",), build))
