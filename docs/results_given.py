"""The tables of a results page of an SAE that was given: what its training makes, and what the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from results_use import markdown

from sae_placebo.trial.examine_table import (
    BETTER,
    CANNOT_TELL,
    NO_BETTER,
    asked_of,
    latents_of,
    rows_of,
)
from sae_placebo.trial.results import Trial

METRICS = [
    *("explained_variance", "explained_variance_above_gaussian", "mean_token_entropy_bits"),
    *("coverage_context", "coverage_token", "bits_added_by_latents"),
    *("has_placebo_partner", "share_dead", "share_dense", "share_single_token", "share_token_set"),
    *("share_pair_set", "share_previous_token", "share_token_family", "origin_explained"),
]


def contrasts(folder: Path) -> str:
    """Return a row per metric: given minus retrained, and retrained minus each fair placebo."""
    effects = pd.read_parquet(folder / "effects.parquet")
    pairs = [("given", "retrained"), ("retrained", "redraw_calibrated"), ("retrained", "surrogate")]
    rows = []
    for metric in METRICS:
        row = [metric]
        for pair in pairs:
            own = effects[effects["metric"] == metric]
            own = own[(own["arm"] == pair[0]) & (own["control"] == pair[1])]
            row.append(_effect(own.iloc[0]) if len(own) else "–")
        rows.append(row)
    return markdown(["metric", *(f"{arm} − {control}" for arm, control in pairs)], rows)


def _effect(row: pd.Series) -> str:
    if pd.isna(row["effect"]):
        return "withheld" if "withheld" in str(row["reason"]) else f"– ({str(row['reason'])[:60]})"
    scale, digits = (100, 1) if row["unit"] == "share" else (1, 2)
    unit = "points" if row["unit"] == "share" else row["unit"]
    low, high = (f"{scale * row[name]:.{digits}f}" for name in ("low", "high"))
    return f"{scale * row['effect']:.{digits}f} [{low}, {high}] {unit}"


def verdicts(folder: Path) -> str:
    """Return a row per arm: its latents that are better than a placebo's, no better, or neither."""
    table = asked_of(rows_of(Trial(folder), ("given", "retrained", "redraw_calibrated")))
    rows = []
    for arm, part in table.groupby("arm", sort=False):
        shares = [(part["placebo"] == word).mean() for word in (NO_BETTER, BETTER, CANNOT_TELL)]
        asked = part["use"].dropna()
        used = f"{(asked == 'used').sum()} of {len(asked)}"
        rows.append([arm, f"{len(part):,}", *(f"{share:.1%}" for share in shares), used])
    return markdown(
        ["arm", "latents", NO_BETTER, BETTER, CANNOT_TELL, "used, of those asked"], rows
    )


def reasons(folder: Path) -> str:
    """Return why latents of the given SAE are what they are said to be, by number."""
    own = latents_of(Trial(folder)).query("arm == 'given'")
    why = own["why"].str.split("; use: ").str[0]
    counts = own.groupby([own["placebo"], why]).size().sort_values(ascending=False)
    rows = [[word, reason, f"{n:,}"] for (word, reason), n in counts.items()]
    return markdown(["said", "why", "latents"], sorted(rows, key=lambda row: row[0]))


TABLES: dict[str, Callable[[Path], str]] = {
    "given contrasts": contrasts,
    "given verdicts": verdicts,
    "given reasons": reasons,
}
