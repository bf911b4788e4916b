"""All contrasts of one metric in one figure, for trials with more contrasts than a page can compare."""

from __future__ import annotations

from typing import Any

from sae_placebo.report.dots import dot_rows
from sae_placebo.report.plots import Figure
from sae_placebo.report.sections.base import View, add_figure
from sae_placebo.report.sections.contrasts import Contrast, effect_dot, ordered
from sae_placebo.report.sections.values import MAIN, values_at
from sae_placebo.report.wording import difference_unit, metric_title

MANY = 6
"""Contrasts at one hookpoint and SAE above which one figure shows them all, and each one is folded."""
_CLASSES = (("share_single_token",),)


def are_many(contrasts: list[Contrast]) -> bool:
    """Return whether any hookpoint and SAE has more contrasts than fit side by side."""
    places = [(c.hookpoint, c.sae) for c in contrasts]
    return any(places.count(place) > MANY for place in set(places))


def overview(
    view: View, contrasts: list[Contrast], figures: dict[str, Figure]
) -> list[dict[str, Any]]:
    """Return what the template shows: a figure per leading metric and place, with a row per contrast.

    Args:
        view: Of the trial.
        contrasts: All of the trial's.
        figures: The section's figures, to which these are added.
    """
    shown: list[dict[str, Any]] = []
    for place in view.tables.places if are_many(contrasts) else []:
        at_place = [c for c in contrasts if (c.hookpoint, c.sae) == place]
        for metric in ordered(values_at(view, place).metrics, [*MAIN[:-1], *_CLASSES]):
            rows = [(c, row) for c in at_place for row in c.rows if row["metric"] == metric]
            dots = [effect_dot(view, _name(view, c), row) for c, row in rows]
            known = [dot for dot in dots if dot is not None]
            if not known:
                continue
            unit = rows[0][1]["unit"]
            axis = f"{view.trained} − the arm named, or as written"
            axis += f" ({difference_unit(unit)})" if difference_unit(unit) else ""
            figure = dot_rows(known, axis, floor=0.0, signed=True)
            shown.append(
                {
                    "metric": metric_title(metric, unit),
                    "place": ", ".join(place),
                    **add_figure(figures, f"overview-{len(shown)}", figure),
                    "left_out": len(rows) - len(known),
                }
            )
    return shown


def _name(view: View, contrast: Contrast) -> str:
    if contrast.arm == view.trained:
        return contrast.control
    return f"{contrast.arm} − {contrast.control}"
