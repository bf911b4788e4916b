from __future__ import annotations

from types import SimpleNamespace

import pytest

from sae_placebo import progress
from sae_placebo.progress import LineProgress


class Clock:
    """Stands still but where a test moves it: what is said of time does not depend on the machine."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=found.perf_counter))
    return found


def test_the_rate_is_of_what_was_done_after_a_stop(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with LineProgress().track("train", 1_000, before=900) as advance:
        clock.now += 0.125
        advance(100)
    said = capsys.readouterr().err
    assert said == "train: 100 tokens after 900 before a stop in 0.1 s, 800 tokens/s\n"


def test_long_work_says_how_far_it_is(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with LineProgress(every=30.0).track("use", 1_000, "firings", before=400) as advance:
        clock.now += 40
        advance(200)
        clock.now += 10
        advance(1)  # too soon for another line
        clock.now += 40
        advance(399)  # the end has a line of its own
    first, last = capsys.readouterr().err.splitlines()
    assert first == "use: 600 of 1,000 firings, 5.00 firings/s, 1:20 left"
    assert last == "use: 600 firings after 400 before a stop in 90.0 s, 6.67 firings/s"
