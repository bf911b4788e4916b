"""The section on circuits: which parts of the model write and read the latents of each arm."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_placebo.core.lazy import pandas
from sae_placebo.report.plots import Dot, Figure
from sae_placebo.report.sections.base import (
    SECTIONS,
    Content,
    Section,
    View,
    arm_of,
    by_arm,
)
from sae_placebo.report.sections.tie_rows import ties
from sae_placebo.report.sections.use_rows import (
    ALONE,
    Key,
    card_anchors,
    key,
    p_value,
    placed,
    share,
    share_dots,
)
from sae_placebo.report.tables import Place, at, known_values, places, records, values
from sae_placebo.report.wording import Estimate, counted, finite, interval, number

PATHS = ("unembedding", "qk", "ov", "mlp")
PATH_NAMES = {
    "unembedding": "unembedding",
    "qk": "QK: where heads look",
    "ov": "OV: what heads move",
    "mlp": "MLPs",
}
_PARTS_SHOWN = 6
"""Components that are shown of an arm, by how many latents each writes or reads most of."""
_Z = 1.959964


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, path split, ties to circuitry, main components and path patches."""
    table, cards = view.tables.use, card_anchors(view)
    figures: dict[str, Figure] = {}
    blocks = []
    of_both = dict.fromkeys([*places(table), *places(view.tables.ties)])
    for position, place in enumerate(of_both):
        rows = by_arm(view, at(table, place))
        split, of_split = _split(view, rows)
        tied, of_ties = ties(view, place)
        blocks.append(
            {
                "name": ", ".join(place),
                "arms": [arm_of(view, arm) for arm in rows],
                "split": split,
                "tied": tied,
                "writers": _top(view, place, "writers", "part"),
                "readers": _top(view, place, "readers", "reader"),
                "patched": _patched(view, place, cards),
                "figures": placed(
                    figures, f"circuits-{position}", {"split": of_split, "tied": of_ties}
                ),
            }
        )
    return Content({"blocks": blocks, "n_places": len(blocks), "paths": PATH_NAMES}, figures)


# --- through which the model reads ------------------------------------------------------------


def _mean(column: pandas.Series) -> Dot | None:
    """Return the mean of shares, in percent, with its normal 95% interval; None of fewer than two.

    Latents are taken as independent draws.
    """
    known = known_values(column)
    if len(known) < 2:
        return None
    mean, half = float(known.mean()), _Z * float(known.std(ddof=1)) / len(known) ** 0.5
    return Dot(100 * mean, 100 * (mean - half), 100 * (mean + half), counted(len(known), "latent"))


def _split(view: View, rows: dict[str, Any]) -> tuple[list[dict[str, Any]], Figure | None]:
    """Return, per arm, the mean shares by which the model reads its latents, and their figure."""
    shown, dots = [], {}
    for arm, of_arm in rows.items():
        means = {path: _mean(of_arm[f"path_{path}"]) for path in PATHS}
        n = counted(len(known_values(of_arm[f"path_{PATHS[0]}"])), "latent")
        shown.append(arm_of(view, arm) | {"cells": [_shown(mean, n) for mean in means.values()]})
        dots[arm] = {PATH_NAMES[path]: mean for path, mean in means.items()}
    axis = "mean share of what is read, with 95% interval"
    return shown, share_dots(view, [PATH_NAMES[p] for p in PATHS], dots, axis)


def _shown(mean: Dot | None, n: str) -> Estimate:
    if mean is None:
        return Estimate("–", None, "readers were not measured", n)
    ends = interval(mean.low, mean.high, 1, unit="%")
    return Estimate(f"{number(mean.value, 1)}%", f"{ends}, {ALONE}", None, n)


# --- the components ---------------------------------------------------------------------------


def _top(view: View, place: Place, name: str, column: str) -> list[dict[str, Any]]:
    """Return, per arm, the components that are the main writer or reader of the most latents.

    Args:
        view: Of the trial.
        place: Hookpoint and SAE.
        name: Table: `writers` or `readers`.
        column: Column that names the component.
    """
    table = getattr(view.tables, name)
    percentile = "pseudo_percentile" if name == "writers" else "percentile"
    arms = []
    for arm, rows in by_arm(view, at(table, place)).items():
        first = rows[values(rows["rank"]) == 0]
        if not len(first):
            continue
        counts = first.groupby(column).size()
        order = sorted(counts.index, key=lambda part: (-int(counts[part]), str(part)))
        shown = [_component(first, column, part, percentile) for part in order[:_PARTS_SHOWN]]
        left = order[_PARTS_SHOWN:]
        rest = share(first[column].isin(left).to_numpy()) if left else None
        arms.append(arm_of(view, arm) | {"rows": shown, "rest": rest, "n_rest": len(left)})
    return arms


def _component(first: Any, column: str, name: Any, percentile: str) -> dict[str, Any]:
    """Return of how many latents a component is the first writer or reader, and how much of them it is."""
    hits = (first[column] == name).to_numpy()
    part = first[hits]
    # the table of writers has percentages, that of readers has shares
    scale = 100.0 if percentile == "pseudo_percentile" else 1.0
    row = {
        "name": str(name),
        "share": share(hits),
        "of_it": _median(known_values(part["share"])),
        "null": _median(known_values(part[percentile]) / scale),
        "above": None,
    }
    if "above" in part:
        row["above"] = share(known_values(part["above"]) > 0)
    return row


def _median(known: Any) -> Estimate:
    """Return the median of known shares in percent, as it is shown."""
    n = counted(len(known), "latent")
    if not len(known):
        return Estimate("–", None, "not recorded", n)
    value = f"{number(100 * float(np.median(known)), 1)}%"
    return Estimate(value, None, "median of these latents", n)


# --- patches ----------------------------------------------------------------------------------


def _patched(view: View, place: Place, cards: dict[tuple[Key, int], str]) -> dict[str, Any]:
    """Return how many first readers a path patch confirms, by arm, and every patch."""
    arms = []
    patches: list[dict[str, Any]] = []
    for arm, rows in by_arm(view, at(view.tables.patched, place)).items():
        arms.append(arm_of(view, arm) | {"share": share(known_values(rows["p"]) <= 0.05)})
        patches += [_patch(view, arm, row, cards) for row in records(rows)]
    return {"arms": arms, "rows": patches}


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
    """Return what a patch of one reader costs in nats, and what its null directions cost on average."""
    kl, null = finite(row["kl"]), finite(row["null"])
    firings = counted(row["n_firings"], "firing")
    if kl is None:
        return Estimate("–", None, "not measured", firings)
    of_null = "null not measured" if null is None else f"null {null:.2g} nats"
    return Estimate(f"{kl:.2g} nats", None, f"a mean; {of_null}", firings)


def by_latent(table: pandas.DataFrame) -> dict[tuple[Key, int], list[dict[str, Any]]]:
    """Return a table's rows by SAE and latent, in the order of their ranks."""
    rows: dict[tuple[Key, int], list[dict[str, Any]]] = {}
    if "rank" in table:
        table = table.sort_values("rank", kind="stable")
    for row in records(table):
        rows.setdefault((key(row), int(row["latent"])), []).append(row)
    return rows


SECTIONS.add(Section("circuits", "Which circuits write and read them?", (), build))
