"""Artefacts on disk: one folder per finished step, keyed by everything that decides its content.

An artefact is `<root>/<stage>/<name>-<key>/`. Files are written to a hidden sibling folder; the
manifest, which holds the SHA-256 of each file, is written last; then the folder is renamed into
place. So a folder with a manifest is whole, whatever killed the process that wrote it.

An artefact is what its manifest's key says. The manifest holds all that the key is the hash of, and is
sealed, so a folder that was swapped, copied from elsewhere or edited is noticed when it is read.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import StoreError
from sae_placebo.core.locks import HOLDER, LOCK, StoreLock, is_lock_file
from sae_placebo.core.manifests import (
    MANIFEST,
    Damage,
    Foreign,
    added,
    check,
    filled,
    key_of,
    read_manifest,
)
from sae_placebo.core.refusals import explained
from sae_placebo.core.sealing import file_hash, read_json, sealed, write_json
from sae_placebo.core.spec import canonical

__all__ = ["MANIFEST", "Step", "Store", "explained", "file_hash", "read_json", "write_json"]


@dataclass(frozen=True)
class Step:
    """One piece of work: what it is called and everything that decides its result.

    Args:
        stage: The kind of work (`tokenize`, `train`, ...); the folder's parent.
        name: A readable label; it does not enter the key.
        version: Raised by hand when the meaning of the stage changes.
        settings: JSON value holding every setting that can change the result.
        inputs: Keys of the steps whose results this one reads.
    """

    stage: str
    name: str
    version: int
    settings: Any
    inputs: tuple[str, ...] = ()

    @functools.cached_property
    def key(self) -> str:
        """Return the hash of stage, version, settings and inputs: 64 hexadecimal digits."""
        settings = json.loads(canonical(self.settings))
        return key_of(self.stage, self.version, settings, self.inputs)

    @property
    def folder_name(self) -> str:
        """Return the name of the artefact's folder: readable label and the first 16 digits of the key."""
        return f"{self.name}-{self.key[:16]}"


