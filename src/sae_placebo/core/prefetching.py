"""Making the next item on a thread of its own while the present one is used."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from sae_placebo.core.lazy import torch

T = TypeVar("T")


class Abandoned(Exception):
    """It is raised where items are made, once nobody waits for them any more."""


def cores_are_free() -> bool:
    """Return whether a second team of torch's threads has cores of its own.

    Counted are the cores that this process may use, less those that others keep busy (the load of the
    last minute beyond our own threads'). On a machine whose every core torch uses already, a second
    thread takes from the first what it gives. No result depends on the answer.
    """
    team = torch.get_num_threads()
    allowed = getattr(os, "sched_getaffinity", None)
    cores = len(allowed(0)) if allowed is not None else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return cores - max(0.0, load - team) >= 2 * team


def ahead(make: Callable[[Callable[[], None]], Iterator[T]]) -> Iterator[T]:
    """Yield the items of an iterator; while one is used, the next is made on another thread.

    An item may live in the memory of the item before the last: it is made only when that one has been
    done with. What the thread raises is raised here. The thread ends before this iterator does,
    however it ends: exhausted, closed, by an error or an interrupt.

    Args:
        make: Gets a function to call between pieces of work, which raises when nobody waits for the
            items any more; returns the iterator. It is run on the other thread.
    """
    room, stop = threading.Semaphore(2), threading.Event()
    made: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def go_on() -> None:
        if stop.is_set():
            raise Abandoned

    def work() -> None:
        try:
            items = make(go_on)
            while True:
                room.acquire()
                go_on()
                made.put((next(items), None))
        except BaseException as error:
            made.put((None, error))

    thread = threading.Thread(target=work, name="sae-placebo-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
            room.release()
    finally:
        stop.set()
        room.release()
        thread.join()
