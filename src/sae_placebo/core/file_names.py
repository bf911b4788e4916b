"""Names of files and folders that no file system takes, or no library, are refused before any work."""

from __future__ import annotations

import os
from pathlib import Path

ROOM = 500
"""Bytes that the longest path below a folder of results may take: stage, artefact and its draft, file."""


def name_fault(name: object, room: int = 0) -> str | None:
    """Return what is wrong with the name of a file or folder; None where nothing is.

    The answer goes on from the name: "is too long ...". An empty name is left to the caller.

    Args:
        name: What a user gave.
        room: Bytes that paths below it will take; `ROOM` for a folder that is written to.
    """
    text = os.fspath(name) if isinstance(name, str | os.PathLike) else None
    if not isinstance(text, str):
        return f"is of type {type(name).__name__}, and a path is a str or a pathlib.Path: give one"
    if "\0" in text:
        return "holds a NUL character, which no file's name can hold: leave it out"
    try:
        text.encode()
    except UnicodeEncodeError:
        return (
            "is not UTF-8, and the libraries that read and write tensors and tables take no other name: "
            "rename it"
        )
    path = os.path.abspath(text)  # noqa: PTH100 - links stay as they are
    most, longest = _limit(path, "PC_NAME_MAX"), max(map(_n_bytes, Path(path).parts))
    if most is not None and longest > most:
        return f"is too long: a name in it has {longest:,} bytes, and here {most:,} are allowed: shorten it"
    most = _limit(path, "PC_PATH_MAX")
    if most is not None and _n_bytes(path) + room >= most:
        below = f" with {room:,} for what lies below it" if room else ""
        return (
            f"is too long: the whole path has {_n_bytes(path):,} bytes, and here fewer than {most:,} are "
            f"allowed{below}: shorten it"
        )
    return None


def shown_name(name: object) -> str:
    """Return a name as it is shown in an error: quoted, on one line, cut where it is long beyond use."""
    text = repr(os.fspath(name) if isinstance(name, os.PathLike) else name)
    return text if len(text) <= 300 else f"{text[:80]}..."


def _n_bytes(text: str) -> int:
    return len(os.fsencode(text))


def _limit(path: str, name: str) -> int | None:
    """Return a limit of the file system on which a path lies or would lie; None where it has none."""
    there = path
    while not os.path.isdir(there) and os.path.dirname(there) != there:  # noqa: PTH112, PTH120
        there = os.path.dirname(there)  # noqa: PTH120 - a Path would be checked on every step
    try:
        found = os.pathconf(there, name)
    except (AttributeError, OSError, ValueError):  # Windows; a system that does not say
        return None
    return found if found > 0 else None
