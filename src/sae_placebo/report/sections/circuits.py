"""Which parts of the model write and read the latents, trained against placebo."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_placebo.core.lazy import pandas
from sae_placebo.report.plots import Dot, Figure
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.classes import class_names
from sae_placebo.report.sections.use_rows import (
    ALONE,
    Key,
    Place,
    arm_of,
    arms_in,
    card_anchors,
    dot,
    here,
    key,
    p_value,
    places,
    share,
    share_dots,
    values,
)
from sae_placebo.report.tables import records
from sae_placebo.report.wording import Estimate, counted, finite, interval, number

PATHS = ("unembedding", "qk", "ov", "mlp")
PATH_NAMES = {
    "unembedding": "unembedding",
    "qk": "QK: where heads look",
    "ov": "OV: what heads move",
    "mlp": "MLPs",
}
_PARTS_SHOWN = 6
_FEWEST_DRAWN = 20
_Z = 1.959964


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, path split, ties to circuitry, main components, patches."""
    table, cards = view.tables.use, card_anchors(view)
    figures: dict[str, Figure] = {}
    blocks = []
    for number_of, place in enumerate(places(table)):
        own = {arm: here(table, place, arm) for arm in arms_in(view, table)}
        own = {arm: rows for arm, rows in own.items() if len(rows)}
        if not own:
            continue
        split, split_figure = _split(view, own)
        tied, tied_figure = _tied(view, own)
        block: dict[str, Any] = {
            "name": ", ".join(place),
            "arms": [arm_of(view, arm) for arm in own],
            "split": split,
            "tied": tied,
            "writers": _top(view, place, "writers", "part"),
            "readers": _top(view, place, "readers", "reader"),
            "patched": _patched(view, place, cards),
            "figures": {},
        }
        for name, figure in (("split", split_figure), ("tied", tied_figure)):
            if figure:
                known = f"circuits-{number_of}-{name}"
                figures[known] = figure
                block["figures"][name] = {"key": known, "height": figure["layout"]["height"]}
        blocks.append(block)
    return Content({"blocks": blocks, "n_places": len(blocks), "paths": PATH_NAMES}, figures)


# --- through which the model reads ------------------------------------------------------------


def _mean(found: Any) -> tuple[float, float, float] | None:
    """Return a mean with its normal interval, latents as independent draws; None of fewer than two."""
    known = found[np.isfinite(found)]
    if len(known) < 2:
        return None
    half = _Z * float(known.std(ddof=1)) / len(known) ** 0.5
    return float(known.mean()), float(known.mean()) - half, float(known.mean()) + half


def _split(view: View, own: dict[str, Any]) -> tuple[list[dict[str, Any]], Figure | None]:
    rows, dots = [], {}
    for arm, table in own.items():
        means = {path: _mean(values(table[f"path_{path}"])) for path in PATHS}
        n = int(np.isfinite(values(table[f"path_{PATHS[0]}"])).sum())
        rows.append(arm_of(view, arm) | {"cells": [_shown(means[p], n) for p in PATHS]})
        dots[arm] = {
            PATH_NAMES[path]: None
            if one is None
            else Dot(100 * one[0], 100 * one[1], 100 * one[2], counted(n, "latent"))
            for path, one in means.items()
        }
    axis = "mean share of what is read, with 95% interval"
    return rows, share_dots(view, [PATH_NAMES[p] for p in PATHS], dots, axis)


def _shown(found: tuple[float, float, float] | None, n: int) -> Estimate:
    said = counted(n, "latent")
    if found is None:
        return Estimate("–", None, "readers were not measured", said)
    mean, low, high = (100 * x for x in found)
    ends = interval(low, high, 1, unit="%")
    return Estimate(f"{number(mean, 1)}%", f"{ends}, {ALONE}", None, said)


# --- tied to circuitry ------------------------------------------------------------------------


def _tied(view: View, own: dict[str, Any]) -> tuple[dict[str, Any], Figure | None]:
    """Return the share of latents whose writers and readers both beat their nulls, in all and by class."""
    known = {arm: rows[np.isfinite(values(rows["tied"]))] for arm, rows in own.items()}
    held = {str(kind) for rows in known.values() for kind in rows["class"].dropna()}
    kinds = [k for k in class_names() if k in held] + sorted(held - set(class_names()))
    everything = "all latents"

    def hits(arm: str, kind: str) -> Any:
        rows = known[arm]
        rows = rows if kind == everything else rows[rows["class"] == kind]
        return values(rows["tied"]) > 0

    rows = [
        {
            "kind": None if kind == everything else kind,
            "cells": [share(hits(arm, kind), nothing="none was judged") for arm in own],
        }
        for kind in (everything, *kinds)
        if kinds
    ]
    drawn = [k for k in kinds if max(len(hits(arm, k)) for arm in own) >= _FEWEST_DRAWN]
    dots = {arm: {k: dot(hits(arm, k)) for k in (everything, *drawn)} for arm in own}
    few = [kind for kind in kinds if kind not in drawn]
    axis = "share tied to circuitry, with 95% interval"
    figure = share_dots(view, [everything, *drawn], dots, axis)
    return {"rows": rows, "few": few, "fewest": _FEWEST_DRAWN}, figure


