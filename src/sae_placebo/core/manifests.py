"""An artefact has a manifest that says what it is; its folder is checked against that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_placebo.core.sealing import (
    are_facts,
    change_of,
    entries,
    facts_of,
    read_json,
    seal_is_broken,
)
from sae_placebo.core.spec import digest

MANIFEST = "manifest.json"

# what every manifest holds; those of the first versions lack the last two
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "stage": str, "name": str, "version": int, "key": str, "inputs": list, "files": dict,
}  # fmt: skip
_LATER: Mapping[str, type | tuple[type, ...]] = {"environment": dict, "seconds": (int, float)}


class Damage(Exception):
    """The artefact is damaged; the message says how, in words that follow its name in brackets."""


class Foreign(Damage):
    """The artefact is whole, but it is that of another step."""


def key_of(stage: str, version: int, settings: Any, inputs: Any) -> str:
    """Return the hash of everything that decides an artefact's content: 64 hexadecimal digits."""
    return digest([stage, version, settings, inputs])


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return an artefact's manifest, whose parts have the right types and belong together.

    Raises:
        Damage: there is none, or it is not what was written.
        PermissionError: it may not be read.
    """
    try:
        manifest = read_json(folder / MANIFEST)
    except FileNotFoundError:
        raise Damage(f"{MANIFEST} is missing") from None
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise Damage(f"{MANIFEST} cannot be read: {why}") from None
    if not isinstance(manifest, dict) or not _types_fit(manifest):
        raise Damage(f"{MANIFEST} lacks a part, or has one of another type")
    parts = (manifest[part] for part in ("stage", "version", "settings", "inputs"))
    if seal_is_broken(manifest) or key_of(*parts) != manifest["key"]:
        raise Damage(f"{MANIFEST} has changed since it was written")
    if not manifest["files"]:
        raise Damage(f"{MANIFEST} names no files")
    return manifest


def _types_fit(manifest: Mapping[str, Any]) -> bool:
    given = {**_KINDS, **{name: kind for name, kind in _LATER.items() if name in manifest}}
    return (
        "settings" in manifest
        and all(isinstance(manifest.get(name), kind) for name, kind in given.items())
        and all(isinstance(key, str) for key in manifest["inputs"])
        and are_facts(manifest["files"])
    )


def check(folder: Path, key: str, *, hashed: bool = True) -> dict[str, Any]:
    """Return the manifest of the artefact with this key, all of whose files are as they were written.

    Args:
        folder: Where it lies.
        key: What it must be the artefact of.
        hashed: Hash the files; else their sizes alone are compared.

    Raises:
        Foreign: it is the artefact of another key.
        Damage: anything else is wrong with it.
        PermissionError: something in it may not be read.
    """
    if not folder.is_dir():
        raise Damage("it is not a folder")
    manifest = read_manifest(folder)
    if manifest["key"] != key:
        raise Foreign(f"it is that of {shown(manifest)}")
    for name, facts in manifest["files"].items():
        changed = change_of(folder / name, facts, hashed=hashed)
        if changed is not None:
            raise Damage(f"{name} {changed}")
    return manifest


def shown(manifest: Mapping[str, Any]) -> str:
    """Return where the artefact of a manifest belongs, `<stage>/<name>-<key>`, fit for a terminal."""
    place = f"{manifest['stage']}/{manifest['name']}-{manifest['key'][:16]}"
    return place if place.isprintable() else repr(place)


def added(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what lies in an artefact's folder and does not belong to it, other than hidden files."""
    files = manifest["files"]
    for name in entries(folder):
        hidden = any(part.startswith(".") for part in name.split("/"))
        leads = any(
            file.startswith(f"{name}/") for file in files
        )  # a link to a folder of the files
        if name != MANIFEST and name not in files and not hidden and not leads:
            yield name


def filled(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and hash of every file that a stage has written into a folder.

    Raises:
        ValueError: it wrote none.
    """
    files = facts_of(folder)
    if not files:
        raise ValueError(f"a stage wrote no files into {folder}")
    return files
