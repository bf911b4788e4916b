"""The files of numbers: tables as parquet, and values under document weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_placebo.core.lazy import pandas


def write_table(path: Path, table: Any) -> None:
    """Write a data frame as parquet, without its index."""
    table.to_parquet(path, index=False)


def read_table(path: Path) -> Any:
    """Return the data frame in a parquet file."""
    return pandas.read_parquet(path)


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a list of flat records as parquet."""
    write_table(path, pandas.DataFrame(list(records)))


def read_replicates(folder: Path) -> dict[str, np.ndarray]:
    """Return metric -> [replicate] of one SAE."""
    from safetensors.numpy import load_file

    return dict(load_file(folder / "replicates.safetensors"))


def write_replicates(folder: Path, replicates: Mapping[str, np.ndarray]) -> None:
    """Write metric -> [replicate] of one SAE."""
    from safetensors.numpy import save_file

    save_file(dict(replicates), folder / "replicates.safetensors")
