"""What attention writes to the residual stream, set to zero, with a check that nothing is left of it.

The output projection of an attention is the last matrix that is called inside of it, found in a forward pass
of a few tokens. There is no table of architectures: whether attention is silent afterwards is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from sae_placebo.controls.model.outputs import last_matrices, loose_biases, run_few_tokens
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.models.hookpoints import Hookpoint
from sae_placebo.models.sites import (
    attention_module,
    decoder_layers,
    first_tensor,
    input_tensor,
    resolve,
    text_config,
)

_ROUNDING = 1e-4
"""Activations that differ by no more than this share of the largest entry are the same."""


def silence_attention(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Set the output of every attention to zero, in place, and return the parameters that are zero now.

    These are the weight and the bias of each output projection, a bias that is added behind it, and the bias
    of a norm between that and the residual stream.

    Raises:
        ModelError: a layer has no attention, an attention writes something else than the output of its last
            matrix, or positions depend on one another without attention.
    """
    layers = decoder_layers(model)
    attentions = _attentions(model, layers)
    with torch.no_grad():
        silenced = [p for last in _last_matrices(model, attentions) for p in _zeroed(last)]
        width = int(text_config(model).hidden_size)
        silenced += [bias.zero_() for a in attentions for bias in loose_biases(a, width)]  # type: ignore[misc]
        left = _what_is_left(model, layers, attentions)
        if left.norms:
            silenced += [_zero_bias(norm) for norm in left.norms]
            left = _what_is_left(model, layers, attentions)
        name = type(model).__name__
        if left.writing:
            raise ModelError(
                f"attention of layer {left.writing[0]} of {name} writes more than the output of its last "
                "matrix, so that it cannot be ablated; leave out the arms that ablate attention."
            )
        if _mixes(model, layers):
            raise ModelError(
                f"positions of {name} depend on one another even without attention (another part mixes "
                "them, such as a convolution or a recurrence), so that its attention cannot be ablated "
                "alone; leave out the arms that ablate attention."
            )
    return list({id(p): p for p in silenced}.values())


def _attentions(model: torch.nn.Module, layers: torch.nn.ModuleList) -> list[torch.nn.Module]:
    """Return the attention of every layer.

    Raises:
        ModelError: a layer has none.
    """
    found = [(i, attention_module(layer)) for i, layer in enumerate(layers)]
    without = [str(i) for i, module in found if module is None]
    if without:
        which = "no layer" if len(without) == len(layers) else "not every layer"
        raise ModelError(
            f"{which} of {type(model).__name__} has attention (none in {', '.join(without[:8])}"
            f"{', ...' if len(without) > 8 else ''}), so that it cannot be ablated; leave out the arms "
            "that ablate attention."
        )
    return [module for _, module in found if module is not None]


def _last_matrices(
    model: torch.nn.Module, attentions: list[torch.nn.Module]
) -> list[torch.nn.Module]:
    """Return the last matrix that each attention calls.

    Raises:
        ModelError: an attention calls none.
    """
    found = last_matrices(model, attentions)
    if None in found:
        raise ModelError(
            f"attention of layer {found.index(None)} of {type(model).__name__} has no module for its output "
            "projection, so that it cannot be ablated; leave out the arms that ablate attention."
        )
    return [module for module in found if module is not None]


def _zeroed(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Set a module's own parameters to zero, and return them."""
    return [parameter.zero_() for parameter in module.parameters(recurse=False)]  # type: ignore[misc]


def _zero_bias(norm: torch.nn.Module) -> torch.nn.Parameter:
    bias: Any = norm.bias
    return bias.zero_()  # type: ignore[no-any-return]


@dataclass
class _Left:
    """What is left of attention after its output projections were set to zero.

    Attributes:
        writing: The layers whose attention, or the norm behind it, still returns something.
        norms: The norms that turn zeros into something by a bias.
    """

    writing: list[int] = field(default_factory=list)
    norms: list[torch.nn.Module] = field(default_factory=list)


def _what_is_left(
    model: torch.nn.Module, layers: torch.nn.ModuleList, attentions: list[torch.nn.Module]
) -> _Left:
    """Return what attention still writes in a forward pass of a few tokens."""
    left = _Left()

    def of_attention(index: int) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            value = first_tensor(output)
            # BLOOM's attention is given the stream, and returns it with its own output added
            given = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
            same = any(t.shape == value.shape and torch.equal(t, value) for t in given)
            if bool(value.any()) and not same:
                left.writing.append(index)

        return hook

    def of_norm(index: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            # a norm that is given zeros stands behind the attention
            if bool(input_tensor(args, kwargs).any()) or not bool(first_tensor(output).any()):
                return
            if isinstance(getattr(module, "bias", None), torch.nn.Parameter):
                left.norms.append(module)
            left.writing.append(index)

        return hook

    with ExitStack() as stack:
        for index, (layer, attention) in enumerate(zip(layers, attentions, strict=True)):
            handle = attention.register_forward_hook(of_attention(index), with_kwargs=True)
            stack.callback(handle.remove)
            for child in layer.children():
                if "Norm" in type(child).__name__:
                    norm = child.register_forward_hook(of_norm(index), with_kwargs=True)
                    stack.callback(norm.remove)
        run_few_tokens(model)
    return left


def _mixes(model: torch.nn.Module, layers: torch.nn.ModuleList) -> bool:
    """Return whether the last position changes when others enter the first layer with other vectors."""
    entry = Hookpoint("resid_pre", 0)
    seen: list[torch.Tensor] = []

    def swapped(x: torch.Tensor) -> torch.Tensor:
        before = x[:, :-1].flip(1) * 2
        return torch.cat([before, x[:, -1:]], dim=1)

    def keep(_: Any, args: Any, output: Any) -> None:
        seen.append(first_tensor(output)[:, -1].float())

    with ExitStack() as stack:
        stack.callback(layers[-1].register_forward_hook(keep).remove)
        run_few_tokens(model)
        stack.enter_context(resolve(model, [entry]).hooked({entry: swapped}))
        run_few_tokens(model)
    plain, other = seen
    return not float((plain - other).abs().max()) <= _ROUNDING * float(plain.abs().max())
