"""Artefacts on disk: one folder per finished step, keyed by everything that decides its content.

An artefact is `<root>/<stage>/<name>-<key>/`. Files are written to a hidden sibling folder; the
manifest, which holds the SHA-256 of each file, is written last; then the folder is renamed into
place. So a folder with a manifest is whole, whatever killed the process that wrote it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sae_placebo.errors import StoreError
from sae_placebo.spec import canonical, digest

MANIFEST = "manifest.json"


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

    @property
    def key(self) -> str:
        """Hash of stage, version, settings and inputs: 64 hexadecimal digits."""
        return digest([self.stage, self.version, json.loads(canonical(self.settings)), self.inputs])

    @property
    def folder_name(self) -> str:
        """Name of the artefact's folder: readable label and the first 16 digits of the key."""
        return f"{self.name}-{self.key[:16]}"


@dataclass
class Store:
    """A folder of artefacts, used by one process at a time.

    Args:
        root: Created when it does not exist.
        warn: Called with one sentence for each damaged artefact that is found.
        environment: Versions and settings of this process, kept in every manifest that it writes.
            They enter no key, so that results survive an update; `environments` tells of a mixture.
    """

    root: Path
    warn: Any = field(default=lambda message: None, repr=False)
    environment: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _checked: set[Path] = field(default_factory=set, repr=False)

    def seconds(self, step: Step) -> float:
        """Return how long a finished step took."""
        manifest = _read_manifest(self.path(step)) or {}
        return float(manifest.get("seconds", 0.0))

    def environments(self, steps: Iterable[Step]) -> list[dict[str, Any]]:
        """Return the different environments that the artefacts of `steps` were made in."""
        found: list[dict[str, Any]] = []
        for step in steps:
            one = (_read_manifest(self.path(step)) or {}).get("environment", {})
            if one not in found:
                found.append(one)
        return found

    def path(self, step: Step) -> Path:
        """Return where the artefact of `step` lies, or would lie."""
        return self.root / step.stage / step.folder_name

    def has(self, step: Step) -> bool:
        """Whether `step` is finished, by its manifest and file sizes alone (files are not hashed)."""
        folder = self.path(step)
        manifest = _read_manifest(folder)
        return manifest is not None and _sizes_match(folder, manifest)

    def find(self, step: Step) -> Path | None:
        """Return the artefact's folder when it is finished and undamaged, else None.

        Every file is hashed once per process. A damaged artefact is named through `warn` and
        removed, so that the caller builds it again.
        """
        folder = self.path(step)
        if folder in self._checked and folder.exists():
            return folder
        if not folder.exists():
            return None
        problem = _damage(folder)
        if problem is None:
            self._checked.add(folder)
            return folder
        self.warn(
            f"artefact {step.stage}/{step.folder_name} is damaged ({problem}); building it again"
        )
        with explained(self.root):
            shutil.rmtree(folder)
        return None

    @contextlib.contextmanager
    def write(self, step: Step, seconds: float = 0.0) -> Iterator[Path]:
        """Yield an empty folder to fill; on success it becomes the artefact of `step`, else nothing.

        Args:
            step: What is made.
            seconds: How long the work took that was done before.
        """
        target = self.path(step)
        draft = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
        start = time.perf_counter()
        with explained(self.root):
            draft.mkdir(parents=True)
            try:
                yield draft
                manifest = {
                    "stage": step.stage,
                    "name": step.name,
                    "version": step.version,
                    "key": step.key,
                    "settings": json.loads(canonical(step.settings)),
                    "inputs": list(step.inputs),
                    "environment": dict(self.environment),
                    "seconds": round(seconds + time.perf_counter() - start, 3),
                    "files": {
                        p.relative_to(draft).as_posix(): {
                            "bytes": p.stat().st_size,
                            "sha256": file_hash(p),
                        }
                        for p in sorted(draft.rglob("*"))
                        if p.is_file()
                    },
                }
                write_json(draft / MANIFEST, manifest)
                if target.exists():
                    shutil.rmtree(target)
                draft.rename(target)
                self._checked.add(target)
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
        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{uuid.uuid4().hex[:8]}"
            probe.touch()
            probe.unlink()
        holder = self.root / ".holder"
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=wait_seconds)
        except Timeout:
            who = holder.read_text().strip() if holder.exists() else "unknown"
            raise StoreError(
                f"the store {str(self.root)!r} is in use by another process (pid {who}); wait for it "
                "to end, pass --wait SECONDS, or choose another --store"
            ) from None
        try:
            holder.write_text(f"{os.getpid()}\n")
            for draft in self.root.glob("*/.*-*-????????"):
                shutil.rmtree(draft, ignore_errors=True)
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; whatever kills the process, the file is whole or absent.

    Nothing is synced: after a power cut the hashes in the manifests tell what was lost, and a sync
    would wait for every file that the system still holds in memory.
    """
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, sort_keys=True, allow_nan=False)
    draft.replace(path)


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`."""
    return json.loads(path.read_text(encoding="utf-8"))


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(_is_entry(entry) for entry in files.values()):
        return None
    return dict(manifest)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()


def _sizes_match(folder: Path, manifest: Mapping[str, Any]) -> bool:
    files = manifest["files"]
    return all(
        (folder / name).is_file() and (folder / name).stat().st_size == facts["bytes"]
        for name, facts in files.items()
    )


def _damage(folder: Path) -> str | None:
    """Return what is wrong with an artefact's folder, or None."""
    manifest = _read_manifest(folder)
    if manifest is None:
        return "its manifest is missing or unreadable"
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != facts["bytes"]:
            return f"{name} has {size:,} bytes where {facts['bytes']:,} were written"
        if file_hash(path) != facts["sha256"]:
            return f"the bytes of {name} have changed"
    return None


def _missing_below(root: Path, error: Exception) -> bool:
    """Whether a file or folder of the store could not be made or found, not one of a user's."""
    name = error.filename if isinstance(error, FileNotFoundError) else None
    return isinstance(name, str | os.PathLike) and Path(name).absolute().is_relative_to(
        root.absolute()
    )


@contextlib.contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one sentence each.

    Raises:
        StoreError: the store under `root` is full or cannot be written.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        # safetensors and pyarrow wrap the system's error in their own and keep only its text
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            message = (
                f"the disk that holds the store {str(root)!r} is full; finished stages are kept: free "
                "some space or move the store, then run again"
            )
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
            message = (
                f"the store {str(root)!r} cannot be written ({os.strerror(number)}); choose another --store "
                "or change its permissions"
            )
        elif number in (errno.ENOTDIR, errno.EEXIST):
            message = f"the store {str(root)!r} is not a folder; choose another --store"
        elif number in (errno.EFBIG, errno.EIO) or _missing_below(root, error):
            message = (
                f"the store {str(root)!r} cannot be written here ({os.strerror(number or 0)}); choose "
                "another --store"
            )
        else:
            raise
        raise StoreError(message) from error