@dataclass
class Store:
    """A store is a folder of artefacts, used by one process at a time.

    What is not as it was written is never deleted: it is moved beside its place, as `<name>.aside-<n>`,
    and `warn` says where.

    Args:
        root: Created when it does not exist.
        warn: Called with one sentence for each damaged artefact that is found.
        environment: Versions and settings of this process, kept in every manifest that it writes.
            They enter no key, so that results survive an update; `environments` tells of a mixture.

    Raises:
        StoreError: `root` is not a folder.
    """

    root: Path
    warn: Any = field(default=lambda message: None, repr=False)
    environment: Mapping[str, Any] = field(default_factory=dict, repr=False)
    # by artefact: its key, and of each of its files what tells whether it has changed since it was hashed
    _checked: dict[Path, tuple[str, dict[str, Any]]] = field(default_factory=dict, repr=False)
    _told: set[Path] = field(default_factory=set, repr=False)
    _lock: StoreLock | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.root.is_dir() and os.path.lexists(self.root):
            raise StoreError(
                f"the store {str(self.root)!r} is not a folder; choose another --store"
            )

    def seconds(self, step: Step) -> float:
        """Return how long a finished step took."""
        return float(self._said(step).get("seconds", 0.0))

    def environments(self, steps: Iterable[Step]) -> list[dict[str, Any]]:
        """Return the different environments that the artefacts of `steps` were made in."""
        found: list[dict[str, Any]] = []
        for step in steps:
            one = self._said(step).get("environment", {})
            if one not in found:
                found.append(one)
        return found

    def _said(self, step: Step) -> dict[str, Any]:
        try:
            return read_manifest(self._place(step))
        except (Damage, OSError):
            return {}

    def _place(self, step: Step) -> Path:
        return self.root / step.stage / step.folder_name

    def path(self, step: Step) -> Path:
        """Return where the artefact of `step` lies, checked as by `find`, or where it would lie.

        Raises:
            StoreError: what lies there is damaged, or has changed while this process runs.
        """
        place = self._place(step)
        with explained(self.root, "read"):
            try:
                if os.path.lexists(place):
                    self._check(step, place)
            except Damage as problem:
                raise StoreError(
                    f"artefact {step.stage}/{step.folder_name} is damaged ({problem}); run the trial again, "
                    "which builds it again"
                ) from None
        return place

    def has(self, step: Step) -> bool:
        """Return whether `step` is finished, by its manifest and file sizes alone (files are not hashed).

        What lies there and does not count is named through `warn`, once.
        """
        place = self._place(step)
        with explained(self.root, "read"):
            if not os.path.lexists(place):
                return False
            try:
                check(place, step.key, hashed=False)
            except Damage as problem:
                if place not in self._told:
                    self._told.add(place)
                    self.warn(
                        f"artefact {step.stage}/{step.folder_name} does not count ({problem}); "
                        "a run builds it again"
                    )
                return False
        return True

    def holds(self, place: str, key: str) -> bool:
        """Return whether `<stage>/<name>-<key>` is the artefact of this key.

        It is told by its manifest and file sizes; no file is hashed.
        """
        try:
            check(self.root / place, key, hashed=False)
        except (Damage, OSError, ValueError):
            return False
        return True

    def find(self, step: Step) -> Path | None:
        """Return the artefact's folder when it is finished and undamaged, else None.

        It is what its manifest's key says: the key is that of `step` and of the settings and inputs in
        the manifest. Every file is hashed once per process, and again when it has changed since. A
        damaged artefact is named through `warn` and moved aside, so that the caller builds it again;
        one that changed places with another is put back.
        """
        place = self._place(step)
        with explained(self.root, "read"):
            if not os.path.lexists(place):
                return None
            try:
                manifest = self._check(step, place)
            except Damage as problem:
                return self._mended(step, place, problem)
            if manifest is not None:
                self._tidy(step, place, manifest)
        return place

    def _check(self, step: Step, place: Path) -> dict[str, Any] | None:
        """Return the manifest of an artefact when it has been hashed, None when it was known to be whole."""
        known = self._checked.get(place)
        if known and known[0] == step.key and known[1] == _marks(place, known[1]):
            return None
        names = read_manifest(place)["files"] if place.is_dir() else ()
        marks = _marks(
            place, (MANIFEST, *names)
        )  # before hashing: a change during it is seen next time
        manifest = check(place, step.key)
        self._checked[place] = step.key, marks
        return manifest

    def _mended(self, step: Step, place: Path, problem: Damage) -> Path | None:
        """Move aside what is no artefact of `step`; return its own where that lies under another name."""
        name = f"artefact {step.stage}/{step.folder_name}"
        own = self._elsewhere(step, place) if isinstance(problem, Foreign) else None
        aside = self.set_aside(place)
        if own is None:
            self.warn(
                f"{name} is damaged ({problem}); it now lies in {self.shown(aside)}; building it again"
            )
            return None
        own.rename(place)
        aside.rename(own)
        self.warn(f"{name} had changed places with {own.name} ({problem}); they were put back")
        return self.find(step)

    def _elsewhere(self, step: Step, place: Path) -> Path | None:
        """Return the artefact of `step` beside its place, if it lies there whole."""
        for folder in sorted(place.parent.iterdir()):
            if folder == place or folder.name.startswith("."):
                continue
            try:
                check(folder, step.key)
            except (Damage, OSError):
                continue
            return folder
        return None

    def _tidy(self, step: Step, place: Path, manifest: Mapping[str, Any]) -> None:
        """Move out of an artefact what is not of it: a stage might read it."""
        names = list(added(place, manifest))
        if not names:
            return
        home = _free(place)
        for name in names:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).rename(home / name)
        listed = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
        self.warn(
            f"artefact {step.stage}/{step.folder_name} held {len(names)} more than was written ({listed}); "
            f"now in {self.shown(home)}"
        )

    def set_aside(self, path: Path) -> Path:
        """Move what is in the way to a free name beside it, and return that; nothing is deleted."""
        aside = _free(path)
        path.rename(aside)
        self._checked.pop(path, None)
        return aside

    def clear_way(self, path: Path, *, folder: bool) -> None:
        """Move aside, and name, what lies where a folder or a file is to be and is not one."""
        right = path.is_dir() if folder else path.is_file()
        if os.path.lexists(path) and not right:
            kind = "folder" if folder else "file"
            aside = self.set_aside(path)
            self.warn(f"{self.shown(path)} was no {kind}; it now lies in {self.shown(aside)}")

    def shown(self, path: Path) -> str:
        """Return a path relative to the root, made fit for a terminal."""
        name = path.relative_to(self.root).as_posix()
        return name if name.isprintable() else repr(name)

    @contextlib.contextmanager
    def write(self, step: Step, seconds: float = 0.0) -> Iterator[Path]:
        """Yield an empty folder to fill; on success it becomes the artefact of `step`, else nothing.

        Args:
            step: What is made.
            seconds: How long the work took that was done before.

        Raises:
            StoreError: the store cannot take it, or is no longer this process's alone.
        """
        target = self._place(step)
        draft = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
        start = time.perf_counter()
        with explained(self.root):
            self.clear_way(target.parent, folder=True)
            draft.mkdir(parents=True)
            try:
                yield draft
                self.check_lock()  # before the draft is looked for, and again after it was hashed
                manifest = {
                    "stage": step.stage,
                    "name": step.name,
                    "version": step.version,
                    "key": step.key,
                    "settings": json.loads(canonical(step.settings)),
                    "inputs": list(step.inputs),
                    "environment": dict(self.environment),
                    "seconds": round(seconds + time.perf_counter() - start, 3),
                    "files": filled(draft),
                }
                marks = _marks(draft, manifest["files"])
                write_json(draft / MANIFEST, sealed(manifest))
                marks |= _marks(draft, (MANIFEST,))
                self.check_lock()
                if os.path.lexists(target):
                    aside = self.shown(self.set_aside(target))
                    self.warn(f"{self.shown(target)} was made anew; what lay there is in {aside}")
                draft.rename(target)
                self._checked[target] = step.key, marks
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self, wait_seconds: float = 0.0) -> Iterator[None]:
        """Hold the store for this process; a second process waits, then is refused.

        Drafts that a killed process left behind are removed.

        Raises:
            StoreError: another process holds the store for longer than `wait_seconds`, or the
                store cannot be written.
        """
        is_number = isinstance(wait_seconds, int | float) and not isinstance(wait_seconds, bool)
        if not is_number or not 0 <= wait_seconds <= threading.TIMEOUT_MAX:
            raise StoreError(
                f"cannot wait {wait_seconds!r:.80} seconds for the store; give 0 or more, as a number"
            )
        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{uuid.uuid4().hex[:8]}"
            probe.touch()
            probe.unlink(missing_ok=True)  # the holder clears away what killed processes left
            for name in (LOCK, HOLDER):
                if not is_lock_file(self.root / name):
                    self.clear_way(self.root / name, folder=False)
            self._lock = StoreLock(self.root, self.warn, wait_seconds)
        try:
            with explained(self.root):
                for name in ("trials", "checkpoints"):
                    self.clear_way(self.root / name, folder=True)
                for draft in self.root.glob("*/.*"):
                    if _DRAFT.fullmatch(draft.name):
                        shutil.rmtree(draft, ignore_errors=True)
                for probe in self.root.glob(".probe-????????"):
                    probe.unlink(missing_ok=True)
            yield
        finally:
            self._lock.release()
            self._lock = None

    def check_lock(self) -> None:
        """See to it, before something is published, that a locked store is still this process's alone.

        Raises:
            StoreError: it is not.
        """
        if self._lock is not None:
            self._lock.check()


_DRAFT = re.compile(r"\..+-[0-9a-f]{16}-[0-9a-f]{8}")


_ASIDE = re.compile(r".+\.aside-[0-9]+")


def is_aside(path: Path) -> bool:
    """Return whether something was moved there by `Store.set_aside`."""
    return _ASIDE.fullmatch(path.name) is not None


def _free(path: Path) -> Path:
    """Return the first name beside a path, `<name>.aside-<n>`, that nothing has."""
    names = (path.with_name(f"{path.name.lstrip('.')}.aside-{n}") for n in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def _marks(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return of each file what changes when it is replaced or written to."""
    marks: dict[str, Any] = {}
    for name in names:
        try:
            found = (folder / name).stat()
        except OSError:
            marks[name] = None
            continue
        times = found.st_mtime_ns, found.st_ctime_ns
        marks[name] = (found.st_dev, found.st_ino, found.st_size, *times)
    return marks
