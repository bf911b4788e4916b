"""SAEs in the folder format of SAELens 6 and later: `cfg.json` and `sae_weights.safetensors`.

Only SAEs in model units (see `SAE.fold`) belong in such a folder: it names no scaling, and
`normalize_activations` is "none".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float

from sae_placebo.errors import StoreError
from sae_placebo.lazy import torch
from sae_placebo.saes.base import PARAMETERS, SAE
from sae_placebo.saes.topk import TopKSpec

SCHEMA_VERSION = "6.0.0"
"""Written as `sae_lens_version`: without it SAELens takes the old path and drops the metadata."""

_CONFIG, _WEIGHTS, _SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"


def write(
    sae: SAE,
    folder: Path,
    metadata: Mapping[str, Any],
    density: Float[torch.Tensor, "d_sae"] | None = None,
) -> None:
    """Write `sae`, which must be in model units, into `folder`.

    Args:
        sae: A folded SAE.
        folder: Made if it does not exist; files of these names are overwritten.
        metadata: Kept under `metadata` in `cfg.json`; SAELens keeps keys that it does not know, so
            the control's recipe, the weight hash and the trial's name travel with the weights.
            `sae_lens_version` is added where it is missing.
        density: Share of tokens on which each latent fires; written as log10, as SAELens does.

    Raises:
        StoreError: the architecture has no counterpart in SAELens, or the folder cannot be written.
    """
    from safetensors.torch import save_file

    if not isinstance(sae.spec, TopKSpec):
        raise StoreError(f"SAELens folders hold SAEs of kind 'topk', not {sae.spec.kind!r}")
    config = {
        "architecture": "topk",
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "k": sae.spec.k,
        "rescale_acts_by_decoder_norm": False,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SCHEMA_VERSION,
            **metadata,
            "sae_placebo_spec": sae.spec.model_dump(mode="json"),
        },
    }
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    tensors = {
        name: sae.params[name].detach().to("cpu", torch.float32).contiguous() for name in PARAMETERS
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / _WEIGHTS)
        if density is not None:
            save_file({"sparsity": torch.log10(density.float().cpu() + 1e-10)}, folder / _SPARSITY)
        (folder / _CONFIG).write_text(text, encoding="utf-8")
    except OSError as problem:
        raise StoreError(f"cannot write an SAE to {folder}: {problem}") from problem


def read(folder: Path) -> SAE:
    """Return the SAE in `folder`, bit for bit as it was written.

    TopK folders written by SAELens itself are read too, where they need no rescaling.

    Raises:
        StoreError: a file is missing or unreadable, or the SAE is of a kind or setting that this
            package does not compute.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / _WEIGHTS)
    except (OSError, ValueError, SafetensorError) as problem:
        raise StoreError(f"cannot read an SAE from {folder}: {problem}") from problem
    _refuse_unknown(config, folder)
    missing = [name for name in PARAMETERS if name not in tensors]
    if missing:
        raise StoreError(f"{folder / _WEIGHTS} lacks {', '.join(missing)}")
    params = {name: tensors[name].float() for name in PARAMETERS}
    d_sae, d_in = params["W_dec"].shape
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "b_dec": (d_in,)}
    for name, shape in shapes.items():
        if params[name].shape != shape:
            raise StoreError(
                f"{folder / _WEIGHTS}: {name} is {list(params[name].shape)}, but W_dec "
                f"{[d_sae, d_in]} needs {list(shape)}"
            )
    params["W_enc"] = params["W_enc"].t().contiguous().t()
    ours = config.get("metadata", {}).get("sae_placebo_spec")
    spec = TopKSpec.model_validate(ours) if ours else TopKSpec(d_sae=d_sae, k=config["k"])
    return SAE(spec, params)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata in `folder`'s `cfg.json`.

    Raises:
        StoreError: the file is missing or unreadable.
    """
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise StoreError(f"cannot read {folder / _CONFIG}: {problem}") from problem
    return dict(config.get("metadata", {}))


def _refuse_unknown(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse an SAE that would be computed wrongly, naming the setting."""
    expected = {
        "architecture": "topk",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
    }
    # what SAELens assumes where a key is absent
    absent = {"rescale_acts_by_decoder_norm": False, "reshape_activations": "none"}
    for key, value in expected.items():
        found = config.get(key, absent.get(key))
        if found != value:
            raise StoreError(f"{folder / _CONFIG}: {key} is {found!r}; only {value!r} can be read")
