"""What several sections say about a row of the effects table, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_placebo.report.sections.base import View
from sae_placebo.report.tables import at, records
from sae_placebo.report.wording import (
    Estimate,
    counted,
    difference_unit,
    finite,
    fitting,
    interval,
    number,
)

NO_REASON = "no reason was recorded"
Row = Mapping[str, Any]
_SIZES = (
    *("effect", "low", "high", "se", "null", "arm_value", "arm_low", "arm_high"),
    *("control_value", "control_low", "control_high", "aa_effect", "aa_low", "aa_high"),
)


@dataclass(frozen=True)
class Contrast:
    """All effects of one arm against one control at one hookpoint and SAE."""

    arm: str
    control: str
    hookpoint: str
    sae: str
    rows: tuple[Row, ...]


def in_percent(metric: Any, unit: Any) -> bool:
    """Whether a metric counts latents or tokens as a share, which reads better in percent."""
    return str(unit) == "share" and (str(metric).startswith("share_") or "density" in str(metric))


def scaled(row: Row) -> Row:
    """Return a row of the effects table as it is shown: shares of latents in percent."""
    if not in_percent(row["metric"], row["unit"]):
        return row
    percent = {k: 100 * v for k in _SIZES if (v := finite(row.get(k))) is not None}
    return {**row, **percent, "unit": "%"}


def contrasts(view: View) -> list[Contrast]:
    """Return every contrast, those of the trained arm first, rows in the table's order."""
    found: list[Contrast] = []
    for place in view.tables.places:
        rows = [scaled(row) for row in records(at(view.tables.effects, place))]
        pairs = list(dict.fromkeys((str(row["arm"]), str(row["control"])) for row in rows))
        pairs.sort(key=lambda pair: pair[0] != view.trained)
        for arm, control in pairs:
            chosen = [r for r in rows if (r["arm"], r["control"]) == (arm, control)]
            chosen.sort(key=lambda row: str(row["metric"]).startswith("share_"))
            found.append(Contrast(arm, control, *place, tuple(chosen)))
    return found


def bounds(row: Row, prefix: str = "") -> tuple[float | None, float | None]:
    """Return low and high, or two Nones when either is missing."""
    low, high = finite(row.get(f"{prefix}low")), finite(row.get(f"{prefix}high"))
    return (None, None) if low is None or high is None else (low, high)


def decimals(row: Row) -> int:
    """Return the decimals that fit the effect's own interval."""
    return fitting(finite(row.get("effect")), *bounds(row))


def sample(row: Row) -> str:
    """Return what the row was computed over, in full words."""
    return (
        f"{counted(row.get('n_documents'), 'document')}, "
        f"{counted(row.get('n_sae_seeds'), 'SAE seed')}, models "
        f"{number(finite(row.get('n_arm_models')), 0)} vs "
        f"{number(finite(row.get('n_control_models')), 0)}"
    )


def effect_estimate(row: Row) -> Estimate:
    """Return the effect as it is shown everywhere."""
    places, (low, high) = decimals(row), bounds(row)
    return Estimate(
        number(finite(row.get("effect")), places, signed=True),
        None if low is None else interval(low, high, places, signed=True),
        None if low is not None else str(row.get("reason") or NO_REASON),
        sample(row),
    )


def side_estimate(row: Row, side: str) -> Estimate:
    """Return the value of one side, `arm` or `control`, of a contrast."""
    value, (low, high) = finite(row.get(f"{side}_value")), bounds(row, f"{side}_")
    places, unit = fitting(value, low, high), "%" if row.get("unit") == "%" else ""
    return Estimate(
        number(value, places) + (unit if value is not None else ""),
        None if low is None else interval(low, high, places, unit=unit),
        None if low is not None else str(row.get("reason") or NO_REASON),
        sample(row),
    )


def aa_estimate(row: Row) -> Estimate:
    """Return the A/A comparison that belongs to a row."""
    low, high = bounds(row, "aa_")
    value = finite(row.get("aa_effect"))
    places = fitting(value, low, high) if low is not None else decimals(row)
    reason = row.get("aa_reason") or (
        "no A/A comparison was recorded" if value is None else NO_REASON
    )
    return Estimate(
        number(value, places, signed=True),
        None if low is None else interval(low, high, places, signed=True),
        None if low is not None else str(reason),
        str(row.get("aa_control") or "re-draws not named"),
    )


def null_of(row: Row) -> float:
    """Return the value of the effect where there is nothing; 0 unless the table says otherwise."""
    known = finite(row.get("null"))
    return 0.0 if known is None else known


def covers_null(row: Row, prefix: str = "") -> bool | None:
    """Whether the interval holds the null; None without an interval."""
    low, high = bounds(row, prefix)
    if low is None or high is None:
        return None
    return low <= null_of(row) <= high


def within_aa(row: Row) -> bool | None:
    """Whether an effect is no larger than its A/A interval; None where either is missing.

    No larger: the interval holds it, or reaches as far from the null on its other side.
    """
    effect, (low, high) = finite(row.get("effect")), bounds(row, "aa_")
    if effect is None or low is None or high is None:
        return None
    null = null_of(row)
    return low <= effect <= high or abs(effect - null) <= max(abs(low - null), abs(high - null))


def narrower_than_aa(row: Row) -> bool:
    """Whether the effect's interval is less than a third as wide as its A/A interval."""
    (low, high), (aa_low, aa_high) = bounds(row), bounds(row, "aa_")
    if low is None or high is None or aa_low is None or aa_high is None:
        return False
    return high - low < (aa_high - aa_low) / 3


def fits(contrasts_at_place: Sequence[Contrast]) -> list[tuple[str, Estimate]]:
    """Return each arm and its SAEs' explained variance, from the contrasts of one place."""
    found: dict[str, Estimate] = {}
    for contrast in contrasts_at_place:
        for row in contrast.rows:
            if row["metric"] != "explained_variance":
                continue
            for side, arm in (("arm", contrast.arm), ("control", contrast.control)):
                if finite(row.get(f"{side}_value")) is not None:
                    found.setdefault(arm, side_estimate(row, side))
    return list(found.items())


def with_unit(text: str, unit: Any) -> str:
    """Return a difference's text with its unit behind it, if it has one."""
    return f"{text} {difference_unit(unit)}".strip()


def ordered(metrics: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[str]:
    """Return the metrics that matter most: for each want, the first name that is there.

    A want is a list of names or of fragments of names, the best first.
    """
    found: list[str] = []
    for names in wanted:
        exact = [name for name in names if name in metrics]
        partly = [m for name in names for m in metrics if all(p in m for p in name.split("*") if p)]
        found += [m for m in (exact or partly)[:1] if m not in found]
    return found
