"""Unfinished work in a store: the last state of a training, written now and then, found again.

A checkpoint is `<store>/checkpoints/<key>/<phase>-<serial>/`, the key being that of the steps that are
worked on together. It holds a safetensors file per part and `checkpoint.json`, with the SHA-256 of each
file. It is filled as a hidden sibling and renamed when whole; then the one before it is removed. What is
damaged, or was written by other weights, settings or versions, is never gone on from.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_placebo.core import interrupts
from sae_placebo.core.errors import SpecError, StoreError
from sae_placebo.core.lazy import torch
from sae_placebo.core.sealing import file_hash, read_json, seal_is_broken, sealed, write_json
from sae_placebo.core.spec import digest
from sae_placebo.core.store import Step, Store, explained, is_aside

CHECKPOINT_SECONDS = 20.0
"""A checkpoint is written this long after the one before it, or after nine times as long as writing that
one took, whichever is longer."""

STOP_SECONDS = 1.0
"""On a stop a checkpoint is written if that takes no longer than this; else the last one holds."""

_WORK_PER_WRITING = 9.0
_END_SHARE = 0.25
_RECORD = "checkpoint.json"
_DRAFT = ".draft"


@dataclass
class State:
    """Everything that the rest of a phase of work depends on.

    Attributes:
        done: Tokens that are done, for the choice between two checkpoints, and for the bars.
        record: What has to be restored beside the tensors, as a JSON value.
        parts: A name and its tensors, made one after the other so that one copy is held at a time.
    """

    done: int
    record: Mapping[str, Any]
    parts: Iterable[tuple[str, Mapping[str, torch.Tensor]]]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint that lies in the store; its files have been hashed."""

    folder: Path
    done: int
    record: dict[str, Any]
    files: dict[str, dict[str, str]]

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """Return the tensors of one part, on the CPU."""
        from safetensors.torch import load_file

        return dict(load_file(self.folder / self.files[name]["file"]))


