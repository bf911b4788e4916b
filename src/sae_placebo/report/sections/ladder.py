"""The ladder of each arm: what every rung adds to the R2 of latents and of activations, and the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_placebo.core.escaping import visible
from sae_placebo.core.lazy import pandas
from sae_placebo.report.palette import MUTED, ArmStyle
from sae_placebo.report.plots import Figure, label, layout_of, note
from sae_placebo.report.sections.base import SECTIONS, Content, Section, View
from sae_placebo.report.tables import records
from sae_placebo.report.wording import Estimate, counted, finite, interval, number, shorten

COLUMNS = (
    *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "subject", "rung", "value", "gain"),
    *("low", "high", "gain_low", "gain_high", "n", "reason"),
)
"""What the section reads. A row without seeds is its arm's, with intervals; the others are single SAEs."""
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
    """One rung: what is explained with it, and what it adds."""

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
    """Return the arm's rungs: from its own rows, else the mean of its SAEs, without intervals."""
    steps = []
    for rung in WORDS:
        own = rows[rows["rung"] == rung]
        if not len(own):
            continue
        arm = own[own["sae_seed"].isna()]
        if len(arm):
            row = records(arm.iloc[:1])[0]
            size = finite(row["n"])
            n = counted(size, noun) if size is not None else "n not recorded"
        else:
            row = {"value": own["value"].mean(), "gain": own["gain"].mean()}
            reasons = own["reason"].dropna()
            row["reason"] = str(reasons.iloc[0]) if len(reasons) else None
            n = counted(len(own), "SAE")
        known = {name: finite(row.get(name)) for name in COLUMNS[7:13]}
        value = known["value"]
        reason = str(row.get("reason") or ("no interval" if value is not None else "not measured"))
        steps.append(
            Rung(
                rung=rung,
                value=value,
                low=known["low"],
                high=known["high"],
                gain=known["gain"],
                gain_low=known["gain_low"],
                gain_high=known["gain_high"],
                n=n,
                reason=reason,
            )
        )
    return steps


def _estimate(
    value: float | None, low: float | None, high: float | None, step: Rung, signed: bool = False
) -> Estimate:
    if value is None:
        return Estimate("–", None, step.reason, step.n)
    shown = number(value, _DECIMALS, signed=signed)
    if low is None or high is None:
        return Estimate(shown, None, step.reason, step.n)
    return Estimate(shown, interval(low, high, _DECIMALS, signed=signed), None, step.n)


def _left(step: Rung) -> Estimate:
    """Return what a rung leaves: 1 less its R2, with the interval turned round."""
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
    low = value if step.low is None else step.low
    high = value if step.high is None else step.high
    return {
        "type": "scatter",
        "mode": "markers",
        "showlegend": False,
        "x": [round(value, 6)],
        "y": [y - 0.16],
        "marker": {"size": 1, "color": "#222222"},
        "error_x": {
            "type": "data",
            "array": [round(high - value, 6)],
            "arrayminus": [round(value - low, 6)],
            "visible": step.low is not None,
            "color": "#222222",
            "thickness": 1.6,
            "width": 4,
        },
        "hoverinfo": "skip",
    }


def _texts(name: str, said: str, y: float) -> list[dict[str, Any]]:
    place = {"xref": "paper", "yref": "y", "y": y + 0.22, "font": {"size": 11}}
    return [
        note(label(name), x=0, xanchor="left", **place),
        note(f"<b>{label(said)}</b>", x=1, xanchor="right", **place),
    ]


