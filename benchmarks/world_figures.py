"""Draw what was found on worlds and twins, for the documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from plot import COLORS, save

from sae_placebo.core.pictures import GRID, INK, MUTED, plain_style

OURS = ("effect / null", "effect", "effect or beside", "1 - p", "swap of b")
_DATA = ("firing rate", "variance", "probe accuracy")
_KINDS = ("default", "duplicates", "superposed", "compiled")
_MODEL, _DATUM = COLORS["dictionary-learning"], COLORS["sae-lens"]


def draw(results: Path, images: Path) -> None:
    """Write worlds.svg and twins.svg, as far as there are results."""
    for name, make in (("worlds", worlds), ("twins", twins)):
        path = results / f"{name}.json"
        if path.exists():
            save(make(json.loads(path.read_text(encoding="utf-8"))), images / f"{name}.svg")


def write_record(results: Path, target: Path) -> None:
    """Write what a report shows beside its verdicts: how often they are wrong on worlds."""
    path = results / "worlds.json"
    if not path.exists():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    order = sorted(found["summary"], key=lambda e: (_KINDS.index(e["kind"]), e["depth"]))
    rows = [_recorded(entry) for entry in order]
    told = {"made_by": "python benchmarks/worlds.py draw", "rows": rows}
    target.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {target}")


def _recorded(entry: dict[str, Any]) -> dict[str, Any]:
    """Return one kind of world at one site, at the default limits of the verdicts."""
    limits, auroc = entry["limits"][0], entry["auroc"]
    ours = auroc["effect / null"]
    others = {name: one["mean"] for name, one in auroc.items() if name not in OURS}
    known = {name: value for name, value in others.items() if value is not None}
    best = max(known, key=lambda name: known[name]) if known else None
    family = "compiled" if entry["kind"] == "compiled" else f"factored, {entry['kind']}"

    def counted(name: str) -> list[int]:
        return [limits[name]["hits"], limits[name]["n"]]

    return {
        "name": f"{family}: {site(entry)}",
        "of": entry["worlds"],
        "worlds": ours["worlds"],
        "auroc": ours["mean"],
        "lowest": ours["low"],
        "baseline": f"{best} {known[best]:.3f}" if best else "",
        "false_not_used": counted("false_not_used"),
        "slivers": counted("labeled_false_not_used"),
        "false_used": counted("false_used"),
        "undetermined": counted("undetermined"),
    }


def site(entry: dict[str, Any]) -> str:
    return "embedding" if entry["depth"] == 0 else f"after block {entry['depth'] - 1}"


def color(name: str) -> str:
    if name in OURS:
        return COLORS["ours"]
    return _DATUM if name in _DATA else _MODEL


# --- AUROC by site -----------------------------------------------------------------------------------


@plain_style()
def worlds(found: dict[str, Any]) -> Figure:
    """Return dots: mean AUROC over worlds, with their range, one row of panels per kind and unit."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in sorted(found["summary"], key=lambda e: (_KINDS.index(e["kind"]), e["depth"])):
        groups.setdefault((entry["kind"], entry["units"]), []).append(entry)
    names = list(found["summary"][0]["auroc"])
    deepest = max(len(entries) for entries in groups.values())
    size = (1.6 + 1.9 * deepest, 0.9 + (0.8 + 0.17 * len(names)) * len(groups))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle("Used against passenger: AUROC by site")
    figure.supxlabel(
        "mean over worlds, with their range; blue: measured by edits; 0.5 is chance, dashed",
        **{"fontsize": 8, "color": MUTED},
    )
    for part, ((kind, units), entries) in zip(
        figure.subfigures(len(groups), 1, squeeze=False).flat, groups.items(), strict=True
    ):
        family = "compiled" if kind == "compiled" else f"factored, {kind}"
        part.suptitle(f"{family}: {units}", fontsize=9)
        panels = part.subplots(1, deepest, sharey=True, squeeze=False)[0]
        for axes, entry in zip(panels, entries, strict=False):
            _dots(axes, entry, names)
        for axes in panels[len(entries) :]:
            axes.set_visible(False)
    return figure