@dataclass
class Work:
    """Work from which the artefacts of several steps come together, and its checkpoints.

    Args:
        store: Where the checkpoints lie.
        steps: The steps whose artefacts will be made.
        weights: Hash of the weights that are read.
    """

    store: Store
    steps: Sequence[Step]
    weights: str
    seconds: float = 0.0
    """The work has taken so many seconds, what was done before a stop included."""
    _whole: bool = field(default=True, repr=False)

    @property
    def home(self) -> Path:
        """Return the folder that the checkpoints of this work are written to."""
        return _root(self.store) / _name(step.key for step in self.steps)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Run a block that a stop must not cut in two: it waits until the block has ended."""
        self._whole = False
        with interrupts.held():
            yield
            self._whole = True

    @contextlib.contextmanager
    def during(self, phase: str, state: Callable[[], State]) -> Iterator[Callable[[], None]]:
        """Yield what to call between steps: it writes a checkpoint of `phase` when one is due.

        On a stop one is written at once, and at the end if the phase was long, since the next one may
        let go of what it holds.
        """
        begun = last = time.monotonic()
        cost, before, self._whole = 0.0, self.seconds, True

        def write_if_due(share: float = 1.0) -> None:
            nonlocal last, cost
            now = time.monotonic()
            self.seconds = before + now - begun
            if now - last >= max(CHECKPOINT_SECONDS, _WORK_PER_WRITING * cost) * share:
                self._save(phase, state())
                last = time.monotonic()
                cost = last - now

        try:
            yield write_if_due
            write_if_due(_END_SHARE)
        except (KeyboardInterrupt, SystemExit):
            # not after an interrupt of somebody else's making in the middle of a step
            if self._whole and cost <= STOP_SECONDS:
                self.seconds = before + time.monotonic() - begun
                self._save(phase, state(), time.monotonic() + STOP_SECONDS)
            raise

    def _save(self, phase: str, state: State, deadline: float | None = None) -> None:
        """Write a checkpoint and remove the one before it, or none if that takes too long.

        Where the store cannot take it, work goes on: only a stop would then cost more.
        """
        draft = self.home / _DRAFT
        try:
            with explained(self.store.root):
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True)
                files = _write_parts(draft, state.parts, deadline)
                if files is None:
                    shutil.rmtree(draft, ignore_errors=True)
                    return
                record = {
                    "steps": {step.key: f"{step.stage}/{step.folder_name}" for step in self.steps},
                    **self._made_by(),
                    "phase": phase,
                    "seconds": self.seconds,
                    "done": state.done,
                    "record": state.record,
                    "files": files,
                }
                write_json(draft / _RECORD, sealed(record))
                self.store.check_lock()
                before = _serials(self.home, phase)
                draft.rename(self.home / f"{phase}-{max(before, default=0) + 1:06d}")
                for folder in before.values():
                    shutil.rmtree(folder, ignore_errors=True)
        except StoreError as error:
            shutil.rmtree(draft, ignore_errors=True)
            self.store.warn(f"no checkpoint was written, and work goes on: {error}")

    def load(self, phase: str) -> Checkpoint | None:
        """Return the furthest checkpoint of a phase that holds all steps of this work, if any.

        One that is damaged or foreign is named through the store's `warn` and passed over.
        """
        own = {step.key for step in self.steps}
        found = [
            (record["done"], folder.name, folder, record)
            for folder, record in _records(self.store, phase)
            if own <= record["steps"].keys()
        ]
        for done, _, folder, record in sorted(found, key=lambda one: one[:2], reverse=True):
            problem = self._problem(folder, record)
            if problem is None:
                self.seconds = max(self.seconds, float(record["seconds"]))
                return Checkpoint(folder, done, record["record"], record["files"])
            self._ignore(folder, problem)
        return None

    def fits(self, saved: Checkpoint, restore: Callable[[Checkpoint], None]) -> bool:
        """Return whether `restore` could take the checkpoint; that of another version may lack parts."""
        try:
            restore(saved)
        except (SpecError, KeyError, ValueError, RuntimeError) as error:
            self._ignore(saved.folder, f"it does not fit: {error}")
            return False
        return True

    def _ignore(self, folder: Path, problem: str) -> None:
        name = folder.relative_to(self.store.root).as_posix()
        self.store.warn(f"{name} is ignored ({problem}); that work starts again")

    def _made_by(self) -> dict[str, Any]:
        return {"weights": self.weights, "environment": dict(self.store.environment)}

    def _problem(self, folder: Path, record: Mapping[str, Any]) -> str | None:
        phase = folder.name.rpartition("-")[0]
        if seal_is_broken(record):
            return "its record has changed since it was written"
        if folder.parent.name != _name(record["steps"]) or record.get("phase", phase) != phase:
            return "it is of other steps than its folder"
        if record["weights"] != self.weights:
            return "it was trained on other weights"
        now = dict(self.store.environment)
        differs = sorted(
            name
            for name in now.keys() | record["environment"].keys()
            if now.get(name) != record["environment"].get(name)
        )
        if differs:
            return f"it was written under another {', '.join(differs)}"
        for part, facts in record["files"].items():
            path = folder / facts["file"]
            try:
                same = path.is_file() and file_hash(path) == facts["sha256"]
            except OSError as error:
                return f"its part {part!r} cannot be read: {error.strerror}"
            if not same:
                return f"its part {part!r} is missing or has changed"
        return None


def together(store: Store, steps: Sequence[Step], phase: str) -> list[list[Step]]:
    """Return the steps in lists, in order: steps whose work stopped at one place are in one list."""
    found: dict[Path | None, list[Step]] = {}
    known = list(_records(store, phase))
    for step in steps:
        holding = [
            (record["done"], folder.as_posix(), folder)
            for folder, record in known
            if step.key in record["steps"]
        ]
        found.setdefault(max(holding)[2] if holding else None, []).append(step)
    return list(found.values())


def begun(store: Store, keys: Collection[str]) -> list[tuple[str, str, int]]:
    """Return the stopped work on some steps: their names, the phase, and the tokens that are done.

    It is read off the records alone: no file of a checkpoint is hashed.
    """
    found: dict[Path, tuple[str, str, int, int]] = {}
    order = ("source", "moments", "train", "null")
    for rank, phase in enumerate(order):
        for folder, record in _records(store, phase):
            names = [
                place.partition("/")[2].rpartition("-")[0]
                for key, place in record["steps"].items()
                if key in keys
            ]
            if names:  # a later phase, or the further of one phase, takes the place
                one = (", ".join(sorted(names)), phase, int(record["done"]), rank)
                before = found.get(folder.parent)
                if before is None or (before[3], before[2]) <= (rank, one[2]):
                    found[folder.parent] = one
    return [(name, phase, done) for name, phase, done, _ in found.values()]


def clear(store: Store) -> None:
    """Remove the checkpoints of finished steps and half-written ones; move aside what is no checkpoint."""
    root = _root(store)
    for path in _left_in(root) if root.is_dir() else ():
        store.clear_way(path, folder=True)
    for home in _homes(store):
        store.clear_way(home / _DRAFT, folder=True)
        shutil.rmtree(home / _DRAFT, ignore_errors=True)
        steps: dict[str, str] = {}
        for folder in _left_in(home):
            record = _read(folder)
            if record is None:
                aside = store.shown(store.set_aside(folder))
                store.warn(
                    f"{store.shown(folder)} now lies in {aside} (its record cannot be read); that work "
                    "starts again"
                )
            else:
                steps |= record["steps"]
        if all(store.holds(place, key) for key, place in steps.items()):
            for folder in _left_in(home):
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                home.rmdir()
    with contextlib.suppress(OSError):  # others may still lie there
        root.rmdir()


def _root(store: Store) -> Path:
    return store.root / "checkpoints"


def _left_in(folder: Path) -> list[Path]:
    """Return what lies in a folder, is not hidden and was not moved aside."""
    names = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in names if not is_aside(path))


def _homes(store: Store) -> list[Path]:
    root = _root(store)
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _name(keys: Iterable[str]) -> str:
    """Return the name of the folder for steps: the first digits of the key, or of the digest of all."""
    keys = sorted(keys)
    return (keys[0] if len(keys) == 1 else digest(keys))[:16]


def _serials(home: Path, phase: str) -> dict[int, Path]:
    """Return the checkpoints of a phase by serial number."""
    found = {path.name.removeprefix(f"{phase}-"): path for path in home.glob(f"{phase}-*")}
    return {int(serial): path for serial, path in found.items() if serial.isdecimal()}


def _records(store: Store, phase: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield every checkpoint of a phase that says what it is."""
    for home in _homes(store):
        for folder in _serials(home, phase).values():
            record = _read(folder)
            if record is not None:
                yield folder, record


