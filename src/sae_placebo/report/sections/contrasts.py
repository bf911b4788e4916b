"""How a row of the effects table is read and shown, for all sections that show effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_placebo.report.dots import DotRow
from sae_placebo.report.sections.base import View
from sae_placebo.report.tables import at, mapping, records
from sae_placebo.report.wording import (
    Estimate,
    counted,
    difference_unit,
    estimated,
    finite,
    fitting,
    number,
)

NO_REASON = "no reason was recorded"
Row = Mapping[str, Any]
_SIZES = (
    *("effect", "low", "high", "se", "null", "arm_value", "arm_low", "arm_high"),
    *("control_value", "control_low", "control_high", "aa_effect", "aa_low", "aa_high"),
    *("value", "null_value"),
)
"""Columns in the metric's unit, of effects, interactions and measurements."""


@dataclass(frozen=True)
class Contrast:
    """All effects of one arm against one control at one hookpoint and SAE."""

    arm: str
    control: str
    hookpoint: str
    sae: str
    rows: tuple[Row, ...]


def in_percent(metric: Any, unit: Any) -> bool:
    """Return whether a metric is a share of latents or tokens, which is easier to read in percent."""
    return str(unit) == "share" and (str(metric).startswith("share_") or "density" in str(metric))


def scaled(row: Row) -> Row:
    """Return a row of effects, interactions or measurements as it is shown: shares in percent."""
    if not in_percent(row["metric"], row["unit"]):
        return row
    percent = {k: 100 * v for k in _SIZES if (v := finite(row.get(k))) is not None}
    return {**row, **percent, "unit": "%"}


def contrasts(view: View) -> list[Contrast]:
    """Return every contrast, place by place, those of the trained arm first.

    The rows of a contrast are in the table's order, but for shares of classes, which come last.
    """
    every: list[Contrast] = []
    for place in view.tables.places:
        rows = [scaled(row) for row in records(at(view.tables.effects, place))]
        pairs = list(dict.fromkeys((str(row["arm"]), str(row["control"])) for row in rows))
        pairs.sort(key=lambda pair: pair[0] != view.trained)
        for arm, control in pairs:
            chosen = [r for r in rows if (r["arm"], r["control"]) == (arm, control)]
            chosen.sort(key=lambda row: str(row["metric"]).startswith("share_"))
            every.append(Contrast(arm, control, *place, tuple(chosen)))
    return every


def has_given(view: View, arm: str) -> bool:
    """Return whether SAEs of an arm were read from files instead of trained."""
    facts = mapping(mapping(view.tables.trial.get("arms")).get(arm))
    return any(mapping(one).get("given") for one in facts.get("records") or ())


def asks_of_given(view: View, arm: str, control: str) -> str:
    """Return what a contrast asks in a trial whose SAE is given; empty where it asks nothing of that."""
    arms = mapping(view.tables.trial.get("arms"))
    retrained = [
        mapping(mapping(arms.get(name)).get("dictionary")).get("kind") == "retrained"
        for name in (arm, control)
    ]
    given = [has_given(view, name) for name in (arm, control)]
    if given[0] and retrained[1]:
        return "what tokens, text and recipe of the given SAE's training make together, on the same model"
    if given[0] and not given[1]:
        return "what the model and the given SAE's training make together"
    if retrained[0] and not given[1] and any(has_given(view, name) for name in view.arms):
        return "what the model makes: recipe and tokens are the same"
    return ""


def bounds(row: Row, prefix: str = "") -> tuple[float | None, float | None]:
    """Return the columns `low` and `high` behind a prefix, or two Nones where either is missing."""
    low, high = finite(row.get(f"{prefix}low")), finite(row.get(f"{prefix}high"))
    return (None, None) if low is None or high is None else (low, high)


def decimals(row: Row) -> int:
    """Return the decimals that fit an effect and its interval."""
    return fitting(finite(row.get("effect")), *bounds(row))


def sample(row: Row) -> str:
    """Return what a row was computed over, in words."""
    return (
        f"{counted(row.get('n_documents'), 'document')}, "
        f"{counted(row.get('n_sae_seeds'), 'SAE seed')}, models "
        f"{number(finite(row.get('n_arm_models')), 0)} vs "
        f"{number(finite(row.get('n_control_models')), 0)}"
    )


def effect_estimate(row: Row) -> Estimate:
    """Return a row's effect, with its sign, as every section shows it."""
    reason = str(row.get("reason") or NO_REASON)
    return estimated(finite(row.get("effect")), *bounds(row), sample(row), reason, signed=True)


