"""Labels that the stream of Python tokens gives: kinds, brackets, block depth, first and later uses."""

from __future__ import annotations

import itertools
import keyword
import token

import numpy as np

from sae_placebo.data.labels.canvas import Canvas
from sae_placebo.data.labels.catalogue import FAR_LINES, FAR_TOKENS
from sae_placebo.data.labels.source import Source, Token, fstring_expressions

_NOT_CODE = {token.COMMENT, token.NL, token.NEWLINE, token.INDENT, token.DEDENT}
_KIND_OF_TYPE = {
    token.OP: "kind.operator",
    token.NUMBER: "kind.number",
    token.COMMENT: "kind.comment",
    token.NEWLINE: "kind.newline",
    token.NL: "kind.newline",
}
_HEADERS = {
    "if", "elif", "else", "for", "while", "try", "except", "finally", "with", "def", "class", "async",
    "match", "case",
}  # fmt: skip
_IN = {"(": "bracket.in_round", "[": "bracket.in_square", "{": "bracket.in_curly"}
_DEPTHS = ("bracket.depth_1", "bracket.depth_2", "bracket.depth_3_or_more")
_BLOCKS = ("block.depth_1", "block.depth_2", "block.depth_3_or_more")


def kind_of(one: Token) -> str | None:
    """Return the `kind` label of a token; None for brackets and for what has no text.

    Soft keywords count as names and docstrings as strings: only the syntax tree tells them apart.
    """
    if one.type == token.NAME:
        return "kind.keyword" if keyword.iskeyword(one.text) else "kind.name"
    if one.type == token.STRING:
        return "kind.fstring" if one.is_fstring else "kind.string"
    if one.type == token.OP and one.text in "()[]{}":
        return None
    return _KIND_OF_TYPE.get(one.type)


def paint_tokens(source: Source, canvas: Canvas) -> None:
    """Paint all labels that need no syntax tree."""
    for one in source.tokens:
        if one.stop > canvas.start and one.start < canvas.stop:
            kind = kind_of(one)
            if kind is not None:
                canvas.paint(kind, one.start, one.stop)
            if kind == "kind.fstring":
                for start, stop in fstring_expressions(one.text):
                    canvas.paint("inside.fstring_expression", one.start + start, one.start + stop)
    _paint_uses(source, canvas)
    _paint_brackets(source, canvas)
    _paint_blocks(source, canvas)
    _paint_lines(source, canvas)


def _paint_uses(source: Source, canvas: Canvas) -> None:
    seen: dict[str, int] = {}
    for one in source.tokens:
        if one.type != token.NAME or not one.is_name:
            continue
        before = seen.get(one.text)
        seen[one.text] = one.line
        if before is None:
            canvas.paint("role.first_use", one.start, one.stop)
            continue
        canvas.paint("role.reuse", one.start, one.stop)
        if one.line - before > FAR_LINES:
            canvas.paint("role.reuse_far", one.start, one.stop)


def _paint_brackets(source: Source, canvas: Canvas) -> None:
    # pairs come in order of their closing, so backwards an outer pair is painted before its inner ones
    for pair in reversed(source.brackets):
        if pair.stop < canvas.start or pair.start >= canvas.stop:
            continue
        canvas.paint("bracket.opening", pair.start, pair.start + 1)
        canvas.paint("bracket.closing", pair.stop, pair.stop + 1)
        if pair.n_tokens > FAR_TOKENS:
            canvas.paint("bracket.closes_far", pair.stop, pair.stop + 1)
        if pair.outer:
            canvas.paint(_IN[pair.outer], pair.start + 1, pair.stop, False)
            canvas.paint(_DEPTHS[min(pair.depth - 1, 3) - 1], pair.start + 1, pair.stop, False)
        canvas.paint(_IN[pair.kind], pair.start + 1, pair.stop)
        canvas.paint(_DEPTHS[min(pair.depth, 3) - 1], pair.start + 1, pair.stop)


def _paint_blocks(source: Source, canvas: Canvas) -> None:
    depth, since = 0, 0
    for one in source.tokens:
        if one.type in (token.INDENT, token.DEDENT):
            edge = source.line_starts[one.line - 1] if one.line <= len(source.line_starts) else None
            edge = len(source.text) if edge is None else min(edge, len(source.text))
            if depth:
                canvas.paint(_BLOCKS[min(depth, 3) - 1], since, edge)
            depth, since = depth + (1 if one.type == token.INDENT else -1), edge
    if depth:
        canvas.paint(_BLOCKS[min(depth, 3) - 1], since, len(source.text))
    _paint_colons(source, canvas)


def _paint_colons(source: Source, canvas: Canvas) -> None:
    depth = lambdas = 0
    header: bool | None = None
    for one in source.tokens:
        if one.type == token.NEWLINE:
            depth, lambdas, header = 0, 0, None
        if one.type in _NOT_CODE:
            continue
        if header is None:
            header = one.text in _HEADERS
        if one.text in ("(", "[", "{"):
            depth += 1
        elif one.text in (")", "]", "}"):
            depth -= 1
        elif not depth and one.text == "lambda":
            lambdas += 1
        elif not depth and one.text == ":" and lambdas:
            lambdas -= 1
        elif not depth and one.text == ":":
            if header:
                canvas.paint("block.colon", one.start, one.stop)
            header = False


def _paint_lines(source: Source, canvas: Canvas) -> None:
    text = source.text
    for start, stop in itertools.pairwise([*source.line_starts, len(text) + 1]):
        if stop <= canvas.start or start >= canvas.stop:
            continue
        line = text[start : stop - 1]
        bare = line.strip()
        if bare:
            first = start + len(line) - len(line.lstrip())
            canvas.paint("line.first", first, first + 1)
            last = start + len(line.rstrip())
            canvas.paint("line.last", last - 1, last)
    begun: Token | None = None
    for one in source.tokens:
        if one.type == token.NEWLINE:
            if begun is not None and one.line > begun.line:
                canvas.paint("line.continuation", source.line_starts[begun.line], one.stop)
            begun = None
        elif begun is None and one.type not in _NOT_CODE:
            begun = one
    for one in source.tokens:
        if one.type == token.STRING and "\n" in one.text:
            canvas.paint("line.continuation", one.start, one.stop, False)


def white(text: str) -> np.ndarray:
    """Return which characters of a text are white space: bool [char]."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return _WHITE[np.minimum(codes, len(_WHITE) - 1)]


# all white space of Unicode lies below U+3001
_WHITE = np.array([chr(code).isspace() for code in range(0x3002)])
