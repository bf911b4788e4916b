"""SAEs of dictionary_learning: `ae.pt` beside `config.json`, and `checkpoints/ae_STEP.pt` below them.

| class there | kind here | reads x or x - bias |
|---|---|---|
| AutoEncoder (StandardTrainer, StandardTrainerAprilUpdate, PAnnealTrainer) | relu | x - bias |
| AutoEncoderNew | relu | x |
| GatedAutoEncoder | gated | x - decoder_bias |
| JumpReluAutoEncoder | jumprelu | x |
| AutoEncoderTopK | topk | x - b_dec |
| BatchTopKSAE | batchtopk | x - b_dec |
| MatryoshkaBatchTopKSAE | matryoshka | x - b_dec |

A backup, as the repository writes one during training, holds {"ae", "norm_factor", ...} in place of the
tensors. Its biases are those of activations divided by `norm_factor`; they are multiplied by it here, as
the library does at the end of a training.

Decoder rows are left as they are; the library's own `AutoEncoder.from_pretrained` normalizes them unless it
is told not to, and its other classes do not.

Read against dictionary-learning 0.1.0, `dictionary.py` and `trainers/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_placebo.core.lazy import torch
from sae_placebo.saes.formats import folding
from sae_placebo.saes.formats.base import (
    FORMATS,
    Candidate,
    Format,
    Remarks,
    encoder_by_latents,
    make_sae,
    prefixes,
)
from sae_placebo.saes.formats.given import Given
from sae_placebo.saes.formats.sites import Site, hookpoint_of, layer_of, number_of, text_of
from sae_placebo.saes.formats.tensor_files import TensorFile, read_settings

CONFIG = "config.json"


@dataclass(frozen=True)
class _Class:
    """How a class stores an SAE.

    Attributes:
        kind: Ours.
        bias: Its name of `b_dec`.
        latents: Our names of vectors over latents, and its own.
        linear: Whether the matrices are those of `torch.nn.Linear`: [d_sae, d_in] and [d_in, d_sae].
        subtracts: Whether the encoder reads x less the bias.
        numbers: Tensors beside these.
    """

    kind: str
    bias: str = "b_dec"
    latents: Mapping[str, str] = field(default_factory=lambda: {"b_enc": "encoder.bias"})
    linear: bool = True
    subtracts: bool = True
    numbers: tuple[str, ...] = ()


_PLAIN = {"b_enc": "b_enc"}
_CLASSES: Mapping[str, _Class] = {
    "AutoEncoder": _Class("relu", bias="bias"),
    "AutoEncoderNew": _Class("relu", bias="decoder.bias", subtracts=False),
    "GatedAutoEncoder": _Class(
        "gated",
        bias="decoder_bias",
        latents={"b_enc": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag"},
    ),
    "JumpReluAutoEncoder": _Class(
        "jumprelu", latents=_PLAIN | {"threshold": "threshold"}, linear=False, subtracts=False
    ),
    "AutoEncoderTopK": _Class("topk", numbers=("k", "threshold")),
    "BatchTopKSAE": _Class("batchtopk", numbers=("k", "threshold")),
    "MatryoshkaBatchTopKSAE": _Class(
        "matryoshka", latents=_PLAIN, linear=False, numbers=("k", "threshold", "group_sizes")
    ),
}
_REFUSED = {
    "IdentityDict": "it has no latents",
    "CrossCoder": "it reads several layers at once",
    "BatchTopKCrossCoder": "it reads several layers at once",
}


def recognises(candidate: Candidate) -> bool:
    """Return whether a `.pt` file has one of the library's pairs of matrices."""
    weights = candidate.weights
    pairs = ({"encoder.weight", "decoder.weight"}, {"W_enc", "W_dec"})
    return weights.path.suffix == ".pt" and any(pair & weights.names for pair in pairs)


def read(candidate: Candidate) -> Given:
    """Return the SAE; see `reading.read_sae`."""
    config, weights = _config(candidate), candidate.weights
    remarks = Remarks(weights.path)
    trainer = config.get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    buffer = config.get("buffer")
    buffer = buffer if isinstance(buffer, dict) else {}
    if buffer.get("io") == "in_and_out":
        raise remarks.refuse("it was trained on pairs of inputs and outputs, as a transcoder is")
    layout = _CLASSES[_class_name(trainer, weights, remarks)]
    params, settings = _tensors(layout, trainer, weights, remarks)
    if "norm_factor" in weights.values:
        factor = weights.values["norm_factor"]
        if not isinstance(factor, int | float) or not factor > 0:
            raise remarks.refuse(f"norm_factor is {factor!r:.80}, not a number above 0")
        folding.scale_biases(params, float(factor))
        remarks.note(f"A backup: its biases are multiplied by its norm_factor, {factor:.6g}.")
    elif "ae" in weights.values:
        remarks.note("A backup without norm_factor: its activations were not normalized.")
    if not layout.subtracts:
        folding.subtract_b_dec(params)
        remarks.note("The encoder reads x itself; its bias here holds b_dec W_enc.")
    return Given(
        sae=make_sae(layout.kind, params, remarks, settings),
        format="dictionary_learning",
        site=_site(trainer, buffer),
        notes=tuple(remarks.notes),
        warnings=tuple(remarks.warnings),
    )


