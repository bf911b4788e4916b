"""A damaged file of a model is refused in one sentence that names it. This needs no torch."""

from __future__ import annotations

import json
from pathlib import Path

from sae_placebo.core.errors import ModelError

_POINTER = b"version https://git-lfs.github.com/spec"
"""What a file begins with that git-lfs has not fetched."""


def no_json(path: Path, error: Exception) -> ModelError:
    """Return the refusal of a file that is not JSON, as `error` says."""
    with path.open("rb") as file:
        pointer = file.read(len(_POINTER)) == _POINTER
    if pointer:
        return ModelError(_lfs_sentence(path))
    return ModelError(f"{path} is not valid JSON: {error}; mend it or fetch it again.")


def _lfs_sentence(path: Path) -> str:
    return (
        f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` in its repository."
    )


def damage(path: Path) -> str | None:
    """Return what is wrong with a model's file as a file, and what to do; None where nothing is.

    Weights must be whole safetensors, `.json` must be JSON, and no file a pointer of git-lfs or empty.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(_POINTER):
        return _lfs_sentence(path)
    if size == 0:
        return f"{path} is empty; fetch it again."
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return f"{path} is a web page, not the file itself; fetch it again."
    if path.suffix == ".safetensors" and not _is_whole(path, size):
        return (
            f"{path} ({size:,} bytes) is cut short or no safetensors file, as after a download that broke "
            "off; fetch it again."
        )
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            return f"{path} is not valid JSON ({error}); fetch it again."
    return None


def _is_whole(path: Path, size: int) -> bool:
    """Return whether a safetensors file has a header, and the bytes that its header tells of."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [
                part["data_offsets"][1] for key, part in header.items() if key != "__metadata__"
            ]
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return False
    return bool(8 + length + max(ends, default=0) == size)
