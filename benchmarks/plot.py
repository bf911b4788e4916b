"""Draw the results in benchmarks/results as SVG files for the documents.

python benchmarks/plot.py [--results FOLDER] [--out docs/images]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import machine
from svg import COLORS, GRID, INK, MUTED, Drawing, Panel, ticks

Curve = list[dict[str, float]]
_LABELS = {
    "sae-lens": "SAELens",
    "dictionary-learning": "dictionary_learning",
    "ours": "sae-placebo",
}


def label(name: str) -> str:
    side, _, condition = name.partition(" ")
    shown = _LABELS.get(side, side)
    return shown if condition == "trial" else f"{shown}, {condition}"


def curves(kind: str, found: dict[str, Any], settings: dict[str, Any]) -> Drawing:
    """Return explained variance against tokens, and against seconds, of the fastest setting of each."""
    shown: dict[str, Curve] = {
        name: one for name, one in found["curves"].items() if not name.endswith("installed")
    }
    drawing = Drawing(940, 420, f"{kind}: explained variance against tokens and against seconds")
    words = f"{kind}, {settings['source']}, {settings['d_in']} x {settings['d_sae']}"
    drawing.text(64, 26, words, size=15, bold=True)
    drawing.text(
        64, 44, "held-out tokens; steps alone are timed; dots are checks", color=MUTED, size=11
    )
    values = [p["explained_variance"] for one in shown.values() for p in one[1:]]
    low = max(0.0, min(values) - 0.02)
    low, high = (min(low, max(values) - 0.1), max(values) + 0.02)
    longest = {c: max(one[-1][c] for one in shown.values()) for c in ("tokens", "seconds")}
    for place, (column, title) in enumerate(
        (("tokens", "training tokens"), ("seconds", "seconds of training"))
    ):
        panel = Panel(drawing, 64 + 450 * place, 62, 390, 260, (0.0, longest[column]), (low, high))
        panel.axes(title, "explained variance" if place == 0 else "")
        for name, one in shown.items():
            color = COLORS[name.split(" ")[0]]
            points = [p for p in one if p["explained_variance"] >= low]
            places = [panel.at(p[column], p["explained_variance"]) for p in points]
            drawing.line(places, color, 2.4 if name.startswith("ours") else 1.6)
            for x, y in places:
                drawing.dot(x, y, color)
    _legend(drawing, list(shown), 64, 395)
    return drawing


def _legend(drawing: Drawing, names: list[str], left: float, y: float) -> None:
    for name in names:
        color = COLORS[name.split(" ")[0]]
        drawing.line([(left, y - 4), (left + 20, y - 4)], color, 3)
        drawing.text(left + 26, y, label(name))
        left += 46 + 7 * len(label(name))


def ratios(cells: list[dict[str, Any]], mine: str = "ours trial") -> Drawing:
    """Return bars: how many times faster our step is than each peer's, by cell."""
    groups: list[tuple[str, list[tuple[str, dict[str, float]]]]] = []
    for cell in cells:
        rows = [
            (name, one)
            for name, one in cell["times_faster"].get(mine, {}).items()
            if one["median"] is not None
        ]
        if rows:
            real = "" if cell["activations"] == "synthetic" else f", {cell['activations']}"
            groups.append((f"{cell['kind']} {cell['d_in']} x {cell['d_sae']}{real}", rows))
    n_rows = sum(len(rows) for _, rows in groups)
    height = 92 + 19 * n_rows + 34 * len(groups)
    drawing = Drawing(860, height, "How many times faster one training step is")
    drawing.text(20, 26, "One training step: times faster than each peer", size=15, bold=True)
    drawing.text(20, 44, "median and range over alternating rounds", size=11, color=MUTED)
    most = max((one["high"] for _, rows in groups for _, one in rows), default=1.0) * 1.04
    left, width, top = 230, 540, 60

    def at(value: float) -> float:
        return left + width * value / most

    for value in ticks(0, most, 7):
        drawing.line([(at(value), top), (at(value), height - 30)], GRID)
        drawing.text(at(value), height - 14, f"{value:g}x", color=MUTED, anchor="middle")
    y = top + 8.0
    for title, rows in groups:
        y += 18
        drawing.text(20, y, title, bold=True)
        y += 8
        for name, one in rows:
            _bar(drawing, name, one, y, (left, at))
            y += 19
        y += 8
    drawing.line([(at(1), top), (at(1), height - 30)], INK, 1, "4 3")
    return drawing


def _bar(drawing: Drawing, name: str, one: dict[str, float], y: float, scale: Any) -> None:
    left, at = scale
    drawing.text(left - 8, y + 11, label(name), anchor="end")
    drawing.bar(left, y + 1, at(one["median"]) - left, 13, COLORS[name.split(" ")[0]])
    drawing.line([(at(one["low"]), y + 7.5), (at(one["high"]), y + 7.5)], INK, 1.2)
    drawing.text(at(one["high"]) + 6, y + 12, f"{one['median']:.1f}x", color=INK)


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found if isinstance(found, dict) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Drawing] = {}
    training = _read(arguments.results, "whole_training")
    for kind, found in (training or {}).get("kinds", {}).items():
        if found.get("curves"):
            assert training is not None
            drawn[f"training-{kind}"] = curves(kind, found, training["settings"])
    steps = _read(arguments.results, "sae_step")
    if steps and "cells" in steps:
        drawn["step-ratios"] = ratios(steps["cells"])
    for name, drawing in drawn.items():
        path = arguments.out / f"{name}.svg"
        path.write_text(drawing.svg(), encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
