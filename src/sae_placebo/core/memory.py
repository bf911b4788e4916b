"""How much memory there is; freed memory goes back between pieces of work; a want of it is one sentence."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sae_placebo.core.errors import OutOfMemory, PlaceboError, in_one_line


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


def is_exhausted(error: BaseException) -> bool:
    """Return whether an error says that no memory was left, in Python, NumPy or torch."""
    said = str(error)
    of_torch = "can't allocate memory" in said or "out of memory" in said.lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and of_torch)


@contextmanager
def explained() -> Iterator[None]:
    """Say in one sentence, inside, that no memory was left.

    Raises:
        OutOfMemory: an allocation failed.
    """
    try:
        yield
    except PlaceboError:
        raise
    except Exception as error:
        if not is_exhausted(error):
            raise
        said = in_one_line(str(error))[:200]
        raise OutOfMemory(
            f"there is not enough memory{f' ({said})' if said else ''}; finished stages are kept: lower "
            "what is large (tokens, d_sae, masks, latents) or free memory, then run again"
        ) from error


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