def _read(folder: Path) -> dict[str, Any] | None:
    """Return what a checkpoint says of itself, or None."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "steps": dict, "weights": str, "environment": dict, "seconds": (int, float),
        "done": int, "record": dict, "files": dict,
    }  # fmt: skip
    try:
        record = read_json(folder / _RECORD)
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    if not all(isinstance(record.get(name), kind) for name, kind in kinds.items()):
        return None
    files = record["files"].values()
    whole = all(
        isinstance(one, dict)
        and isinstance(one.get("sha256"), str)
        and isinstance(one.get("file"), str)
        and Path(one["file"]).name == one["file"]
        for one in files
    )
    named = all(isinstance(place, str) for place in record["steps"].values())
    return record if whole and named and record["steps"] else None


def _write_parts(
    folder: Path,
    parts: Iterable[tuple[str, Mapping[str, torch.Tensor]]],
    deadline: float | None,
) -> dict[str, dict[str, str]] | None:
    """Write each part; return its file and hash by name, or None where the deadline has passed."""
    from safetensors.torch import save_file

    files = {}
    for index, (name, tensors) in enumerate(parts):
        path = folder / f"{index:04d}.safetensors"
        save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, path)
        files[name] = {"file": path.name, "sha256": file_hash(path)}
        if deadline is not None and time.monotonic() > deadline:
            return None
    return files
