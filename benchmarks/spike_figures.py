"""Draw detection limits, arm by arm, with real latents on them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from svg import COLORS, GRID, INK, MUTED, Drawing

_ARM = {"trained": COLORS["ours"], "redraw": COLORS["sae-lens"]}
_SIDE, _GAP, _LEFT, _TOP = 250.0, 64.0, 64.0, 92.0
_X, _Y = (1e-4, 0.5), (0.02, 3.0)


def draw(results: Path, images: Path) -> None:
    """Write spikes-<model>.svg of every model that there are results of."""
    path = results / "spikes.json"
    if not path.exists():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    images.mkdir(parents=True, exist_ok=True)
    for model in sorted({entry["model"] for entry in found["summary"]}):
        out = images / f"spikes-{model}.svg"
        out.write_text(limits(found, model).svg(), encoding="utf-8")
        print(f"wrote {out}")


def limits(found: dict[str, Any], model: str) -> Drawing:
    """Return one panel per arm: magnitude over frequency, the curves, and the arm's own latents."""
    entries = sorted(
        (entry for entry in found["summary"] if entry["model"] == model),
        key=lambda entry: (entry["arm"] != "trained", entry["arm"]),
    )
    width = _LEFT + len(entries) * (_SIDE + _GAP)
    drawing = Drawing(max(width, 640), _TOP + _SIDE + 62, f"Detection limits, {model}")
    drawing.text(16, 26, f"What an SAE would find: detection limits, {model}", size=15, bold=True)
    words = "spikes found by half (line, with its 95% interval, thin) and by 95% (dashed);"
    drawing.text(16, 44, words, size=11, color=MUTED)
    words = "box: what was planted; dots: real latents, by their rate and mean size"
    drawing.text(16, 60, words, size=11, color=MUTED)
    for i, entry in enumerate(entries):
        rows = [r for r in found["rows"] if (r["model"], r["arm"]) == (model, entry["arm"])]
        latents = next((r for r in rows if r["task"] == "latents"), None)
        _panel(drawing, entry, latents, found["settings"]["grid"], _LEFT + i * (_SIDE + _GAP))
    return drawing


def _panel(
    drawing: Drawing,
    entry: dict[str, Any],
    latents: dict[str, Any] | None,
    grid: dict[str, Any],
    left: float,
) -> None:
    shade = _ARM.get(entry["arm"], COLORS["dictionary-learning"])

    def at(frequency: float, magnitude: float) -> tuple[float, float]:
        across = math.log(frequency / _X[0]) / math.log(_X[1] / _X[0])
        up = math.log(magnitude / _Y[0]) / math.log(_Y[1] / _Y[0])
        return left + _SIDE * across, _TOP + _SIDE * (1 - up)

    _axes(drawing, at)
    drawing.text(left, _TOP - 8, entry["arm"], bold=True)
    if latents is not None:
        for rate, size in zip(latents["rates"], latents["magnitudes"], strict=True):
            if _X[0] <= rate <= _X[1] and _Y[0] <= size <= _Y[1]:
                drawing.dot(*at(rate, size), "#b9c0c8", 1.1)
    f, m = grid["frequencies"], grid["magnitudes"]
    corners = [(f[0], m[0]), (f[-1], m[0]), (f[-1], m[-1]), (f[0], m[-1]), (f[0], m[0])]
    drawing.line([at(*corner) for corner in corners], MUTED, 0.8)
    if "limits" not in entry:
        drawing.text(left + 6, _TOP + 16, "no limit: too few or too many found", size=10, color=INK)
        return
    for share, width, dash in (("0.5", 2.0, ""), ("0.95", 1.6, "5 3")):
        _curve(drawing, at, entry["limits"], share, "magnitude", (shade, width, dash))
    for end in ("low", "high"):
        _curve(drawing, at, entry["limits"], "0.5", end, (shade, 0.7, ""))


def _curve(
    drawing: Drawing,
    at: Any,
    rows: list[dict[str, Any]],
    share: str,
    which: str,
    pen: tuple[str, float, str],
) -> None:
    points = [(row["frequency"], row[share][which]) for row in rows]
    inside = [(f, m) for f, m in points if m is not None and _Y[0] <= m <= _Y[1]]
    if len(inside) > 1:
        color, width, dash = pen
        drawing.line([at(f, m) for f, m in inside], color, width, dash)


def _axes(drawing: Drawing, at: Any) -> None:
    for value in (1e-4, 1e-3, 1e-2, 1e-1):
        x, y = at(value, _Y[0])
        drawing.line([(x, at(value, _Y[1])[1]), (x, y)], GRID)
        drawing.text(x, y + 16, f"{value:g}", anchor="middle", size=10, color=MUTED)
    for value in (0.03, 0.1, 0.3, 1.0, 3.0):
        x, y = at(_X[0], value)
        drawing.line([(x, y), (at(_X[1], value)[0], y)], GRID)
        drawing.text(x - 6, y + 4, f"{value:g}", anchor="end", size=10, color=MUTED)
    middle = (at(_X[0], 1)[0] + at(_X[1], 1)[0]) / 2
    bottom = at(_X[0], _Y[0])[1]
    drawing.text(middle, bottom + 36, "share of tokens", anchor="middle", size=11)
    drawing.text(
        at(_X[0], 1)[0] - 38,
        (at(1e-3, _Y[0])[1] + at(1e-3, _Y[1])[1]) / 2,
        "length / rms norm of the activations",
        anchor="middle",
        size=11,
        turned=True,
    )
