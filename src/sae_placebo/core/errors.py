"""Errors that a user can meet are of one class per kind of remedy.

A message says what was found, what is allowed and what to do, in one sentence or two. The command
line prints the message alone; `--debug` adds the traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlaceboError(Exception):
    """Every error that a user can meet and mend is one of these."""


class SpecError(PlaceboError, ValueError):
    """The trial file is wrong: mend it and run again."""


class ModelError(PlaceboError):
    """The model cannot be loaded, read or controlled as asked."""


class TextError(PlaceboError):
    """The text is missing, unreadable or too short."""


class StoreError(PlaceboError):
    """The store cannot be read or written."""


class OutOfMemory(PlaceboError):
    """The machine, or its accelerator, has less memory than a piece of work needs."""


class MissingExtra(PlaceboError):
    """An optional dependency is needed; the message holds the install command."""


class StageFault(PlaceboError):
    """A job failed in a way that nobody foresaw, while all the others are done; run again."""


class NotEstimable(PlaceboError):
    """A value cannot be estimated from what there is; the message is the reason shown beside it."""


def in_one_line(message: str) -> str:
    """Return `message` with line ends and other characters that no terminal should act on escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in message
    )


def unknown_name(kind: str, found: object, known: Iterable[str]) -> str:
    """Return the sentence for a name that is not registered, with the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(found, names, 1, 0.5) if isinstance(found, str) else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no {kind} is called {found!r:.80}.{hint} Known: {', '.join(names)}."
