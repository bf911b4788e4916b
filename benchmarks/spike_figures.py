"""Draw detection limits, arm by arm, with real latents on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from plot import COLORS, save

from sae_placebo.core.pictures import INK, MUTED, plain_style

_ARM = {"trained": COLORS["ours"], "redraw": COLORS["sae-lens"]}
_X, _Y = (1e-4, 0.5), (0.02, 3.0)


def draw(results: Path, images: Path) -> None:
    """Write spikes-<model>.svg of every model that there are results of."""
    path = results / "spikes.json"
    if not path.exists():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for model in sorted({entry["model"] for entry in found["summary"]}):
        save(limits(found, model), images / f"spikes-{model}.svg")


@plain_style()
def limits(found: dict[str, Any], model: str) -> Figure:
    """Return one panel per arm: magnitude over frequency, the curves, and the arm's own latents."""
    entries = sorted(
        (entry for entry in found["summary"] if entry["model"] == model),
        key=lambda entry: (entry["arm"] != "trained", entry["arm"]),
    )
    figure = Figure(figsize=(0.8 + 3.4 * len(entries), 5.1), layout="constrained")
    figure.suptitle(f"What an SAE would find: detection limits, {model}")
    panels = figure.subplots(1, len(entries), sharex=True, sharey=True, squeeze=False)[0]
    for axes, entry in zip(panels, entries, strict=True):
        rows = [r for r in found["rows"] if (r["model"], r["arm"]) == (model, entry["arm"])]
        latents = next((r for r in rows if r["task"] == "latents"), None)
        _panel(axes, entry, latents, found["settings"]["grid"])
    panels[0].set_ylabel("length / rms norm of the activations")
    handles = [
        Line2D([], [], color=INK, linewidth=2, label="half of the spikes are found"),
        Line2D([], [], color=INK, linewidth=0.7, label="95% interval of that line"),
        Line2D(
            [], [], color=INK, linewidth=1.6, linestyle="--", label="95% of the spikes are found"
        ),
        Line2D([], [], color=MUTED, linewidth=0.8, label="box: what was planted"),
        Line2D(
            [], [], color="#b9c0c8", marker=".", linestyle="", label="real latents: rate, mean size"
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _panel(
    axes: Any, entry: dict[str, Any], latents: dict[str, Any] | None, grid: dict[str, Any]
) -> None:
    shade = _ARM.get(entry["arm"], COLORS["dictionary-learning"])
    axes.set(xscale="log", yscale="log", xlim=_X, ylim=_Y)
    axes.set(title=entry["arm"], xlabel="share of tokens", box_aspect=1)
    axes.set_yticks([0.03, 0.1, 0.3, 1, 3])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid()
    if latents is not None:
        axes.plot(latents["rates"], latents["magnitudes"], ".", color="#b9c0c8", markersize=2)
    f, m = grid["frequencies"], grid["magnitudes"]
    planted = Rectangle((f[0], m[0]), f[-1] - f[0], m[-1] - m[0], fill=False, edgecolor=MUTED)
    axes.add_patch(planted)
    if "limits" not in entry:
        words = "no limit: too few or too many found"
        axes.text(0.03, 0.97, words, transform=axes.transAxes, va="top", fontsize=8)
        return
    for share, which, style in (
        ("0.5", "magnitude", {"linewidth": 2}),
        ("0.95", "magnitude", {"linewidth": 1.6, "linestyle": "--"}),
        ("0.5", "low", {"linewidth": 0.7}),
        ("0.5", "high", {"linewidth": 0.7}),
    ):
        known = [row for row in entry["limits"] if row[share][which] is not None]
        ends = [row[share][which] for row in known]
        axes.plot([row["frequency"] for row in known], ends, color=shade, **style)
