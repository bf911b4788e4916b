"""Settings given beside a trial file, such as `--set saes.topk.k=16`: each a place and a value."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sae_placebo.core.errors import SpecError

Place = tuple[str, ...]
"""A place in a trial file: keys from the outermost table inwards."""


def parse_overrides(overrides: Sequence[str]) -> list[tuple[Place, Any]]:
    """Return the place and the value of every `dotted.key=value`.

    Keys are TOML's: a name that holds a dot is quoted, `saes."topk.small".k=16`. Values are TOML's,
    and a bare word is text: `arms.redraw.control=permute`.

    Raises:
        SpecError: one is not of this form, or undoes an earlier one.
    """
    if isinstance(overrides, str):
        raise SpecError(f"overrides is a list of settings: write overrides = [{overrides!r:.80}]")
    if not isinstance(overrides, Iterable) or isinstance(overrides, Mapping | bytes):
        raise SpecError(
            'overrides is a list of settings, such as ["saes.topk.k=16"], and [] for none; found '
            f"{type(overrides).__name__}"
        )
    found: list[tuple[Place, Any]] = []
    for override in overrides:
        key, equals, text = str(override).partition("=")
        if not equals or not key.strip() or not text.strip():
            raise SpecError(f"--set takes dotted.key=value, not {override!r:.80}")
        place = _place(key, override)
        for other, _ in found:
            if other[: len(place)] == place:
                raise SpecError(
                    f"--set gives {'.'.join(other)!r:.80} and then {'.'.join(place)!r:.80}, which replaces "
                    "it; give one"
                )
        found.append((place, _value(text.strip(), override)))
    return found


def set_value(table: dict[str, Any], place: Place, value: Any) -> None:
    """Put `value` at `place`, in tables that are made where there are none.

    Raises:
        SpecError: what lies on the way is a value.
    """
    *parents, last = place
    for depth, parent in enumerate(parents, 1):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            outer = ".".join(place[:depth])
            raise SpecError(f"--set {'.'.join(place)!r:.80}: {outer!r:.80} is a value, not a table")
    table[last] = value


def _place(key: str, override: str) -> Place:
    try:
        table: Any = tomllib.loads(f"{key.strip()} = 0")
    except tomllib.TOMLDecodeError:
        raise SpecError(
            f"--set {override!r:.80}: {key!r:.80} is no dotted key, such as saes.topk.k; a name that holds "
            'a dot or a space is quoted: saes."topk.small".k'
        ) from None
    place: list[str] = []
    while isinstance(table, dict):
        name, table = next(iter(table.items()))
        place.append(name)
    return tuple(place)


def _value(text: str, override: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        if text[0] in "[{\"'" or "\n" in text:
            raise SpecError(
                f'--set {override!r:.80}: {text!r:.80} is no TOML value, such as 3, "a word", [1, 2] or '
                '{kind = "topk"}'
            ) from None
        return text
    if len(table) > 1:
        raise SpecError(
            f"--set {override!r:.80} holds more than one setting; give each its own --set"
        )
    return table["value"]
