"""Python source as tokens at character positions, the same on every supported interpreter.

Up to Python 3.11 `tokenize` gives an f-string as one token, from 3.12 on as its parts. Here an
f-string is always one token, so that a text has the same labels everywhere; what is inside its
braces is found by `fstring_expressions`.
"""

from __future__ import annotations

import bisect
import io
import itertools
import keyword
import token
import tokenize
from collections.abc import Iterable
from typing import NamedTuple

# absent from `token` on interpreters that do not split the literal up
_OPENS_PARTS = {getattr(token, name, -1) for name in ("FSTRING_START", "TSTRING_START")} - {-1}
_CLOSES_PARTS = {getattr(token, name, -1) for name in ("FSTRING_END", "TSTRING_END")} - {-1}
_KEYWORDS = frozenset(keyword.kwlist)
_PAIRS = {")": "(", "]": "[", "}": "{"}


class Token(NamedTuple):
    """A Python token: its type (module `token`), text, first line and span of characters."""

    type: int
    text: str
    line: int
    start: int
    stop: int

    @property
    def is_name(self) -> bool:
        """Return whether it is an identifier; soft keywords count as one here."""
        return self.type == token.NAME and self.text not in _KEYWORDS

    @property
    def is_fstring(self) -> bool:
        """Return whether it is an f-string (or a template string) with all of its parts."""
        prefix = self.text[: _prefix_length(self.text)].lower()
        return self.type == token.STRING and ("f" in prefix or "t" in prefix)


class Bracket(NamedTuple):
    """A closed pair of brackets.

    Attributes:
        kind: The opening bracket.
        outer: The opening bracket of the pair around it, empty where there is none.
        start: Position of the opening bracket.
        stop: Position of the closing one.
        n_tokens: Python tokens from one to the other.
        depth: 1 where nothing is around.
    """

    kind: str
    outer: str
    start: int
    stop: int
    n_tokens: int
    depth: int


class Source:
    """The tokens of a text whose lines all end in a line feed, or of its first part.

    Args:
        text: The text.
        n_lines: Lines to read tokens from, all without it; no statement may go on behind them.

    Attributes:
        text: The text.
        line_starts: Position of the first character of each line.
        tokens: The tokens in order, f-strings whole; the end marker is left out.
        brackets: Closed pairs of brackets outside of f-strings, in order of their closing.
        opener_of: Position of a closing bracket -> position of its opening one.
        name_at: Position of the first character of a name -> behind its last.
        name_before: Position behind the last character of a name -> its first.
    """

    def __init__(self, text: str, n_lines: int | None = None) -> None:
        self.text = text
        lengths = (len(line) + 1 for line in text.split("\n"))
        self.line_starts = [0, *itertools.accumulate(lengths)][:-1]
        all_lines = n_lines is None or n_lines >= len(self.line_starts)
        part = text if all_lines else text[: self.line_starts[n_lines or 0]]
        self.tokens = read_tokens(part, self.line_starts)
        self.brackets = _brackets(self.tokens)
        self.opener_of = {pair.stop: pair.start for pair in self.brackets}
        names = [one for one in self.tokens if one.type == token.NAME and one.is_name]
        self.name_at = {one.start: one.stop for one in names}
        self.name_before = {one.stop: one.start for one in names}
        self._name_starts = [one.start for one in names]
        self._bytes = None if text.isascii() else _Utf8(text)

    def position(self, line: int, column: int) -> int:
        """Return the character that `ast` means by a line (from 1) and a column in UTF-8 bytes."""
        if self._bytes is None:
            return self.line_starts[line - 1] + column
        return self._bytes.position(line, column)

    def name_after(self, position: int) -> tuple[int, int]:
        """Return the span of the first name at or behind a position; an empty span where none is."""
        i = bisect.bisect_left(self._name_starts, position)
        if i == len(self._name_starts):
            return position, position
        return self._name_starts[i], self.name_at[self._name_starts[i]]

    def last_before(self, name: str, position: int) -> int:
        """Return where a name last starts before a position, -1 if nowhere."""
        i = bisect.bisect_left(self._name_starts, position) - 1
        while i >= 0 and not self.text.startswith(name, self._name_starts[i]):
            i -= 1
        return self._name_starts[i] if i >= 0 else -1

    def indentation(self, position: int) -> int:
        """Return the start of the position's line where only white space is between, else position."""
        start = self.text.rfind("\n", 0, position) + 1
        return start if not self.text[start:position].strip() else position


class _Utf8:
    """Character positions of the bytes of a text that is not all ASCII."""

    def __init__(self, text: str) -> None:
        encoded = text.encode("utf-8")
        self._starts = [0, *(i + 1 for i, byte in enumerate(encoded) if byte == 0x0A)]
        self._character: list[int] = []
        for i, character in enumerate(text):
            self._character.extend([i] * len(character.encode("utf-8")))
        self._character.append(len(text))

    def position(self, line: int, column: int) -> int:
        return self._character[self._starts[line - 1] + column]


def read_tokens(text: str, line_starts: list[int]) -> list[Token]:
    """Return the tokens of a text, f-strings whole.

    Raises:
        SyntaxError: `tokenize` cannot make sense of it.
        tokenize.TokenError: a bracket or string is never closed.
    """
    readline = io.StringIO(text, newline="\n").readline
    return join_parts(tokenize.generate_tokens(readline), text, line_starts)