def side_estimate(row: Row, side: str) -> Estimate:
    """Return the value of one side, `arm` or `control`, of a contrast."""
    value, (low, high) = finite(row.get(f"{side}_value")), bounds(row, f"{side}_")
    unit = "%" if row.get("unit") == "%" else ""
    return estimated(value, low, high, sample(row), str(row.get("reason") or NO_REASON), unit=unit)


def aa_estimate(row: Row) -> Estimate:
    """Return the A/A comparison that belongs to a row; where it has no interval, at a row's decimals."""
    value, (low, high) = finite(row.get("aa_effect")), bounds(row, "aa_")
    missing = "no A/A comparison was recorded" if value is None else NO_REASON
    return estimated(
        value,
        low,
        high,
        str(row.get("aa_control") or "re-draws not named"),
        str(row.get("aa_reason") or missing),
        decimals=decimals(row) if low is None else None,
        signed=True,
    )


def effect_row(view: View, row: Row) -> dict[str, Any]:
    """Return a row as a table of one metric's effects shows it, named by its control."""
    control = str(row["control"])
    return {
        "arm": control,
        "index": view.index(control),
        "effect": effect_estimate(row),
        "control": side_estimate(row, "control"),
        "aa": aa_estimate(row),
        "within_aa": bool(within_aa(row)),
    }


def effect_dot(view: View, name: str, row: Row) -> DotRow | None:
    """Return a row's effect as a figure draws it, in its control's color; None where it has none."""
    effect = finite(row["effect"])
    if effect is None:
        return None
    (low, high), (aa_low, aa_high) = bounds(row), bounds(row, "aa_")
    return DotRow(
        name=name,
        style=view.styles[str(row["control"])],
        value=effect,
        low=low,
        high=high,
        decimals=decimals(row),
        n=sample(row),
        band=None if aa_low is None or aa_high is None else (aa_low, aa_high),
        faint=bool(within_aa(row)),
    )


def null_of(row: Row) -> float:
    """Return the effect where there is nothing to find; 0 unless the table says otherwise."""
    known = finite(row.get("null"))
    return 0.0 if known is None else known


def covers_null(row: Row, prefix: str = "") -> bool | None:
    """Return whether an interval holds the null; None where there is no interval.

    Args:
        row: Of effects or interactions.
        prefix: Of the interval's columns, such as "aa_".
    """
    low, high = bounds(row, prefix)
    if low is None or high is None:
        return None
    return low <= null_of(row) <= high


def within_aa(row: Row) -> bool | None:
    """Return whether an effect is no larger than its A/A interval; None where either is missing.

    It is no larger if the interval holds it, or reaches at least as far from the null on either side.
    """
    effect, (low, high) = finite(row.get("effect")), bounds(row, "aa_")
    if effect is None or low is None or high is None:
        return None
    null = null_of(row)
    return low <= effect <= high or abs(effect - null) <= max(abs(low - null), abs(high - null))


def narrower_than_aa(row: Row) -> bool:
    """Return whether an effect's interval is less than a third as wide as its A/A interval."""
    (low, high), (aa_low, aa_high) = bounds(row), bounds(row, "aa_")
    if low is None or high is None or aa_low is None or aa_high is None:
        return False
    return high - low < (aa_high - aa_low) / 3


def fits(contrasts_at_place: Sequence[Contrast]) -> list[tuple[str, Estimate]]:
    """Return every arm with the variance that its SAEs explain, from the contrasts of one place."""
    explained: dict[str, Estimate] = {}
    for contrast in contrasts_at_place:
        for row in contrast.rows:
            if row["metric"] != "explained_variance":
                continue
            for side, arm in (("arm", contrast.arm), ("control", contrast.control)):
                if finite(row.get(f"{side}_value")) is not None:
                    explained.setdefault(arm, side_estimate(row, side))
    return list(explained.items())


def with_unit(text: str, unit: Any) -> str:
    """Return the text of a difference with its unit behind it, if it has one."""
    return f"{text} {difference_unit(unit)}".strip()


def ordered(metrics: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[str]:
    """Return the metrics that matter most: one for each entry of `wanted`, if there is one.

    Args:
        metrics: Names of the metrics that there are.
        wanted: For each metric, names that it may have, the best first. If none of them is there, it is
            the first metric that holds one of them, or all of its fragments between "*".
    """
    chosen: list[str] = []
    for names in wanted:
        exact = [name for name in names if name in metrics]
        partly = [m for name in names for m in metrics if all(p in m for p in name.split("*") if p)]
        chosen += [m for m in (exact or partly)[:1] if m not in chosen]
    return chosen
