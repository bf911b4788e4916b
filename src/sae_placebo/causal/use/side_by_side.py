"""Rows asked about side by side: each thread edits a copy of the model of its own.

An edit of one token is a small pass, in which two threads of torch are hardly faster than one; two passes at
once are twice as fast.
"""

from __future__ import annotations

import functools
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Int64

from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.crew import Crew
from sae_placebo.core.lanes import n_lanes
from sae_placebo.core.lazy import torch

R = TypeVar("R")
Part = tuple[int, Int64[np.ndarray, "_"]]
"""A row, and what is asked of it."""


def side_by_side(
    downstream: Downstream,
    parts: Sequence[Part],
    work: Callable[[Downstream, int, Int64[np.ndarray, "_"]], R],
) -> Iterator[R]:
    """Yield `work` of each row and its part, in the order in which they are done.

    A row is worked on by one thread, on the model or on a copy of it, so that results do not depend on how
    many there are.

    Args:
        downstream: The model behind the hookpoint.
        parts: Rows, and what is asked of each.
        work: Called with a model, a row and its part.
    """
    n = _threads(downstream) if len(parts) > 1 else 1
    if n == 1:
        for row, part in parts:
            yield work(downstream, row, part)
        return
    free: queue.SimpleQueue[Downstream] = queue.SimpleQueue()
    for one in (downstream, *downstream.copies(n - 1)):
        free.put(one)

    def job(row: int, part: Int64[np.ndarray, "_"]) -> R:
        mine = free.get()
        try:
            return work(mine, row, part)
        finally:
            free.put(mine)

    with Crew() as crew:
        yield from crew.each([functools.partial(job, row, part) for row, part in parts])


def _threads(downstream: Downstream) -> int:
    """Return how many rows are asked about at once: threads there are, and copies that fit."""
    if downstream.device.type != "cpu":
        return 1
    size = int(sum(p.numel() * p.element_size() for p in downstream.model.parameters()))
    threads = torch.get_num_threads()
    return n_lanes(threads, size, threads)
