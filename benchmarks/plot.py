"""Draw the results in benchmarks/results as SVG files for the documents.

python benchmarks/plot.py [--results FOLDER] [--out docs/images]

It needs matplotlib, which the extra `[plots]` brings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import machine
from matplotlib.figure import Figure

from sae_placebo.core.pictures import INK, plain_style, svg_of

# Okabe and Ito's palette, as in the report
COLORS = {
    "ours": "#0072B2",
    "sae-lens": "#D55E00",
    "dictionary-learning": "#009E73",
    "sparsify": "#CC79A7",
    "textbook": "#8C8C8C",
}
Curve = list[dict[str, float]]
_LABELS = {
    "sae-lens": "SAELens",
    "dictionary-learning": "dictionary_learning",
    "ours": "sae-placebo",
}


def save(figure: Figure, path: Path) -> None:
    """Write a figure whose heading is its title."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(svg_of(figure, figure.get_suptitle().split("\n")[0]), encoding="utf-8")
    print(f"wrote {path}")


def label(name: str) -> str:
    side, _, condition = name.partition(" ")
    shown = _LABELS.get(side, side)
    return shown if condition == "trial" else f"{shown}, {condition}"


@plain_style()
def curves(kind: str, found: dict[str, Any], settings: dict[str, Any]) -> Figure:
    """Return explained variance against tokens, and against seconds, of the fastest setting of each."""
    shown: dict[str, Curve] = {
        name: curve for name, curve in found["curves"].items() if not name.endswith("installed")
    }
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    words = f"{kind}, {settings['source']}, {settings['d_in']} x {settings['d_sae']}"
    figure.suptitle(f"{words}: explained variance of held-out tokens")
    values = [p["explained_variance"] for curve in shown.values() for p in curve[1:]]
    low = max(0.0, min(values) - 0.02)
    panels = figure.subplots(1, 2, sharey=True)
    titles = {"tokens": "training tokens", "seconds": "seconds of training (steps alone)"}
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        for name, curve in shown.items():
            axes.plot(
                [point[column] for point in curve],
                [point["explained_variance"] for point in curve],
                color=COLORS[name.split(" ")[0]],
                marker=".",
                linewidth=2.2 if name.startswith("ours") else 1.4,
                label=label(name),
            )
        axes.set(xlabel=title, xlim=(0, None))
        axes.set_ylim(min(low, max(values) - 0.1), max(values) + 0.02)
        axes.grid(axis="y")
    panels[0].set_ylabel("explained variance")
    panels[0].xaxis.set_major_formatter(lambda tokens, _: f"{tokens / 1000:g}k")
    names = panels[0].get_legend_handles_labels()
    figure.legend(*names, loc="outside lower center", ncols=3)
    return figure


@plain_style()
def ratios(cells: list[dict[str, Any]], mine: str = "ours trial") -> Figure:
    """Return bars: how many times faster our step is than each peer's, by cell."""
    groups: list[tuple[str, dict[str, dict[str, float]]]] = []
    for cell in cells:
        rows = {
            name: ratio
            for name, ratio in cell["times_faster"].get(mine, {}).items()
            if ratio["median"] is not None
        }
        if rows:
            real = "" if cell["activations"] == "synthetic" else f", {cell['activations']}"
            groups.append((f"{cell['kind']} {cell['d_in']} x {cell['d_sae']}{real}", rows))
    heights = [len(rows) + 1.5 for _, rows in groups]
    figure = Figure(figsize=(9, 0.9 + 0.2 * sum(heights)), layout="constrained")
    figure.suptitle("One training step: times faster than each peer, by kind and size")
    panels = figure.subplots(
        len(groups), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes, (title, rows) in zip(panels.flat, groups, strict=True):
        _bars(axes, title, rows)
    panels.flat[-1].set_xlabel("median and range over alternating rounds; dashed: as fast")
    return figure


def _bars(axes: Any, title: str, rows: dict[str, dict[str, float]]) -> None:
    axes.barh(
        [label(name) for name in rows],
        [ratio["median"] for ratio in rows.values()],
        xerr=[
            [ratio["median"] - ratio["low"] for ratio in rows.values()],
            [ratio["high"] - ratio["median"] for ratio in rows.values()],
        ],
        color=[COLORS[name.split(" ")[0]] for name in rows],
        ecolor=INK,
        height=0.7,
    )
    for row, ratio in enumerate(rows.values()):
        place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{ratio['median']:.1f}x", (ratio["high"], row), **place)
    axes.axvline(1, color=INK, linestyle="--", linewidth=0.8)
    axes.set_title(title, loc="left")
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.tick_params("x", labelbottom=True)
    axes.tick_params("y", labelcolor=INK, length=0)
    axes.grid(axis="x")
    axes.invert_yaxis()


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return found if isinstance(found, dict) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    training = _read(arguments.results, "whole_training") or {}
    for kind, found in training.get("kinds", {}).items():
        if found.get("curves"):
            figure = curves(kind, found, training["settings"])
            save(figure, arguments.out / f"training-{kind}.svg")
    steps = _read(arguments.results, "sae_step")
    if steps and "cells" in steps:
        save(ratios(steps["cells"]), arguments.out / "step-ratios.svg")


if __name__ == "__main__":
    main()