def waterfall(
    arm: str, steps: Sequence[Rung], style: ArmStyle, rest: str, reach: tuple[float, float]
) -> Figure:
    """Return the steps from 0 upwards, a row each, and below what the last one leaves up to 1.

    Args:
        arm: Its name, which the axis carries.
        steps: Rungs in order; those without a value are a row that says why.
        style: Of the arm.
        rest: Name of the last row.
        reach: Ends of the axis, the same for every arm beside it.
    """
    data: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    reached = 0.0
    for i, step in enumerate(steps):
        y = float(len(steps) - i)
        name = WORDS[step.rung]
        if step.value is None:
            notes += _texts(name, f"none: {step.reason}"[:34], y)
            continue
        # means of rungs may be over latents that only some rungs have, so that bars start where the
        # last one ended
        gain = step.value - reached if step.gain is None else step.gain
        said = _words(_estimate(gain, step.gain_low, step.gain_high, step, signed=True))
        whole = _words(_estimate(step.value, step.low, step.high, step))
        hover = f"<b>{label(name)}</b><br>adds {label(said)}<br>R² so far {label(whole)}"
        hover += f"<br>{label(step.n)}"
        data += [_bar(y, reached, step.value, style.color, hover), _whisker(y, step)]
        notes += _texts(name, said, y)
        reached = step.value
    last = next((step for step in reversed(steps) if step.value is not None), None)
    if last is not None:
        said = _words(_left(last))
        data.append(_bar(0.0, reached, 1.0, MUTED, f"<b>{label(rest)}</b><br>{label(said)}"))
        notes += _texts(rest, said, 0.0)
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
        yaxis={
            "range": [-0.5, len(steps) + 0.5],
            "fixedrange": True,
            "showticklabels": False,
            "showgrid": False,
            "zeroline": False,
        },
    )
    return {"data": data, "layout": layout}


def _words(estimate: Estimate) -> str:
    return f"{estimate.value} {estimate.interval}" if estimate.interval else estimate.value


def _rest(steps: Sequence[Rung], is_trained: bool) -> str:
    """Return how what is left is called; only beside a placebo is it more than "not explained"."""
    beside = any(s.rung == "placebo_readout" and s.value is not None for s in steps)
    if not beside:
        return "left: not explained by tokens"
    return "left: in no placebo" if is_trained else "left: in no other placebo"


def _lowest(all_steps: Sequence[Sequence[Rung]]) -> float:
    ends = [v for steps in all_steps for s in steps for v in (s.value, s.low) if v is not None]
    return min([0.0, *ends])


def _arm(view: View, arm: str, steps: list[Rung], key: str) -> dict[str, Any]:
    readout = next((s for s in steps if s.rung == "placebo_readout" and s.value is not None), None)
    return {
        "arm": arm,
        "index": view.index(arm),
        "figure": key,
        "height": _ROW_PX * (len(steps) + 1) + 52,
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
    found = getattr(view.tables, "ladder", None)
    table = pandas.DataFrame(columns=list(COLUMNS)) if found is None else found
    table = table.reindex(columns=list(COLUMNS))
    places = table[["hookpoint", "sae"]].dropna().drop_duplicates()
    figures: dict[str, Figure] = {}
    blocks = []
    for place in places.itertuples(index=False, name=None):
        here = table[(table["hookpoint"] == place[0]) & (table["sae"] == place[1])]
        for subject, words in SUBJECTS.items():
            own = here[here["subject"] == subject]
            noun = "latent" if subject == "latents" else "dimension"
            arms = [arm for arm in view.arms if (own["arm"] == arm).any()]
            steps = {arm: _steps(own[own["arm"] == arm], noun) for arm in arms}
            low = _lowest(list(steps.values()))
            shown = []
            for arm in arms:
                key = f"ladder-{len(figures)}"
                rest = _rest(steps[arm], arm == view.trained)
                reach = (round(low - 0.02, 3), 1.02)
                figures[key] = waterfall(arm, steps[arm], view.styles[arm], rest, reach)
                shown.append(_arm(view, arm, steps[arm], key))
            if shown:
                blocks.append({"place": ", ".join(place), "subject": words, "arms": shown})
    return Content({"blocks": blocks, "n_places": len(places)}, figures)


SECTIONS.add(Section("ladder", "What is left after everything simpler", ("trial",), build))
