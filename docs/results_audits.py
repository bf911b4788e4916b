"""The table of a results page about where SAEs mislead, from a finished trial."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from results_use import markdown, places

SHOWN = 5
"""Numbers of each audit, the first; the report has all."""


def shown(row: pd.Series | None) -> list[str]:
    """Return a number with its interval, and its null."""
    if row is None:
        return ["–", ""]
    if pd.isna(row["value"]):
        return [f"– ({row['reason'][:60]})", ""]
    text = f"{row['value']:.3g}"
    if pd.notna(row["low"]):
        text += f" [{row['low']:.3g}, {row['high']:.3g}]"
    return [text, "" if pd.isna(row["null"]) else f"{row['null']:.3g}"]


def table(folder: Path) -> str:
    """Return the first numbers of every audit, by arm, each beside its null."""
    found = pd.read_parquet(folder / "audits.parquet")
    found = found[~np.isfinite(found["at"].astype(float))]
    audits = json.loads((folder / "trial.json").read_text(encoding="utf-8"))["audits"]
    parts = []
    for place, here in places(found):
        arms = list(dict.fromkeys(here["arm"]))
        header = ["audit", "number", "unit"]
        header += [name for arm in arms for name in (f"{arm.replace('_', ' ')}", "null")]
        rows = []
        for audit in dict.fromkeys(here["audit"]):
            about = audits[audit]
            for quantity in [q for q in about["quantities"] if not q["along"]][:SHOWN]:
                own = here[(here["audit"] == audit) & (here["name"] == quantity["name"])]
                by_arm = {row["arm"]: row for _, row in own.iterrows()}
                cells = [cell for arm in arms for cell in shown(by_arm.get(arm))]
                name = quantity["name"].replace("_", " ")
                rows.append([about["title"], name, quantity["unit"], *cells])
        parts.append(f"**{place}**\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


TABLES = {"where it misleads": table}
