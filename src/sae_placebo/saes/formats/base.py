"""What a format of another library is: how it is recognised, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import SpecError, StoreError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import Registry
from sae_placebo.saes.base import SAE, SAESpec, parse_sae
from sae_placebo.saes.formats.given import Given
from sae_placebo.saes.formats.tensor_files import TensorFile, read_settings


@dataclass(frozen=True)
class Candidate:
    """A file of tensors in which an SAE may be, and the folder around it."""

    weights: TensorFile

    @property
    def folder(self) -> Path:
        """Return the folder that holds the file."""
        return self.weights.path.parent

    def settings(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file of the folder.

        Raises:
            StoreError: the file is missing, or holds something else.
        """
        path = self.folder / name
        if not path.is_file():
            raise StoreError(f"{self.weights.path} needs {name} beside it, which is not there")
        return read_settings(path)


@dataclass(frozen=True)
class Format:
    """A format of another library.

    Attributes:
        name: What it is called in `Given.format`.
        title: What it is called in messages.
        recognises: Whether a file of tensors is of this format, by the names of its tensors and what lies
            beside it. It looks at content alone, and never raises.
        read: Reads it.
    """

    name: str
    title: str
    recognises: Callable[[Candidate], bool]
    read: Callable[[Candidate], Given]


FORMATS: Registry[Format] = Registry("format of SAEs")
"""Every format that is read, by name."""


@dataclass
class Remarks:
    """What a reader has to say about a file while it reads it."""

    path: Path
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Say what was changed or assumed."""
        self.notes.append(sentence)

    def warn(self, sentence: str) -> None:
        """Say what may be wrong with the numbers."""
        self.warnings.append(sentence)

    def refuse(self, sentence: str) -> StoreError:
        """Return the refusal of the file."""
        return StoreError(f"{self.path}: {sentence}")

    def precision(self, weights: TensorFile, names: Iterable[str]) -> None:
        """Say which tensors are stored in 16 bits, and warn where a threshold is."""
        half = weights.half_precision(sorted(names))
        if half:
            types = ", ".join(sorted({weights.types[name] for name in half}))
            self.note(f"{', '.join(half)} are stored as {types} and were cast to float32.")
        if rounded := [name for name in half if "threshold" in name]:
            self.warn(
                f"{', '.join(rounded)} is stored in 16 bits: codes near it may be on the other side of it "
                "than in training."
            )


def make_sae(
    kind: str, params: Mapping[str, torch.Tensor], remarks: Remarks, settings: Mapping[str, Any]
) -> SAE:
    """Return an SAE of `kind` with these tensors, laid out as this package lays out its own.

    How it was trained is not known: settings of training have their defaults, and a penalty has weight 0.

    Args:
        kind: A kind of `SAES`.
        params: All its tensors, under our names.
        remarks: Of the file.
        settings: Those that encoding depends on, such as `k`, and others that are known.

    Raises:
        StoreError: a setting is out of range.
    """
    table: dict[str, Any] = {"kind": kind, "d_sae": len(params["W_dec"]), **settings}
    if kind in ("relu", "gated", "jumprelu"):
        table["coefficient"] = 0.0
    try:
        spec: SAESpec = parse_sae(table)
    except SpecError as problem:
        raise remarks.refuse(str(problem)) from problem
    return SAE(spec, {name: params[name] for name in spec.parameters})


def encoder_by_latents(weights: TensorFile, name: str, linear: bool) -> torch.Tensor:
    """Return `W_enc` [d_in, d_sae], which lies in memory latent by latent.

    Args:
        weights: The file.
        name: The matrix in it.
        linear: Whether it is stored as [d_sae, d_in], as `torch.nn.Linear` does.
    """
    return weights.read(name, transposed=not linear).t()


def prefixes(ends: list[Any], d_sae: int, remarks: Remarks) -> list[float]:
    """Return the ends of nested prefixes as shares of `d_sae`; the last is always whole.

    Raises:
        StoreError: they are no ascending whole numbers up to `d_sae`.
    """
    whole = all(isinstance(end, int) and 0 < end <= d_sae for end in ends)
    if not (whole and sorted(set(ends)) == ends):
        raise remarks.refuse(f"the widths of its prefixes, {ends!r:.80}, do not nest up to {d_sae}")
    if ends[-1:] != [d_sae]:
        ends = [*ends, d_sae]
    return [end / d_sae for end in ends]
