"""The file of an SAE's codes on the held-out tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def write_codes(folder: Path, codes: Any) -> None:
    """Write an SAE's codes on the held-out tokens, a scipy CSR matrix [token, d_sae]."""
    from safetensors.numpy import save_file

    parts = {"offsets": codes.indptr.astype(np.int64), "latents": codes.indices.astype(np.int32)}
    parts |= {"values": codes.data.astype(np.float32), "d_sae": np.array([codes.shape[1]])}
    save_file(parts, folder / "codes.safetensors")


def read_codes(folder: Path) -> Any:
    """Return the codes of `write_codes`."""
    from safetensors.numpy import load_file
    from scipy.sparse import csr_matrix

    parts = load_file(folder / "codes.safetensors")
    shape = (len(parts["offsets"]) - 1, int(parts["d_sae"][0]))
    return csr_matrix((parts["values"], parts["latents"], parts["offsets"]), shape=shape)
