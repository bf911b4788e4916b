"""Rows worked on side by side, each thread with a copy of the model of its own.

An edit of one token is a small pass, in which two threads of torch are hardly faster than one. Two passes
at once are twice as fast.
"""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.lanes import n_lanes
from sae_placebo.core.lazy import torch
from sae_placebo.core.workers import Workers

R = TypeVar("R")
Part = tuple[int, Int64[np.ndarray, "_"]]
"""A row, and the indices of what is to be done in it."""


def side_by_side(
    downstream: Downstream,
    parts: Sequence[Part],
    work: Callable[[Downstream, int, Int64[np.ndarray, "_"]], R],
) -> Iterator[R]:
    """Yield what `work` returns for each row and its part, in the order in which rows are finished.

    Each row is worked on by one thread, on the model or on a copy of it, so that results do not depend on
    how many threads there are.

    Args:
        downstream: The model behind the hookpoint.
        parts: The rows, each with the indices of what is to be done in it.
        work: It is called with a model, a row and the row's part.
    """
    n = _threads(downstream) if len(parts) > 1 else 1
    if n == 1:
        for row, part in parts:
            yield work(downstream, row, part)
        return
    free: queue.SimpleQueue[Downstream] = queue.SimpleQueue()
    for model in (downstream, *downstream.copies(n - 1)):
        free.put(model)

    def job(row: int, part: Int64[np.ndarray, "_"]) -> R:
        model = free.get()
        try:
            return work(model, row, part)
        finally:
            free.put(model)

    with Workers() as workers:
        yield from workers.each([functools.partial(job, row, part) for row, part in parts])


def _threads(downstream: Downstream) -> int:
    """Return how many rows are worked on at once, so that their copies of the model fit in memory."""
    if downstream.device.type != "cpu":
        return 1
    size = int(sum(p.numel() * p.element_size() for p in downstream.model.parameters()))
    threads = torch.get_num_threads()
    return n_lanes(threads, size, threads)
