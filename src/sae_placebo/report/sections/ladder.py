"""The section on the ladder: what every rung adds to the R2 of latents and of activations, and the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_placebo.core.escaping import visible
from sae_placebo.core.lazy import pandas
from sae_placebo.report.palette import MUTED, ArmStyle
from sae_placebo.report.plots import Figure, bare_axis, error_bars, label, layout_of, note
from sae_placebo.report.sections.base import (
    SECTIONS,
    Content,
    Section,
    View,
    add_figure,
    by_arm,
)
from sae_placebo.report.tables import at, places, records
from sae_placebo.report.wording import Estimate, counted, estimated, finite, shorten

COLUMNS = (
    *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "subject", "rung", "value", "gain"),
    *("low", "high", "gain_low", "gain_high", "n", "reason"),
)
"""Columns that the section reads. A row without seeds is its arm's, with intervals; the others are SAEs'."""
WORDS: Mapping[str, str] = {
    "position": "position in the row",
    "token": "current token",
    "pair": "with the token before",
    "bag": "bag of earlier tokens",
    "window": "embeddings of the last tokens",
    "placebo_readout": "placebo's activations",
    "placebo_latents": "placebo's latents",
}
SUBJECTS: Mapping[str, str] = {
    "latents": "latents, mean R² of the living ones",
    "activations": "the activation vector, R²",
}
_ROW_PX = 44
_DECIMALS = 3


@dataclass(frozen=True)
class Rung:
    """One rung of one arm's ladder; a number that is missing is None.

    Attributes:
        rung: Name of the rung.
        value: R2 with this rung and all below it.
        low: Lower bound of `value`.
        high: Upper bound of `value`.
        gain: What the rung adds to R2.
        gain_low: Lower bound of `gain`.
        gain_high: Upper bound of `gain`.
        n: What the numbers were computed over, in words.
        reason: Why there is no value or no interval.
    """

    rung: str
    value: float | None
    low: float | None
    high: float | None
    gain: float | None
    gain_low: float | None
    gain_high: float | None
    n: str
    reason: str


def _steps(rows: pandas.DataFrame, noun: str) -> list[Rung]:
    """Return an arm's rungs: from its own rows, else the mean of its SAEs, without intervals.

    Args:
        rows: Of one arm and subject.
        noun: What the rows' `n` counts.
    """
    steps = []
    for rung in WORDS:
        of_rung = rows[rows["rung"] == rung]
        if not len(of_rung):
            continue
        of_arm = of_rung[of_rung["sae_seed"].isna()]
        if len(of_arm):
            row = records(of_arm.iloc[:1])[0]
            size = finite(row["n"])
            n = counted(size, noun) if size is not None else "n not recorded"
        else:
            row = {"value": of_rung["value"].mean(), "gain": of_rung["gain"].mean()}
            reasons = of_rung["reason"].dropna()
            row["reason"] = str(reasons.iloc[0]) if len(reasons) else None
            n = counted(len(of_rung), "SAE")
        known = {name: finite(row.get(name)) for name in COLUMNS[7:13]}
        missing = "not measured" if known["value"] is None else "no interval"
        steps.append(Rung(rung=rung, **known, n=n, reason=str(row.get("reason") or missing)))
    return steps


def _estimate(
    value: float | None, low: float | None, high: float | None, step: Rung, signed: bool = False
) -> Estimate:
    return estimated(value, low, high, step.n, step.reason, decimals=_DECIMALS, signed=signed)


def _left(step: Rung) -> Estimate:
    """Return what a rung leaves unexplained: 1 minus its R2, with the interval turned round."""
    turned = [None if v is None else 1 - v for v in (step.value, step.high, step.low)]
    return _estimate(turned[0], turned[1], turned[2], step)


def _bar(y: float, start: float, end: float, color: str, text: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "showlegend": False,
        "x": [round(end - start, 6)],
        "base": [round(start, 6)],
        "y": [y - 0.16],
        "width": 0.3,
        "marker": {"color": color, "line": {"color": color, "width": 1}},
        "text": [text],
        "textposition": "none",
        "hovertemplate": "%{text}<extra></extra>",
    }


def _whisker(y: float, step: Rung) -> dict[str, Any]:
    value = step.value or 0.0
    look = {"visible": step.low is not None, "color": "#222222", "thickness": 1.6, "width": 4}
    return {
        "type": "scatter",
        "mode": "markers",
        "showlegend": False,
        "x": [round(value, 6)],
        "y": [y - 0.16],
        "marker": {"size": 1, "color": "#222222"},
        "error_x": error_bars([value], [step.low], [step.high], 6, **look),
        "hoverinfo": "skip",
    }


def _texts(name: str, value: str, y: float) -> list[dict[str, Any]]:
    place = {"xref": "paper", "yref": "y", "y": y + 0.22, "font": {"size": 11}}
    return [
        note(label(name), x=0, xanchor="left", **place),
        note(f"<b>{label(value)}</b>", x=1, xanchor="right", **place),
    ]


def waterfall(
    arm: str, steps: Sequence[Rung], style: ArmStyle, rest: str, reach: tuple[float, float]
) -> Figure:
    """Return a figure with a row per rung, each step starting where the last one ended.

    The last row is what the last rung leaves of 1.

    Args:
        arm: Name of the arm, in the axis title.
        steps: Rungs in order; the row of one without a value says why it has none.
        style: Look of the arm.
        rest: Name of the last row.
        reach: Ends of the axis, the same for every arm.
    """
    data: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    reached = 0.0
    for i, step in enumerate(steps):
        y = float(len(steps) - i)
        if step.value is None:
            notes += _texts(WORDS[step.rung], f"none: {step.reason}"[:34], y)
            continue
        # means of rungs may be over latents that only some rungs have, so that bars start where the
        # last one ended
        gain = step.value - reached if step.gain is None else step.gain
        adds = _words(_estimate(gain, step.gain_low, step.gain_high, step, signed=True))
        hover = _hover(step, adds)
        data += [_bar(y, reached, step.value, style.color, hover), _whisker(y, step)]
        notes += _texts(WORDS[step.rung], adds, y)
        reached = step.value
    last = next((step for step in reversed(steps) if step.value is not None), None)
    if last is not None:
        left = _words(_left(last))
        data.append(_bar(0.0, reached, 1.0, MUTED, f"<b>{label(rest)}</b><br>{label(left)}"))
        notes += _texts(rest, left, 0.0)
    layout = layout_of(
        _ROW_PX * (len(steps) + 1) + 52,
        {"l": 4, "r": 4, "t": 4, "b": 44},
        annotations=notes,
        barmode="overlay",
        xaxis={
            "title": {
                "text": f"R² on held-out documents, {label(shorten(visible(arm), 24))}",
                "font": {"size": 12},
            },
            "range": [reach[0], reach[1]],
            "fixedrange": True,
            "zeroline": True,
            "zerolinecolor": MUTED,
        },
        yaxis=bare_axis(-0.5, len(steps) + 0.5),
    )
    return {"data": data, "layout": layout}


def _hover(step: Rung, adds: str) -> str:
    """Return the markup that a rung's bar shows under the pointer."""
    so_far = _words(_estimate(step.value, step.low, step.high, step))
    lines = [f"adds {label(adds)}", f"R² so far {label(so_far)}", label(step.n)]
    return "<br>".join([f"<b>{label(WORDS[step.rung])}</b>", *lines])


