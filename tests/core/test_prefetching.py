"""The thread that makes the next item: same items, errors passed on, and it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from sae_placebo.core import prefetching
from sae_placebo.core.prefetching import ahead, cores_are_free


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "sae-placebo-prefetch"]


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    yield
    assert not threads()


def test_items_come_in_order_and_each_outlives_the_making_of_the_next() -> None:
    buffers = [torch.zeros(1), torch.zeros(1)]

    def make(go_on: Callable[[], None]) -> Iterator[torch.Tensor]:
        for i in range(20):
            go_on()
            yield buffers[i % 2].fill_(i)

    for i, item in enumerate(ahead(make)):
        time.sleep(0.002)  # the thread has time to go too far
        assert float(item) == i


def test_the_next_item_is_made_while_one_is_used() -> None:
    second = threading.Event()

    def make(_: Callable[[], None]) -> Iterator[int]:
        yield 0
        second.set()
        yield 1

    items = ahead(make)
    assert next(items) == 0
    assert second.wait(60)
    assert list(items) == [1]


def test_errors_are_raised_here_after_what_was_made() -> None:
    def make(_: Callable[[], None]) -> Iterator[int]:
        yield 0
        raise KeyError("lost")

    items = ahead(make)
    assert next(items) == 0
    with pytest.raises(KeyError, match="lost"):
        next(items)


@pytest.mark.parametrize("how", ["closed", "interrupted"])
def test_the_thread_ends_when_the_consumer_stops(how: str) -> None:
    made = []

    def make(go_on: Callable[[], None]) -> Iterator[int]:
        for i in range(10**9):
            go_on()
            made.append(i)
            yield i

    items = ahead(make)
    next(items)
    assert threads()
    if how == "closed":
        items.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(KeyboardInterrupt):
            items.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert not threads()
    assert len(made) <= 3


def test_work_is_left_between_its_pieces() -> None:
    started = threading.Event()
    left = []

    def make(go_on: Callable[[], None]) -> Iterator[int]:
        yield 0
        started.set()
        try:
            for _ in range(2_000):
                go_on()
                time.sleep(0.01)
        except prefetching.Abandoned:
            left.append(True)
            raise
        yield 1

    items = ahead(make)
    next(items)
    assert started.wait(60)
    items.close()  # type: ignore[attr-defined]
    assert left == [True]


@pytest.mark.parametrize(("cores", "load", "free"), [(1, 0, False), (2, 0, True), (2, 2.0, False)])
def test_a_second_team_needs_cores_of_its_own(
    cores: int, load: float, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert cores_are_free() is free
