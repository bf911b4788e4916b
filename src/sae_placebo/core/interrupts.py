"""Stops that wait for the end of a step: Ctrl-C and SIGTERM during work that must not be cut in two.

While `listening`, as the command line is from its start, a stop that comes inside `held` is raised when
the block ends; elsewhere it is raised at once. So whoever catches it finds its state whole.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

EXIT_CODES = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a process that was stopped, as shells expect them."""


class _Stops:
    """What this process was asked while it could not listen; signals belong to the whole process."""

    def __init__(self) -> None:
        self.held = False
        self.waiting: int | None = None

    def heard(self, number: int, frame: FrameType | None) -> None:
        """Raise the stop now, or keep it until the block ends."""
        del frame
        if self.held:
            self.waiting = number
        else:
            self.stop(number)

    def stop(self, number: int) -> None:
        """Raise what a stop is in Python: an interrupt, or an exit with the code that shells expect."""
        self.waiting = None
        if number == signal.SIGTERM:
            raise SystemExit(128 + number)
        raise KeyboardInterrupt


_STOPS = _Stops()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Let stops wait for `held` blocks; SIGTERM becomes an exit that can be caught.

    Handlers of others are left alone, and so is everything where signals cannot be set: outside the
    main thread.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, _STOPS.heard)
    try:
        yield
    finally:
        for listened, handler in before.items():
            signal.signal(listened, handler)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Run the block to its end before a stop is raised; blocks are short, and not nested."""
    _STOPS.held = True
    try:
        yield
    finally:
        _STOPS.held = False
    if _STOPS.waiting is not None:
        _STOPS.stop(_STOPS.waiting)
