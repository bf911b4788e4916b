"""SAEs in the folder format of SAELens 6 and later: `cfg.json` and `sae_weights.safetensors`.

Only SAEs in model units (see `SAE.fold`) belong in such a folder: it names no scaling, and
`normalize_activations` is "none".

| kind here | `architecture` there | tensors beside W_enc, W_dec, b_dec |
|---|---|---|
| topk | topk | b_enc |
| relu, p_annealed | standard | b_enc |
| jumprelu | jumprelu | b_enc, threshold |
| gated | gated | b_gate (`b_enc` here), b_mag, r_mag |
| batchtopk, matryoshka | jumprelu, as SAELens saves its own | b_enc, threshold, the same for every latent |

The full recipe is in the metadata, under `sae_placebo_spec`. A folder without it is read as the kind
that computes the same codes, with that kind's default training settings and, where there is a penalty,
a coefficient of 0: what it was trained with is not known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float

from sae_placebo.core.errors import SpecError, StoreError
from sae_placebo.core.lazy import torch
from sae_placebo.saes.base import SAE, SAESpec, parse_sae
from sae_placebo.saes.formats.tensor_files import SafetensorsFile
from sae_placebo.saes.topk import TopKSpec

SCHEMA_VERSION = "6.0.0"
"""Written as `sae_lens_version`: without it SAELens takes the old path and drops the metadata."""

_CONFIG, _WEIGHTS, _SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"


@dataclass(frozen=True)
class _Format:
    """How SAELens stores a kind.

    Attributes:
        architecture: SAELens's name for it.
        names: Its names for tensors, where they differ from ours.
        aside: Numbers that only training needs; SAELens refuses tensors that it does not know, so
            they are in the metadata.
    """

    architecture: str
    names: Mapping[str, str] = field(default_factory=dict)
    aside: tuple[str, ...] = ()

    def stored(self, spec: SAESpec) -> dict[str, str]:
        """Return our names of the tensors in the weights file, and theirs."""
        ours = [name for name in spec.parameters if name not in self.aside]
        return {name: self.names.get(name, name) for name in ours}


_FORMATS: Mapping[str, _Format] = {
    "topk": _Format("topk"),
    "relu": _Format("standard"),
    "tied": _Format("standard"),
    "p_annealed": _Format("standard", aside=("exponent", "penalty_scale")),
    "jumprelu": _Format("jumprelu"),
    "gated": _Format("gated", {"b_enc": "b_gate"}),
    "batchtopk": _Format("jumprelu"),
    "matryoshka": _Format("jumprelu"),
}
_ASIDE = "sae_placebo_numbers"
"""Key of the metadata that holds what `_Format.aside` names."""
_WITHOUT_SPEC = {"topk": "topk", "standard": "relu", "jumprelu": "jumprelu", "gated": "gated"}
"""The kind that computes the codes of an architecture, where a folder holds no spec of ours."""


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

    layout = _FORMATS.get(sae.spec.kind)
    if layout is None:
        known = ", ".join(sorted(_FORMATS))
        raise StoreError(
            f"SAELens has no format for SAEs of kind {sae.spec.kind!r}; it has one for: {known}"
        )
    config = {
        "architecture": layout.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        **_settings(sae.spec),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SCHEMA_VERSION,
            **metadata,
            "sae_placebo_spec": sae.spec.model_dump(mode="json"),
            **({_ASIDE: {n: float(sae.params[n]) for n in layout.aside}} if layout.aside else {}),
        },
    }
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    tensors = {}
    for name, theirs in layout.stored(sae.spec).items():
        tensor = sae.params[name].detach().to("cpu", torch.float32)
        tensor = tensor.expand(sae.d_sae) if tensor.ndim == 0 else tensor
        tensors[theirs] = tensor.contiguous()
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

    Folders written by SAELens itself are read too, where they need no rescaling.

    Raises:
        StoreError: a file is missing or unreadable, or the SAE is of a kind or setting that this
            package does not compute.
    """
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        weights = SafetensorsFile(folder / _WEIGHTS)
    except (OSError, ValueError, StoreError) as problem:
        raise StoreError(f"cannot read an SAE from {folder}: {problem}") from problem
    _refuse_unknown(config, folder)
    spec = _spec(config, weights.matrix("W_dec")[0], folder)
    params = _params(spec, weights)
    aside = config.get("metadata", {}).get(_ASIDE, {})
    if missing := [name for name in spec.parameters if name not in {**params, **aside}]:
        raise StoreError(f"{folder / _CONFIG} lacks {', '.join(missing)} in its metadata")
    params |= {name: torch.tensor(float(aside[name])) for name in _FORMATS[spec.kind].aside}
    return SAE(spec, {name: params[name] for name in spec.parameters})


def _spec(config: Mapping[str, Any], d_sae: int, folder: Path) -> SAESpec:
    architecture = config["architecture"]
    table = config.get("metadata", {}).get("sae_placebo_spec")
    if table is None:
        table = {"kind": _WITHOUT_SPEC[architecture], "d_sae": d_sae}
        table |= {"k": config.get("k")} if architecture == "topk" else {"coefficient": 0.0}
    try:
        spec = parse_sae(table)
    except SpecError as problem:
        raise StoreError(f"{folder / _CONFIG}: {problem}") from problem
    if (needed := _FORMATS[spec.kind].architecture) != architecture:
        raise StoreError(
            f"{folder / _CONFIG}: architecture is {architecture!r}, but its sae_placebo_spec is of kind "
            f"{spec.kind!r}, which is stored as {needed!r}"
        )
    return spec


def _params(spec: SAESpec, weights: SafetensorsFile) -> dict[str, torch.Tensor]:
    """Return the tensors under our names, of the right shapes."""
    names = _FORMATS[spec.kind].stored(spec)
    d_sae, d_in = weights.matrix("W_dec")
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    weights.need({theirs: shapes.get(name, (d_sae,)) for name, theirs in names.items()})
    # as it was written, whatever that is: a trial says itself what is wrong with an SAE of its own
    params = {
        name: weights.read(theirs, transposed=name == "W_enc", finite=False)
        for name, theirs in names.items()
    }
    params["W_enc"] = params["W_enc"].t()
    for name in spec.buffers & set(names):
        if bool((params[name] != params[name][0]).any()):
            raise StoreError(
                f"{weights.path}: {name} differs between latents, but an SAE of kind {spec.kind!r} has one "
                "for all"
            )
        params[name] = params[name][0].clone()
    return params


def _settings(spec: SAESpec) -> dict[str, Any]:
    """Return what `cfg.json` says of an architecture's own settings."""
    if not isinstance(spec, TopKSpec):
        return {}
    return {"k": spec.k, "rescale_acts_by_decoder_norm": False}


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
    if (architecture := config.get("architecture")) not in _WITHOUT_SPEC:
        raise StoreError(
            f"{folder / _CONFIG}: architecture is {architecture!r}; only "
            f"{', '.join(sorted(_WITHOUT_SPEC))} can be read"
        )
    expected = {
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
