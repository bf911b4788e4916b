"""All contrasts of one metric in one picture, for trials with more contrasts than a page can compare."""

from __future__ import annotations

from typing import Any

from sae_placebo.report.dots import DotRow, dot_rows
from sae_placebo.report.plots import Figure
from sae_placebo.report.sections.base import View
from sae_placebo.report.sections.contrasts import (
    Contrast,
    Row,
    bounds,
    decimals,
    ordered,
    sample,
    within_aa,
)
from sae_placebo.report.sections.values import MAIN, values_at
from sae_placebo.report.wording import difference_unit, finite, metric_title

MANY = 6
"""Contrasts at one hookpoint and SAE above which they are shown together, and one by one folded."""
_CLASSES = (("share_single_token",),)


def are_many(contrasts: list[Contrast]) -> bool:
    """Whether any place has more contrasts than fit side by side."""
    places = [(c.hookpoint, c.sae) for c in contrasts]
    return any(places.count(place) > MANY for place in set(places))


def overview(
    view: View, contrasts: list[Contrast], figures: dict[str, Figure]
) -> list[dict[str, Any]]:
    """Return a figure per leading metric and place, a row per contrast; adds to `figures`."""
    shown: list[dict[str, Any]] = []
    for place in view.tables.places if are_many(contrasts) else []:
        here = [c for c in contrasts if (c.hookpoint, c.sae) == place]
        for metric in ordered(values_at(view, place).metrics, [*MAIN[:-1], *_CLASSES]):
            found = [(c, row) for c in here for row in c.rows if row["metric"] == metric]
            rows = [_dot(view, c, row) for c, row in found]
            known = [row for row in rows if row is not None]
            if not known:
                continue
            unit = difference_unit(found[0][1]["unit"])
            key = f"overview-{len(shown)}"
            name = metric_title(metric, found[0][1]["unit"])
            axis = f"{view.trained} − the arm named, or as written" + (f" ({unit})" if unit else "")
            figures[key] = dot_rows(known, axis, floor=0.0, signed=True)
            shown.append(
                {
                    "metric": name,
                    "place": ", ".join(place),
                    "figure": key,
                    "height": figures[key]["layout"]["height"],
                    "left_out": len(rows) - len(known),
                }
            )
    return shown


def _dot(view: View, contrast: Contrast, row: Row) -> DotRow | None:
    effect = finite(row["effect"])
    if effect is None:
        return None
    name = contrast.control
    if contrast.arm != view.trained:
        name = f"{contrast.arm} − {contrast.control}"
    (low, high), (aa_low, aa_high) = bounds(row), bounds(row, "aa_")
    return DotRow(
        name=name,
        style=view.styles[contrast.control],
        value=effect,
        low=low,
        high=high,
        decimals=decimals(row),
        n=sample(row),
        band=None if aa_low is None or aa_high is None else (aa_low, aa_high),
        faint=bool(within_aa(row)),
    )
