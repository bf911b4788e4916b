from __future__ import annotations

import threading
from functools import partial

import pytest

from sae_placebo.core.lazy import torch
from sae_placebo.core.workers import Workers


@pytest.fixture
def two_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_each_yields_every_result_and_gives_each_job_one_thread(two_threads: None) -> None:
    def job(i: int) -> tuple[int, int]:
        with Workers() as inner:
            return i, inner.threads

    with Workers() as workers:
        assert sorted(workers.each([partial(job, i) for i in range(9)])) == [
            (i, 1) for i in range(9)
        ]
    assert torch.get_num_threads() == 2


def test_two_jobs_run_at_a_time(two_threads: None) -> None:
    meet = threading.Barrier(2, timeout=120)  # broken, and an error, if one waited for the other
    with Workers() as workers:
        assert len(list(workers.each([meet.wait] * 4))) == 4


def test_after_a_failure_what_has_not_begun_never_does(two_threads: None) -> None:
    begun: list[int] = []
    hold = threading.Event()

    def job(i: int) -> None:
        begun.append(i)
        if i == 0:
            raise ValueError("no")
        hold.wait(0.2)

    with Workers() as workers, pytest.raises(ValueError, match="no"):
        for _ in workers.each([partial(job, i) for i in range(200)]):
            pass
    assert len(begun) < 100
