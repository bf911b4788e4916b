"""A value that several jobs read is made once, by the first of them, and dropped after the last."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class Shelf:
    """Values by key, shared between threads.

    A value stays as long as a job that uses it is announced or running. Values may be made of other
    values, as long as these are not made of them in turn.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: Counter[Hashable] = Counter()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._made: dict[Hashable, Any] = {}

    def announce(self, keys: Iterable[Hashable]) -> None:
        """Keep what is made for these keys until one more job that uses them is over."""
        with self._lock:
            self._left.update(set(keys))

    @contextmanager
    def serving(self, keys: Iterable[Hashable]) -> Iterator[None]:
        """Run a job that uses these keys inside the block; then drop what no other job will use."""
        try:
            yield
        finally:
            with self._lock:
                for key in set(keys):
                    self._left[key] -= 1
                    if self._left[key] <= 0:
                        for of_key in (self._left, self._locks, self._made):
                            of_key.pop(key, None)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of a key, made now if it is not there; other threads that want it wait for it."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._made:
                self._made[key] = make()
            value: T = self._made[key]
            return value
