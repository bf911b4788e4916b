"""The section on model x data: whether what an SAE shows needs the learned model, real text, or both."""

from __future__ import annotations

from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.factorial import grids, shown_design
from sae_placebo.report.sections.values import values_at

TO_ADD = (
    'shuffle = {data = "shuffle_tokens"}',
    'redraw_shuffle = {control = "redraw", data = "shuffle_tokens"}',
)


def build(view: View) -> Content:
    """Return, per data control and placebo, a 2 x 2 per metric at every hookpoint and SAE."""
    shown = []
    for design in view.designs("model_x_data"):
        places = [
            {"name": ", ".join(place), "grids": grids(view, design, place, values_at(view, place))}
            for place in view.tables.places
        ]
        shown.append(shown_design(design, places) | {"title": design.title.partition(": ")[2]})
    n_places = len(view.tables.places)
    return Content({"designs": shown, "to_add": TO_ADD, "n_places": n_places}, {})


SECTIONS.add(Section("data", "Model × data", ("effects", "trial"), build))