def _dots(axes: Any, entry: dict[str, Any], names: list[str]) -> None:
    n = max(auroc["worlds"] for auroc in entry["auroc"].values())
    axes.set_title(f"{site(entry)}, {n} worlds", color=MUTED, weight="normal", fontsize=8)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(names) - 0.5, -0.5))
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks(range(len(names)), names, color=INK, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(axis="x")
    axes.axvline(0.5, color=MUTED, linestyle="--", linewidth=0.8)
    known = [(row, entry["auroc"][name], color(name)) for row, name in enumerate(names)]
    known = [(row, auroc, shade) for row, auroc, shade in known if auroc["mean"] is not None]
    if not known:
        words = {"ha": "center", "va": "center", "fontsize": 8, "backgroundcolor": "white"}
        axes.text(0.5, len(names) / 2, "not both kinds", color=MUTED, **words)
        return
    rows, aurocs, shades = zip(*known, strict=True)
    ends = ([auroc[end] for auroc in aurocs] for end in ("low", "high"))
    axes.hlines(rows, *ends, shades, linewidth=1.4)
    axes.scatter([auroc["mean"] for auroc in aurocs], rows, 25, shades, zorder=3)
    for row in set(range(len(names))) - set(rows):
        axes.text(0.5, row, "none", ha="center", va="center", fontsize=7, color=MUTED)


# --- twins -------------------------------------------------------------------------------------------


@plain_style()
def twins(found: dict[str, Any], hookpoint: str = "resid_pre.0") -> Figure:
    """Return small multiples: each statistic of b in one twin against the other, with the diagonal."""
    rows = [row for row in found["rows"] if row.get("hookpoint") == hookpoint]
    names = sorted(rows[0]["statistics"], key=lambda n: (n not in OURS, n not in _DATA))
    down = -(-len(names) // 4)
    figure = Figure(figsize=(9.6, 0.7 + 2.4 * down), layout="constrained")
    figure.suptitle("Twins: the model that uses b against the one that does not")
    words = (
        f"{len(rows)} pairs at {hookpoint}, with 95% intervals; on the diagonal, a statistic measures the "
        "data; above each panel: pairs that differ"
    )
    figure.supxlabel(f"statistic of b where it is passed along\n{words}", fontsize=8)
    figure.supylabel("statistic of b where it is used", fontsize=8)
    panels = figure.subplots(down, 4, squeeze=False)
    for axes, name in zip(panels.flat, names, strict=False):
        _twin(axes, name, [row["statistics"][name] for row in rows])
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    return figure


def _twin(axes: Any, name: str, pairs: list[dict[str, Any]]) -> None:
    pairs = [pair for pair in pairs if pair["differs"] is not None]
    hits = sum(pair["differs"] for pair in pairs)
    axes.set_title(name, loc="left", fontsize=8)
    axes.set_title(f"{hits}/{len(pairs)}", loc="right", fontsize=8, color=MUTED, weight="normal")
    axes.set_box_aspect(1)
    axes.tick_params(labelsize=7)
    if not pairs:
        return
    values = [x for pair in pairs for x in (*pair["uses"], *pair["passes"])]
    least = min(x for pair in pairs for x in (pair["uses"][0], pair["passes"][0]))
    margin = 0.05 * ((max(values) - min(values)) or abs(max(values)) or 1.0)
    low, high = min(values) - margin, max(values) + margin
    if least > 0 and max(values) / least > 30:
        low, high = least / 2, max(values) * 1.2
        axes.set(xscale="log", yscale="log")
        axes.minorticks_off()
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.locator_params(nbins=4)
    axes.set(xlim=(low, high), ylim=(low, high))
    axes.axline((low, low), (high, high), color=GRID, linewidth=1.2)
    shades = [color(name) if pair["differs"] else INK for pair in pairs]
    x, left, right = zip(*(pair["passes"] for pair in pairs), strict=True)
    y, bottom, top = zip(*(pair["uses"] for pair in pairs), strict=True)
    axes.hlines(y, left, right, shades, linewidth=0.8)
    axes.vlines(x, bottom, top, shades, linewidth=0.8)
    axes.scatter(x, y, 12, shades, zorder=3)
