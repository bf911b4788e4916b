"""Names of places in a model where activations are read; `sites` finds the modules behind them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BeforeValidator

from sae_placebo.core.errors import SpecError

Site = Literal["resid_pre", "attn_out", "mlp_out", "resid_post"]
SITES: tuple[Site, ...] = get_args(Site)

_NAMED = re.compile(rf"(?:(?P<site>{'|'.join(SITES)})\.(?P<layer>\d{{1,9}}))")
_LENS = re.compile(rf"blocks\.(?P<layer>\d{{1,9}})\.hook_(?P<site>{'|'.join(SITES)})")
_PATH = re.compile(
    r"(?:[A-Za-z_]\w*\.)*?(?:layers|blocks|h)\.(?P<layer>\d{1,9})(?:\.(?P<part>[a-z_]+))?"
)
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
    """A hookpoint is what enters a layer, what leaves it, or what its attention or MLP adds."""

    site: Site
    layer: int

    @property
    def name(self) -> str:
        """Return the canonical name, for example `resid_post.5`."""
        return f"{self.site}.{self.layer}"


def parse_hookpoint(text: str) -> Hookpoint:
    """Return the place that `text` names; layers count from 0.

    Accepted are the canonical names (`resid_pre.N`, `attn_out.N`, `mlp_out.N`, `resid_post.N`),
    TransformerLens names (`blocks.5.hook_resid_post`), and module paths as Hugging Face and sparsify
    write them: a layer's path (`model.layers.5`, `h.5`) means `resid_post`, its MLP's or attention's
    path (`transformer.h.5.mlp`) means the term which that module adds to the residual stream.

    Raises:
        SpecError: `text` names no such place.
    """
    if not isinstance(text, str):
        raise SpecError(f"a hookpoint is named by text, such as 'resid_post.0'; found {text!r:.80}")
    text = text.strip()
    if match := _NAMED.fullmatch(text) or _LENS.fullmatch(text):
        return Hookpoint(cast(Site, match["site"]), int(match["layer"]))
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
