"""The section that says how far the ladder's shares still move as it is fitted on more text."""

from __future__ import annotations

from typing import Any

from sae_placebo.core.lazy import pandas
from sae_placebo.report.dots import Curve, dose_curve
from sae_placebo.report.plots import Figure
from sae_placebo.report.sections.base import (
    SECTIONS,
    Content,
    Section,
    View,
    add_figure,
    arm_of,
    by_arm,
)
from sae_placebo.report.tables import at, records
from sae_placebo.report.wording import Estimate, count, counted, estimated, finite, number

SHOWN = {
    "origin_explained": "explained",
    "origin_not_explained": "not explained",
    "stable_not_explained": "not explained, given stable",
    "explained_up_to_window": "explained by tokens and their embeddings",
    "share_pair_set": "in the class pair_set",
    "share_token_set": "in the class token_set",
    "share_unexplained": "in the class unexplained",
    "ladder_r2_window": "R² of tokens and their embeddings, mean of latents",
    "ladder_r2_placebo_readout": "R² up to the placebo's activations, mean of latents",
}
"""Numbers that are shown first, in words; the others are in the table `fit_curve`."""
_DRAWN = ("origin_explained", "origin_not_explained")
_ONE_SIDED = 1.64


def _sample(row: dict[str, Any]) -> str:
    tokens, documents = (int(row[name]) for name in ("fit_tokens", "fit_documents"))
    return f"{count(tokens)} tokens of {counted(documents, 'document')}"


def _estimate(row: dict[str, Any]) -> Estimate:
    reason = str(row["reason"] or "no reason recorded")
    return estimated(row["value"], row["low"], row["high"], _sample(row), reason, decimals=3)


def _moved(row: dict[str, Any]) -> Estimate:
    """Return what the second half of the text moved the number by, and why it is told or not."""
    change, se = finite(row["change"]), finite(row["change_se"])
    value = "–" if change is None else number(change, 3, signed=True)
    if se is not None:
        value += f" ± {number(_ONE_SIDED * se, 3)}"
    told = "told: less than a tenth" if row["withheld"] is None else str(row["withheld"])
    return Estimate(value, None, told, _sample(row))


def _end(row: dict[str, Any]) -> Estimate:
    reason = str(row["end_reason"] or "no reason recorded")
    return estimated(row["end"], row["end_low"], row["end_high"], _sample(row), reason, decimals=3)


def _rows(view: View, table: pandas.DataFrame, metric: str) -> list[dict[str, Any]]:
    """Return one row per arm of a number's curve."""
    rows = []
    for arm, part in by_arm(view, table[table["metric"] == metric]).items():
        points = records(part.sort_values("portion"))
        last = points[-1]
        rows.append(
            arm_of(view, arm)
            | {
                "points": [_estimate(point) for point in points],
                "moved": _moved(last),
                "end": _end(last),
                "told": last["withheld"] is None,
            }
        )
    return rows


def _curve(view: View, arm: str, part: pandas.DataFrame) -> Curve | None:
    points = [row for row in records(part.sort_values("portion")) if row["value"] is not None]
    if not points:
        return None
    return Curve(
        arm,
        view.styles[arm],
        [float(row["fit_tokens"]) for row in points],
        [float(row["value"]) for row in points],
        [finite(row["low"]) for row in points],
        [finite(row["high"]) for row in points],
        [arm] * len(points),
        [_sample(row) for row in points],
    )


def _figure(view: View, table: pandas.DataFrame, metric: str) -> Figure | None:
    """Return a number against the tokens that were fitted on, a line per arm."""
    arms = by_arm(view, table[table["metric"] == metric])
    curves = [curve for arm, part in arms.items() if (curve := _curve(view, arm, part)) is not None]
    if not curves:
        return None
    return dose_curve(curves, "tokens that the ladder is fitted on", "share of latents")


def build(view: View) -> Content:
    """Return, per hookpoint and SAE, the curves of the main numbers as tables and two as pictures."""
    figures: dict[str, Figure] = {}
    blocks = []
    for place in view.tables.places:
        table = at(view.tables.fit_curve, place)
        numbers = [
            {"id": metric, "words": words, "rows": rows}
            for metric, words in SHOWN.items()
            if (rows := _rows(view, table, metric))
        ]
        if not numbers:
            continue
        drawn = [
            {"words": SHOWN[metric], **add_figure(figures, f"fit-curve-{len(figures)}", figure)}
            for metric in _DRAWN
            if (figure := _figure(view, table, metric)) is not None
        ]
        sizes = sorted(set(table["fit_tokens"].dropna()))
        # where no token could be fitted on, every portion has as many: none
        heads = [f"{round(100 * size / max(sizes[-1], 1))}% of the text" for size in sizes]
        blocks.append(
            {"name": ", ".join(place), "numbers": numbers, "drawn": drawn, "heads": heads}
        )
    return Content({"blocks": blocks, "n_places": len(view.tables.places)}, figures)


SECTIONS.add(
    Section("fit_curve", "Does more text change where latents come from?", ("fit_curve",), build)
)
