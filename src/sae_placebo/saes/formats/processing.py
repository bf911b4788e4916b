"""What an SAE's file says of how its model was loaded, and what that did to the activations.

SAELens hands `model_from_pretrained_kwargs` to TransformerLens's
`HookedTransformer.from_pretrained_no_processing`, which changes no weight unless one of them asks for it.

Source: SAELens, `load_model.py`; TransformerLens 4.0, `HookedTransformer.py` and `weight_processing.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_placebo.core.errors import SpecError

_NOTHING = frozenset(
    {
        *("device", "device_map", "n_devices", "move_to_device", "tokenizer", "cache_dir", "token"),
        *("local_files_only", "trust_remote_code", "low_cpu_mem_usage", "default_padding_side"),
        *("default_prepend_bos", "attn_implementation", "use_safetensors", "force_download"),
    }
)
"""Arguments that change no activation of a token, but for rounding."""
_OTHER_AT = {
    "fold_ln": (
        ("mlp_in",),
        "takes the norm's gain and bias out of what the MLP is given",
    ),
    "fold_value_biases": (("z",), "takes the value biases out of the heads' values"),
    "refactor_factored_attn_matrices": (("z",), "turns the values of each head into other bases"),
}
"""By processing: our sites whose activations are others after it, and why."""
_CHECKPOINT = ("checkpoint_index", "checkpoint_value", "checkpoint_label", "revision")
_TYPES = ("dtype", "torch_dtype")
_EXACT = ("float32", "torch.float32", "fp32", "auto")


@dataclass(frozen=True)
class Processing:
    """How the activations of an SAE's training differ from those of the model as it is published.

    Attributes:
        centred: Whether each token's mean over dimensions was taken out of the residual stream, and of what
            attention and MLP add to it (`center_writing_weights`). TransformerLens does so for models with
            LayerNorm alone.
        notes: What else the arguments say, one sentence each.
    """

    centred: bool
    notes: tuple[str, ...]


def processing(arguments: Mapping[str, Any], hookpoint: str | None = None) -> Processing:
    """Return what the arguments by which a model was loaded did to its activations.

    Args:
        arguments: `Site.model_arguments`, word for word.
        hookpoint: The place that the SAE reads, by its canonical name; None where it is not known. Most
            processing changes activations at a few sites alone.

    Raises:
        SpecError: one changes the activations there, or may, in a way that reading the model does not follow.
    """
    site = None if hookpoint is None else hookpoint.partition(".")[0]
    notes = []
    for name, value in arguments.items():
        if name == "center_writing_weights" or name in _NOTHING or _is_off(value):
            continue
        if name in _OTHER_AT:
            _refuse_where_it_matters(name, value, site)
        notes.append(_note(name, value, hookpoint))
    return Processing(not _is_off(arguments.get("center_writing_weights")), tuple(notes))


def _is_off(value: Any) -> bool:
    return value is None or value is False


def _refuse_where_it_matters(name: str, value: Any, site: str | None) -> None:
    """Refuse processing that makes other activations of the site.

    Raises:
        SpecError: it does, or the site is not known.
    """
    sites, why = _OTHER_AT[name]
    if site is None or site in sites:
        where = ", ".join(f"{one}.N" for one in sites)
        raise SpecError(
            f"the given SAE's model was loaded with {name} = {value!r:.40} (model_from_pretrained_kwargs), "
            f"which {why}, so that activations at {where} are not those of the published model: take an SAE "
            "that was trained without it, or one of another place"
        )


def _note(name: str, value: Any, hookpoint: str | None) -> str:
    """Return in a sentence what an argument says that is not refused."""
    said = f"Its model was loaded with {name} = {value!r:.80}"
    if name in _OTHER_AT:
        return f"{said}, which changes nothing at {hookpoint} but for rounding."
    if name == "center_unembed":
        return f"{said}, which changes the logits by one number per token, and no activation."
    if name in _CHECKPOINT:
        return (
            f"{said}: the model's published weights of that moment are [model] revision, and have to be the "
            "trial's."
        )
    if name in _TYPES:
        if str(value) in _EXACT:
            return f"{said}, as it is read here."
        return f"{said}, and is read here in float32: activations differ by its rounding."
    if name == "n_ctx":
        return f"{said}: contexts of its training were no longer than that."
    return f"{said}, and what that does to activations is not known here."
