"""The files of an arm's activations: values, norms, calibrations, lookup tables, and its W_E and W_U."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_placebo.core.lazy import torch
from sae_placebo.core.store import read_json, write_json
from sae_placebo.models.activations import Calibration
from sae_placebo.models.gaussian import GaussianNull


def write_harvest(
    folder: Path,
    activations: Mapping[str, torch.Tensor],
    calibrations: Mapping[str, Calibration],
) -> None:
    """Write held-out activations [token, d_in] in model units, and each hookpoint's calibration."""
    from safetensors.torch import save_file

    save_file(dict(activations), folder / "activations.safetensors")
    norms = {name: x.norm(dim=1) for name, x in activations.items()}
    save_file(norms, folder / "norms.safetensors")
    means = {name: one.mean for name, one in calibrations.items()}
    save_file(means, folder / "calibration.safetensors")
    record = {name: one.record() for name, one in calibrations.items()}
    write_json(folder / "calibration.json", record)


def read_calibrations(folder: Path) -> dict[str, Calibration]:
    """Return the calibration of each hookpoint."""
    from safetensors.torch import load_file

    means, records = (
        load_file(folder / "calibration.safetensors"),
        read_json(folder / "calibration.json"),
    )
    return {name: Calibration(mean=means[name], **record) for name, record in records.items()}


def read_activations(folder: Path, hookpoint: str) -> torch.Tensor:
    """Return the held-out activations [token, d_in] of one hookpoint."""
    from safetensors import safe_open

    with safe_open(folder / "activations.safetensors", framework="pt") as stream:
        tensor: torch.Tensor = stream.get_tensor(hookpoint)
    return tensor


def outliers(folder: Path, hookpoint: str) -> np.ndarray:
    """Return which held-out tokens that were read exceed the arm's norm limit: bool [token]."""
    from safetensors.torch import load_file

    limit = read_calibrations(folder)[hookpoint].norm_limit
    norms = load_file(folder / "norms.safetensors")[hookpoint]
    return np.asarray((norms > limit).numpy())


def write_drawn(folder: Path, diagnostics: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what the law of activations that were drawn is like, by hookpoint."""
    write_json(folder / "drawn.json", diagnostics)


def read_drawn(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what `write_drawn` wrote; nothing where a model was read."""
    path = folder / "drawn.json"
    found: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}
    return found


def write_repeats(folder: Path, repeats: Mapping[str, torch.Tensor]) -> None:
    """Write the activations on random blocks, if any, as `<hookpoint>.fresh` and `<hookpoint>.repeated`."""
    from safetensors.torch import save_file

    save_file(dict(repeats), folder / "repeats.safetensors")


def read_repeats(folder: Path, hookpoint: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the activations of one hookpoint on fresh and on repeated blocks.

    None is returned where no model was read.
    """
    from safetensors.torch import load_file

    found = load_file(folder / "repeats.safetensors")
    if f"{hookpoint}.fresh" not in found:
        return None
    return found[f"{hookpoint}.fresh"], found[f"{hookpoint}.repeated"]


def write_lookup(folder: Path, tables: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Write each hookpoint's table E[x | token]."""
    from safetensors.torch import save_file

    named = {}
    for hookpoint, (ids, table) in tables.items():
        named[f"{hookpoint}.ids"], named[f"{hookpoint}.table"] = ids, table
    save_file(named, folder / "lookup.safetensors")


def read_lookup(folder: Path, hookpoint: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids seen in training [entry] and their table [entry + 1, d_in]."""
    from safetensors import safe_open

    with safe_open(folder / "lookup.safetensors", framework="pt") as stream:
        return stream.get_tensor(f"{hookpoint}.ids"), stream.get_tensor(f"{hookpoint}.table")


def read_gaussian(folder: Path, hookpoint: str, sae: str) -> GaussianNull:
    """Return the Gaussian null of one recipe; all its SAE seeds share it."""
    (record,) = read_json(folder / "gaussian.json")[hookpoint][sae].values()
    return GaussianNull(**record)


def write_heads(folder: Path, heads: Mapping[str, torch.Tensor | None]) -> None:
    """Write W_E and W_U of an arm's model, as far as it has them."""
    from safetensors.torch import save_file

    save_file(
        {n: t.contiguous() for n, t in heads.items() if t is not None}, folder / "heads.safetensors"
    )


def read_head(folder: Path, name: str) -> torch.Tensor | None:
    """Return `embedding` or `unembedding` of an arm's model, if it has it: float32 [vocabulary, width]."""
    from safetensors import safe_open

    with safe_open(folder / "heads.safetensors", framework="pt") as stream:
        if name not in set(stream.keys()):
            return None
        found: torch.Tensor = stream.get_tensor(name)
    return found.float()
