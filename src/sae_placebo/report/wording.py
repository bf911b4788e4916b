"""How numbers and names are written: one rounding rule, one form of estimate, real minus signs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_placebo.core.escaping import visible

MINUS = "\N{MINUS SIGN}"
_UNITLESS = {"", "1", "-", "none", "share", "fraction", "proportion", "ratio"}
_WORDS = {
    "ev": "EV",
    "fvu": "FVU",
    "kl": "KL",
    "l0": "L0",
    "ce": "CE",
    "sae": "SAE",
    "r2": "R²",
    "aa": "A/A",
    "gaussian": "Gaussian",
}
_UNIT_WORDS = {"bits", "nats", "tokens", "seconds"}
# what `stats.effects.effects` takes unless it is told otherwise
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number as shown: never without its n and its interval, or the reason for having none."""

    value: str
    interval: str | None
    reason: str | None
    n: str

    def __post_init__(self) -> None:
        if self.interval is None and not self.reason:
            raise ValueError(f"{self.value!r} is shown with neither interval nor reason")
        if not self.n:
            raise ValueError(f"{self.value!r} is shown without n")


def finite(value: Any) -> float | None:
    """Return `value` as a float, or None when it is missing, not a number or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def decimals_for(*values: float | None) -> int:
    """Return how many decimals show the spread of `values` with two digits; 0 to 6."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    width = max(known) - min(known) if known else 0.0
    size = width if width > 0 else max((abs(v) for v in known), default=0.0) / 10
    if size <= 0:
        return 2
    return min(6, max(0, 1 - math.floor(math.log10(size))))


def fitting(value: float | None, low: float | None, high: float | None) -> int:
    """Return the decimals for an estimate with its interval: about three digits, 4 at most.

    There are more where fewer would print a bound that is not 0 as 0 and so hide on which side of
    0 the interval lies.
    """
    value, low, high = finite(value), finite(low), finite(high)
    if low is None or high is None:
        return 2 if value == 0 else min(4, decimals_for(value))
    largest = max(abs(low), abs(high), abs(value or 0.0))
    if largest == 0:
        return 0
    digits = max(0, 2 - math.floor(math.log10(largest)))
    if low == high:
        return 0 if low == round(low) else min(4, digits)
    places = min(4, decimals_for(low, high), digits)
    nearest = min(abs(low), abs(high))
    while places < 6 and low * high > 0 and round(nearest, places) == 0:
        places += 1
    return places


def number(value: float | None, decimals: int | None = None, signed: bool = False) -> str:
    """Return `value` rounded, with thousands separators and a true minus; an en dash for no number."""
    if value is None or not math.isfinite(value):
        return "–"
    places = decimals_for(value) if decimals is None else decimals
    text = f"{value:+,.{places}f}" if signed else f"{value:,.{places}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def count(value: Any) -> str:
    """Return a count with thousands separators; an en dash when it is missing."""
    known = finite(value)
    return "–" if known is None else f"{round(known):,}"


def counted(value: Any, noun: str) -> str:
    """Return a count and its noun, as in "1 document" and "2 documents"."""
    return f"{count(value)} {noun}" + ("" if finite(value) == 1 else "s")


def interval(
    low: float | None, high: float | None, decimals: int, signed: bool = False, unit: str = ""
) -> str:
    """Return "[low, high]", or words where the interval is a point; `unit` follows each bound."""
    if low is not None and low == high:
        return "(no variation)"
    return f"[{number(low, decimals, signed)}{unit}, {number(high, decimals, signed)}{unit}]"


def unit_text(unit: Any) -> str:
    """Return the unit as written after a number; empty for pure numbers."""
    text = str(unit or "").strip()
    return "" if text.lower() in _UNITLESS else text


def difference_unit(unit: Any) -> str:
    """Return the unit of a difference: percent differ by percentage points."""
    text = unit_text(unit)
    return "percentage points" if text == "%" else text


def wrapped(text: str, width: int) -> list[str]:
    """Return `text` in lines of at most `width` characters, broken after "_", "-" or a space."""
    lines, rest = [], text
    while len(rest) > width:
        cut = max(rest.rfind(mark, 0, width) for mark in "_- ") + 1
        cut = cut if cut > width // 3 else width
        lines.append(rest[:cut])
        rest = rest[cut:]
    return [*lines, rest]


def title(name: Any) -> str:
    """Return an identifier as words: `ev_above_null` becomes "EV above null"."""
    words = [_WORDS.get(word, word) for word in str(name).replace("_", " ").split()]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def metric_title(name: Any, unit: Any = None) -> str:
    """Return a metric's name as words, without a trailing unit that `unit` says anyway."""
    words = str(name).split("_")
    if words[0] == "share" and len(words) > 1:
        return f"Share of {' '.join(words[1:])} latents"
    if len(words) > 1 and words[-1] in _UNIT_WORDS and (not unit or words[-1] in str(unit)):
        words = words[:-1]
    return title("_".join(words))


def short_metric_title(name: Any, unit: Any = None) -> str:
    """Return `metric_title` for where space is short."""
    if str(name).startswith("share_"):
        return f"Share: {str(name)[6:].replace('_', ' ')}"
    text = metric_title(name, unit)
    return text.replace("Explained variance", "EV").replace("explained variance", "EV")


def shorten(text: str, limit: int) -> str:
    """Return `text` cut to `limit` characters, the last one an ellipsis when it was cut."""
    return text if len(text) <= limit else text[: max(1, limit - 1)].rstrip() + "…"


def control_kind(control: Any) -> str:
    """Return the kind named in an arm's control."""
    if isinstance(control, Mapping):
        return str(control.get("kind") or "none")
    return str(control or "none")


def token_label(token: Any) -> str:
    """Return a token as a name: like `visible`, with outer spaces drawn as middle dots."""
    text = visible(token)
    body = text.strip(" ")
    if not body:
        return "·" * len(text) or "(empty)"
    lead = len(text) - len(text.lstrip(" "))
    tail = len(text) - len(text.rstrip(" "))
    return "·" * lead + body + "·" * tail


def confidence_level(spec: Any) -> float:
    """Return the level of the intervals: 0.95, or what the trial's settings name."""
    return _find(spec, ("confidence", "confidence_level")) or _CONFIDENCE


def confidence(spec: Any) -> str:
    """Return "95% interval", or with the level that the trial's settings name."""
    return f"{100 * confidence_level(spec):g}% interval"


def _find(value: Any, keys: tuple[str, ...]) -> float | None:
    if not isinstance(value, Mapping):
        return None
    for key in keys:
        known = finite(value.get(key))
        if known is not None and 0.5 <= known < 1:
            return known
    inner = (_find(child, keys) for child in value.values())
    return next((level for level in inner if level is not None), None)
