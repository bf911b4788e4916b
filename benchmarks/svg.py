"""A few marks of SVG: text, lines, bars, and axes with round ticks. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape

INK, MUTED, GRID, PAPER = "#1b1f24", "#57606a", "#dfe3e8", "#ffffff"
# Okabe and Ito's palette, as in the report
COLORS = {
    "ours": "#0072B2",
    "sae-lens": "#D55E00",
    "dictionary-learning": "#009E73",
    "sparsify": "#CC79A7",
    "textbook": "#8C8C8C",
}
FONT = "font-family='Helvetica, Arial, sans-serif'"


@dataclass
class Drawing:
    width: float
    height: float
    title: str
    marks: list[str] = field(default_factory=list)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 12,
        color: str = INK,
        anchor: str = "start",
        bold: bool = False,
        turned: bool = False,
    ) -> None:
        weight = " font-weight='600'" if bold else ""
        turn = f" transform='rotate(-90 {x:.1f} {y:.1f})'" if turned else ""
        self.marks.append(
            f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' fill='{color}' "
            f"text-anchor='{anchor}'{weight}{turn}>{escape(words)}</text>"
        )

    def line(
        self, points: list[tuple[float, float]], color: str, width: float = 1.0, dash: str = ""
    ) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f" stroke-dasharray='{dash}'" if dash else ""
        self.marks.append(
            f"<polyline points='{path}' fill='none' stroke='{color}' stroke-width='{width}' "
            f"stroke-linejoin='round'{dashed}/>"
        )

    def dot(self, x: float, y: float, color: str, radius: float = 2.6) -> None:
        self.marks.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius}' fill='{color}'/>")

    def bar(self, x: float, y: float, width: float, height: float, color: str) -> None:
        self.marks.append(
            f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' "
            f"fill='{color}' rx='1.5'/>"
        )

    def svg(self) -> str:
        head = (
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{self.width:.0f}' "
            f"height='{self.height:.0f}' viewBox='0 0 {self.width:.0f} {self.height:.0f}' "
            f"role='img' {FONT}>"
        )
        paper = f"<rect width='100%' height='100%' fill='{PAPER}'/>"
        return "\n".join(
            [head, f"<title>{escape(self.title)}</title>", paper, *self.marks, "</svg>\n"]
        )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from low to high, about `most` of them."""
    raw = (high - low) / max(most - 1, 1) or 1.0
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * one for one in (1, 2, 2.5, 5, 10) if size * one >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


@dataclass(frozen=True)
class Panel:
    """A rectangle of a drawing with a linear scale on each side."""

    drawing: Drawing
    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        right = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + right * self.width, self.top + (1 - up) * self.height

    def axes(self, x_title: str, y_title: str) -> None:
        bottom, right = self.top + self.height, self.left + self.width
        for value in ticks(*self.y):
            _, y = self.at(self.x[0], value)
            self.drawing.line([(self.left, y), (right, y)], GRID)
            self.drawing.text(self.left - 6, y + 4, number(value), color=MUTED, anchor="end")
        for value in ticks(*self.x):
            x, _ = self.at(value, self.y[0])
            self.drawing.line([(x, bottom), (x, bottom + 4)], MUTED)
            self.drawing.text(x, bottom + 18, number(value), color=MUTED, anchor="middle")
        self.drawing.line([(self.left, bottom), (right, bottom)], MUTED)
        middle = self.left + self.width / 2
        self.drawing.text(middle, bottom + 38, x_title, color=INK, anchor="middle")
        if y_title:
            y = self.top + self.height / 2
            self.drawing.text(self.left - 44, y, y_title, anchor="middle", turned=True)