def _words(estimate: Estimate) -> str:
    return f"{estimate.value} {estimate.interval}" if estimate.interval else estimate.value


def _rest(steps: Sequence[Rung], is_trained: bool) -> str:
    """Return the name of what the last rung leaves; only a ladder up to a placebo can say "in none"."""
    if not any(step.rung == "placebo_readout" and step.value is not None for step in steps):
        return "left: not explained by tokens"
    return "left: in no placebo" if is_trained else "left: in no other placebo"


def _lowest(all_steps: Sequence[Sequence[Rung]]) -> float:
    ends = [v for steps in all_steps for s in steps for v in (s.value, s.low) if v is not None]
    return min([0.0, *ends])


def _arm(view: View, arm: str, steps: list[Rung]) -> dict[str, Any]:
    readout = next((s for s in steps if s.rung == "placebo_readout" and s.value is not None), None)
    return {
        "arm": arm,
        "index": view.index(arm),
        "made": None if readout is None else _left(readout),
        "is_trained": arm == view.trained,
        "rows": [
            {
                "id": step.rung,
                "rung": WORDS[step.rung],
                "gain": _estimate(step.gain, step.gain_low, step.gain_high, step, signed=True),
                "value": _estimate(step.value, step.low, step.high, step),
            }
            for step in steps
        ],
    }


def build(view: View) -> Content:
    """Return a waterfall per arm, place and subject, and the numbers as a table."""
    table = view.tables.ladder
    figures: dict[str, Figure] = {}
    blocks = []
    for place in places(table):
        ladders = at(table, place)
        for subject, words in SUBJECTS.items():
            rows = ladders[ladders["subject"] == subject]
            noun = "latent" if subject == "latents" else "dimension"
            steps = {arm: _steps(of_arm, noun) for arm, of_arm in by_arm(view, rows).items()}
            reach = (round(_lowest(list(steps.values())) - 0.02, 3), 1.02)
            shown = []
            for arm, rungs in steps.items():
                rest = _rest(rungs, arm == view.trained)
                figure = waterfall(arm, rungs, view.styles[arm], rest, reach)
                placed = add_figure(figures, f"ladder-{len(figures)}", figure)
                shown.append(_arm(view, arm, rungs) | placed)
            if shown:
                blocks.append({"place": ", ".join(place), "subject": words, "arms": shown})
    return Content({"blocks": blocks, "n_places": len(places(table))}, figures)


SECTIONS.add(Section("ladder", "What is left after everything simpler", ("trial",), build))
