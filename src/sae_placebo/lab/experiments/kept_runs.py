"""SAEs that an experiment has trained are kept in a folder, so that it goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import StoreError
from sae_placebo.core.spec import Spec, digest
from sae_placebo.saes import SAE, SAESpec

_FORMAT = 1
_TURNED = " turned"


@dataclass(frozen=True)
class KeptRuns:
    """Trained SAEs by the settings that they depend on; without a folder nothing is kept.

    Attributes:
        folder: Holds a file of tensors for each SAE. Files of other settings in it are left alone.
        settings: What all the SAEs depend on, by name.
    """

    folder: Path | None
    settings: dict[str, Spec]

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            StoreError: it cannot be made.
        """
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as problem:
                raise _unwritable(self.folder, problem) from None

    def has(self, way: str, seed: int) -> bool:
        """Return whether a whole file of the SAE is there that was trained in this way with this seed."""
        return self._tensors(way, seed) is not None

    def trained(self, way: str, seed: int, spec: SAESpec, train: Callable[[], SAE]) -> SAE:
        """Return an SAE from its file, or train it and write the file.

        Args:
            way: How it is trained; with the seed and the settings it says everything.
            seed: Seed of its training.
            spec: Settings of the SAE.
            train: Trains it.

        Raises:
            StoreError: the file cannot be written.
        """
        tensors = self._tensors(way, seed)
        if tensors is not None:
            return SAE(spec, tensors)
        sae = train()
        if self.folder is not None:
            from safetensors.torch import save_file

            path = self._path(way, seed)
            part = path.with_name(f".{path.name}.part")
            try:
                save_file(_laid_out(sae.params), part)
                part.replace(path)
            except OSError as problem:
                raise _unwritable(self.folder, problem) from None
        return sae

    def _tensors(self, way: str, seed: int) -> dict[str, Any] | None:
        """Return the tensors of a file; None where it is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if self.folder is None:
            return None
        try:
            tensors = load_file(self._path(way, seed))
        except (OSError, SafetensorError):
            return None
        return {
            name.removesuffix(_TURNED): tensor.t() if name.endswith(_TURNED) else tensor
            for name, tensor in tensors.items()
        }

    def _path(self, way: str, seed: int) -> Path:
        assert self.folder is not None
        settings = {name: spec.model_dump(mode="json") for name, spec in self.settings.items()}
        key = digest({**settings, "way": way, "seed": seed, "format": _FORMAT})[:20]
        return self.folder / f"{way}-{seed}-{key}.safetensors"


def _laid_out(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors as they lie in memory; one that is a transposed view is turned, and so is its name.

    How a matrix lies decides the order of sums in products with it, and so their last bits.
    """
    return {
        name if tensor.is_contiguous() else name + _TURNED: (
            tensor if tensor.is_contiguous() else tensor.t().contiguous()
        )
        for name, tensor in params.items()
    }


def _unwritable(folder: Path, problem: OSError) -> StoreError:
    reason = problem.strerror or problem
    return StoreError(
        f"cannot write trained SAEs to {str(folder)!r} ({reason}): give another folder"
    )
