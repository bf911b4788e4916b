"""JSON files, hashes of files and sealed records tell whether what was written is still as it was.

A sealed record holds the hash of all the rest of it, so that a value that was changed by hand or by a
failing disk is noticed. Records of older versions have no seal and are read as they are.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sae_placebo.core.spec import canonical, digest

_SEAL = "seal"


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
    """Return the JSON value in `path`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not hold JSON.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would never end
        raise OSError(errno.EINVAL, "not a file", str(path))
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with its seal, the hash of its content, in place of any seal that it had."""
    content = {name: value for name, value in record.items() if name != _SEAL}
    return content | {_SEAL: digest(json.loads(canonical(content)))}


def seal_is_broken(record: Mapping[str, Any]) -> bool:
    """Return whether a sealed record has changed since; False for one without a seal."""
    return _SEAL in record and sealed(record)[_SEAL] != record[_SEAL]


def facts_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the size in bytes and the SHA-256 of every file below a folder, by its path there."""
    return {name: fact(folder / name) for name in entries(folder) if (folder / name).is_file()}


def fact(path: Path) -> dict[str, Any]:
    """Return a file's size in bytes and its SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": file_hash(path)}


def entries(folder: Path) -> Iterator[str]:
    """Yield the path of everything below a folder that is not a folder itself, in order of names."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from (f"{path.name}/{name}" for name in entries(path))
        else:
            yield path.name


def are_facts(files: Any) -> bool:
    """Return whether a value from a file is what `facts_of` returns: plain paths, sizes and hashes."""
    return isinstance(files, dict) and all(
        _is_inside(name)
        and isinstance(facts, dict)
        and type(facts.get("bytes")) is int
        and isinstance(facts.get("sha256"), str)
        for name, facts in files.items()
    )


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and name.isprintable() and ".." not in parts and not name.startswith("/")


def change_of(path: Path, facts: Mapping[str, Any], *, hashed: bool = True) -> str | None:
    """Return how a file differs from what was written, in words that follow its name; None if it does not.

    Args:
        path: The file.
        facts: Its size and hash when it was written.
        hashed: Hash it; else its size alone is compared.

    Raises:
        PermissionError: it may not be read.
    """
    if not path.is_file():
        there = path.exists() or path.is_symlink()
        return "is no longer a file" if there else "is missing"
    size = path.stat().st_size
    if size != facts["bytes"]:
        return f"has {size:,} bytes where {facts['bytes']:,} were written"
    try:
        if hashed and file_hash(path) != facts["sha256"]:
            return "has other bytes than were written"
    except PermissionError:
        raise
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None
