"""What is shown of long work, with a clock that only tests move."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from sae_placebo.core.progress import LineProgress, Progress, RichProgress
from sae_placebo.core.time_left import AtWork, Outlook, WorkPiece


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lines(clock: Clock, every: float = 30.0) -> LineProgress:
    return LineProgress(every, clock, watched=False)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_the_rate_is_of_what_was_done_after_a_stop(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with lines(clock).track("train", 1_000, before=900) as advance:
        clock.now += 4
        advance(100)
    assert said(capsys) == ["train: 100 tokens after 900 before a stop in 4.0 s, 25 tokens/s"]


def test_long_work_says_how_far_it_is(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with lines(clock).track("use", 1_000, "firings", before=400) as advance:
        clock.now += 40
        advance(200)
        clock.now += 10
        advance(1)  # too soon for another line
        clock.now += 40
        advance(399)  # the end has a line of its own
    assert said(capsys) == [
        "use: 600 of 1,000 firings, 5.00 firings/s, 1:20 left",
        "use: 600 firings after 400 before a stop in 90.0 s, 6.67 firings/s",
    ]


def test_work_that_does_not_advance_is_named_all_the_same(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = lines(clock)
    with progress.track("profile", 40, "parts") as advance:
        clock.now += 29
        progress.beat()
        assert not said(capsys)
        clock.now += 1
        progress.beat()
        assert said(capsys) == ["profile: still at 0 of 40 parts, 0:30 since it began"]
        advance(12)
        clock.now += 5
        progress.beat()  # a line was written 5 seconds ago
        assert not said(capsys)
        for _ in range(3):
            clock.now += 60
            progress.beat()
    assert said(capsys)[:3] == [
        f"profile: still at 12 of 40 parts, {time} since the last"
        for time in ("1:05", "2:05", "3:05")
    ]


def test_the_innermost_of_nested_work_is_named(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = lines(clock)
    with progress.track("audit", 10, "audits"):
        with progress.track("meta", 90, "steps"):
            clock.now += 31
            progress.beat()
        clock.now += 31
        progress.beat()
    inner, end, outer, _ = said(capsys)
    assert inner.startswith("meta: still at 0 of 90")
    assert end.startswith("meta: 0 steps in 31.0 s")
    assert outer.startswith("audit: still at 0 of 10 audits, 1:02")


def test_what_comes_between_pieces_of_work_is_named_too(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = lines(clock)
    with progress.whole(Outlook([WorkPiece("train", "train", 60.0)], clock=clock)):
        with progress.track("train", 10) as advance:
            advance(10)
        clock.now += 45
        progress.beat()
    last = said(capsys)[-1]
    assert last.startswith("still at what comes after train, for 0:45; whole trial")


def test_a_thread_watches_while_there_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    beaten = threading.Event()
    monkeypatch.setattr(LineProgress, "beat", lambda self: beaten.set())
    progress = LineProgress(every=0.01)
    with progress.track("slow", 10), progress.track("slower", 10):
        assert beaten.wait(60)
        watching = [t for t in threading.enumerate() if t.name == "progress"]
        assert len(watching) == 1
    assert not watching[0].is_alive()


def test_counts_from_many_threads_add_up(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    outlook = Outlook([WorkPiece("profile", "profile", 10.0)], clock=clock)
    progress = lines(clock)
    with progress.whole(outlook), progress.track("profile", 40_000, "parts") as advance:
        workers = [
            threading.Thread(target=lambda: [advance(1) for _ in range(10_000)]) for _ in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert said(capsys)[-1].startswith("profile: 40,000 parts in")


PIECES = [
    WorkPiece("train", "train trained", 60.0),
    WorkPiece("train", "train redraw", 60.0),
    WorkPiece("use", "ablate: trained", 20.0),
    WorkPiece("use", "remove together: trained", 60.0),
]


def test_the_rest_of_the_trial_is_that_of_the_plan_at_first(clock: Clock) -> None:
    outlook = Outlook(PIECES, spent=50.0, clock=clock)
    assert outlook.seconds_left == pytest.approx(200)
    assert outlook.share == pytest.approx(50 / 250)
    assert str(outlook) == "whole trial 20%, 3:20 left"


def test_a_plan_from_counts_alone_says_about(clock: Clock) -> None:
    outlook = Outlook(PIECES, rough=True, clock=clock)
    assert str(outlook) == "whole trial 0%, about 3:20 left"


def test_what_the_work_took_corrects_the_plan(clock: Clock) -> None:
    outlook = Outlook(PIECES, clock=clock)
    work = outlook.begin("train trained")
    assert work is not None
    clock.now += 120  # twice as long as planned
    outlook.end(work)
    left = outlook.seconds_left
    # the stage's own pace counts for more than the whole trial's
    assert 60 * 1.5 + 80 * 1.3 < left < 140 * 2
    assert outlook.share == pytest.approx(120 / (120 + left))


def test_half_of_a_piece_is_half_of_its_plan(clock: Clock) -> None:
    outlook = Outlook(PIECES, clock=clock)
    work = outlook.begin("train trained and 2 more")
    assert work is not None
    outlook.advance(work, 0.5)
    clock.now += 30
    assert outlook.seconds_left == pytest.approx(170)


def test_work_that_says_nothing_keeps_to_the_plan_until_it_is_late(clock: Clock) -> None:
    outlook = Outlook(PIECES, clock=clock)
    outlook.begin("train trained")
    clock.now += 30
    assert outlook.seconds_left == pytest.approx(170)
    clock.now += 70
    assert outlook.seconds_left > 150


def test_what_turned_out_not_to_be_needed_does_not_stay(clock: Clock) -> None:
    outlook = Outlook(PIECES, clock=clock)
    work = outlook.begin("remove together: trained, resid_post.2")
    assert work is not None
    assert outlook.seconds_left == pytest.approx(60)
    clock.now += 60
    outlook.end(work)
    assert outlook.seconds_left == 0
    assert outlook.share == pytest.approx(1)


def test_work_within_a_piece_ends_no_piece(clock: Clock) -> None:
    outlook = Outlook(PIECES, clock=clock)
    assert outlook.begin("train trained")
    assert not outlook.begin("remove together: trained")
    assert outlook.seconds_left == pytest.approx(200)


def test_pieces_of_several_lanes_run_side_by_side(clock: Clock) -> None:
    pieces = [
        WorkPiece("train", "train", 50.0),
        *(WorkPiece("use", f"{what}: {arm}", 10.0, arm, 2) for arm in "ab" for what in ("x", "y")),
        WorkPiece("report", "report", 5.0),
    ]
    outlook = Outlook(pieces, clock=clock)
    first = outlook.begin("x: a")
    met: list[AtWork | None] = []
    other = threading.Thread(target=lambda: met.append(outlook.begin("x: b")))
    other.start()
    other.join()
    assert first is not None
    assert met[0] is not None
    # neither ends the other's pieces; the training was not needed
    assert outlook.seconds_left == pytest.approx(45)
    clock.now += 20  # each was planned to add 10 to the whole, in two lanes
    assert outlook.begin("y: a") is None
    outlook.end(first)
    outlook.end(met[0])
    assert outlook.seconds_left == pytest.approx(25)
    last = outlook.begin("report")
    assert last is not None
    assert outlook.seconds_left == pytest.approx(5)


@pytest.mark.parametrize("progress", [LineProgress(watched=False), RichProgress(), Progress()])
def test_progress_tells_the_outlook(progress: Progress, clock: Clock) -> None:
    outlook = Outlook(PIECES, clock=clock)
    with progress.whole(outlook):
        with progress.track("train trained", 100, before=50) as advance:
            advance(25)
            clock.now += 30
            if not isinstance(progress, LineProgress | RichProgress):
                return  # nobody watches, so nothing is told
            assert outlook.seconds_left == pytest.approx(170)
            with progress.track("within it", 4, "parts") as inner:
                inner(2)
            clock.now += 30
            advance(25)
        assert outlook.seconds_left == pytest.approx(140)
    assert progress.outlook is None


def test_bars_show_the_whole_trial_and_what_stands_still(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    progress = RichProgress()
    with (
        progress.whole(Outlook(PIECES, clock=clock)),
        progress.track("train trained", 10) as advance,
    ):
        clock.now += 30
        advance(5)
        with progress.track("[red]within", 4, "parts"):
            progress._bars.refresh()
    shown = capsys.readouterr().err
    assert "whole trial" in shown
    assert "2:50 left" in shown
    assert "[red]within" in shown
