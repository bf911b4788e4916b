"""The tables of a results page about use and circuits, from a finished trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae_placebo.latents.classes.classification import CLASS_NAMES
from sae_placebo.report.sections.use_rows import ORIGINS, UNJUDGED, USES, weighted_share, weights
from sae_placebo.stats.proportions import wilson

Rows = Callable[[pd.DataFrame], pd.DataFrame]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def places(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for place, rows in table.groupby(["hookpoint", "sae"], sort=False):
        yield ", ".join(str(part) for part in place), rows


def shown(rows: pd.DataFrame, use: str) -> str:
    """Return the share of latents with one verdict, each counting by how many it stands for."""
    found = weighted_share((rows["use"] == use).to_numpy(), weights(rows))
    if found is None:
        return "–"
    value, low, high = (100 * x for x in found)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def asked(folder: Path) -> pd.DataFrame:
    table = pd.read_parquet(folder / "use.parquet")
    table = table[table["use"].isin(USES)].copy()
    table["origin"] = table["origin"].where(table["origin"].isin(ORIGINS), UNJUDGED)
    table["class"] = table["class"].fillna("unclassified")
    return table


def _crossed(folder: Path, column: str, order: list[str]) -> str:
    parts = []
    for place, table in places(asked(folder)):
        arms = list(dict.fromkeys(table["arm"]))
        held = [name for name in order if (table[column] == name).any()]
        groups: list[tuple[str, Any]] = [("all", slice(None)), *((name, name) for name in held)]
        rows = []
        for name, wanted in groups:
            cells = [name.replace("_", " ")]
            for arm in arms:
                own = table[table["arm"] == arm]
                own = own if isinstance(wanted, slice) else own[own[column] == wanted]
                cells += [*(shown(own, use) for use in USES), f"{len(own):,}"]
            rows.append(cells)
        header = [column]
        for arm in arms:
            header += [*(f"{arm}: {use.replace('_', ' ')}" for use in USES), "asked"]
        parts.append(f"**{place}**\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def use(folder: Path) -> str:
    return _crossed(folder, "origin", [*ORIGINS, UNJUDGED])


def use_by_class(folder: Path) -> str:
    return _crossed(folder, "class", [*CLASS_NAMES, "unclassified"])


def undetermined(folder: Path) -> str:
    """Return why latents are undetermined, as shares of all latents."""
    parts = []
    for place, table in places(asked(folder)):
        arms = list(dict.fromkeys(table["arm"]))
        left = table[table["use"] == "undetermined"]
        reasons = left["use_reason"].value_counts().index
        rows = []
        for reason in reasons:
            cells = [str(reason)]
            for arm in arms:
                own = table[table["arm"] == arm]
                holds = ((own["use"] == "undetermined") & (own["use_reason"] == reason)).to_numpy()
                found = weighted_share(holds, weights(own))
                cells.append("–" if found is None else f"{100 * found[0]:.1f}")
            rows.append(cells)
        parts.append(f"**{place}**\n\n{markdown(['reason', *arms], rows)}")
    return "\n\n".join(parts)


def tied(folder: Path) -> str:
    """Return the share of latents whose writers and readers both beat their nulls, by class."""
    table = pd.read_parquet(folder / "use.parquet")
    table = table[np.isfinite(table["tied"].astype(float))]
    parts = []
    for place, here in places(table):
        arms = list(dict.fromkeys(here["arm"]))
        rows = []
        for name in ["all", *(c for c in CLASS_NAMES if (here["class"] == c).any())]:
            cells = [name.replace("_", " ")]
            for arm in arms:
                own = here[here["arm"] == arm]
                own = own if name == "all" else own[own["class"] == name]
                hits, n = int((own["tied"] > 0).sum()), len(own)
                low, high = wilson(hits, n) if n else (0.0, 0.0)
                said = f"{100 * hits / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]" if n else "–"
                cells.append(f"{said}, n = {n:,}")
            rows.append(cells)
        parts.append(f"**{place}**\n\n{markdown(['class', *arms], rows)}")
    return "\n\n".join(parts)


TABLES = {"use": use, "use_by_class": use_by_class, "undetermined": undetermined, "tied": tied}
