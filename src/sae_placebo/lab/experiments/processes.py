"""Jobs are done one after the other or in processes, and the tokens that they read are counted together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any, TypeVar

from sae_placebo.core.interrupts import listening
from sae_placebo.core.progress import Advance

Job = TypeVar("Job")
_LOOK_SECONDS = 0.5
"""So often the parent looks how many tokens its children have read."""
_CHILD: dict[str, Any] = {}
"""What a child process was given when it started."""


def compute_all(
    compute: Callable[[Job, Advance], None],
    jobs: Mapping[str, tuple[Job, int]],
    workers: int,
    advance: Advance,
) -> None:
    """Compute jobs; a stop waits for those that are running.

    Args:
        compute: Does one job, writes its result, and advances by the tokens that it reads. Children find it
            by its module and name, and so they do with the class of a job.
        jobs: The jobs by key, each with the number of tokens that count once its result is written.
        workers: Number of processes; with 1, or for one job, this process does all.
        advance: Called with numbers of tokens.
    """
    if workers <= 1 or len(jobs) <= 1:
        for job, rest in jobs.values():
            compute(job, advance)
            advance(rest)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the children load their libraries
    context = get_context("spawn")
    read, told = context.Value("q", 0), 0
    with listening(), ProcessPoolExecutor(workers, context, _start, (read,)) as pool:
        try:
            left = {pool.submit(_counted, compute, job): rest for job, rest in jobs.values()}
            while left:
                done, _ = wait(left, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
                now = read.value
                advance(now - told)
                told = now
                for future in done:
                    future.result()
                    advance(left.pop(future))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start(read: Any) -> None:
    """Prepare a child: only the parent hears a stop, and `read` counts the tokens of all children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _CHILD["read"] = read


def _counted(compute: Callable[[Job, Advance], None], job: Job) -> None:
    """Do a job in a child, whose tokens are added to the count of all children."""
    read = _CHILD["read"]

    def advance(n: int) -> None:
        with read.get_lock():
            read.value += n

    compute(job, advance)