def _config(candidate: Candidate) -> dict[str, Any]:
    """Return the settings beside the file, or above a folder of checkpoints; empty where there are none."""
    folders = [candidate.folder]
    if candidate.folder.name == "checkpoints":
        folders.append(candidate.folder.parent)
    for folder in folders:
        if (folder / CONFIG).is_file():
            return read_settings(folder / CONFIG)
    return {}


def _class_name(trainer: Mapping[str, Any], weights: TensorFile, remarks: Remarks) -> str:
    """Return the class that the settings name, or else the one that has these tensors.

    Raises:
        StoreError: the class is not read, or two have these tensors.
    """
    if trainer.get("dict_class") is not None:
        named = str(trainer["dict_class"])
        if named in _REFUSED:
            raise remarks.refuse(f"the class {named} is not read: {_REFUSED[named]}")
        if named not in _CLASSES:
            raise remarks.refuse(f"the class {named!r:.80} is not read; {', '.join(_CLASSES)} are")
        return named
    fitting = [name for name, layout in _CLASSES.items() if set(_names(layout)) == weights.names]
    if len(fitting) == 1:
        remarks.note(
            f"Of the class {fitting[0]}, by the names of its tensors; no {CONFIG} says it."
        )
        return fitting[0]
    told = f"{' and '.join(fitting)} have" if fitting else "no class has"
    raise remarks.refuse(
        f"{told} these tensors ({', '.join(sorted(weights.names))}); put {CONFIG}, which names the class, "
        "beside it"
    )


def _names(layout: _Class) -> list[str]:
    matrices = ["encoder.weight", "decoder.weight"] if layout.linear else ["W_enc", "W_dec"]
    return [*matrices, layout.bias, *layout.latents.values(), *layout.numbers]


def _tensors(
    layout: _Class, trainer: Mapping[str, Any], weights: TensorFile, remarks: Remarks
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors under our names, and the settings that encoding depends on."""
    encoder, decoder = _names(layout)[:2]
    shape = weights.matrix(encoder)
    d_sae, d_in = shape if layout.linear else shape[::-1]
    weights.need(
        {
            decoder: (d_in, d_sae) if layout.linear else (d_sae, d_in),
            layout.bias: (d_in,),
            **dict.fromkeys(layout.latents.values(), (d_sae,)),
        }
    )
    for key, size in (("activation_dim", d_in), ("dict_size", d_sae)):
        if trainer.get(key, size) != size:
            raise remarks.refuse(
                f"{CONFIG} gives {key} {trainer[key]!r:.80}, but the tensors {size}"
            )
    if extra := weights.names - set(_names(layout)):
        raise remarks.refuse(f"tensors that its class does not have: {', '.join(sorted(extra))}")
    settings = _numbers(layout, trainer, weights, d_sae, remarks)
    remarks.precision(weights, weights.names)
    params = {
        "W_enc": encoder_by_latents(weights, encoder, layout.linear),
        "W_dec": weights.read(decoder, transposed=layout.linear),
        "b_dec": weights.read(layout.bias),
        **{ours: weights.read(theirs) for ours, theirs in layout.latents.items()},
    }
    if layout.kind in ("batchtopk", "matryoshka"):
        threshold = weights.number("threshold")
        if threshold < 0:
            raise remarks.refuse(
                f"threshold is {threshold:g}, that is, unset: the training ended before it was "
                "estimated (threshold_start_step), and the SAE has no codes of single tokens"
            )
        params["threshold"] = torch.tensor(threshold)
    return params, settings


def _numbers(
    layout: _Class, trainer: Mapping[str, Any], weights: TensorFile, d_sae: int, remarks: Remarks
) -> dict[str, Any]:
    if not layout.numbers:
        return {}
    if "k" not in weights.names and "k" not in trainer:
        weights.need({"k": ()})
    k = int(weights.number("k")) if "k" in weights.names else trainer["k"]
    if trainer.get("k", k) != k:
        raise remarks.refuse(f"{CONFIG} gives k {trainer['k']!r:.80}, but the tensors {k}")
    on_average = layout.kind != "topk" and isinstance(k, int)
    settings: dict[str, Any] = {"k": float(k) if on_average else k}
    if layout.kind == "matryoshka":
        if len(weights.shapes.get("group_sizes", (0, 0))) != 1:
            weights.need({"group_sizes": (len(trainer.get("group_sizes", [])),)})
        sizes = [int(size) for size in weights.read("group_sizes").tolist()]
        if sum(sizes) != d_sae:
            raise remarks.refuse(f"group_sizes {sizes} do not sum to {d_sae} latents")
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        settings["prefixes"] = prefixes(ends, d_sae, remarks)
    return settings


def _site(trainer: Mapping[str, Any], buffer: Mapping[str, Any]) -> Site:
    hook, layer = text_of(trainer, "submodule_name"), number_of(trainer, "layer")
    hookpoint = hookpoint_of(hook)
    if buffer.get("io") == "in":  # what enters a module, where a path names what leaves it
        moved = {"resid_post": "resid_pre", "mlp_out": "mlp_in"}
        name, _, number = (hookpoint or "").partition(".")
        hookpoint = f"{moved[name]}.{number}" if name in moved else None
    return Site(
        model=text_of(trainer, "lm_name"),
        hook=hook,
        hookpoint=hookpoint,
        layer=layer if layer is not None else layer_of(hook),
        context_tokens=number_of(buffer, "ctx_len"),
    )


FORMATS.add(Format("dictionary_learning", "dictionary_learning", recognises, read))
