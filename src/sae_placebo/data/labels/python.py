"""Labels of the characters of a Python file."""

from __future__ import annotations

import ast
import contextlib
import gc
import itertools
import tokenize
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool

from sae_placebo.data.labels.canvas import Canvas
from sae_placebo.data.labels.catalogue import NAMES
from sae_placebo.data.labels.kinds import paint_tokens
from sae_placebo.data.labels.source import Source
from sae_placebo.data.labels.tree import paint_tree

# of `ast.parse` and `tokenize` on text that is no Python of this interpreter's version: null bytes
# and lone surrogates give ValueError, too deep nesting one of the last two
_REFUSED = (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError)
_BOM = "\ufeff"


def mark(text: str, start: int, stop: int) -> Bool[np.ndarray, "label char"] | None:
    r"""Return which labels hold for the characters [start, stop) of a text; None if it is no Python.

    The whole text is read, whatever is asked for. Line ends may be mixed: a `\r\n` or `\r` is a
    line end like `\n`. A byte order mark has no label.
    """
    plain = text.removeprefix(_BOM)
    if "\r" not in plain:
        shift = len(text) - len(plain)
        rows = _mark_plain(plain, max(start - shift, 0), max(stop - shift, 0))
        if rows is None or start >= shift:
            return rows
        return np.pad(rows, ((0, 0), (shift - start, 0)))
    places = _places(text)
    first, last = int(places[start]), int(places[stop])
    plain = plain.replace("\r\n", "\n").replace("\r", "\n")
    rows = _mark_plain(plain, first, min(last + 1, len(plain)))
    if rows is None:
        return None
    found = rows[:, places[start:stop] - first]
    if text.startswith(_BOM) and start == 0:
        found[:, :1] = False
    return found


def _places(text: str) -> np.ndarray:
    """Return where each character, and the end, is once every line end is a line feed and no BOM is."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    stays = np.ones(len(codes), dtype=bool)
    # of `\r\n` the second character is dropped, and both are where the first is
    stays[1:][(codes[:-1] == ord("\r")) & (codes[1:] == ord("\n"))] = False
    if text.startswith(_BOM):
        stays[0] = False
    return np.append(np.maximum(np.cumsum(stays) - 1, 0), stays.sum())


def _mark_plain(text: str, start: int, stop: int) -> Bool[np.ndarray, "label char"] | None:
    canvas = Canvas(start, stop)
    try:
        with _no_collection(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes and comparisons in other people's code
            tree = ast.parse(text)
            source = Source(text, _lines_needed(tree, text, stop))
            paint_tokens(source, canvas)
            paint_tree(tree, source, canvas)
    except _REFUSED:
        return None
    names = canvas.row("kind.name")
    for i, name in enumerate(NAMES):
        if name.startswith("role."):  # painted on whole expressions and statements in part
            canvas.rows[i] &= names
    return canvas.rows


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Hold back the garbage collector.

    A syntax tree holds no cycles, and its hundreds of thousands of new objects make the collector look
    through everything that is loaded, again and again: two fifths of the time, once torch is loaded.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _lines_needed(tree: ast.Module, text: str, stop: int) -> int | None:
    """Return how many lines hold all statements that begin before `stop`; None for all lines.

    No label of a character depends on the tokens behind the outermost statement that it is in, and
    making tokens takes as long as everything else together.
    """
    last = text.count("\n", 0, stop) + 1
    for one, following in itertools.pairwise(tree.body):
        end = one.end_lineno or 0
        begins = min(
            [following.lineno, *(d.lineno for d in getattr(following, "decorator_list", ()))]
        )
        # neither may the next statement share the line, nor may a backslash join it to the next
        if last <= end < begins and not text.split("\n", end)[end - 1].endswith("\\"):
            return end
    return None