def join_parts(
    stream: Iterable[tokenize.TokenInfo], text: str, line_starts: list[int]
) -> list[Token]:
    """Return tokens with character positions; the parts of an f-string become one STRING token.

    Raises:
        SyntaxError: a token is an error token.
    """
    found: list[Token] = []
    open_parts: list[tuple[int, int]] = []
    # a missing last line feed and the end of all blocks are told of behind the end of the text
    last = len(text)
    starts = [*line_starts, last, last]
    for kind, string, (line, column), (last_line, last_column), _ in stream:
        if kind == token.ENDMARKER:
            continue
        if kind == token.ERRORTOKEN:
            raise SyntaxError(f"line {line} holds no Python token at {string!r}")
        start = min(starts[line - 1] + column, last)
        stop = min(starts[last_line - 1] + last_column, last)
        if kind in _OPENS_PARTS:
            open_parts.append((line, start))
        elif kind in _CLOSES_PARTS:
            line, start = open_parts.pop()
            if not open_parts:
                found.append(Token(token.STRING, text[start:stop], line, start, stop))
        elif not open_parts:
            found.append(Token(kind, string, line, start, stop))
    return found


def _brackets(tokens: list[Token]) -> list[Bracket]:
    pairs: list[Bracket] = []
    waiting: list[tuple[str, int, int]] = []
    number = 0
    for one in tokens:
        if one.type in (token.COMMENT, token.NL, token.NEWLINE, token.INDENT, token.DEDENT):
            continue
        number += 1
        if one.type != token.OP or one.text not in "()[]{}":
            continue
        if one.text not in _PAIRS:
            waiting.append((one.text, one.start, number))
            continue
        if not waiting or waiting[-1][0] != _PAIRS[one.text]:
            raise SyntaxError(f"line {one.line}: {one.text!r} closes nothing")
        kind, start, opened = waiting.pop()
        outer = waiting[-1][0] if waiting else ""
        depth = len(waiting) + 1
        pairs.append(Bracket(kind, outer, start, one.start, number - opened, depth))
    return pairs


def _prefix_length(text: str) -> int:
    return len(text) - len(text.lstrip("rRbBuUfFtT"))


def _quote_length(text: str, position: int) -> int:
    return 3 if text[position : position + 3] in ('"""', "'''") else 1


def fstring_expressions(text: str) -> list[tuple[int, int]]:
    """Return the spans between the braces of one f-string, format specifications left out.

    Args:
        text: The whole literal, prefix and quotes included, as an interpreter has accepted it.
    """
    spans: list[tuple[int, int]] = []
    _scan_literal(text, _prefix_length(text), spans)
    return spans


def _scan_literal(text: str, quote: int, spans: list[tuple[int, int]]) -> int:
    """Collect the expressions of the f-string whose quotes open at `quote`; return its end."""
    prefix = text[:quote]
    raw = prefix[_letters_start(prefix) :].lower().find("r") >= 0
    mark = text[quote : quote + _quote_length(text, quote)]
    return _scan_text(text, quote + len(mark), mark, raw, spans)


def _letters_start(text: str) -> int:
    return len(text.rstrip("rRbBuUfFtT"))


def _scan_text(text: str, i: int, mark: str, raw: bool, spans: list[tuple[int, int]]) -> int:
    while i < len(text):
        if text.startswith(mark, i):
            return i + len(mark)
        if text[i] == "\\" and not raw and text.startswith("N{", i + 1):
            i = text.find("}", i) + 1 or len(text)
        elif text.startswith(("{{", "}}"), i) or (
            text[i] == "\\" and text[i + 1 : i + 2] not in ("{", "}")
        ):
            i += 2
        elif text[i] == "{":
            i = _scan_expression(text, i + 1, raw, spans)
        else:
            i += 1
    return i


def _scan_expression(text: str, start: int, raw: bool, spans: list[tuple[int, int]]) -> int:
    """Add the expression that starts here; return the position behind its closing brace."""
    i, depth = start, 0
    while i < len(text):
        character = text[i]
        if character in "'\"":
            i = _skip_string(text, i)
            continue
        if character in "([{":
            depth += 1
        elif depth == 0 and (
            character in "}:" or (character == "!" and text[i + 1 : i + 2] != "=")
        ):
            break
        elif character in ")]}":
            depth -= 1
        elif character == "!":
            i += 1
        i += 1
    spans.append((start, i))
    if text[i : i + 1] == "!":
        i = min(j for j in (text.find("}", i), text.find(":", i), len(text)) if j >= 0)
    if text[i : i + 1] == ":":
        return _scan_specification(text, i + 1, raw, spans)
    return i + 1


def _scan_specification(text: str, i: int, raw: bool, spans: list[tuple[int, int]]) -> int:
    while i < len(text) and text[i] != "}":
        i = _scan_expression(text, i + 1, raw, spans) if text[i] == "{" else i + 1
    return i + 1


def _skip_string(text: str, quote: int) -> int:
    letters = text[_letters_start(text[:quote]) : quote].lower()
    mark = text[quote : quote + _quote_length(text, quote)]
    if "f" in letters or "t" in letters:
        return _scan_text(text, quote + len(mark), mark, "r" in letters, [])
    i = quote + len(mark)
    while i < len(text) and not text.startswith(mark, i):
        i += 2 if text[i] == "\\" else 1
    return i + len(mark)
