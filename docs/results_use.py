"""The tables of a results page about use and circuits, from a finished trial."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from sae_placebo.latents.classes.classification import CLASS_NAMES
from sae_placebo.report.sections.use_rows import ORIGINS, UNJUDGED, USES, weighted_share, weights

CONTROLS = {
    "untrained": "untrained dictionary",
    "covariance": "covariance directions",
    "pseudo": "isotropic directions",
}
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


def costlier(folder: Path) -> str:
    """Return 1 - pi0 and the share used of every arm's latents, and of control directions on its model."""
    told = json.loads((folder / "trial.json").read_text(encoding="utf-8"))["use"]
    rows = []
    for one in told:
        where = f"{one['hookpoint']}, {one['sae']}"
        if "costlier" not in one:
            rows.append([one["arm"], where, "–", "–", "–", "–", str(one.get("refused", ""))])
            continue
        used = _share(one["shares"].get("used"))
        cells = [_share(one["costlier"]), used, "", f"{one['n_latents']:,}"]
        rows.append([one["arm"], where, "latents", *cells])
        for kind, name in CONTROLS.items():
            found = one.get(kind)
            if found:
                shares = [_share(found.get(what)) for what in ("costlier", "used", "margin")]
                rows.append([one["arm"], where, name, *shares, f"{found['n']:,}"])
    head = [
        "arm",
        "hookpoint, SAE",
        "directions",
        "1 − π₀",
        "used",
        "used: latents less these",
        "n",
    ]
    return markdown(head, rows)


def _share(found: dict[str, float] | None) -> str:
    if not found:
        return "–"
    share, low, high = (100 * found[name] for name in ("share", "low", "high"))
    return f"{share:.0f} [{low:.0f}, {high:.0f}]"


def tied(folder: Path) -> str:
    """Return the share of latents tied to circuitry, by class, then trained minus each control, and A/A."""
    table = pd.read_parquet(folder / "ties.parquet")
    parts = []
    for place, here in places(table):
        shares = here[here["comparison"] == "share"]
        arms = list(dict.fromkeys(shares["arm"]))
        rows = []
        kinds = [("tied", "all"), ("written", "all"), ("read", "all")]
        kinds += [("tied", c) for c in CLASS_NAMES if (shares["class"] == c).any()]
        for measure, name in kinds:
            cells = [f"{measure}, {name.replace('_', ' ')}"]
            for arm in arms:
                own = shares[(shares["arm"] == arm) & (shares["class"] == name)]
                own = own[own["measure"] == measure]
                cells.append(_interval(own.iloc[0], n=True) if len(own) else "–")
            rows.append(cells)
        parts.append(f"**{place}**\n\n{markdown(['', *arms], rows)}")
        rows = []
        whole = here[(here["class"] == "all") & (here["comparison"] == "contrast")]
        for row in whole.to_dict("records"):
            same = here[(here["comparison"] == "aa") & (here["control"] == row["control"])]
            same = same[same["measure"] == row["measure"]]
            aa = _interval(same.iloc[0]) if len(same) else "–"
            rows.append([row["measure"], f"{row['arm']} − {row['control']}", _interval(row), aa])
        parts.append(markdown(["", "points", "effect", "A/A"], rows))
    return "\n\n".join(parts)


def _interval(row: Any, n: bool = False) -> str:
    if pd.isna(row["value"]):
        return f"– ({str(row['reason'])[:60]})"
    said = f"{100 * row['value']:.1f}"
    if pd.notna(row["low"]):
        said += f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return said + (f", n = {row['n_latents']:,}" if n else "")


TABLES = {
    **{"use": use, "use_by_class": use_by_class, "undetermined": undetermined},
    **{"costlier": costlier, "tied": tied},
}
