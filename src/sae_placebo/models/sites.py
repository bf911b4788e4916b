"""The modules behind hookpoints, found by structure and never from a table of architectures.

The decoder layers are the one `ModuleList` as long as the config says; what attention and MLP add to
the residual stream is identified on a probe forward, where the sum has to come out (`stream_terms`), and
what they read on further ones (`module_inputs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.models.centring import about_mean, is_centred, without_mean
from sae_placebo.models.hookpoints import WRITTEN, Hookpoint, check_layer
from sae_placebo.models.layers import (
    attention_module,
    decoder_layers,
    first_tensor,
    input_tensor,
    is_norm,
    text_config,
    with_first,
    with_input,
)
from sae_placebo.models.module_inputs import ModuleInput, find_mlp_input, find_output_projection
from sae_placebo.models.stream_terms import StreamTerm, find_terms

__all__ = [
    "HookedModules",
    "StreamTerm",
    "attention_module",
    "decoder_layers",
    "first_tensor",
    "input_tensor",
    "is_norm",
    "resolve",
    "text_config",
    "with_first",
    "with_input",
]


@dataclass
class HookedModules:
    """The modules behind the hookpoints of one model.

    Attributes:
        model: The model.
        layers: Its decoder layers.
        terms: What adds to the residual stream, at hookpoints where that is read.
        inputs: The modules whose input is read.
        centred: Whether activations of the stream are read without each token's mean; see `centring`.
    """

    model: torch.nn.Module
    layers: torch.nn.ModuleList
    terms: dict[Hookpoint, StreamTerm] = field(default_factory=dict)
    inputs: dict[Hookpoint, ModuleInput] = field(default_factory=dict)
    centred: bool = False

    def width(self, hookpoint: Hookpoint) -> int:
        """Return the width of the activations at a hookpoint: that of the stream, or of a module's input."""
        if hookpoint in self.inputs:
            return self.inputs[hookpoint].width
        return int(text_config(self.model).hidden_size)

    def as_read(self, hookpoint: Hookpoint, value: torch.Tensor) -> torch.Tensor:
        """Return what is read where the model has `value`: the same, or it without its mean."""
        return without_mean(value) if self._centres(hookpoint) else value

    def _centres(self, hookpoint: Hookpoint) -> bool:
        return self.centred and hookpoint.site in WRITTEN

    @contextmanager
    def hooked(
        self,
        actions: Mapping[Hookpoint, Callable[[torch.Tensor], torch.Tensor | None]],
        whole: bool = False,
    ) -> Iterator[None]:
        """Call each action with its hookpoint's value [row pos d_in] in every forward inside.

        A tensor that an action returns takes the value's place in the rest of the forward; `None`
        leaves it. Inputs (`resid_pre`, `z`, `mlp_in`) are hooked as inputs of their module, everything
        else as outputs. The hooks are removed at the end, whatever happens.

        Args:
            actions: By hookpoint.
            whole: Whether actions are given what the model has, its mean included, also where the stream is
                read without.
        """
        with ExitStack() as stack:
            for hookpoint, action in actions.items():
                if not whole and self._centres(hookpoint):
                    action = about_mean(action)
                for handle in self._register(hookpoint, action):
                    stack.callback(handle.remove)
            yield

    def _register(
        self, hookpoint: Hookpoint, action: Callable[[torch.Tensor], torch.Tensor | None]
    ) -> list[Any]:
        layer = self.layers[hookpoint.layer]

        def on_input(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            new = action(input_tensor(args, kwargs))
            return None if new is None else with_input(args, kwargs, new)

        def on_output(_: Any, args: Any, output: Any) -> Any:
            new = action(first_tensor(output))
            return None if new is None else with_first(output, new)

        if hookpoint.site == "resid_pre":
            return [layer.register_forward_pre_hook(on_input, with_kwargs=True)]
        if hookpoint.site == "resid_post":
            return [layer.register_forward_hook(on_output)]
        shape = torch.Size()

        def note_shape(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal shape
            shape = input_tensor(args, kwargs).shape

        def on_module_input(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = input_tensor(args, kwargs)
            new = action(value.reshape(*shape[:-1], -1))
            return None if new is None else with_input(args, kwargs, new.reshape(value.shape))

        def on_term(_: Any, args: tuple[Any, ...], output: Any) -> Any:
            flat = first_tensor(output)  # OPT's MLP works on [row*pos d_in]
            new = action(term.value(args, flat).reshape(shape))
            if new is None:
                return None
            return with_first(
                output, new.reshape(flat.shape) / term.scale + term.offset(args, flat)
            )

        noted = layer.register_forward_pre_hook(note_shape, with_kwargs=True)
        if hookpoint in self.inputs:
            module = self.inputs[hookpoint].module
            return [noted, module.register_forward_pre_hook(on_module_input, with_kwargs=True)]
        term = self.terms[hookpoint]
        return [noted, term.module.register_forward_hook(on_term)]


def resolve(model: torch.nn.Module, hookpoints: list[Hookpoint]) -> HookedModules:
    """Return the modules behind `hookpoints`, each checked on a probe forward where it needs one.

    Raises:
        SpecError: a layer is past the last.
        ModelError: no layers are found, or a hookpoint has no meaning in this model.
    """
    layers = decoder_layers(model)
    sites = HookedModules(model, layers, centred=is_centred(model))
    for hookpoint in hookpoints:
        check_layer(hookpoint, len(layers))
    for index in sorted({h.layer for h in hookpoints if h.site in ("attn_out", "mlp_out")}):
        attention, mlp = find_terms(model, layers[index], index)
        sites.terms[Hookpoint("attn_out", index)] = attention
        sites.terms[Hookpoint("mlp_out", index)] = mlp
    for place in (h for h in dict.fromkeys(hookpoints) if h.site in ("z", "mlp_in")):
        find = find_output_projection if place.site == "z" else find_mlp_input
        sites.inputs[place] = find(model, layers[place.layer], place.layer)
        _check_owned(sites, place)
    return sites


def _check_owned(sites: HookedModules, place: Hookpoint) -> None:
    """Refuse a module that several layers call (Zamba2): its hooks cannot tell whose input they get.

    Raises:
        ModelError: several layers have it.
    """
    module = sites.inputs[place].module
    owners = [
        i for i, layer in enumerate(sites.layers) if any(m is module for m in layer.modules())
    ]
    if len(owners) > 1:
        raise ModelError(
            f"{place.name} cannot be read from {type(sites.model).__name__}: its {type(module).__name__} is "
            f"shared by layers {', '.join(map(str, owners))}. Use resid_pre.{place.layer} or "
            f"resid_post.{place.layer}."
        )
