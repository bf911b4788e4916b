"""Draw what was found on worlds and twins, for the documents."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from svg import COLORS, GRID, INK, MUTED, Drawing, ticks

OURS = ("effect / null", "effect", "effect or beside", "1 - p", "swap of b")
_DATA = ("firing rate", "variance", "probe accuracy")
_KINDS = ("default", "duplicates", "superposed", "compiled")
_MODEL, _DATUM = COLORS["dictionary-learning"], COLORS["sae-lens"]


def draw(results: Path, images: Path) -> None:
    """Write worlds.svg and twins.svg, as far as there are results."""
    images.mkdir(parents=True, exist_ok=True)
    for name, make in (("worlds", worlds), ("twins", twins)):
        path = results / f"{name}.json"
        if path.exists():
            drawing = make(json.loads(path.read_text(encoding="utf-8")))
            (images / f"{name}.svg").write_text(drawing.svg(), encoding="utf-8")
            print(f"wrote {images / f'{name}.svg'}")


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


def worlds(found: dict[str, Any]) -> Drawing:
    """Return dots: mean AUROC over worlds, with their range, one panel per kind and unit."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in sorted(found["summary"], key=lambda e: _KINDS.index(e["kind"])):
        groups.setdefault((entry["kind"], entry["units"]), []).append(entry)
    names = list(found["summary"][0]["auroc"])
    row, left, width, gap = 16.0, 170.0, 150.0, 26.0
    deepest = max(len(entries) for entries in groups.values())
    panel = 46 + row * len(names) + 26
    drawing = Drawing(
        left + deepest * (width + gap), 62 + panel * len(groups), "AUROC, used against passenger"
    )
    drawing.text(16, 26, "Used against passenger: AUROC by site", size=15, bold=True)
    words = "mean over worlds, with their range; blue: measured by edits; 0.5 is chance, dashed"
    drawing.text(16, 44, words, size=11, color=MUTED)
    top = 62.0
    for (kind, units), entries in groups.items():
        family = "compiled" if kind == "compiled" else f"factored, {kind}"
        drawing.text(16, top + 18, f"{family}: {units}", bold=True)
        for i, name in enumerate(names):
            drawing.text(left - 10, top + 46 + row * i + 4, name, anchor="end", size=11)
        for j, entry in enumerate(sorted(entries, key=lambda e: e["depth"])):
            place = left + j * (width + gap)
            _dots(drawing, entry, names, (place, top + 46, width, row))
        top += panel
    return drawing


def _dots(
    drawing: Drawing,
    entry: dict[str, Any],
    names: list[str],
    box: tuple[float, float, float, float],
) -> None:
    left, top, width, row = box
    bottom = top + row * (len(names) - 1) + 8

    def at(value: float) -> float:
        return left + width * value

    n = max(one["worlds"] for one in entry["auroc"].values())
    words = f"{site(entry)}, {n} worlds"
    drawing.text(left + width / 2, top - 14, words, anchor="middle", size=11, color=MUTED)
    if not n:
        drawing.text(left + width / 2, top + 40, "not both kinds", anchor="middle", size=11)
        return
    for value in (0.0, 0.5, 1.0):
        dash = "3 3" if value == 0.5 else ""
        drawing.line(
            [(at(value), top - 8), (at(value), bottom)], GRID if not dash else MUTED, 1, dash
        )
        drawing.text(at(value), bottom + 14, f"{value:g}", anchor="middle", size=10, color=MUTED)
    for i, name in enumerate(names):
        one, y = entry["auroc"][name], top + row * i
        if one["mean"] is None:
            drawing.text(at(0.5), y + 4, "none", anchor="middle", size=10, color=MUTED)
            continue
        drawing.line([(at(one["low"]), y), (at(one["high"]), y)], color(name), 1.4)
        drawing.dot(at(one["mean"]), y, color(name), 3.2)


# --- twins -------------------------------------------------------------------------------------------


def twins(found: dict[str, Any], hookpoint: str = "resid_pre.0") -> Drawing:
    """Return small multiples: each statistic of b in one twin against the other, with the diagonal."""
    rows = [row for row in found["rows"] if row.get("hookpoint") == hookpoint]
    names = list(rows[0]["statistics"])
    names.sort(key=lambda n: (n not in OURS, n not in _DATA))
    columns, size, gap = 4, 150.0, 74.0
    height = 74 + math.ceil(len(names) / columns) * (size + gap)
    drawing = Drawing(40 + columns * (size + gap), height, "Statistics of b in twin models")
    drawing.text(
        16, 26, "Twins: the model that uses b against the one that does not", size=15, bold=True
    )
    words = (
        f"{len(rows)} pairs at {hookpoint}, 95% intervals; up: uses b, across: passes it along; "
    )
    drawing.text(
        16, 44, words + "on the diagonal, a statistic measures the data", size=11, color=MUTED
    )
    for i, name in enumerate(names):
        box = (40 + (i % columns) * (size + gap), 78 + (i // columns) * (size + gap), size)
        _twin(drawing, name, [row["statistics"][name] for row in rows], box)
    return drawing


def _twin(
    drawing: Drawing, name: str, pairs: list[dict[str, Any]], box: tuple[float, float, float]
) -> None:
    left, top, size = box
    pairs = [p for p in pairs if p["differs"] is not None]
    hits = sum(p["differs"] for p in pairs)
    drawing.text(left, top - 6, name, bold=True, size=11)
    drawing.text(left + size, top - 6, f"{hits}/{len(pairs)}", anchor="end", size=11, color=MUTED)
    if not pairs:
        return
    values = [x for p in pairs for x in (*p["uses"], *p["passes"])]
    least = min(x for p in pairs for x in (p["uses"][0], p["passes"][0]))
    logarithmic = least > 0 and max(values) / least > 30
    low = least / 2 if logarithmic else min(values)
    high = max(values)
    margin = 0.05 * ((high - low) or abs(high) or 1.0)
    low, high = (low, high * 1.2) if logarithmic else (low - margin, high + margin)

    def scaled(value: float) -> float:
        if logarithmic:
            return math.log(max(value, low) / low) / math.log(high / low)
        return (value - low) / (high - low)

    def at(across: float, up: float) -> tuple[float, float]:
        return left + size * scaled(across), top + size * (1 - scaled(up))

    drawing.line([(left, top), (left, top + size), (left + size, top + size)], MUTED)
    drawing.line([at(low, low), at(high, high)], GRID, 1.2)
    powers = (
        range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1) if logarithmic else ()
    )
    for value in [10.0**k for k in powers] or ticks(low, high, 4):
        x, y = at(value, value)
        drawing.text(x, top + size + 14, f"{value:g}", anchor="middle", size=9, color=MUTED)
        drawing.text(left - 4, y + 3, f"{value:g}", anchor="end", size=9, color=MUTED)
    for p in pairs:
        uses, passes = p["uses"], p["passes"]
        shade = color(name) if p["differs"] else INK
        drawing.line([at(passes[1], uses[0]), at(passes[2], uses[0])], shade, 0.8)
        drawing.line([at(passes[0], uses[1]), at(passes[0], uses[2])], shade, 0.8)
        drawing.dot(*at(passes[0], uses[0]), shade, 2.4)
