"""One process at a time: the lock of a store's folder, held twice.

`.lock` is a lock file, which works on most file systems and machines. A lock file can be deleted
while it is held, and then a second process would get a new one. So the folder itself is locked as
well, where the system can do that (not on Windows, and not on every network file system), and before
anything is published the holder looks whether both are still those that it locked.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sae_placebo.core.errors import StoreError
from sae_placebo.core.sealing import read_json, write_json

LOCK, HOLDER = ".lock", ".holder"
_POLL_SECONDS = 0.1
_RETAKE_SECONDS = 2.0


class StoreLock:
    """The lock of one folder, and who holds it.

    Args:
        root: The folder; it exists.
        warn: Called with one sentence when somebody else holds it, and when it was removed.
        wait_seconds: How long to wait for another process to release it.

    Raises:
        StoreError: another process holds the folder for longer.
    """

    def __init__(self, root: Path, warn: Callable[[str], Any], wait_seconds: float = 0.0) -> None:
        self.root, self._warn = root, warn
        self._checking = threading.Lock()
        self._files: list[FileLock] = []
        self._folder: int | None = None
        if not self._take(0.0):
            if wait_seconds:
                warn(f"waiting up to {wait_seconds:g} s for the store, {self._in_use()}")
            if not wait_seconds or not self._take(wait_seconds):
                raise StoreError(
                    f"the store {str(root)!r} is {self._in_use()}; wait for it to end, pass --wait "
                    "SECONDS, or choose another --store"
                )
        self._known = _identity(root), _identity(root / LOCK)
        since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self._self = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with contextlib.suppress(OSError):  # for people only
            write_json(root / HOLDER, self._self)

    def check(self) -> None:
        """See to it that no other process can have taken the folder meanwhile.

        A lock file that was removed is made again, unless somebody else has it.

        Raises:
            StoreError: the folder, or its lock file, is another one now.
        """
        with self._checking:
            if (_identity(self.root), _identity(self.root / LOCK)) == self._known:
                return
            if _identity(self.root) != self._known[0]:
                raise StoreError(
                    f"the store {str(self.root)!r} was moved or replaced while this run worked on it, so "
                    "this run stops; put it back and run again"
                )
            if not self._take_file(_RETAKE_SECONDS):
                raise StoreError(
                    f"the lock of the store {str(self.root)!r} was removed while this run held it, and "
                    f"the store is {self._in_use()} now, so this run stops; finished stages are kept: "
                    "run again when that one has ended"
                )
            self._known = self._known[0], _identity(self.root / LOCK)
            self._warn(
                f"the lock file {str(self.root / LOCK)!r} was removed while this run holds it; it was "
                "made again"
            )

    def release(self) -> None:
        """Release the folder, so that the next process can hold it."""
        holder = self.root / HOLDER
        with contextlib.suppress(OSError, ValueError):
            if read_json(holder) == self._self:
                holder.unlink()
        self._let_go()

    def _take(self, seconds: float) -> bool:
        """Lock file and folder, both or neither."""
        end = time.monotonic() + seconds
        while self._take_file(max(end - time.monotonic(), 0.0)):
            if self._take_folder():
                return True
            self._let_go()  # at once: the holder of the folder may want to make its lock file again
            if time.monotonic() >= end:
                break
            time.sleep(_POLL_SECONDS)
        return False

    def _take_file(self, seconds: float) -> bool:
        # a store's stages are written from several threads, so the lock is not one thread's
        lock = FileLock(self.root / LOCK, thread_local=False)
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            return False
        self._files.append(lock)
        return True

    def _take_folder(self) -> bool:
        """Whether the folder is locked, or cannot be locked on this system."""
        try:
            import fcntl
        except ImportError:
            return True
        folder = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            return False
        except OSError:  # a network file system that locks no folders
            os.close(folder)
            return True
        self._folder = folder
        return True

    def _let_go(self) -> None:
        if self._folder is not None:
            import fcntl

            fcntl.flock(self._folder, fcntl.LOCK_UN)  # forked processes share it
            os.close(self._folder)
            self._folder = None
        while self._files:
            self._files.pop(0).release()

    def _in_use(self) -> str:
        """Return who holds the folder, as far as it is known."""
        said: Any = None
        with contextlib.suppress(OSError, ValueError):
            said = read_json(self.root / HOLDER)
        if not isinstance(said, dict):
            return f"in use by another process (pid {said if type(said) is int else 'unknown'})"
        host, since = (str(said.get(name, "unknown")) for name in ("host", "since"))
        return f"in use by another process (pid {said.get('pid')!r}) on {host!r} since {since!r}"


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells one file from another of the same name; None where there is none."""
    try:
        found = path.lstat() if path.name == LOCK else path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino)


def is_lock_file(path: Path) -> bool:
    """Return whether a path can be locked: a file lies there, or nothing."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return True
