"""The rest of long work is foretold by its planned seconds, rescaled by what the work so far has taken.

A trial is such work; so is what a command of the laboratory does.

A plan is a list of pieces of work in the order in which they run, each with the label that progress shows
for it. A piece that begins ends those before it, so that what turned out not to be needed does not stay;
pieces of several lanes run side by side.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_TRUST = 0.3
"""How much of a stage's own work must be done until what it took counts as much as the rest of the trial."""


class WorkPiece(NamedTuple):
    """One piece of work of a trial.

    Attributes:
        stage: The stage that it belongs to.
        label: How the label begins under which progress shows it.
        seconds: What it is expected to add to the whole: how long it takes, or its part of that where
            pieces of other lanes run beside it.
        lane: Pieces of one lane run one after the other, those of several side by side; "" for all.
        lanes: How many run side by side.
    """

    stage: str
    label: str
    seconds: float
    lane: str = ""
    lanes: int = 1


@dataclass
class AtWork:
    """A piece of work in progress: which one, in what thread, since when, and what share of it is done."""

    place: int
    thread: int
    since: float
    share: float = 0.0


@dataclass
class Outlook:
    """The outlook of a trial: how much of it is done, and how long the rest will take.

    Args:
        pieces: What is left, in order.
        spent: Seconds that the finished steps took, in runs before this one.
        rough: Whether the plan is of counts alone, with no probe of this machine.
        clock: Tells the time in seconds.
        name: How the whole is called where it is shown.
    """

    pieces: Sequence[WorkPiece]
    spent: float = 0.0
    rough: bool = False
    clock: Callable[[], float] = time.perf_counter
    name: str = "whole trial"
    _over: set[int] = field(default_factory=set, init=False)
    _at_work: list[AtWork] = field(default_factory=list, init=False)
    _planned: dict[str, float] = field(default_factory=dict, init=False)
    _taken: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._begun = self.clock()
        self._lock = threading.RLock()

    def begin(self, label: str) -> AtWork | None:
        """Begin the next piece with this label, and return it.

        None is returned where there is no such piece, or where the work is a part of one in progress.

        The pieces before it are over, but for those of other lanes that run beside it.
        """
        thread = threading.get_ident()
        with self._lock:
            if any(self.pieces[w.place].lane == "" or w.thread == thread for w in self._at_work):
                return None
            busy = self._over | {w.place for w in self._at_work}
            for place, one in enumerate(self.pieces):
                if place not in busy and label.startswith(one.label):
                    break
            else:
                return None
            for before, other in enumerate(self.pieces[:place]):
                if not (other.lane and one.lane and other.lane != one.lane):
                    self._over.add(before)
            self._at_work.append(AtWork(place, thread, self.clock()))
            return self._at_work[-1]

    def advance(self, work: AtWork, share: float) -> None:
        """Tell what share of a piece at work is done."""
        with self._lock:
            work.share = min(1.0, max(work.share, share))

    def end(self, work: AtWork) -> None:
        """Count a piece in progress as done."""
        with self._lock:
            one = self.pieces[work.place]
            self._at_work.remove(work)
            self._over.add(work.place)
            self._add(self._planned, one, one.seconds)
            self._add(self._taken, one, (self.clock() - work.since) / one.lanes)

    @staticmethod
    def _add(sums: dict[str, float], one: WorkPiece, seconds: float) -> None:
        sums[one.stage] = sums.get(one.stage, 0.0) + seconds

    @property
    def seconds_left(self) -> float:
        """Return how long the rest will take in seconds, by the plan and by what the work so far took."""
        with self._lock:
            planned, taken = dict(self._planned), dict(self._taken)
            left = {i: one for i, one in enumerate(self.pieces) if i not in self._over}
            for work in self._at_work:
                one = left[work.place]
                passed = (self.clock() - work.since) / one.lanes
                # work that says nothing of itself is taken to keep to the plan, until it is late
                done = work.share * one.seconds if work.share else min(passed, 0.9 * one.seconds)
                self._add(planned, one, done)
                self._add(taken, one, passed)
                left[work.place] = one._replace(seconds=one.seconds - done)
        whole: dict[str, float] = dict(planned)
        for one in left.values():
            self._add(whole, one, one.seconds)
        prior = 0.1 * sum(whole.values()) + 1e-9
        pace = (sum(taken.values()) + prior) / (sum(planned.values()) + prior)
        total = 0.0
        for one in left.values():
            doubt = _TRUST * whole[one.stage] + 1e-9
            own = (taken.get(one.stage, 0.0) + doubt * pace) / (planned.get(one.stage, 0.0) + doubt)
            total += one.seconds * own
        return total

    @property
    def share(self) -> float:
        """Return the share of the whole trial's time that lies behind it, what earlier runs did included."""
        done = self.spent + self.clock() - self._begun
        return done / max(done + self.seconds_left, 1e-9)

    def __str__(self) -> str:
        about = "about " if self.rough and sum(self._planned.values()) == 0 else ""
        return f"{self.name} {self.share:.0%}, {about}{clock_text(self.seconds_left)} left"


def clock_text(seconds: float) -> str:
    """Return seconds as minutes and seconds, or hours, minutes and seconds."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
