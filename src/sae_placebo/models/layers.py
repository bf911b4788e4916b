"""The decoder layers of a model, found by structure, and the hidden states that modules take and return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch


def text_config(model: torch.nn.Module) -> Any:
    """Return the part of the model's config that describes its decoder."""
    config: Any = model.config
    return config.get_text_config(decoder=True)


def decoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """Return the decoder layers: the outermost `ModuleList` with as many entries as layers.

    Raises:
        ModelError: there is none, or more than one.
    """
    wanted = text_config(model).num_hidden_layers
    found: dict[str, torch.nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(outer + ".") for outer in found)
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted and not inside:
            found[name] = module
    if len(found) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(found)} lists of {wanted} modules"
            f"{' (' + ', '.join(found) + ')' if found else ''}; one was expected: its decoder layers."
        )
    return next(iter(found.values()))


def is_attention(name: str, module: torch.nn.Module) -> bool:
    """Return whether a layer's child is an attention, by its own name or that of its class."""
    kind = type(module).__name__
    plain = "Norm" in kind or "Dropout" in kind
    return not plain and ("attn" in name or "ttention" in name + kind)


def is_norm(module: torch.nn.Module) -> bool:
    """Return whether a module is a norm by its name, or an identity in the place of one."""
    return isinstance(module, torch.nn.Identity) or "Norm" in type(module).__name__


def attention_module(layer: torch.nn.Module) -> torch.nn.Module | None:
    """Return the layer's child that is called attention, or whose class is; None without one."""
    return next((m for name, m in layer.named_children() if is_attention(name, m)), None)


def first_tensor(output: Any) -> torch.Tensor:
    """Return the hidden states in what a module returned: a bare tensor, or a tuple's first entry.

    Under transformers 5 most decoder layers return a bare tensor and some a tuple; `output[0]` would
    read row 0 of the bare ones. OpenAI's first GPT returns a list.
    """
    value = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(value, torch.Tensor):
        raise ModelError(f"a module returned {type(value).__name__} where a tensor was expected.")
    return value


def with_first(output: Any, value: torch.Tensor) -> Any:
    """Return what a module returned with other hidden states in it; the rest of a tuple stays."""
    return (value, *output[1:]) if isinstance(output, (tuple, list)) else value


def input_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the hidden states that a module was called with, by position or by name."""
    value = args[0] if args else kwargs["hidden_states"]
    assert isinstance(value, torch.Tensor)
    return value


def with_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], value: torch.Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a module's call with other hidden states among them."""
    return ((value, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": value})