# --- the components ---------------------------------------------------------------------------


def _top(view: View, place: Place, name: str, column: str) -> list[dict[str, Any]]:
    """Return, per arm, the components that most often write or read most of a latent.

    Args:
        view: Of the trial.
        place: Hookpoint and SAE.
        name: `writers` or `readers`.
        column: Of the component's name.
    """
    table = getattr(view.tables, name)
    percentile = "pseudo_percentile" if name == "writers" else "percentile"
    found = []
    for arm in arms_in(view, table):
        own = here(table, place, arm)
        own = own[values(own["rank"]) == 0]
        if not len(own):
            continue
        counts = own.groupby(column).size()
        order = sorted(counts.index, key=lambda one: (-int(counts[one]), str(one)))
        rows = [_component(own, column, one, percentile) for one in order[:_PARTS_SHOWN]]
        left = order[_PARTS_SHOWN:]
        rest = share(own[column].isin(left).to_numpy()) if left else None
        found.append(arm_of(view, arm) | {"rows": rows, "rest": rest, "n_rest": len(left)})
    return found


def _component(own: Any, column: str, name: Any, percentile: str) -> dict[str, Any]:
    hits = (own[column] == name).to_numpy()
    part = own[hits]
    # the table of writers has percentages, that of readers has shares
    scale = 100.0 if percentile == "pseudo_percentile" else 1.0
    row = {
        "name": str(name),
        "share": share(hits),
        "of_it": _median(values(part["share"]), "of these latents"),
        "null": _median(values(part[percentile]) / scale, "of these latents"),
        "above": None,
    }
    if "above" in part:
        above = values(part["above"])
        row["above"] = share(above[np.isfinite(above)] > 0)
    return row


def _median(found: Any, why: str) -> Estimate:
    known = found[np.isfinite(found)]
    said = counted(len(known), "latent")
    if not len(known):
        return Estimate("–", None, "not recorded", said)
    return Estimate(f"{number(100 * float(np.median(known)), 1)}%", None, f"median {why}", said)


# --- patches ----------------------------------------------------------------------------------


def _patched(view: View, place: Place, cards: dict[tuple[Key, int], str]) -> dict[str, Any]:
    """Return how many top readers are confirmed by a finite edit of what they alone read."""
    table = view.tables.patched
    arms = []
    rows: list[dict[str, Any]] = []
    for arm in arms_in(view, table):
        own = here(table, place, arm)
        p = values(own["p"])
        known = p[np.isfinite(p)]
        if not len(own):
            continue
        arms.append(arm_of(view, arm) | {"share": share(known <= 0.05)})
        for row in records(own):
            rows.append(_patch(view, arm, row, cards))
    return {"arms": arms, "rows": rows}


def _patch(
    view: View, arm: str, row: dict[str, Any], cards: dict[tuple[Key, int], str]
) -> dict[str, Any]:
    latent = int(row["latent"])
    return arm_of(view, arm) | {
        "latent": latent,
        "card": cards.get((key(row), latent)),
        "reader": str(row["reader"]),
        "felt": felt(row),
        "p": p_value(row["p"], row["n_nulls"]),
    }


def felt(row: dict[str, Any]) -> Estimate:
    """Return what a patch of one reader costs, beside the mean of its null directions."""
    kl, null = finite(row["kl"]), finite(row["null"])
    said = f"{counted(row['n_firings'], 'firing')}"
    if kl is None:
        return Estimate("–", None, "not measured", said)
    beside = "null not measured" if null is None else f"null {null:.2g} nats"
    return Estimate(f"{kl:.2g} nats", None, f"a mean; {beside}", said)


def by_latent(table: pandas.DataFrame) -> dict[tuple[Key, int], list[dict[str, Any]]]:
    """Return a table's rows by SAE and latent, in the order of their ranks."""
    found: dict[tuple[Key, int], list[dict[str, Any]]] = {}
    if "rank" in table:
        table = table.sort_values("rank", kind="stable")
    for row in records(table):
        found.setdefault((key(row), int(row["latent"])), []).append(row)
    return found


SECTIONS.add(Section("circuits", "Which circuits write and read them?", (), build))
