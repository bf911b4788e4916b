"""The few effects that matter most, each as one sentence with its interval, n and null."""

from __future__ import annotations

from typing import Any

from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.contrasts import (
    Contrast,
    Row,
    aa_estimate,
    contrasts,
    covers_null,
    effect_estimate,
    null_of,
    ordered,
    sample,
    side_estimate,
    with_unit,
)
from sae_placebo.report.wording import finite, metric_title, number, unit_text

# one line per question; names first, then fragments that a renamed metric would still hold
WANTED = (
    (
        "mean_token_entropy_bits",
        "token_entropy_bits",
        "token_entropy",
        "token_entropy_median_bits",
        "token*entropy",
        "entropy",
    ),
    ("share_single_token", "single_token_share", "single*token"),
    ("explained_variance_above_gaussian", "ev_above_gaussian", "variance*above", "ev*above"),
)
_FALLBACK = (("explained_variance",), ("fvu",), ("variance",))


def verdict(row: Row) -> tuple[str, str]:
    """Return a verdict's kind (a CSS class) and its words."""
    effect, covered = finite(row.get("effect")), covers_null(row)
    if effect is None:
        return "unknown", "Not estimable"
    if covered is None:
        return "unknown", "No interval"
    if covered:
        return "unclear", "Cannot tell"
    return "differs", "Higher" if effect > null_of(row) else "Lower"


def sentence(row: Row, contrast: Contrast, level: str) -> str:
    """Return the effect in one sentence, as careful as its interval is wide."""
    name, unit = metric_title(row["metric"], row["unit"]), row["unit"]
    kind, _ = verdict(row)
    effect = effect_estimate(row)
    if kind == "unknown" and finite(row.get("effect")) is None:
        return (
            f"{name}: {contrast.arm} minus {contrast.control} cannot be estimated: {effect.reason}."
        )
    size = effect.value.lstrip("+−")
    side = "higher" if (finite(row["effect"]) or 0.0) > null_of(row) else "lower"
    if kind == "unknown":
        return (
            f"{name}: {contrast.arm} is {side} than {contrast.control} by "
            f"{with_unit(size, unit)}, with no interval: {effect.reason}."
        )
    if kind == "unclear":
        return (
            f"{name}: this trial cannot tell {contrast.arm} from {contrast.control}. The {level} "
            f"holds the null, {number(null_of(row), 0)}."
        )
    return f"{name}: {contrast.arm} is {side} than {contrast.control} by {with_unit(size, unit)}."


def _card(row: Row, contrast: Contrast, view: View) -> dict[str, Any]:
    kind, words = verdict(row)
    aa = aa_estimate(row)
    caution = ""
    if covers_null(row, "aa_") is False:
        caution = (
            "The A/A comparison, where nothing differs but the random draw, leaves the null out "
            "as well: read this effect with care."
        )
    return {
        "kind": kind,
        "verdict": words,
        "sentence": sentence(row, contrast, view.level),
        "effect": effect_estimate(row),
        "unit": unit_text(row["unit"]),
        "arm": side_estimate(row, "arm"),
        "control": side_estimate(row, "control"),
        "arm_name": contrast.arm,
        "control_name": contrast.control,
        "arm_index": view.styles[contrast.arm].index,
        "control_index": view.styles[contrast.control].index,
        "aa": aa,
        "caution": caution,
        "sample": sample(row),
        "metric_null": row.get("metric_null") or "not recorded",
        "null": number(null_of(row), 0),
    }


def build(view: View) -> Content:
    """Return a card per leading metric and contrast of the trained arm."""
    groups = []
    every = contrasts(view)
    leading = [c for c in every if c.arm == view.trained] or every
    metrics = list(dict.fromkeys(str(row["metric"]) for c in leading for row in c.rows))
    chosen = ordered(metrics, WANTED)
    if not any("variance" in m or m.startswith("ev_") for m in chosen):
        chosen += [m for m in ordered(metrics, _FALLBACK)[:1] if m not in chosen]
    for metric in chosen or metrics[:3]:
        rows = [(row, c) for c in leading for row in c.rows if row["metric"] == metric]
        by_place: dict[str, list[dict[str, Any]]] = {}
        for row, contrast in rows:
            place = f"{contrast.hookpoint}, {contrast.sae}"
            by_place.setdefault(place, []).append(_card(row, contrast, view))
        unit = rows[0][0]["unit"]
        groups.append({"metric": metric_title(metric, unit), "id": metric, "places": by_place})
    return Content({"groups": groups, "n_places": len({(c.hookpoint, c.sae) for c in leading})}, {})


SECTIONS.add("headline", Section("headline", "Headline", ("effects",), build))
