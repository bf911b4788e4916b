"""Where an SAE reads its activations, by what its file says: names of sites, and ours for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LENS = re.compile(r"blocks\.(\d+)\.(.+)")
_LENS_SITES = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_post": "resid_post",
    "hook_mlp_out": "mlp_out",
    "hook_attn_out": "attn_out",
    "hook_mlp_in": "mlp_in",
    "ln2.hook_normalized": "mlp_in",
    "attn.hook_z": "z",
}
_PATH = re.compile(r"(?:[A-Za-z_]\w*\.)*?(?:layers|blocks|h)\.(\d+)(?:\.([a-z_]+(?:\.[a-z_]+)*))?")
_PATH_SITES = {
    None: "resid_post",
    "mlp": "mlp_out",
    "ffn": "mlp_out",
    "feed_forward": "mlp_out",
    "attn": "attn_out",
    "self_attn": "attn_out",
    "attention": "attn_out",
    "self_attention": "attn_out",
}
_WORDS = re.compile(r"(resid_pre|resid_post|mlp_out|attn_out|mlp_in|z)(?:_layer_|\.)(\d+)")


@dataclass(frozen=True)
class Site:
    """Where the SAE's activations come from, as its metadata say; None where they say nothing.

    Attributes:
        model: The model's name, as written.
        hook: The name of the place in the model, as written.
        hookpoint: Our name of that place: `resid_post.N`, `resid_pre.N`, `mlp_out.N`, `attn_out.N`,
            `mlp_in.N` (what enters the MLP) or `z.N` (attention's heads before their output matrix).
        layer: The layer, counted from 0, also where the hook's name has no counterpart here.
        head: The one attention head that is read.
        prepend_bos: Whether a BOS token stood before each text.
        context_tokens: Tokens of a context in training.
        positions: The positions of a context that were used, as start, stop and step (`seqpos_slice`).
        excluded_tokens: What SAELens calls `exclude_special_tokens`, or sparsify `exclude_tokens`: true, or
            ids.
        model_arguments: How the model was loaded (`model_from_pretrained_kwargs`), word for word.
            TransformerLens changes weights and activations for some of them.
        l0: Mean number of active latents per token at the end of training.
        dataset: The text that it was trained on.
    """

    model: str | None = None
    hook: str | None = None
    hookpoint: str | None = None
    layer: int | None = None
    head: int | None = None
    prepend_bos: bool | None = None
    context_tokens: int | None = None
    positions: tuple[int | None, ...] | None = None
    excluded_tokens: bool | tuple[int, ...] | None = None
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    l0: float | None = None
    dataset: str | None = None


def hookpoint_of(hook: str | None) -> str | None:
    """Return our name of a site that another library named; None where we have none.

    Known are TransformerLens names (`blocks.5.hook_resid_post`), module paths as Hugging Face and sparsify
    write them (`model.layers.5`, `h.5.mlp`: what the module puts out), and names such as
    `resid_post_layer_5`, which dictionary_learning's examples use.
    """
    if hook is None:
        return None
    if match := _LENS.fullmatch(hook):
        site = _LENS_SITES.get(match[2])
        return f"{site}.{match[1]}" if site else None
    if match := _WORDS.fullmatch(hook):
        return f"{match[1]}.{match[2]}"
    match = _PATH.fullmatch(hook)
    site = _PATH_SITES.get(match[2]) if match else None
    return f"{site}.{match[1]}" if match and site else None


def layer_of(hook: str | None) -> int | None:
    """Return the first number in a hook's name; None where there is none."""
    match = re.search(r"\d+", hook or "")
    return int(match[0]) if match else None


def text_of(table: Mapping[str, Any], key: str) -> str | None:
    """Return a setting that is a text; None where it is missing, empty or something else."""
    value = table.get(key)
    return value if isinstance(value, str) and value else None


def number_of(table: Mapping[str, Any], key: str) -> int | None:
    """Return a setting that is a whole number; None where it is missing or something else."""
    value = table.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
