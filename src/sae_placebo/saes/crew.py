"""Threads that take ranges of tokens or latents."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sae_placebo.lazy import torch


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads in which torch uses one thread each."""
    pool = ThreadPoolExecutor(threads, "sae-step", functools.partial(torch.set_num_threads, 1))
    list(pool.map(lambda _: None, range(threads)))
    return pool


class Crew:
    """Runs a function on ranges, one per thread; a context in which torch itself uses one thread.

    Two sets of threads, torch's and these, would wait for each other: torch's go on spinning after
    an operation. The caller's number of threads returns at the end.
    """

    def __enter__(self) -> Crew:
        self.threads = torch.get_num_threads()
        self._pool = _pool(self.threads)
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.threads)

    def run(self, work: Callable[[int, int, int], Any], n: int, least: int = 1) -> list[Any]:
        """Return `work(thread, first, stop)` for ranges that cover 0 to n, in order."""
        parts = max(1, min(self.threads, n // max(least, 1)))
        edges = [n * i // parts for i in range(parts + 1)]
        jobs = [self._pool.submit(work, i, edges[i], edges[i + 1]) for i in range(parts)]
        return [job.result() for job in jobs]
