"""Write the tables of the worlds page from what was found on worlds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from table import into, table
from world_figures import OURS, site

from sae_placebo.lab.worlds.scoring import STATISTICS

PAGE = Path("docs/concepts/worlds.md")
_KINDS = {
    "default": "factored",
    "duplicates": "with duplicates",
    "superposed": "superposed",
    "compiled": "compiled",
}
_WORDS = {"|gradient x activation|": "size of gradient x activation"}
_SHOWN = tuple(name for name in STATISTICS if name != "effect or beside")
Entry = dict[str, Any]


def write(results: Path) -> None:
    """Fill the tables between their marks on the page."""
    path = results / "worlds.json"
    if not path.exists():
        return
    found = json.loads(path.read_text(encoding="utf-8"))["summary"]
    order = sorted(found, key=lambda e: (list(_KINDS).index(e["kind"]), e["depth"]))
    into(PAGE, {"sites": sites(order), "statistics": statistics(order)})


def sites(entries: list[Entry]) -> str:
    """Return one row per kind of world and site."""
    head = [
        "World, site",
        "worlds",
        "AUROC of effect / null, mean (lowest)",
        "of effect",
        "best simpler statistic",
        "used, called not used",
        "with slivers",
        "passengers called used",
        "undetermined",
    ]
    return table(head, [_site_row(entry) for entry in entries])


def _site_row(entry: Entry) -> list[str]:
    auroc, limits = entry["auroc"], entry["limits"][0]
    counts = ("false_not_used", "labeled_false_not_used", "false_used", "undetermined")
    return [
        f"{_KINDS[entry['kind']]}, {site(entry)}",
        str(auroc["effect / null"]["worlds"]),
        *(_with_lowest(auroc[name]) for name in ("effect / null", "effect")),
        _best(auroc),
        *(f"{limits[name]['hits']} of {limits[name]['n']}" for name in counts),
    ]


def statistics(entries: list[Entry]) -> str:
    """Return one row per statistic on default worlds, a column per site."""
    here = [entry for entry in entries if entry["kind"] == "default"]
    rows = []
    for name in _SHOWN:
        cells = [entry["auroc"][name] for entry in here]
        told = [
            "–" if c["mean"] is None else f"{c['mean']:.3f} ({c['low']:.2f} to {c['high']:.2f})"
            for c in cells
        ]
        rows.append([_WORDS.get(name, name), *told])
    return table(["AUROC, mean (lowest to highest)", *map(site, here)], rows)


def _best(separations: dict[str, Entry]) -> str:
    simpler = {
        name: one["mean"]
        for name, one in separations.items()
        if name not in OURS and one["mean"] is not None
    }
    if not simpler:
        return "–"
    top = max(simpler.values())
    names = [name for name, value in simpler.items() if f"{value:.3f}" == f"{top:.3f}"]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{top:.3f} {_WORDS.get(names[0], names[0])}{more}"


def _with_lowest(one: Entry) -> str:
    return "–" if one["mean"] is None else f"{one['mean']:.3f} ({one['low']:.2f})"
