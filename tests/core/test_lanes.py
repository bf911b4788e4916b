"""Jobs side by side, each with a share of the threads."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import threadpoolctl

from sae_placebo.core.lanes import MOST_BYTES, blas_threads, in_lanes, n_lanes
from sae_placebo.core.lazy import torch
from sae_placebo.core.workers import Workers

LONG = 120.0
"""Seconds after which a test gives up waiting for a thread."""


@pytest.fixture(autouse=True)
def _four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_lanes_are_no_more_than_jobs_threads_and_models_in_memory() -> None:
    assert n_lanes(3, 1, 8) == 3
    assert n_lanes(3, 1, 2) == 2
    assert n_lanes(3, MOST_BYTES, 8) == 2
    assert n_lanes(3, MOST_BYTES + 1, 8) == 1
    assert n_lanes(0, 1, 8) == 1


@pytest.mark.parametrize(("n", "share"), [(1, 4), (2, 2), (3, 1), (4, 1)])
def test_jobs_run_at_once_with_equal_shares_of_the_threads(n: int, share: int) -> None:
    meet = threading.Barrier(n)
    found: list[tuple[int, int]] = []

    def job() -> None:
        meet.wait(LONG)
        blas = [one["num_threads"] for one in threadpoolctl.threadpool_info()]
        with Workers() as workers:
            found.append((torch.get_num_threads() if n == 1 else workers.threads, min(blas)))
            assert sum(workers.run(lambda i, first, stop: stop - first, 100)) == 100

    in_lanes([job] * (2 * n), n)
    assert [threads for threads, _ in found] == [1 if n == 1 else share] * (2 * n)
    assert all(blas <= share for _, blas in found)
    assert torch.get_num_threads() == 4


def test_crews_of_two_lanes_do_not_wait_for_each_other() -> None:
    # four jobs in two lanes of two threads each: all four are at work at once
    meet = threading.Barrier(4)

    def lane() -> None:
        with Workers() as workers:
            assert len(list(workers.each([partial(meet.wait, LONG)] * 2))) == 2

    in_lanes([lane, lane], 2)


def _for_long(begun: threading.Event, stopped: threading.Event) -> None:
    begun.set()
    try:
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            time.sleep(0.01)
    except BaseException:
        stopped.set()
        raise


def test_a_job_that_fails_stops_the_others_and_those_to_come() -> None:
    begun, stopped, later = threading.Event(), threading.Event(), threading.Event()

    def fails() -> None:
        assert begun.wait(LONG)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        in_lanes([partial(_for_long, begun, stopped), fails, later.set], 2)
    assert stopped.is_set()
    assert not later.is_set()


def test_an_interrupt_stops_the_jobs_at_work() -> None:
    begun, stopped = [threading.Event() for _ in range(2)], [threading.Event() for _ in range(2)]

    def interrupts() -> None:
        assert all(one.wait(LONG) for one in begun)
        _thread.interrupt_main()

    jobs = [partial(_for_long, *events) for events in zip(begun, stopped, strict=True)]
    with pytest.raises(KeyboardInterrupt):
        in_lanes([*jobs, interrupts], 3)
    assert all(one.is_set() for one in stopped)


def test_products_of_arrays_keep_to_their_threads() -> None:
    with blas_threads(1):
        np.ones((4, 4)) @ np.ones((4, 4))
        blas = [one for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"]
        assert blas
        assert {one["num_threads"] for one in blas} == {1}
