"""How much memory there is; and what was freed goes back to the operating system between pieces of work."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """Return the C library's function that gives freed memory back; None where it has none."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return None
    return found


def give_back() -> None:
    """Give the memory that was freed back to the operating system, where the C library keeps it.

    glibc keeps freed blocks for later and leaves gaps between them. A trial frees a model per arm and the
    logits of many passes, and would come to hold several times what it uses.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def total_memory() -> int | None:
    """Return the bytes of memory that this machine has; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def shown_bytes(n_bytes: int) -> str:
    """Return a number of bytes in the unit in which it is short."""
    size, units = float(n_bytes), ["bytes", "kB", "MB", "GB", "TB", "PB", "EB"]
    while size >= 1000 and len(units) > 1:
        size, _ = size / 1000, units.pop(0)
    return f"{size:,.4g} {units[0]}"
