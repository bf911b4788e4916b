"""The section on coverage: how well single latents detect what is known of each token, its labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_placebo.core.lazy import pandas
from sae_placebo.report.dots import BaselineLine, DotRow, dot_rows
from sae_placebo.report.plots import Figure
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View, add_figure
from sae_placebo.report.sections.contrasts import effect_row
from sae_placebo.report.sections.values import ArmValues, values_at
from sae_placebo.report.tables import at, known_values
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
"""Labels known from longer context alone that the open table shows; the folded one has all labels."""


def _group(view: View, name: str, values: ArmValues, labels: Any) -> dict[str, Any]:
    """Return what the template shows of one group of labels, and its figure."""
    metric = f"coverage_{name}"
    arms = [arm for arm in view.arms if values.value(arm, metric) is not None]
    baselines = _baselines(view, labels, name)
    return {
        "name": name,
        "meaning": GROUPS.get(name, ""),
        "n_labels": len({str(label) for label in labels[labels["group"] == name]["label"]}),
        "arms": arms,
        "trained": values.estimate(view.trained, metric),
        "baselines": [{"name": key, "value": number(value, 3)} for key, value in baselines.items()],
        "effects": [
            effect_row(view, row)
            for ((arm, _), of_row), row in values.rows.items()
            if of_row == metric and arm == view.trained
        ],
        "figure": _figure(view, arms, metric, values, baselines),
    }


def _figure(
    view: View, arms: list[str], metric: str, values: ArmValues, baselines: Mapping[str, float]
) -> Figure | None:
    """Return a group's arms as rows, with a line per baseline; None where no arm has a value."""
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
    rows = labels[labels["group"] == group]
    if view.trained in set(rows["arm"]):
        rows = rows[rows["arm"] == view.trained]
    rows = rows.drop_duplicates("label")
    scores = {name: known_values(rows[f"{name}_f1"]) for name in BASELINES}
    return {name: float(known.mean()) for name, known in scores.items() if len(known)}


def _labels(view: View, table: Any) -> list[dict[str, Any]]:
    """Return a row per label, groups in order, the best trained latents first."""
    scores = table.assign(f1=pandas.to_numeric(table["f1"], errors="coerce"))
    means = scores.groupby(["label", "arm"])["f1"].agg(["mean", "count"])
    shown: list[dict[str, Any]] = []
    for label, rows in scores.groupby("label", sort=True):
        of_label = means.loc[label]
        known = {str(arm): float(v) for arm, v in of_label["mean"].items() if np.isfinite(v)}
        controls = {arm: v for arm, v in known.items() if arm != view.trained}
        best = max(controls, key=lambda arm: controls[arm]) if controls else None
        of_trained = rows[rows["arm"] == view.trained]
        first = (of_trained if len(of_trained) else rows).iloc[0]
        trained = known.get(view.trained or "")
        n_saes = int(of_label["count"].get(view.trained, 0))
        reasons = [str(r) for r in rows["reason"].dropna().unique()]
        best_value = None if best is None else controls[best]
        excess = None if trained is None or best_value is None else trained - best_value
        shown.append(
            {
                "label": str(label),
                "group": str(first["group"]),
                "trained": trained,
                "best_value": best_value,
                "value": Estimate(
                    number(trained, 3),
                    None,
                    reasons[0] if trained is None and reasons else f"mean of {n_saes} SAEs",
                    f"{_whole(first['n_positive'])} tokens",
                ),
                "best": best,
                "best_index": view.index(best),
                "best_f1": number(best_value, 3),
                "excess": number(excess, 3, signed=True),
                **{name: number(_known(first[f"{name}_f1"]), 3) for name in BASELINES},
                "base_rate": number(_known(first["base_rate"]), 4),
                "n_positive": _whole(first["n_positive"]),
            }
        )
    order = list(GROUPS)
    shown.sort(
        key=lambda row: (
            order.index(row["group"]) if row["group"] in order else len(order),
            -(row["trained"] if row["trained"] is not None else -1.0),
            row["label"],
        )
    )
    return shown


def _known(value: Any) -> float | None:
    return None if pandas.isna(value) else finite(float(value))


def _whole(value: Any) -> str:
    """Return a count from a table as text; an en dash where the table lacks it."""
    return count(None if pandas.isna(value) else int(value))


def build(view: View) -> Content:
    """Return, per place and group of labels, a figure and tables of arms and effects, then the labels."""
    figures: dict[str, Figure] = {}
    blocks = []
    for place in view.tables.places:
        values = values_at(view, place)
        labels = at(view.tables.coverage, place)
        groups = []
        for name in GROUPS:
            group = _group(view, name, values, labels)
            if group["figure"] is not None:
                group |= add_figure(figures, f"coverage-{len(figures)}", group["figure"])
                groups.append(group)
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
