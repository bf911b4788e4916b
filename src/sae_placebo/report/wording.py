"""How the report writes numbers and names: one rounding rule, one form of estimate, true minus signs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
# the level that `stats.effects.effects` takes where none is given
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number as it is shown, which always has its n, and its interval or the reason for having none.

    Attributes:
        value: The number with its unit, or an en dash.
        interval: The interval in brackets; None where there is none.
        reason: Why there is no interval, or a remark on the number; None where neither is needed.
        n: What the number was computed over, in words.

    Raises:
        ValueError: there is neither an interval nor a reason, or `n` is empty.
    """

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
    """Return how many decimals, 0 to 6, show the spread of `values` with two digits.

    Where they do not differ, or there is one value alone, a tenth of the largest one is the spread.
    """
    known = [v for v in values if v is not None and math.isfinite(v)]
    width = max(known) - min(known) if known else 0.0
    size = width if width > 0 else max((abs(v) for v in known), default=0.0) / 10
    if size <= 0:
        return 2
    return min(6, max(0, 1 - math.floor(math.log10(size))))


def fitting(value: float | None, low: float | None, high: float | None) -> int:
    """Return the decimals of an estimate with its interval: about three digits, 4 decimals at most.

    There are up to 6 where fewer would print a bound that is not 0 as 0, and so hide on which side of
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
    """Return `value` rounded, with thousands separators and a true minus; an en dash where it is no number.

    Args:
        value: The number.
        decimals: Decimals to show; `decimals_for(value)` where None.
        signed: Whether a positive number has a plus sign. Zero never has a sign.
    """
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
    """Return "[low, high]", or words where both bounds are the same; `unit` follows each bound."""
    if low is not None and low == high:
        return "(no variation)"
    return f"[{number(low, decimals, signed)}{unit}, {number(high, decimals, signed)}{unit}]"


def bounded(
    value: float | None,
    low: float | None,
    high: float | None,
    decimals: int,
    signed: bool = False,
    otherwise: str = "",
) -> str:
    """Return a number with its interval behind it; `otherwise` stands there where it has none."""
    text = number(value, decimals, signed)
    if low is None or high is None:
        return text + otherwise
    return f"{text} {interval(low, high, decimals, signed)}"


def estimated(
    value: float | None,
    low: float | None,
    high: float | None,
    n: str,
    reason: str,
    *,
    decimals: int | None = None,
    unit: str = "",
    signed: bool = False,
) -> Estimate:
    """Return a number as it is shown: with its interval, or else with the reason for having none.

    Args:
        value: The number; None where it could not be estimated.
        low: Lower bound of its interval; None where it has none.
        high: Upper bound of its interval; None where it has none.
        n: What it was computed over, in words.
        reason: Why there is no number or no interval; it is not shown where there are both.
        decimals: Decimals of the number and its bounds; None for as many as fit the interval.
        unit: Text that follows the number and each bound, such as "%".
        signed: Whether it is a difference, which is written with its sign.
    """
    if value is None:
        return Estimate("–", None, reason, n)
    places = fitting(value, low, high) if decimals is None else decimals
    shown = number(value, places, signed) + unit
    if low is None or high is None:
        return Estimate(shown, None, reason, n)
    return Estimate(shown, interval(low, high, places, signed, unit), None, n)


def enumerated(names: Sequence[str]) -> str:
    """Return names as an English list: "a", "a and b", "a, b and c"."""
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]


def unit_text(unit: Any) -> str:
    """Return a unit as it is written after a number; a pure number has none."""
    text = str(unit or "").strip()
    return "" if text.lower() in _UNITLESS else text


def difference_unit(unit: Any) -> str:
    """Return the unit of a difference; that of two percentages is percentage points."""
    text = unit_text(unit)
    return "percentage points" if text == "%" else text


def wrapped(text: str, width: int) -> list[str]:
    """Return `text` in lines of at most `width` characters, broken after "_", "-" or a space.

    A line is cut at `width` where its only break would leave less than a third of it.
    """
    lines, rest = [], text
    while len(rest) > width:
        cut = max(rest.rfind(mark, 0, width) for mark in "_- ") + 1
        cut = cut if cut > width // 3 else width
        lines.append(rest[:cut])
        rest = rest[cut:]
    return [*lines, rest]


def title(name: Any) -> str:
    """Return an identifier in words: `ev_above_null` becomes "EV above null"."""
    words = [_WORDS.get(word, word) for word in str(name).replace("_", " ").split()]
    text = " ".join(words)
    return text[:1].upper() + text[1:]


def metric_title(name: Any, unit: Any = None) -> str:
    """Return a metric's name in words, without a trailing unit that `unit` says anyway."""
    words = str(name).split("_")
    if words[0] == "share" and len(words) > 1:
        return f"Share of {' '.join(words[1:])} latents"
    if len(words) > 1 and words[-1] in _UNIT_WORDS and (not unit or words[-1] in str(unit)):
        words = words[:-1]
    return title("_".join(words))


def short_metric_title(name: Any, unit: Any = None) -> str:
    """Return a shorter `metric_title`, for plots, where space is short."""
    if str(name).startswith("share_"):
        return f"Share: {str(name)[6:].replace('_', ' ')}"
    text = metric_title(name, unit)
    return text.replace("Explained variance", "EV").replace("explained variance", "EV")


def shorten(text: str, limit: int) -> str:
    """Return `text` cut to `limit` characters, the last one an ellipsis when it was cut."""
    return text if len(text) <= limit else text[: max(1, limit - 1)].rstrip() + "…"


def control_kind(control: Any) -> str:
    """Return the kind that an arm's control names; "none" where there is no control."""
    if isinstance(control, Mapping):
        return str(control.get("kind") or "none")
    return str(control or "none")


def token_label(token: Any) -> str:
    """Return a token as a name: as `visible` shows it, with outer spaces as middle dots."""
    text = visible(token)
    body = text.strip(" ")
    if not body:
        return "·" * len(text) or "(empty)"
    lead = len(text) - len(text.lstrip(" "))
    tail = len(text) - len(text.rstrip(" "))
    return "·" * lead + body + "·" * tail


def confidence_level(spec: Any) -> float:
    """Return the level of the intervals, as a share: what the trial's settings name, or 0.95."""
    return _find(spec, ("confidence", "confidence_level")) or _CONFIDENCE


def confidence(spec: Any) -> str:
    """Return how an interval is called, such as "95% interval", by the level in the trial's settings."""
    return f"{100 * confidence_level(spec):g}% interval"


def _find(value: Any, keys: tuple[str, ...]) -> float | None:
    """Return the first level from 0.5 to 1 that settings hold under one of `keys`, at any depth."""
    if not isinstance(value, Mapping):
        return None
    for key in keys:
        known = finite(value.get(key))
        if known is not None and 0.5 <= known < 1:
            return known
    inner = (_find(child, keys) for child in value.values())
    return next((level for level in inner if level is not None), None)
