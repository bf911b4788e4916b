"""Names of places in a model where activations are read; `sites` finds the modules behind them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BeforeValidator

from sae_placebo.core.errors import ModelError, SpecError

Site = Literal["resid_pre", "z", "attn_out", "mlp_in", "mlp_out", "resid_post"]
SITES: tuple[Site, ...] = get_args(Site)
"""The sites of a layer, in the order in which a layer that runs attention before its MLP computes them."""
ON_STREAM: frozenset[Site] = frozenset({"resid_pre", "resid_post"})
"""Sites at which the residual stream itself is read."""
TERMS: frozenset[Site] = frozenset({"attn_out", "mlp_out"})
"""Sites at which what one module adds to the residual stream is read."""
WRITTEN: frozenset[Site] = ON_STREAM | TERMS
"""Sites at which the residual stream is read, or what is added to it."""
MODULE_INPUTS: frozenset[Site] = frozenset({"z", "mlp_in"})
"""Sites at which the input of a module is read, whose entries are no coordinates of the residual stream."""

_NAMED = re.compile(rf"(?:(?P<site>{'|'.join(SITES)})\.(?P<layer>\d{{1,9}}))")
_LENS = re.compile(r"blocks\.(?P<layer>\d{1,9})\.(?P<hook>[a-z0-9_.]+)")
_PATH = re.compile(
    r"(?:[A-Za-z_]\w*\.)*?(?:layers|blocks|h)\.(?P<layer>\d{1,9})(?:\.(?P<part>[a-z_]+))?"
)
_LENS_SITES: Mapping[str, Site] = {
    "hook_resid_pre": "resid_pre",
    "attn.hook_z": "z",
    "hook_attn_out": "attn_out",
    "mlp.hook_in": "mlp_in",
    "ln2.hook_normalized": "mlp_in",
    "hook_mlp_out": "mlp_out",
    "hook_resid_post": "resid_post",
}
_BEFORE_THE_NORM = "hook_mlp_in"
_PARTS: Mapping[str, Site] = {
    "mlp": "mlp_out",
    "ffn": "mlp_out",
    "feed_forward": "mlp_out",
    "attn": "attn_out",
    "self_attn": "attn_out",
    "attention": "attn_out",
    "self_attention": "attn_out",
}


@dataclass(frozen=True)
class Hookpoint:
    """A hookpoint is what enters or leaves a layer, or what its attention or MLP reads or adds.

    `z` is the input of attention's output projection: its heads, one after the other. `mlp_in` is the input
    of the MLP, behind the norm where there is one. Both may be as wide as the residual stream or not.
    """

    site: Site
    layer: int

    @property
    def name(self) -> str:
        """Return the canonical name, for example `resid_post.5`."""
        return f"{self.site}.{self.layer}"


def parse_hookpoint(text: str) -> Hookpoint:
    """Return the place that `text` names; layers count from 0.

    Accepted are the canonical names (`resid_pre.N`, `z.N`, `attn_out.N`, `mlp_in.N`, `mlp_out.N`,
    `resid_post.N`), TransformerLens names (`blocks.5.hook_resid_post`, `blocks.5.attn.hook_z`,
    `blocks.5.ln2.hook_normalized`), and module paths as Hugging Face and sparsify
    write them: a layer's path (`model.layers.5`, `h.5`) means `resid_post`, its MLP's or attention's
    path (`transformer.h.5.mlp`) means the term which that module adds to the residual stream.

    TransformerLens's `hook_mlp_in` is before the norm, so it is no name of `mlp_in`. Its
    `ln2.hook_normalized` is taken for `mlp_in`, which is behind gain and bias; TransformerLens 1 and 2 have
    that hook behind them in their LayerNorm. It is before them since 3.0 (pull request 770), in every RMSNorm
    and in the bridge to Hugging Face models.

    Raises:
        SpecError: `text` names no such place.
    """
    if not isinstance(text, str):
        raise SpecError(f"a hookpoint is named by text, such as 'resid_post.0'; found {text!r:.80}")
    text = text.strip()
    if match := _NAMED.fullmatch(text):
        return Hookpoint(cast(Site, match["site"]), int(match["layer"]))
    match = _LENS.fullmatch(text)
    if match and match["hook"] in _LENS_SITES:
        return Hookpoint(_LENS_SITES[match["hook"]], int(match["layer"]))
    if match and match["hook"] == _BEFORE_THE_NORM:
        raise SpecError(
            f"{text!r} is what TransformerLens reads before the norm of the MLP, which is no hookpoint here: "
            f"mlp_in.{match['layer']} is the MLP's own input, behind the norm, which transcoders read."
        )
    match = _PATH.fullmatch(text)
    if match and match["part"] is None:
        return Hookpoint("resid_post", int(match["layer"]))
    if match and match["part"] in _PARTS:
        return Hookpoint(_PARTS[match["part"]], int(match["layer"]))
    raise SpecError(
        f"no hookpoint is called {text!r:.80}.{_hint(text)} Allowed: "
        f"{', '.join(f'{site}.N' for site in SITES)} with N counting layers from 0; TransformerLens "
        "names such as blocks.5.hook_resid_post; or module paths such as model.layers.5, "
        "transformer.h.5.mlp, layers.5."
    )


def canonical_names(value: Any) -> Any:
    """Return the canonical names of a list of hookpoints, each once: aliases of one place are one.

    What is no list of names is returned as it is, for the caller's own refusal.

    Raises:
        SpecError: a single name instead of a list, or a name of no hookpoint.
    """
    if isinstance(value, str):
        raise SpecError(f"hookpoints is a list: write hookpoints = [{value!r:.80}]")
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        return value
    return tuple(dict.fromkeys(parse_hookpoint(name).name for name in value))


HookpointNames = Annotated[tuple[str, ...], BeforeValidator(canonical_names)]
"""A setting of this type is a list of hookpoints, each once and by its canonical name."""


def _hint(text: str) -> str:
    numbers = re.findall(r"\d+", text)
    word = re.sub(r"[\d.]+|blocks|hook_", "", text)
    near = difflib.get_close_matches(word, SITES, n=1, cutoff=0.5)
    return (
        f" Did you mean '{near[0]}.{numbers[-1] if numbers and len(numbers[-1]) < 10 else 'N'}'?"
        if near
        else ""
    )


def lens_name(hookpoint: Hookpoint) -> str:
    """Return the name that TransformerLens, and with it SAELens, has for a hookpoint.

    That of `mlp_in` is `mlp.hook_in`, which is the input of the MLP whatever is folded into the norm.
    """
    hook = next(hook for hook, site in _LENS_SITES.items() if site == hookpoint.site)
    return f"blocks.{hookpoint.layer}.{hook}"


def check_on_stream(place: Hookpoint) -> None:
    """Refuse to look for readers and writers at a place that is no part of the residual stream.

    Raises:
        ModelError: the input of a module is read there.
    """
    if place.site in MODULE_INPUTS:
        allowed = ", ".join(f"{site}.N" for site in SITES if site not in MODULE_INPUTS)
        raise ModelError(
            f"{place.name} is the input of a module and no part of the residual stream, so its readers and "
            f"writers are not looked for; they are at {allowed}."
        )


def check_layer(hookpoint: Hookpoint, n_layers: int) -> None:
    """Refuse a hookpoint past the last layer.

    Raises:
        SpecError: the model has no such layer.
    """
    if hookpoint.layer >= n_layers:
        raise SpecError(
            f"{hookpoint.name} is past the last layer: the model has {n_layers} layers, "
            f"so N goes from 0 to {n_layers - 1}."
        )
