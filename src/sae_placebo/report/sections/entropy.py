"""The section on token entropy: over how many tokens each arm's latents are spread, and random ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sae_placebo.core.lazy import pandas
from sae_placebo.report.plots import Figure, Panel, entropy_panels
from sae_placebo.report.sections.base import (
    SECTIONS,
    Content,
    Section,
    View,
    add_figure,
    by_arm,
)
from sae_placebo.report.tables import at, values
from sae_placebo.report.wording import Estimate, count, counted, number

_VALUE, _NULL = "token_entropy_bits", "token_entropy_null_bits"
_SEEDS = ["model_seed", "sae_seed"]


def _edges(usable: pandas.DataFrame) -> list[float]:
    """Return edges of bins that hold every value: half a bit wide, a quarter where all is below 4 bits."""
    top = float(np.nanmax(usable[[_VALUE, _NULL]].to_numpy(dtype=float)))
    width = 0.5 if top > 4 else 0.25
    return [round(width * i, 4) for i in range(max(4, math.floor(top / width) + 1) + 1)]


def _percent(column: pandas.Series, edges: list[float]) -> list[float]:
    counts = np.histogram(column.dropna().to_numpy(dtype=float), bins=np.asarray(edges))[0]
    return [float(share) for share in 100 * counts / max(1, counts.sum())]


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


def _row(arm: str, index: int, latents: pandas.DataFrame) -> dict[str, Any]:
    """Return one arm's row of the table: how many latents have an entropy, and which have none."""
    usable, others = latents[latents[_VALUE].notna()], latents[latents[_VALUE].isna()]
    left_out = others["class"].fillna("unclassified").value_counts().sort_index()
    bits = usable[_VALUE].to_numpy(dtype=float)
    quarters = np.quantile(bits, [0.25, 0.75]) if len(bits) else None
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
        if not len(latents):
            continue
        latents = latents.assign(**{name: values(latents[name]) for name in (_VALUE, _NULL)})
        arms = by_arm(view, latents)
        usable = latents[latents[_VALUE].notna()]
        figure = None
        if len(usable):
            edges = _edges(usable)
            panels = [_panel(arm, usable[usable["arm"] == arm], edges) for arm in arms]
            figure = entropy_panels(edges, panels, view.styles)
        blocks.append(
            {
                "hookpoint": place[0],
                "sae": place[1],
                **add_figure(figures, f"entropy-{len(figures)}", figure),
                "rows": [_row(arm, view.index(arm), rows) for arm, rows in arms.items()],
            }
        )
    return Content({"blocks": blocks, "n_places": len(view.tables.places)}, figures)


SECTIONS.add(Section("entropy", "Token entropy", ("latents",), build))
