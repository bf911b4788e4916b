"""The corpus: Python code and documentation of the interpreter and of this project's dependencies.

Only what is installed beside the project is read, so the corpus is known by the packages' versions
and by a hash of its content.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import pydoc_data.topics
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_placebo.data.text import library_files

# import name -> distribution: dependencies, direct and indirect; licenses are in docs/pylm.md
PACKAGES = {
    "PIL": "pillow",
    "accelerate": "accelerate",
    "beartype": "beartype",
    "filelock": "filelock",
    "fsspec": "fsspec",
    "gguf": "gguf",
    "huggingface_hub": "huggingface_hub",
    "hypothesis": "hypothesis",
    "jaxtyping": "jaxtyping",
    "jinja2": "Jinja2",
    "mpmath": "mpmath",
    "narwhals": "narwhals",
    "networkx": "networkx",
    "numpy": "numpy",
    "packaging": "packaging",
    "pandas": "pandas",
    "pip": "pip",
    "plotly": "plotly",
    "pyarrow": "pyarrow",
    "pydantic": "pydantic",
    "pygments": "Pygments",
    "_pytest": "pytest",
    "rich": "rich",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "sympy": "sympy",
    "torch": "torch",
    "tqdm": "tqdm",
    "transformers": "transformers",
    "typer": "typer",
}
# tests, what a program wrote, and the near-copies that model collections are made of
_LEFT_OUT = {
    "test", "tests", "testing", "__pycache__", "graph_objs", "validators", "models", "locale",
    "_generated", "lexers", "package_data",
}  # fmt: skip
_PROSE = {".md", ".rst", ".txt"}
_PACKAGE_BYTES = 12_000_000
_DOCUMENT_CHARACTERS = 60_000
SHARES = {"heldout": 0.03, "dev": 0.01}


@dataclass(frozen=True)
class Document:
    """One file of the corpus."""

    name: str
    text: str
    split: str


def documents() -> Iterator[Document]:
    """Yield every document once, sorted by name within its package; exact copies are dropped."""
    seen: set[bytes] = set()
    for name, text in _texts():
        content = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        if content in seen or not text.strip():
            continue
        seen.add(content)
        yield Document(name, text[:_DOCUMENT_CHARACTERS], split_of(name))


def split_of(name: str) -> str:
    """Return a document's split: by its name alone, so that adding a package moves no document."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return "train"


def _texts() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    yield from _read((f"python/{p.relative_to(root).as_posix()}", p) for p in library_files())
    for topic, text in sorted(pydoc_data.topics.topics.items()):
        yield f"python/topics/{topic}.rst", text
    site = Path(sysconfig.get_path("purelib"))
    for package, distribution in PACKAGES.items():
        yield from _read(_package(site, package))
        about = importlib.metadata.metadata(distribution).get_payload()
        if isinstance(about, str):
            yield f"{package}/README", about


def _package(site: Path, package: str) -> list[tuple[str, Path]]:
    """Return a package's files in an order without pattern, up to so many bytes."""
    files = [
        (path.relative_to(site).as_posix(), path)
        for path in (site / package).rglob("*")
        if path.suffix in {".py", *_PROSE} and not _LEFT_OUT & set(path.relative_to(site).parts)
    ]
    files.sort(key=lambda file: hashlib.sha256(file[0].encode()).digest())
    sizes = np.cumsum([path.stat().st_size for _, path in files]) if files else np.zeros(0)
    return sorted(files[: int((sizes <= _PACKAGE_BYTES).sum())])


def _read(files: Any) -> Iterator[tuple[str, str]]:
    for name, path in files:
        try:
            yield name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a few files declare another encoding


def versions() -> dict[str, str]:
    """Return the version of everything that the corpus is made of."""
    found = {name: importlib.metadata.version(name) for name in sorted(PACKAGES.values())}
    return {"python": platform.python_version(), **found}


def sha256(found: list[Document]) -> str:
    """Return the hash of the corpus: names, splits and text, in order."""
    total = hashlib.sha256()
    for document in found:
        total.update(
            f"{document.name}\0{document.split}\0{document.text}\0".encode(errors="replace")
        )
    return total.hexdigest()
