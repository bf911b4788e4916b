"""Text from data, made fit to be shown: nothing in it can reorder, hide or break the text around it."""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Any


def visible(token: Any) -> str:
    """Return a token with its control and direction characters made visible.

    A line feed becomes ⏎, a tab ⇥; other control, format and separator characters are named by
    their code point, so that no token can reorder, hide or break the text around it. A joiner is
    kept: several scripts and emoji need it.
    """
    return "".join(_visible_character(c) for c in str(token))


def _visible_character(c: str) -> str:
    if c in "\n\r\t":
        return {"\n": "⏎", "\r": "␍", "\t": "⇥"}[c]
    if c == "\u200d" or c == "\u200c":
        return c
    if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return f"⟨{ord(c):04X}⟩"
    return c


# all but line feed and tab, which HTML takes as space; and what reorders text, or is no character
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def without_controls(text: str) -> str:
    """Return a text with its control and direction characters made visible, as in `visible`.

    Line feeds and tabs stay: what holds them is a text of several lines and no token.
    """
    return _CONTROLS.sub(lambda found: _visible_character(found[0]), text)


def escaped(text: Any) -> str:
    """Return `text` for HTML or SVG: no markup, and no control character."""
    return html.escape(without_controls(str(text)), quote=True)
