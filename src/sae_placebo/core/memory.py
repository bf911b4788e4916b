"""Freed memory is handed back to the operating system between pieces of work."""

from __future__ import annotations

import ctypes
import functools
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
