"""The section that shows every effect: per contrast, a forest plot and the table of its numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sae_placebo.report.forest import ForestRow, forest
from sae_placebo.report.plots import Figure
from sae_placebo.report.sections.aa import by_kind, sentences, tally
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View, add_figure
from sae_placebo.report.sections.contrasts import (
    NO_REASON,
    Contrast,
    Row,
    aa_estimate,
    asks_of_given,
    bounds,
    contrasts,
    decimals,
    effect_estimate,
    null_of,
    sample,
    scaled,
    side_estimate,
    within_aa,
)
from sae_placebo.report.sections.overview import are_many, overview
from sae_placebo.report.tables import records
from sae_placebo.report.wording import (
    Estimate,
    count,
    decimals_for,
    enumerated,
    finite,
    fitting,
    metric_title,
    number,
)
from sae_placebo.stats.inference import LEAST_P


def _forest_row(row: Row) -> ForestRow:
    low, high = bounds(row)
    aa_low, aa_high = bounds(row, "aa_")
    return ForestRow(
        metric=str(row["metric"]),
        unit=str(row["unit"] or ""),
        null=null_of(row),
        effect=finite(row["effect"]),
        low=low,
        high=high,
        aa_effect=finite(row["aa_effect"]),
        aa_low=aa_low,
        aa_high=aa_high,
        decimals=decimals(row),
        aa_decimals=fitting(finite(row["aa_effect"]), aa_low, aa_high),
        n=sample(row),
        reason=str(row["reason"] or NO_REASON),
        within_aa=bool(within_aa(row)),
    )


def _table_row(row: Row) -> dict[str, Any]:
    return {
        "metric": metric_title(row["metric"], row["unit"]),
        "id": row["metric"],
        "unit": "%; differences in percentage points" if row["unit"] == "%" else row["unit"] or "–",
        "effect": effect_estimate(row),
        "arm": side_estimate(row, "arm"),
        "control": side_estimate(row, "control"),
        "aa": aa_estimate(row),
        "within_aa": bool(within_aa(row)),
        "n": f"{count(row['n_tokens'])} tokens of {sample(row)}",
        "metric_null": row["metric_null"] or "not recorded",
        "better": row["better"] or "–",
        **_tests(row),
    }


def _tests(row: Row) -> dict[str, str]:
    """Return the p and q value of no effect, and what is concluded or why nothing is."""
    p, q = finite(row["p"]), finite(row["q"])
    said = row["conclusion"] or row["conclusion_reason"] or NO_REASON
    if p is None or q is None:
        return {"p": "–", "conclusion": str(said)}
    least = "≤ " if p <= LEAST_P else ""
    return {"p": f"{least}{p:.2g} ({q:.2g})", "conclusion": str(said)}


def _single_saes(view: View) -> list[dict[str, Any]]:
    """Return the value of every metric for every single SAE, before any comparison."""
    table = view.tables.measurements
    rows = [scaled(row) for row in records(table[table["latent"].isna()])]
    spread: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        known = finite(row["value"])
        if known is not None:
            spread.setdefault((row["metric"], row["hookpoint"], row["sae"]), []).append(known)
    shown = []
    for row in rows:
        values = spread.get((row["metric"], row["hookpoint"], row["sae"]), [])
        places = min(4, decimals_for(*values) + 1) if values else 2
        arm = str(row["arm"])
        shown.append(
            {
                **{k: row[k] for k in ("metric", "hookpoint", "sae")},
                "arm": arm,
                "index": view.styles[arm].index,
                "model_seed": count(row["model_seed"]),
                "sae_seed": count(row["sae_seed"]),
                "unit": row["unit"] or "–",
                "estimate": Estimate(
                    number(finite(row["value"]), places),
                    None,
                    str(row["reason"] or "one SAE"),
                    count(row["n"]),
                ),
                "null": number(finite(row["null_value"]), places),
                "reason": row["reason"] or "",
            }
        )
    shown.sort(key=lambda r: (str(r["metric"]), str(r["hookpoint"]), str(r["sae"])))
    return shown


def _shown(contrast: Contrast, view: View, figures: dict[str, Figure]) -> dict[str, Any]:
    """Return what the template shows of a contrast; adds its forest plot to `figures`."""
    rows = [_forest_row(row) for row in contrast.rows]
    style = view.styles[contrast.control]
    figure = forest(rows, contrast.arm, contrast.control, style, view.level)
    names = dict.fromkeys(str(r["aa_control"]) for r in contrast.rows if r["aa_control"])
    return {
        "arm": contrast.arm,
        "control": contrast.control,
        "hookpoint": contrast.hookpoint,
        "sae": contrast.sae,
        "arm_index": view.styles[contrast.arm].index,
        "control_index": style.index,
        **add_figure(figures, f"forest-{len(figures)}", figure),
        "rows": [_table_row(row) for row in contrast.rows],
        "aa_controls": list(names),
        "concluded": _concluded(contrast),
        "asks": asks_of_given(view, contrast.arm, contrast.control),
    }


def _concluded(contrast: Contrast) -> str:
    """Return how many effects of a contrast have which conclusion."""
    said = Counter(str(row["conclusion"] or "without a conclusion") for row in contrast.rows)
    counts = [f"{n} {name}" for name, n in said.most_common()]
    return (
        f"Conclusions, q at most 5% within a family: {enumerated(counts)}. The smallest effect of interest "
        "is a setting, for shares of latents in log odds."
    )


def build(view: View) -> Content:
    """Return a forest and a table per contrast, and the values of single SAEs."""
    figures: dict[str, Figure] = {}
    every, aa = contrasts(view), tally(view)
    shown = [_shown(contrast, view, figures) for contrast in every]
    values = {
        "contrasts": shown,
        "folded": are_many(every),
        "overview": overview(view, every, figures),
        "aa": sentences(aa),
        "aa_kinds": by_kind(aa),
        "aa_level": f"{100 * aa.chance:g}%",
        "single": _single_saes(view),
        "n_places": len(view.tables.places),
    }
    return Content(values, figures)


SECTIONS.add(Section("effects", "Effects", ("effects", "measurements"), build))
