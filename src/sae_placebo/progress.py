"""Progress of long work: what runs, how far it is, how fast, how long it will take.

Stages call `track` and advance a counter; what is shown is decided once, by the command line or by
nobody.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Advance = Callable[[int], None]


class Progress:
    """Shows nothing: the base, and what a library call gets."""

    def note(self, message: str) -> None:
        """Show one line."""

    @contextlib.contextmanager
    def track(
        self, label: str, total: int, unit: str = "tokens", before: int = 0
    ) -> Iterator[Advance]:
        """Yield a function that advances this piece of work by a number of units.

        Args:
            label: What is worked on.
            total: How many units there are.
            unit: What is counted.
            before: How many of them were done before a stop; rates and times are of the others.
        """
        yield lambda n: None


class LineProgress(Progress):
    """Plain lines, for logs and pipes: one when a piece starts, one when it ends."""

    def note(self, message: str) -> None:
        """Write one line to standard error."""
        sys.stderr.write(message + "\n")
        sys.stderr.flush()

    @contextlib.contextmanager
    def track(
        self, label: str, total: int, unit: str = "tokens", before: int = 0
    ) -> Iterator[Advance]:
        """Yield the counter; write what was done and how fast when it ends."""
        start, done = time.perf_counter(), 0

        def advance(n: int) -> None:
            nonlocal done
            done += n

        yield advance
        seconds = time.perf_counter() - start
        rate = f", {done / seconds:,.0f} {unit}/s" if done and seconds > 0.05 else ""
        resumed = f" after {before:,} before a stop" if before else ""
        self.note(f"{label}: {done:,} {unit}{resumed} in {seconds:.1f} s{rate}")


class RichProgress(Progress):
    """Bars with rate and time left, for a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console: Any = Console(stderr=True)

    def note(self, message: str) -> None:
        """Print one line above the bars."""
        self._console.print(message, highlight=False, markup=False)

    @contextlib.contextmanager
    def track(
        self, label: str, total: int, unit: str = "tokens", before: int = 0
    ) -> Iterator[Advance]:
        """Yield the counter behind a bar with units per second and time left."""
        from rich.markup import escape
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        start, done = time.perf_counter(), 0
        with Progress(*columns, console=self._console) as bars:
            task = bars.add_task(escape(label), total=total, completed=before, rate="")

            def advance(n: int) -> None:
                nonlocal done
                done += n
                rate = done / max(time.perf_counter() - start, 1e-9)
                bars.update(task, advance=n, rate=f"{rate:,.0f} {unit}/s")

            yield advance


def for_terminal() -> Progress:
    """Return bars on a terminal and plain lines elsewhere."""
    return RichProgress() if sys.stderr.isatty() else LineProgress()
