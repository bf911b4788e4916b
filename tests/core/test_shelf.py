from __future__ import annotations

import threading

import pytest

from sae_placebo.core.shared_values import Shelf


def test_a_value_is_made_once_and_dropped_after_the_last_job() -> None:
    shelf, made = Shelf(), []

    def make() -> str:
        made.append(1)
        return "value"

    shelf.announce(["a"])
    shelf.announce(["a", "a"])
    for _ in range(2):
        with shelf.serving(["a"]):
            assert shelf.get("a", make) == shelf.get("a", make) == "value"
    assert len(made) == 1
    with shelf.serving(["a"]):
        shelf.get("a", make)
    assert len(made) == 2


def test_a_job_that_fails_lets_go_as_well() -> None:
    shelf, made = Shelf(), []
    shelf.announce("a")

    def fails() -> None:
        with shelf.serving("a"):
            shelf.get("a", lambda: made.append(1))
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    shelf.get("a", lambda: made.append(1))
    assert len(made) == 2


def test_a_value_that_cannot_be_made_is_tried_again() -> None:
    shelf = Shelf()
    with pytest.raises(ZeroDivisionError):
        shelf.get("a", lambda: 1 // 0)
    assert shelf.get("a", lambda: 3) == 3


def test_two_threads_never_make_the_same_value_and_do_not_wait_for_another() -> None:
    shelf, made, found = Shelf(), [], []
    inside, go_on = threading.Event(), threading.Event()
    all_there = threading.Barrier(4)

    def slow() -> int:
        made.append(threading.get_ident())
        inside.set()
        go_on.wait(60)
        return len(made)

    def ask() -> None:
        all_there.wait()
        found.append(shelf.get("slow", slow))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert inside.wait(60)
    assert shelf.get("other", lambda: "at once") == "at once"
    assert not found  # the slow one is still being made
    go_on.set()
    for thread in threads:
        thread.join()
    assert found == [1, 1, 1, 1]
