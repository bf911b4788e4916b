"""Refusals of the operating system are said in one sentence each."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import StoreError

_IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOTEMPTY)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_REFUSALS = (*_IN_THE_WAY, *_FORBIDDEN, errno.EFBIG, errno.EIO, errno.ENOENT, errno.ENAMETOOLONG)


def _is_ours(root: Path, error: Exception) -> bool:
    """Whether the system refused a path of the store, its folder's or none: not a user's file elsewhere."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | os.PathLike):
        return not isinstance(error, FileNotFoundError)
    path, root = Path(name).absolute(), root.absolute()
    return path.is_relative_to(root) or root.is_relative_to(path)


@contextlib.contextmanager
def explained(root: Path, verb: str = "written") -> Iterator[None]:
    """Turn the operating system's refusals into one sentence each.

    Args:
        root: The store; refusals of paths elsewhere are left as they are.
        verb: What is done to it: `written` or `read`.

    Raises:
        StoreError: the store under `root` is full or cannot be written or read.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        # safetensors and pyarrow wrap the system's error in their own and keep only its text
        number = error.errno if isinstance(error, OSError) else None
        full = number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
        if full:
            message = (
                f"the disk that holds the store {str(root)!r} is full; finished stages are kept: free "
                "some space or move the store, then run again"
            )
        elif number not in _REFUSALS or not _is_ours(root, error):
            raise
        else:
            message = _refusal(root, verb, number, getattr(error, "filename", None))
        raise StoreError(message) from error


def check_writable(root: Path) -> None:
    """Refuse a store that no run could write; nothing is made or written.

    Raises:
        StoreError: something in its path is no folder; or its folder, or the one that it would be made in,
            may not be written.
    """
    there = root
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    with explained(root):
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(root))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(root))


def _refusal(root: Path, verb: str, number: int, name: Any) -> str:
    """Return why the system would not have a path of the store written or read."""
    inside = isinstance(name, str | os.PathLike) and Path(name).absolute() != root.absolute()
    why = os.strerror(number)
    if number in _IN_THE_WAY:
        if not inside:
            return f"the store {str(root)!r} is not a folder; choose another --store"
        return (
            f"the store {str(root)!r} cannot be {verb}: {os.fspath(name)!r} is in the way ({why}); move it "
            "away, then run again"
        )
    if number in _FORBIDDEN:
        at = f", {os.fspath(name)!r}" if inside and verb == "read" else ""
        return (
            f"the store {str(root)!r} cannot be {verb} ({why}{at}); choose another --store or change its "
            "permissions"
        )
    return f"the store {str(root)!r} cannot be {verb} here ({why}); choose another --store"
