"""Progress of long work: what runs, how far it is, how fast, how long it will take.

Stages call `track` and advance a counter; what is shown is decided once, by the command line or by
nobody.
"""

from __future__ import annotations

import contextlib
import math
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
    """Plain lines, for logs and pipes: one every half minute of a piece of work, and one when it ends.

    Args:
        every: Seconds from line to line.
    """

    def __init__(self, every: float = 30.0) -> None:
        self.every = every

    def note(self, message: str) -> None:
        """Write one line to standard error."""
        sys.stderr.write(message + "\n")
        sys.stderr.flush()

    @contextlib.contextmanager
    def track(
        self, label: str, total: int, unit: str = "tokens", before: int = 0
    ) -> Iterator[Advance]:
        """Yield the counter; write how far it is, how fast and how long it will take."""
        start, done = time.perf_counter(), 0
        due = start + self.every

        def advance(n: int) -> None:
            nonlocal done, due
            done += n
            now = time.perf_counter()
            if now < due or before + done >= total:
                return
            due = now + self.every
            rate = done / (now - start)
            left = (total - before - done) / rate if rate else math.inf
            self.note(
                f"{label}: {before + done:,} of {total:,} {unit}, "
                f"{_rate(rate)} {unit}/s, {_clock(left)} left"
            )

        yield advance
        seconds = time.perf_counter() - start
        rate = f", {_rate(done / seconds)} {unit}/s" if done and seconds > 0.05 else ""
        resumed = f" after {before:,} before a stop" if before else ""
        self.note(f"{label}: {done:,} {unit}{resumed} in {seconds:.1f} s{rate}")


def _rate(rate: float) -> str:
    return f"{rate:,.{0 if rate >= 10 else 2}f}"


def _clock(seconds: float) -> str:
    if math.isinf(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
