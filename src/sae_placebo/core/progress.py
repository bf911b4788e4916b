"""Progress of long work: what runs, how far it is, how fast, how long it and the whole trial will take.

Stages call `track` and advance a counter; what is shown is decided once, by the command line or by
nobody. Work that says nothing of itself for long is named all the same, with how long that has been.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sae_placebo.core.time_left import Outlook, clock_text

Advance = Callable[[int], None]


def unheard(n: int) -> None:
    """Advance nothing; work calls this when nobody watches."""


Track = Callable[[str, int, str], contextlib.AbstractContextManager[Advance]]
"""A function of this type shows a piece of work, given what it is, how many units it has and what these
are."""


def untracked(label: str, total: int, unit: str) -> contextlib.AbstractContextManager[Advance]:
    """Show nothing."""
    return contextlib.nullcontext(unheard)


class Progress:
    """Progress that shows nothing: the base of the others, and what calls of the library use by default."""

    outlook: Outlook | None = None
    """The outlook of the trial in progress; None outside a trial."""

    def note(self, message: str) -> None:
        """Show one line."""

    @contextlib.contextmanager
    def whole(self, outlook: Outlook) -> Iterator[None]:
        """Show, inside, what is left of a whole trial beside each piece of work."""
        self.outlook = outlook
        try:
            yield
        finally:
            self.outlook = None

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

    @contextlib.contextmanager
    def _within(self, label: str, total: int, before: int) -> Iterator[Advance]:
        """Yield the counter by which the outlook of the trial learns of a piece of work."""
        outlook, done, lock = self.outlook, before, threading.Lock()
        work = None if outlook is None else outlook.begin(label)
        if outlook is None or work is None:
            yield lambda n: None
            return

        def advance(n: int) -> None:
            nonlocal done
            with lock:
                done += n
                # what was done before a stop is not in the plan any more
                outlook.advance(work, (done - before) / max(total - before, 1))

        try:
            yield advance
        finally:
            outlook.end(work)


@dataclass
class _Work:
    """A piece of work that is being shown."""

    label: str
    total: int
    unit: str
    before: int
    begun: float
    done: int = 0
    moved: float = 0.0

    def state(self, now: float) -> str:
        """Return how far it is; how fast and how long it will take, where that can be told."""
        far = f"{self.before + self.done:,} of {self.total:,} {self.unit}"
        rate = self.done / max(now - self.begun, 1e-9)
        if not rate:
            return f"{self.label}: {far}"
        left = (self.total - self.before - self.done) / rate
        return f"{self.label}: {far}, {_rate(rate)} {self.unit}/s, {_clock(left)} left"


class LineProgress(Progress):
    """Progress as plain lines, for logs and pipes: one every half minute, and one when a piece of work ends.

    Args:
        every: Seconds from line to line. Where a piece of work does not advance, a line says so.
        clock: Tells the time in seconds.
        watched: Whether a thread looks every second for work that has not advanced.
    """

    def __init__(
        self,
        every: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
        watched: bool = True,
    ) -> None:
        self.every, self.clock, self.watched = every, clock, watched
        self._at_work: list[_Work] = []
        self._said = clock()
        self._before = ""  # what ended last
        self._lock = threading.RLock()
        self._stop: threading.Event | None = None

    def note(self, message: str) -> None:
        """Write one line to standard error."""
        with self._lock:
            sys.stderr.write(message + "\n")
            sys.stderr.flush()
            self._said = self.clock()

    @contextlib.contextmanager
    def whole(self, outlook: Outlook) -> Iterator[None]:
        """Show, inside, what is left of a whole trial; where nothing is at work, that too is said."""
        with super().whole(outlook), self._watching():
            yield

    @contextlib.contextmanager
    def track(
        self, label: str, total: int, unit: str = "tokens", before: int = 0
    ) -> Iterator[Advance]:
        """Yield the counter; write how far it is, how fast and how long it will take."""
        work = _Work(label, total, unit, before, self.clock(), moved=self.clock())
        with self._watching(), self._within(label, total, before) as told:
            self._at_work.append(work)

            def advance(n: int) -> None:
                with self._lock:
                    work.done += n
                    work.moved = self.clock()
                    told(n)
                    # its end has a line of its own
                    if before + work.done < total:
                        self._say_if_due(work)

            try:
                yield advance
            finally:
                self._at_work.remove(work)
        self._before = label
        seconds = self.clock() - work.begun
        rate = f", {_rate(work.done / seconds)} {unit}/s" if work.done and seconds > 0.05 else ""
        resumed = f" after {before:,} before a stop" if before else ""
        self.note(f"{label}: {work.done:,} {unit}{resumed} in {seconds:.1f} s{rate}{self._rest()}")

    def beat(self) -> None:
        """Write a line if none was written for long: what is at work, and since when it has not moved."""
        with self._lock:
            now = self.clock()
            if now - self._said < self.every:
                return
            work = self._at_work[-1] if self._at_work else None
            if work is None:
                after = f" after {self._before}" if self._before else ""
                self.note(
                    f"still at what comes{after}, for {_clock(now - self._said)}{self._rest()}"
                )
            elif now - work.moved < self.every:
                self.note(work.state(now) + self._rest())
            else:
                since = "since the last" if work.done else "since it began"
                far = f"{work.before + work.done:,} of {work.total:,} {work.unit}"
                self.note(
                    f"{work.label}: still at {far}, {_clock(now - work.moved)} {since}{self._rest()}"
                )

    def _say_if_due(self, work: _Work) -> None:
        now = self.clock()
        if now - max(self._said, work.begun) >= self.every:
            self.note(work.state(now) + self._rest())

    def _rest(self) -> str:
        return "" if self.outlook is None else f"; {self.outlook}"

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Have a thread call `beat` inside; within another such block, it is that one's."""
        if self._stop is not None or not self.watched:
            yield
            return
        stop = self._stop = threading.Event()
        self._said = self.clock()

        def watch() -> None:
            while not stop.wait(min(1.0, self.every)):
                self.beat()

        thread = threading.Thread(target=watch, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop = None
            stop.set()
            thread.join()


def _rate(rate: float) -> str:
    return f"{rate:,.{0 if rate >= 10 else 2}f}"


def _clock(seconds: float) -> str:
    return "?" if math.isinf(seconds) else clock_text(seconds)


class RichProgress(Progress):
    """Progress as bars with rate and time left, for a terminal; the last is about the whole trial."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console: Any = Console(stderr=True)
        self._bars: Any = None

    def note(self, message: str) -> None:
        """Print one line above the bars."""
        self._console.print(message, highlight=False, markup=False)

    @contextlib.contextmanager
    def whole(self, outlook: Outlook) -> Iterator[None]:
        """Show, inside, what is left of a whole trial, between pieces of work too."""
        with super().whole(outlook), self._shown():
            yield

    @contextlib.contextmanager
    def track(
        self, label: str, total: int, unit: str = "tokens", before: int = 0
    ) -> Iterator[Advance]:
        """Yield the counter behind a bar with units per second and time left."""
        from rich.markup import escape

        start, done = time.perf_counter(), 0
        with self._shown() as bars, self._within(label, total, before) as told:
            task = bars.add_task(escape(label), total=total, completed=before, rate="", moved=start)

            def advance(n: int) -> None:
                nonlocal done
                done += n
                now = time.perf_counter()
                rate = _rate(done / max(now - start, 1e-9))
                bars.update(task, advance=n, rate=f"{rate} {unit}/s", moved=now)
                told(n)

            try:
                yield advance
            finally:
                bars.remove_task(task)
        seconds = time.perf_counter() - start
        self.note(f"{label}: {done:,} {unit} in {seconds:.1f} s")

    @contextlib.contextmanager
    def _shown(self) -> Iterator[Any]:
        """Yield the one set of bars on the terminal; inside another such block, it is that one's."""
        if self._bars is not None:
            yield self._bars
            return
        self._bars = _bars(self._console, self)
        try:
            with self._bars:
                yield self._bars
        finally:
            self._bars = None


def _bars(console: Any, progress: Progress) -> Any:
    """Return bars: each piece of work, and last a line about the whole trial."""
    from rich.console import Group
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Still(ProgressColumn):
        """How long a piece of work has not moved, once that is long."""

        def render(self, task: Any) -> Text:
            passed = time.perf_counter() - task.fields["moved"]
            return Text(f"still, for {_clock(passed)}" if passed >= 30 else "")

    class WithTrial(Bars):
        """Bars with the whole trial below them."""

        def get_renderable(self) -> Any:
            bars = super().get_renderable()
            return bars if progress.outlook is None else Group(bars, Text(str(progress.outlook)))

    return WithTrial(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        Still(),
        console=console,
    )


def for_terminal() -> Progress:
    """Return bars on a terminal and plain lines elsewhere."""
    return RichProgress() if sys.stderr.isatty() else LineProgress()
