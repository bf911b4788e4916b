"""`read_sae` reads an SAE that another library trained, whatever the format: it is recognised by content."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from sae_placebo.core.errors import StoreError
from sae_placebo.core.file_names import name_fault, shown_name
from sae_placebo.core.lazy import torch
from sae_placebo.saes.formats import hub
from sae_placebo.saes.formats.base import FORMATS, Candidate, Format
from sae_placebo.saes.formats.given import Given
from sae_placebo.saes.formats.tensor_files import INDEX, open_tensors

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_UNIT = 1e-3
_DOCUMENTED = "ae.pt"
"""The one `.pt` that is opened without being named: what dictionary_learning puts into each of its
folders."""


def read_sae(source: str | Path, revision: str | None = None) -> Given:
    """Return an SAE that another library trained, ready for raw activations.

    Formats are those of `FORMATS`, recognised by the names of the tensors and by what lies beside them,
    never by the names of folders. Everything is read as float32. Reading holds little more than the result:
    1.02 to 1.09 times its size at [65,536, 2,304] in float32.

    Nothing of a file is executed. A `.pt` is opened by torch's weights-only loader, and only where `source`
    is that file, or where a folder has both `ae.pt` and the `config.json` of dictionary_learning.

    Args:
        source: A folder, a file of tensors in one, or the name of a repository on the Hugging Face hub with
            or without a folder in it (`owner/name/layer_20/width_16k/average_l0_71`).
        revision: Branch, tag or commit of a repository on the hub.

    Raises:
        StoreError: there is no such file; it is damaged, of no known format, or of two; its architecture or
            a setting is not computed here; or its tensors have the wrong shapes, or hold NaN.
    """
    if (fault := name_fault(source)) is not None:
        raise StoreError(f"the name of an SAE, {shown_name(source)}, {fault}")
    path = Path(source)
    if not path.exists():
        text = os.fspath(source)
        if not hub.is_hub_id(text):
            raise StoreError(
                f"{shown_name(text)} is neither a file nor a folder, nor a name on the hub"
            )
        path = hub.fetched(text, revision)
    files = _files_of(path) if path.is_dir() else [path]
    found = [
        (candidate, known)
        for candidate in (Candidate(open_tensors(file)) for file in files)
        for known in FORMATS.entries.values()
        if known.recognises(candidate)
    ]
    if not found:
        raise StoreError(_nothing(path))
    if len(found) > 1:
        raise StoreError(_several(path, found))
    candidate, known = found[0]
    return _with_norms(known.read(candidate))


def _with_norms(given: Given) -> Given:
    """Return the same SAE, with a note on its decoder's norms where they are not those of SAEs made here."""
    norms = torch.linalg.vector_norm(given.sae.params["W_dec"], dim=1)
    low, high = float(norms.min()), float(norms.max())
    if low > 1 - _UNIT and high < 1 + _UNIT:
        return given
    note = f"Decoder rows have norms from {low:.4g} to {high:.4g}; rows of SAEs trained here have norm 1."
    return replace(given, notes=(*given.notes, note))


def _files_of(folder: Path) -> list[Path]:
    """Return the files of tensors in a folder that are opened without being named."""
    inside = sorted(path for path in folder.iterdir() if path.is_file())
    indices = [path for path in inside if path.name.endswith(".safetensors" + INDEX)]
    # a table of shards stands for them
    stems = tuple(path.name.removesuffix(".safetensors" + INDEX) for path in indices)
    files = [
        path
        for path in inside
        if path.suffix == ".npz"
        or (path.suffix == ".safetensors" and not (stems and path.name.startswith(stems)))
    ]
    if (folder / _DOCUMENTED).is_file() and (folder / "config.json").is_file():
        files.append(folder / _DOCUMENTED)
    return indices + files


def _nothing(path: Path) -> str:
    titles = ", ".join(known.title for known in FORMATS.entries.values())
    if not path.is_dir():
        return f"{path} holds no SAE of a format that is read: {titles}"
    inside = [file.name for file in path.iterdir() if file.is_file()]
    pickles = sorted(name for name in inside if name.endswith(_PICKLES))
    if pickles:
        return (
            f"{path} holds no SAE in a file of tensors, and the pickle {pickles[0]} is not opened unasked; "
            "if it is a .pt of dictionary_learning, name the file itself"
        )
    below = sorted({file.parent for file in path.glob("*/*") if file.suffix == ".safetensors"})
    more = f"; {below[0]} may" if below else ""
    return f"{path} holds no SAE of a format that is read ({titles}){more}"


def _several(path: Path, found: list[tuple[Candidate, Format]]) -> str:
    listed = ", ".join(
        f"{candidate.weights.path.name} ({known.title})" for candidate, known in found
    )
    return f"{path} holds more than one SAE: {listed}; name the file that is meant"
