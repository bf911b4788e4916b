"""What is left of a whole trial: planned seconds, rescaled by what the work so far has taken.

A plan is a list of pieces of work in the order in which they run, each with the label that progress shows
for it. A piece that begins ends those before it, so that what turned out not to be needed does not stay.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_TRUST = 0.3
"""How much of a stage's own work must be done until what it took counts as much as the rest of the trial."""


class Piece(NamedTuple):
    """One piece of work of a trial.

    Attributes:
        stage: The stage that it belongs to.
        label: How the label begins under which progress shows it.
        seconds: How long it is expected to take.
    """

    stage: str
    label: str
    seconds: float


@dataclass
class Outlook:
    """How much of a trial is done, and how long the rest will take.

    Args:
        pieces: What is left, in order.
        spent: Seconds that the finished steps took, in runs before this one.
        rough: Whether the plan is of counts alone, with no probe of this machine.
        clock: Tells the time in seconds.
    """

    pieces: Sequence[Piece]
    spent: float = 0.0
    rough: bool = False
    clock: Callable[[], float] = time.perf_counter
    _at: int = field(default=0, init=False)
    _since: float | None = field(default=None, init=False)
    _share: float = field(default=0.0, init=False)
    _planned: dict[str, float] = field(default_factory=dict, init=False)
    _taken: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._begun = self.clock()
        self._lock = threading.RLock()

    def begin(self, label: str) -> bool:
        """Go on to the next piece with this label; returns whether there is one."""
        with self._lock:
            if self._since is not None:
                return False  # a part of the piece at work
            for i in range(self._at, len(self.pieces)):
                if label.startswith(self.pieces[i].label):
                    self._at, self._since, self._share = i, self.clock(), 0.0
                    return True
            return False

    def advance(self, share: float) -> None:
        """Tell what share of the piece at work is done."""
        with self._lock:
            self._share = min(1.0, max(self._share, share))

    def end(self) -> None:
        """Put the piece at work among what is done."""
        with self._lock:
            if self._since is None:
                return
            one = self.pieces[self._at]
            self._add(self._planned, one, one.seconds)
            self._add(self._taken, one, self.clock() - self._since)
            self._at, self._since = self._at + 1, None

    @staticmethod
    def _add(sums: dict[str, float], one: Piece, seconds: float) -> None:
        sums[one.stage] = sums.get(one.stage, 0.0) + seconds

    @property
    def seconds_left(self) -> float:
        """How long the rest will take, by the plan and by what the work so far took."""
        with self._lock:
            planned, taken = dict(self._planned), dict(self._taken)
            left = list(self.pieces[self._at :])
            if self._since is not None:
                one, passed = left.pop(0), self.clock() - self._since
                # work that says nothing of itself is taken to keep to the plan, until it is late
                done = max(self._share * one.seconds, min(passed, 0.9 * one.seconds))
                if self._share:
                    done = self._share * one.seconds
                self._add(planned, one, done)
                self._add(taken, one, passed)
                left.insert(0, one._replace(seconds=one.seconds - done))
        whole: dict[str, float] = dict(planned)
        for one in left:
            self._add(whole, one, one.seconds)
        prior = 0.1 * sum(whole.values()) + 1e-9
        pace = (sum(taken.values()) + prior) / (sum(planned.values()) + prior)
        total = 0.0
        for one in left:
            doubt = _TRUST * whole[one.stage] + 1e-9
            own = (taken.get(one.stage, 0.0) + doubt * pace) / (planned.get(one.stage, 0.0) + doubt)
            total += one.seconds * own
        return total

    @property
    def share(self) -> float:
        """Share of the whole trial that is done, what earlier runs did included; of time."""
        done = self.spent + self.clock() - self._begun
        return done / max(done + self.seconds_left, 1e-9)

    def __str__(self) -> str:
        about = "about " if self.rough and sum(self._planned.values()) == 0 else ""
        return f"whole trial {self.share:.0%}, {about}{clock_text(self.seconds_left)} left"


def clock_text(seconds: float) -> str:
    """Return seconds as minutes and seconds, or hours, minutes and seconds."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
