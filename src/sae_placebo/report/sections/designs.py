"""The section on embeddings x blocks: what a real W_E does, on real blocks and on random ones."""

from __future__ import annotations

from typing import Any

from sae_placebo.report.sections.base import SECTIONS, Content, Section, View, arm_of
from sae_placebo.report.sections.factorial import grids, named_row, shown_design
from sae_placebo.report.sections.values import values_at
from sae_placebo.report.tables import Place, at
from sae_placebo.report.wording import count, number
from sae_placebo.stats.designs import Design

TITLE = "What a real W_E buys on random blocks"
# what the page of a trial without such arms tells the reader to add
TO_ADD = (
    'redraw = {control = "redraw"}',
    'redraw_keep_embeddings = {control = "redraw", keep = ["embeddings", "unembedding"]}',
    'redraw_embeddings = {control = "redraw_embeddings"}',
)


def _place(view: View, design: Design, place: Place) -> dict[str, Any]:
    values = values_at(view, place)
    pair = (design.cells[2].arm, design.cells[3].arm)
    return {
        "hookpoint": place[0],
        "sae": place[1],
        "named": named_row(view, pair, values),
        "pair": [arm_of(view, arm) for arm in pair if arm],
        "grids": grids(view, design, place, values),
        "alive": _alive(view, design, place),
    }


def _alive(view: View, design: Design, place: Place) -> dict[str, Any] | None:
    """Return each class's share of the alive latents, per cell of the design."""
    latents = at(view.tables.latents, place)
    alive = latents[latents["class"] != "dead"]
    arms = [cell.arm for cell in design.cells if cell.arm is not None]
    counts = alive.groupby(["arm", "class"]).size().to_dict() if len(alive) else {}
    totals = {arm: sum(n for (a, _), n in counts.items() if a == arm) for arm in arms}
    arms = [arm for arm in arms if totals[arm]]
    kinds = [kind for kind in alive["class"].dropna().unique().tolist() if kind]
    if len(arms) < 2:
        return None
    return {
        "arms": [arm_of(view, arm) | {"n": count(totals[arm])} for arm in arms],
        "rows": [
            {
                "kind": str(kind).replace("_", " "),
                "cells": [
                    f"{number(100 * counts.get((arm, kind), 0) / totals[arm], 1)}%" for arm in arms
                ],
            }
            for kind in sorted(kinds)
        ],
    }


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, the named contrast and a 2 x 2 per metric."""
    shown = []
    for design in view.designs("embeddings_x_blocks"):
        places = [_place(view, design, place) for place in view.tables.places]
        shown.append(shown_design(design, places) | {"note": design.note})
    values = {
        "designs": shown,
        "to_add": TO_ADD,
        "title": TITLE,
        "n_places": len(view.tables.places),
    }
    return Content(values, {})


SECTIONS.add(Section("designs", "Embeddings × blocks", ("effects", "trial"), build))
