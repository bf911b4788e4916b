"""Jobs side by side, each with a share of the threads: a lane is a thread that does one job after the other.

Torch starts and ends a team of threads for every operation, and the operations of audits and edits are
small: two threads on one job are little faster than one, and beside other programs they wait for each
other. Two jobs at once, each with its own threads, are nearly twice as fast and hardly ever wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import threadpoolctl

from sae_placebo.core.lazy import torch

MOST_BYTES = 2 << 30
"""Copies of a model, beside the one that is there in any case, take no more bytes of memory than this."""


def n_lanes(n_jobs: int, model_bytes: int, threads: int) -> int:
    """Return how many jobs run at once: no more than threads, nor than models that fit in memory."""
    return max(1, min(n_jobs, threads, 1 + MOST_BYTES // max(model_bytes, 1)))


def in_lanes(jobs: Sequence[Callable[[], None]], n: int) -> None:
    """Do all jobs, `n` at a time; in each, torch has an equal share of the threads that it has here.

    NumPy's and SciPy's products have that share too, also where `n` is 1. Where a job fails or the caller
    is stopped, jobs that have not begun never do, and those at work are stopped at their next line.
    """
    threads = torch.get_num_threads()
    share = max(1, threads // n)
    with blas_threads(share):
        if n == 1:
            for job in jobs:
                job()
            return
        at_work: set[int] = set()

        def work(job: Callable[[], None]) -> None:
            at_work.add(threading.get_ident())
            try:
                job()
            finally:
                at_work.discard(threading.get_ident())

        try:
            with ThreadPoolExecutor(n, "lane", functools.partial(take_threads, share)) as pool:
                _finish(pool, [functools.partial(work, job) for job in jobs], at_work)
        finally:
            torch.set_num_threads(threads)  # what threads started later begin with


def _finish(
    pool: ThreadPoolExecutor, jobs: Sequence[Callable[[], None]], at_work: set[int]
) -> None:
    try:
        futures = [pool.submit(job) for job in jobs]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            if future.done():
                future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for thread in tuple(at_work):
            _stop(thread)
        raise


def take_threads(n: int) -> None:
    """Have torch use `n` threads in the calling thread, whatever other threads set for themselves.

    A thread takes what was last set anywhere when it first asks, also after it has set its own.
    """
    torch.get_num_threads()
    torch.set_num_threads(n)


class _Stopped(BaseException):
    """A job is stopped, since another failed or the whole is."""


def _stop(thread: int) -> None:
    """Raise `_Stopped` in a thread, as a signal raises an interrupt in the main one."""
    kind = ctypes.py_object(_Stopped)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), kind)


@contextlib.contextmanager
def blas_threads(n: int) -> Iterator[None]:
    """Keep NumPy's and SciPy's products to `n` threads each.

    How such a product is split among threads depends on what else runs at the moment, and its last bits
    on how it is split.
    """
    import scipy.linalg  # noqa: F401  its library is limited only once it is loaded

    with threadpoolctl.threadpool_limits(n, "blas"):
        yield
