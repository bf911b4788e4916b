"""The section on what the report cannot say: the limits of every report, and those of this trial."""

from __future__ import annotations

from typing import Any

from sae_placebo.report.sections.aa import in_short, tally
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.sections.contrasts import bounds
from sae_placebo.report.tables import records
from sae_placebo.report.wording import counted, finite

FEW = 5
"""Number of seeds below which an interval over seeds is a rough guess."""

STANDING = (
    "A latent without a counterpart in a placebo is not thereby a feature: what a placebo also "
    "shows is no evidence of learning, and the reverse does not follow.",
    "Class and token statistics describe what a latent is active on, not what the model does with "
    "it.",
    "Intervals are not adjusted for the number of effects shown: of twenty effects that are null, "
    "about one interval at 95% misses the null by chance.",
    "Arms share the SAE recipe, not the quality of the fit: compare explained variance and the "
    "number of active latents before any other effect.",
)


def _seed_limits(view: View, rows: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each kind of seed or model of which the trial has few."""
    sentences = []
    seeds = [v for row in rows if (v := finite(row["n_sae_seeds"])) is not None]
    if seeds and min(seeds) < FEW:
        sentences.append(
            f"{counted(min(seeds), 'SAE seed')}: how much SAEs vary from seed to seed is known "
            "roughly at best."
        )
    redraws = [
        v
        for row in rows
        if (v := finite(row["n_control_models"])) is not None
        and "its model is given" not in str(row["aa_reason"])
    ]
    if redraws and min(redraws) < FEW:
        sentences.append(
            f"{counted(min(redraws), 'model re-draw')} per placebo: the interval says little about "
            "other draws of the same control."
        )
    trained = [
        v
        for row in rows
        if row["arm"] == view.trained and (v := finite(row["n_arm_models"])) is not None
    ]
    if trained and max(trained) == 1:
        sentences.append(
            "There is one trained model. Nothing here says how the effects would vary over "
            "trainings of it."
        )
    return sentences


def build(view: View) -> Content:
    """Return the limits as sentences, and the values that could not be estimated."""
    rows = records(view.tables.effects)
    sentences = _seed_limits(view, rows)
    hookpoints = list(dict.fromkeys(place[0] for place in view.tables.places))
    if len(hookpoints) == 1:
        sentences.append(f"One hookpoint, {hookpoints[0]}: other layers may differ.")
    if rows and all(finite(row["aa_effect"]) is None for row in rows):
        sentences.append("There is no A/A comparison: nothing shows what chance alone does here.")
    elif rows:
        sentences.append(
            "Each A/A interval comes from re-draws of one control and stands in for the chance "
            "variation of both arms; the trained arm was not re-trained."
        )
    aa = tally(view)
    if aa.total:
        sentences.append(in_short(aa))
    missing = list(view.tables.missing)
    if missing:
        sentences.append(f"Not in the trial folder when this was written: {', '.join(missing)}.")
    return Content({"standing": STANDING, "said": sentences, "gaps": _gaps(rows)}, {})


def _gaps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics without an estimate or an interval: the reason, and the contrasts that lack it."""
    gaps: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if bounds(row)[0] is None:
            what = "no estimate" if finite(row["effect"]) is None else "no interval"
            reason = f"{what}: {row['reason'] or 'no reason was recorded'}"
            gaps.setdefault((str(row["metric"]), reason), []).append(
                f"{row['arm']} − {row['control']}"
            )
    return [
        {"metric": metric, "reason": reason, "where": list(dict.fromkeys(where))}
        for (metric, reason), where in gaps.items()
    ]


SECTIONS.add(Section("limits", "What this report cannot say", ("effects", "trial"), build))
