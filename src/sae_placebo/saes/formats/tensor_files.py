"""Files of tensors are opened and read here: safetensors, npz, and `.pt` by torch's weights-only loader.

A tensor is copied into float32 a block of rows at a time, so that reading never holds more than the result
and one block; a mapped file is mapped anew for each block, so that its pages are let go. Every value is
checked: NaN and infinity are refused.
"""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import StoreError
from sae_placebo.core.lazy import torch

INDEX = ".index.json"
"""What the name of a table of shards ends in, behind the name of the whole file."""
_BLOCK_BYTES = 16 * 2**20
_POINTER = b"version https://git-lfs.github.com/spec"
_HALF = ("bfloat16", "float16")


class TensorFile(ABC):
    """A file of named tensors, open for reading.

    Attributes:
        path: The file.
        shapes: The shape of every tensor, by name.
        types: The name of every tensor's type, as torch calls it: `float32`, `bfloat16`, `int64`.
        values: What the file holds beside tensors, by name; `.pt` files alone can.
    """

    def __init__(self, path: Path) -> None:
        """Open `path` and learn the names, shapes and types of its tensors; no tensor is read.

        Raises:
            StoreError: the file is missing, damaged, or not of its kind.
        """
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Fill `shapes`, `types` and `values`."""

    @abstractmethod
    def _blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        """Yield a tensor's rows in order, `rows` at a time; each block may be void after the next.

        A tensor without rows, a number, is yielded whole.
        """

    def _stored(self, name: str) -> tuple[tuple[int, ...], bool]:
        """Return the shape in which a tensor is stored, and whether it is that of the transpose."""
        return self.shapes[name], False

    @property
    def names(self) -> frozenset[str]:
        """Return the names of all tensors."""
        return frozenset(self.shapes)

    def need(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuse a file that lacks one of these tensors, or has one of another shape.

        Raises:
            StoreError: it does; the sentence names the tensors.
        """
        if missing := [name for name in shapes if name not in self.shapes]:
            raise StoreError(
                f"{self.path} lacks {', '.join(missing)}; it holds {_listed(self.shapes)}"
            )
        for name, shape in shapes.items():
            if self.shapes[name] != tuple(shape):
                raise StoreError(
                    f"{self.path}: {name} is {list(self.shapes[name])}, but its other tensors and its "
                    f"settings need {list(shape)}"
                )

    def matrix(self, name: str) -> tuple[int, int]:
        """Return the shape of a tensor that must be a matrix.

        Raises:
            StoreError: the tensor is missing, or has another number of dimensions.
        """
        if name not in self.shapes:
            self.need({name: ()})
        shape = self.shapes[name]
        if len(shape) != 2 or 0 in shape:
            raise StoreError(f"{self.path}: {name} is {list(shape)}, and a matrix is needed")
        return shape[0], shape[1]

    def half_precision(self, names: Sequence[str]) -> list[str]:
        """Return those of `names` that are stored in 16 bits."""
        return [name for name in names if self.types.get(name) in _HALF]

    def read(
        self, name: str, transposed: bool = False, finite: bool = True
    ) -> Float[torch.Tensor, "..."]:
        """Return a tensor as float32, in memory of its own, row after row.

        Args:
            name: One of `names`.
            transposed: Whether the transpose of a matrix is returned, itself row after row.
            finite: Whether NaN and infinity are refused.

        Raises:
            StoreError: a value is NaN or infinite, or the file is damaged.
        """
        shape, turned = self._stored(name)
        transposed = transposed != turned
        out = torch.empty(shape[::-1] if transposed else shape, dtype=torch.float32)
        start = 0
        rows = max(1, _BLOCK_BYTES // (4 * max(1, math.prod(shape[1:]))))
        for block in self._blocks(name, rows):
            checked = finite and block.is_floating_point()
            if checked and not bool(torch.isfinite(block).all()):
                raise StoreError(f"{self.path}: {name} holds NaN or infinite values")
            if not shape:
                out.copy_(block)
            elif transposed:
                out[:, start : start + len(block)] = block.t()
            else:
                out[start : start + len(block)] = block
            start += len(block) if shape else 0
        if shape and start != shape[0]:
            raise StoreError(f"{self.path}: {name} is cut short; fetch the file again")
        return out

    def number(self, name: str) -> float:
        """Return a tensor that holds one value.

        Raises:
            StoreError: it is missing, holds more than one value, or is NaN or infinite.
        """
        if name not in self.shapes:
            self.need({name: ()})
        if math.prod(self.shapes[name]) != 1:
            raise StoreError(
                f"{self.path}: {name} is {list(self.shapes[name])}, and one number is needed"
            )
        return float(self.read(name))


class SafetensorsFile(TensorFile):
    """A `.safetensors` file."""

    def _open(self) -> None:
        from safetensors import SafetensorError, safe_open

        check_file(self.path)
        try:
            with safe_open(self.path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it has no iterator
                    part = file.get_slice(name)
                    self.shapes[name] = tuple(part.get_shape())
                    self.types[name] = _SAFETENSORS.get(part.get_dtype(), part.get_dtype())
        except (OSError, SafetensorError) as problem:
            raise StoreError(
                f"{self.path} is cut short or no safetensors file ({problem}); fetch it again"
            ) from problem

    def _blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        from safetensors import safe_open

        if not self.shapes[name]:
            with safe_open(self.path, framework="pt") as file:
                yield file.get_tensor(name)
            return
        for start in range(0, self.shapes[name][0], rows):
            with safe_open(self.path, framework="pt") as file:
                yield file.get_slice(name)[start : start + rows]


_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
}


class ShardedFile(TensorFile):
    """Safetensors in several files, which a table names: `<name>.safetensors.index.json`."""

    def _open(self) -> None:
        table = read_settings(self.path).get("weight_map")
        if not isinstance(table, dict) or not all(isinstance(n, str) for n in table.values()):
            raise StoreError(f"{self.path} holds no table 'weight_map' of tensors and their files")
        self._shard: dict[str, SafetensorsFile] = {}
        shards: dict[str, SafetensorsFile] = {}
        for name, file in table.items():
            if Path(file).name != file:
                raise StoreError(f"{self.path} names a file outside of its folder ({file!r:.80})")
            if not (self.path.parent / file).is_file():
                raise StoreError(f"{self.path} names the shard {file}, which is not there")
            shard = shards.get(file) or shards.setdefault(
                file, SafetensorsFile(self.path.parent / file)
            )
            if name not in shard.shapes:
                raise StoreError(f"{shard.path} lacks {name}, which {self.path.name} says it holds")
            self._shard[name] = shard
            self.shapes[name], self.types[name] = shard.shapes[name], shard.types[name]

    def _blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        return self._shard[name]._blocks(name, rows)


class NpzFile(TensorFile):
    """A `.npz` file of NumPy, whose arrays are read one after another without unpickling."""

    def _open(self) -> None:
        check_file(self.path)
        self._turned: set[str] = set()
        try:
            with zipfile.ZipFile(self.path) as archive:
                for entry in archive.namelist():
                    with archive.open(entry) as file:
                        shape, turned, kind = self._header(file, entry)
                    name = entry.removesuffix(".npy")
                    self.shapes[name], self.types[name] = shape, kind.name
                    self._turned |= {name} if turned else set()
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as problem:
            raise StoreError(
                f"{self.path} is cut short or no npz file ({problem}); fetch it again"
            ) from problem

    def _header(self, file: Any, entry: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
        """Return an array's shape, whether it lies column after column, and its type."""
        version = np.lib.format.read_magic(file)
        reader = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            reader = np.lib.format.read_array_header_2_0
        shape, fortran, kind = reader(file)
        if kind.hasobject:
            raise StoreError(f"{self.path}: {entry} is pickled, and nothing is unpickled")
        return shape, fortran and len(shape) > 1, kind

    def _stored(self, name: str) -> tuple[tuple[int, ...], bool]:
        turned = name in self._turned
        return (self.shapes[name][::-1] if turned else self.shapes[name]), turned

    def _blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        entry = f"{name}.npy"
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(entry) as file:
                kind = self._header(file, entry)[2]
                shape, _ = self._stored(name)
                width = math.prod(shape[1:]) * kind.itemsize
                for start in range(0, shape[0] if shape else 1, rows):
                    count = min(rows, shape[0] - start) if shape else 1
                    data = bytearray(file.read(count * width))
                    if len(data) != count * width:
                        raise StoreError(f"{self.path}: {entry} is cut short; fetch the file again")
                    block = np.frombuffer(data, dtype=kind).reshape((count, *shape[1:]))
                    yield torch.from_numpy(block if shape else block.reshape(()))
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as problem:
            raise StoreError(f"{self.path} is damaged ({problem}); fetch it again") from problem


class PtFile(TensorFile):
    """A `.pt` file that holds a table of tensors, read by torch's weights-only loader alone.

    That loader builds tensors, numbers, texts and tables of these, and refuses everything else: no code
    of the file is run. Where the table has a table `ae` inside, as dictionary_learning's backups have, the
    tensors are those of `ae`. A prefix that `torch.compile` puts before names is left out.
    """

    _COMPILED = "_orig_mod."

    def _open(self) -> None:
        check_file(self.path)
        if not zipfile.is_zipfile(self.path):
            raise StoreError(
                f"{self.path} is cut short, or not in the form that torch.save writes since torch 1.6"
            )
        table = self._table()
        inner = table.get("ae")
        if isinstance(inner, dict):
            for key, value in table.items():
                if isinstance(value, torch.Tensor) and value.ndim == 0:
                    value = value.item()
                if isinstance(value, int | float | str):
                    self.values[key] = value
            self.values["ae"] = True
        for name, value in (inner if isinstance(inner, dict) else table).items():
            if not isinstance(value, torch.Tensor):
                raise StoreError(
                    f"{self.path}: {name!r:.80} is no tensor but of type {type(value).__name__}"
                )
            short = str(name).removeprefix(self._COMPILED)
            self.shapes[short] = tuple(value.shape)
            self.types[short] = str(value.dtype).removeprefix("torch.")

    def _table(self) -> dict[Any, Any]:
        try:
            table = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as problem:
            raise StoreError(
                f"{self.path} holds more than tensors, and nothing else is unpickled; load it where you "
                "trust it and save its state dict alone"
            ) from problem
        except (OSError, RuntimeError, ValueError, KeyError, EOFError) as problem:
            said = " ".join(str(problem).split())[:200]
            raise StoreError(f"{self.path} is damaged ({said}); fetch it again") from problem
        if not isinstance(table, dict):
            raise StoreError(
                f"{self.path} holds no table of tensors but a {type(table).__name__}; save a state dict"
            )
        return table

    def _tensor(self, name: str) -> torch.Tensor:
        table = self._table()
        inner = table["ae"] if "ae" in self.values else table
        found: torch.Tensor = inner[name if name in inner else self._COMPILED + name]
        return found

    def _blocks(self, name: str, rows: int) -> Iterator[torch.Tensor]:
        shape = self.shapes[name]
        if not shape:
            yield self._tensor(name)
            return
        for start in range(0, shape[0], rows):
            yield self._tensor(name)[start : start + rows]  # mapped anew: pages read are let go


_KINDS: Mapping[str, type[TensorFile]] = {
    ".safetensors": SafetensorsFile,
    ".npz": NpzFile,
    ".pt": PtFile,
    INDEX: ShardedFile,
}


def open_tensors(path: Path) -> TensorFile:
    """Return the file of tensors at `path`, opened by the ending of its name.

    Raises:
        StoreError: it has another ending, is missing, or is damaged.
    """
    for ending, kind in _KINDS.items():
        if path.name.endswith(ending):
            return kind(path)
    raise StoreError(
        f"{path} is no file of tensors that is read: {', '.join(_KINDS)} are. Pickles under other names are "
        "never opened; load them where you trust them and save the tensors as safetensors"
    )


def check_file(path: Path) -> None:
    """Refuse a file that is missing, empty, a pointer of git-lfs, or a web page.

    Raises:
        StoreError: it is.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as problem:
        raise StoreError(f"cannot read {path}: {problem.strerror}") from problem
    if head.startswith(_POINTER):
        raise StoreError(f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull`")
    if not head:
        raise StoreError(f"{path} is empty; fetch it again")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise StoreError(f"{path} is a web page, not the file itself; fetch it again")


def read_settings(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        StoreError: the file is missing, is not JSON, or holds something else.
    """
    check_file(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise StoreError(f"{path} is not valid JSON ({problem}); fetch it again") from problem
    if not isinstance(found, dict):
        raise StoreError(f"{path} holds {type(found).__name__}, not an object of settings")
    return found


def _listed(names: Mapping[str, Any]) -> str:
    some = sorted(names)[:12]
    return ", ".join(some) + (", ..." if len(names) > 12 else "") if some else "no tensor"
