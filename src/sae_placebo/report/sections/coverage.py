"""Coverage of labels: how well single latents detect what is known to be true of each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_placebo.core.lazy import pandas
from sae_placebo.report.dots import BaselineLine, DotRow, dot_rows
from sae_placebo.report.plots import Figure
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.contrasts import (
    aa_estimate,
    effect_estimate,
    side_estimate,
    within_aa,
)
from sae_placebo.report.sections.values import ArmValues, Place, values_at
from sae_placebo.report.tables import at
from sae_placebo.report.wording import Estimate, count, finite, fitting, number

BASELINES = {"lookup": "dot", "bigram": "dash", "window": "longdash"}
GROUPS = {
    "context": "Only from longer context: no predictor that sees the last few tokens reaches these "
    "labels.",
    "window": "From the last few tokens: a bigram or window predictor reaches these labels, the "
    "current token alone does not.",
    "token": "From the current token alone: a lookup table reaches these labels, and so needs no "
    "model.",
    "rare": "Too rare in the held-out text to be scored.",
}
SHOWN = 12
"""Context-only labels in the open table."""


def _group(view: View, place: Place, name: str, values: ArmValues, labels: Any) -> dict[str, Any]:
    """Return one group's arms, effects, baselines and figure rows."""
    metric = f"coverage_{name}"
    arms = [arm for arm in view.arms if values.value(arm, metric) is not None]
    baselines = _baselines(view, labels, name)
    effects = []
    for (pair, found), row in values.rows.items():
        if found == metric and pair[0] == view.trained:
            effects.append(
                {
                    "arm": pair[1],
                    "index": view.index(pair[1]),
                    "effect": effect_estimate(row),
                    "control": side_estimate(row, "control"),
                    "aa": aa_estimate(row),
                    "within_aa": bool(within_aa(row)),
                }
            )
    return {
        "name": name,
        "meaning": GROUPS.get(name, ""),
        "n_labels": len({str(label) for label in labels[labels["group"] == name]["label"]}),
        "arms": arms,
        "trained": values.estimate(view.trained, metric),
        "baselines": [{"name": key, "value": number(value, 3)} for key, value in baselines.items()],
        "effects": effects,
        "figure": _figure(view, arms, metric, values, baselines),
    }


def _figure(
    view: View, arms: list[str], metric: str, values: ArmValues, baselines: Mapping[str, float]
) -> Figure | None:
    rows = []
    for arm in arms:
        value, (low, high) = values.value(arm, metric), values.bounds(arm, metric)
        estimate = values.estimate(arm, metric)
        if value is not None and estimate is not None:
            places = fitting(value, low, high)
            rows.append(
                DotRow(arm, view.styles[arm], value, low, high, places, f"n = {estimate.n}")
            )
    lines = [BaselineLine(f"{name}:", value, BASELINES[name]) for name, value in baselines.items()]
    axis = f"mean F1 of the best latent per label, {view.level}"
    return dot_rows(rows, axis, lines, floor=0.0) if rows else None


def _baselines(view: View, labels: Any, group: str) -> dict[str, float]:
    """Return each predictor's mean F1 over a group's labels, on the trial's own text."""
    own = labels[labels["group"] == group]
    if view.trained in set(own["arm"]):
        own = own[own["arm"] == view.trained]
    own = own.drop_duplicates("label")
    means = {name: _mean(own[f"{name}_f1"]) for name in BASELINES}
    return {name: value for name, value in means.items() if value is not None}


def _mean(column: Any) -> float | None:
    known = pandas.to_numeric(column, errors="coerce").dropna()
    return float(known.mean()) if len(known) else None


def _labels(view: View, table: Any) -> list[dict[str, Any]]:
    """Return a row per label, groups in order, the best trained latents first."""
    scores = table.assign(f1=pandas.to_numeric(table["f1"], errors="coerce"))
    means = scores.groupby(["label", "arm"])["f1"].agg(["mean", "count"])
    found: list[dict[str, Any]] = []
    for label, rows in scores.groupby("label", sort=True):
        of_label = means.loc[label]
        known = {str(arm): float(v) for arm, v in of_label["mean"].items() if np.isfinite(v)}
        controls = {arm: v for arm, v in known.items() if arm != view.trained}
        best = max(controls, key=lambda arm: controls[arm]) if controls else None
        own = rows[rows["arm"] == view.trained]
        first = (own if len(own) else rows).iloc[0]
        trained = known.get(view.trained or "")
        n_saes = int(of_label["count"].get(view.trained, 0))
        reasons = [str(r) for r in rows["reason"].dropna().unique()]
        found.append(
            {
                "label": str(label),
                "group": str(first["group"]),
                "trained": trained,
                "best_value": None if best is None else controls[best],
                "value": Estimate(
                    number(trained, 3),
                    None,
                    reasons[0] if trained is None and reasons else f"mean of {n_saes} SAEs",
                    f"{_whole(first['n_positive'])} tokens",
                ),
                "best": best,
                "best_index": view.index(best),
                "best_f1": number(None if best is None else controls[best], 3),
                "excess": number(_excess(trained, best, controls), 3, signed=True),
                **{name: number(_known(first[f"{name}_f1"]), 3) for name in BASELINES},
                "base_rate": number(_known(first["base_rate"]), 4),
                "n_positive": _whole(first["n_positive"]),
            }
        )
    order = list(GROUPS)
    found.sort(
        key=lambda row: (
            order.index(row["group"]) if row["group"] in order else len(order),
            -(row["trained"] if row["trained"] is not None else -1.0),
            row["label"],
        )
    )
    return found


def _known(value: Any) -> float | None:
    return None if pandas.isna(value) else finite(float(value))


def _whole(value: Any) -> str:
    """Return a count out of a table, where a missing one is no number."""
    return count(None if pandas.isna(value) else int(value))


def _excess(trained: float | None, best: str | None, controls: Mapping[str, float]) -> float | None:
    return None if trained is None or best is None else trained - controls[best]


def build(view: View) -> Content:
    """Return, per place and label group, arms and effects as a figure and tables, then the labels."""
    figures: dict[str, Figure] = {}
    blocks = []
    for place in view.tables.places:
        values = values_at(view, place)
        labels = at(view.tables.coverage, place)
        groups = []
        for name in GROUPS:
            found = _group(view, place, name, values, labels)
            figure = found.pop("figure")
            if figure is not None:
                found["key"] = f"coverage-{len(figures)}"
                found["height"] = figure["layout"]["height"]
                figures[found["key"]] = figure
                groups.append(found)
        rows = _labels(view, labels) if len(labels) else []
        if groups or rows:
            context = [row for row in rows if row["group"] == "context"]
            blocks.append(
                {
                    "place": ", ".join(place),
                    "groups": groups,
                    "strongest": context[:SHOWN],
                    "rows": rows,
                    "n_tokens": _whole(labels["n_tokens"].max()) if len(labels) else "–",
                    "n_controls": len([arm for arm in view.arms if arm != view.trained]),
                }
            )
    return Content({"blocks": blocks, "n_places": len(view.tables.places)}, figures)


SECTIONS.add(
    Section("coverage", "Known structure: coverage of labels", ("effects",), build),
)
