"""Threads that take ranges of tokens, of latents, or of SAEs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from sae_placebo.core.lanes import take_threads
from sae_placebo.core.lazy import torch

_LOCAL = threading.local()

R = TypeVar("R")


@functools.cache
def _pool(threads: int, whose: str) -> ThreadPoolExecutor:
    """Return threads in which torch uses one thread each; crews at work side by side have their own."""
    return ThreadPoolExecutor(threads, "sae-step", functools.partial(take_threads, 1))


class Workers:
    """A context in which functions run on ranges, one per thread, and torch itself uses one thread.

    Two sets of threads, torch's and these, would wait for each other: torch's go on spinning for
    milliseconds after an operation. The caller's number of threads returns at the end. Inside another
    workers of the same thread, it is that one; inside a range that a workers runs, it has one thread.
    """

    def __enter__(self) -> Workers:
        self._outer: int | None = getattr(_LOCAL, "threads", None)
        self.threads: int = self._outer or torch.get_num_threads()
        if self._outer is None:
            _LOCAL.threads = self.threads
            torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._outer is None:
            _LOCAL.threads = None
            torch.set_num_threads(self.threads)

    def _pool(self) -> ThreadPoolExecutor:
        return _pool(self.threads, threading.current_thread().name)

    @contextmanager
    def dismissed(self) -> Iterator[None]:
        """Let torch use all the threads itself inside the block, as it does outside the workers."""
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(1)

    def run(self, work: Callable[[int, int, int], Any], n: int, least: int = 1) -> list[Any]:
        """Return `work(thread, first, stop)` for ranges that cover 0 to n, in order."""
        parts = max(1, min(self.threads, n // max(least, 1)))
        edges = [n * i // parts for i in range(parts + 1)]
        if parts == 1:
            return [work(0, 0, n)]
        pool = self._pool()
        # the caller takes the first range itself: threads that are all woken by one that goes to sleep
        # are often put on the processor that it leaves, all on the same
        jobs = [pool.submit(_alone, work, i, edges[i], edges[i + 1]) for i in range(1, parts)]
        try:
            first = _alone(work, 0, edges[0], edges[1])
        finally:
            wait(jobs)
        return [first, *(job.result() for job in jobs)]

    def each(self, jobs: Sequence[Callable[[], R]]) -> Iterator[R]:
        """Yield the jobs' results as they come, as many at a time as there are threads.

        Where one fails, or the caller stops, those that have not begun never do, and those that have
        are waited for.
        """
        if self.threads == 1:
            for job in jobs:
                yield _alone(lambda *_, job=job: job(), 0, 0, 0)
            return
        pool = self._pool()
        futures = [
            pool.submit(_alone, lambda _, first, __: jobs[first](), 0, i, i)
            for i in range(len(jobs))
        ]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)


def _alone(work: Callable[[int, int, int], Any], i: int, first: int, stop: int) -> Any:
    """Return `work` of one range; a workers inside it has one thread."""
    before, _LOCAL.threads = getattr(_LOCAL, "threads", None), 1
    try:
        return work(i, first, stop)
    finally:
        _LOCAL.threads = before
