"""What attention and MLP of a layer add to the residual stream, identified on a probe forward.

No table of architectures is needed: among what the layer's modules return, the two terms are those whose sum
is what the layer adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from typing import Any

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.models.forward_pass import Stopped, own_code, run_until_stopped
from sae_placebo.models.layers import (
    first_tensor,
    input_tensor,
    is_attention,
    text_config,
    with_input,
)


@dataclass(frozen=True)
class StreamTerm:
    """A term is how to read what one module adds to the residual stream: scale * (output - input)."""

    module: torch.nn.Module
    subtract: int | None = None
    """The module has already added this positional input to its output (BLOOM, MPT), if any."""
    scale: float = 1.0
    """The layer multiplies the term by this number before adding it (Granite)."""

    def offset(self, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """Return the input that the module has added to its output; zero where there is none."""
        if self.subtract is None:
            return torch.zeros((), device=output.device)
        given = args[self.subtract]
        assert isinstance(given, torch.Tensor)
        return given

    def value(self, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        """Return the term of a call with these arguments, in the shape of the module's output."""
        value = output if self.subtract is None else output - self.offset(args, output)
        return value if self.scale == 1.0 else value * self.scale


@dataclass(eq=False)
class ModuleCall:
    """What one child of a layer got and gave during the probe."""

    module: torch.nn.Module
    first: torch.Tensor | None
    """Its first positional input, where it is as large as the residual stream."""
    output: torch.Tensor
    added: dict[int, torch.Tensor]
    """The positional inputs that it has added to its output."""
    is_attention: bool


@dataclass
class _Probe:
    calls: list[ModuleCall]
    pre: torch.Tensor
    post: torch.Tensor


def run_layer(
    model: torch.nn.Module,
    layer: torch.nn.Module,
    handles: Sequence[Any],
    ends: dict[str, torch.Tensor],
    moved: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> None:
    """Run one layer on eight tokens, with hooks that are removed afterwards.

    The layer is fed its own input scaled to unit root mean square per token: in a trained model the
    residual can be a thousand times larger than a term, and the sum would then fit any candidate.

    Args:
        model: The model, which runs up to the end of the layer.
        layer: The layer.
        handles: Of the hooks, which are registered already.
        ends: A table that is filled with what enters the layer, `pre`, and what leaves it, `post`.
        moved: What is done to the scaled input before the layer reads it; None for nothing.
    """

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = input_tensor(args, kwargs)
        value = value / value.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
        value = value if moved is None else moved(value)
        ends["pre"] = value.clone()
        return with_input(args, kwargs, value)

    def after(_: Any, args: Any, output: Any) -> None:
        ends["post"] = first_tensor(output).clone()
        raise Stopped

    vocabulary = text_config(model).vocab_size
    tokens = (torch.arange(8) * 7 + 3).remainder(vocabulary)[None]
    with ExitStack() as stack, torch.inference_mode():
        own = layer.register_forward_pre_hook(before, with_kwargs=True)
        for handle in (*handles, own, layer.register_forward_hook(after)):
            stack.callback(handle.remove)
        with own_code(model):
            run_until_stopped(model, tokens)


def _run_probe(model: torch.nn.Module, layer: torch.nn.Module) -> _Probe:
    """Record one layer and its children on eight tokens."""
    seen: dict[torch.nn.Module, list[ModuleCall]] = {}
    ends: dict[str, torch.Tensor] = {}

    def child(name: str) -> Callable[..., None]:
        def record(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if call := recorded(name, module, args, kwargs, output, ends["pre"].shape):
                seen.setdefault(module, []).append(call)

        return record

    handles = [
        module.register_forward_hook(child(name), with_kwargs=True)
        for name, module in layer.named_children()
    ]
    run_layer(model, layer, handles, ends)
    # a module called twice (Phi's dropout) gives no single value to read
    return _Probe([c[0] for c in seen.values() if len(c) == 1], ends["pre"], ends["post"])


def recorded(
    name: str,
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
    shape: torch.Size,
) -> ModuleCall | None:
    """Return a module's call as a record; None where it returns nothing as large as the stream of `shape`."""
    value = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(value, torch.Tensor) or value.numel() != shape.numel():
        return None
    fits = [isinstance(a, torch.Tensor) and a.numel() == value.numel() for a in args]
    added = {
        position: args[position].reshape(shape).clone()
        for position in range(1, len(args))
        if fits[position] and _adds(module, args, kwargs, position, value)
    }
    attention = is_attention(name, module)
    first = args[0].reshape(shape).clone() if args and fits[0] else None
    # clones: Falcon adds its attention's output into its MLP's output in place
    return ModuleCall(module, first, value.reshape(shape).clone(), added, attention)


def _adds(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    position: int,
    value: torch.Tensor,
) -> bool:
    """Return whether the module adds one of its inputs: a step in it is the same step in its output."""
    step = torch.linspace(-1, 1, value.shape[-1], dtype=value.dtype, device=value.device)
    moved = (*args[:position], args[position] + step, *args[position + 1 :])
    again = first_tensor(module.forward(*moved, **kwargs))
    return torch.allclose(again, value + step.expand_as(value), rtol=1e-3, atol=1e-3)


def rounding(value: torch.Tensor) -> float:
    """Return up to which share of their size two results in this precision count as the same."""
    return float(min(64 * torch.finfo(value.dtype).eps, 0.05))


def find_terms(
    model: torch.nn.Module, layer: torch.nn.Module, index: int
) -> tuple[StreamTerm, StreamTerm]:
    """Return the layer's attention and MLP terms: the pair that makes the residual's sum come out.

    Raises:
        ModelError: no pair of what its modules return is what the layer adds.
    """
    probe = _run_probe(model, layer)
    attention = _attention_chain(probe.calls)
    others = [call for call in probe.calls if call not in attention[:1]]
    pairs = [
        (a, b)
        for a, b in product(readings(attention), readings(others))
        if a[0].module is not b[0].module
    ]
    name = type(model).__name__
    if not pairs:
        raise ModelError(
            f"attn_out.{index} and mlp_out.{index} cannot be read from {name}: its layer has no "
            f"attention module beside an MLP. Use resid_pre.{index} or resid_post.{index}."
        )
    change = (probe.post.cpu().double() - probe.pre.cpu().double()).flatten()
    tolerance = rounding(probe.post)
    best = min(pairs, key=lambda pair: _misfit(probe, change, pair, (1.0, 1.0)))
    scales = (1.0, 1.0)
    error = _misfit(probe, change, best, scales)
    if error > tolerance:
        fits = [(pair, _fit_scales(change, pair)) for pair in pairs]
        best, scales = min(fits, key=lambda fit: _misfit(probe, change, *fit))
        error = _misfit(probe, change, best, scales)
    if error > tolerance:
        raise ModelError(
            f"attn_out.{index} and mlp_out.{index} cannot be read from {name}: its layer does more "
            "than add attention and MLP to the residual stream (it may normalize after adding), so "
            f"no single term is added; the sum misses by {error:.1%}. Use resid_pre.{index} or "
            f"resid_post.{index}."
        )
    (first, _), (second, _) = best
    return (
        StreamTerm(first.module, first.subtract, scales[0]),
        StreamTerm(second.module, second.subtract, scales[1]),
    )


Reading = tuple[StreamTerm, "torch.Tensor"]


def readings(calls: list[ModuleCall]) -> list[Reading]:
    """Return each module's output, also less each input that the module has added to it."""
    found: list[Reading] = []
    for call in calls:
        output = call.output.cpu().double().flatten()
        found.append((StreamTerm(call.module), output))
        for position, value in call.added.items():
            found.append(
                (StreamTerm(call.module, position), output - value.cpu().double().flatten())
            )
    return found


def _attention_chain(calls: list[ModuleCall]) -> list[ModuleCall]:
    """Return the attention module and what is applied to its output alone, such as a post-norm."""
    chain = [call for call in calls if call.is_attention][:1]
    for call in calls:
        if chain and call.first is not None and torch.equal(call.first, chain[-1].output):
            chain.append(call)
    return chain


def _misfit(
    probe: _Probe,
    change: torch.Tensor,
    pair: tuple[Reading, Reading],
    scales: tuple[float, float],
) -> float:
    (_, a), (_, b) = pair
    size = probe.pre.cpu().double().norm() + scales[0] * a.norm() + scales[1] * b.norm()
    return float((change - scales[0] * a - scales[1] * b).norm() / size)


def _fit_scales(change: torch.Tensor, pair: tuple[Reading, Reading]) -> tuple[float, float]:
    terms = torch.stack([pair[0][1], pair[1][1]], dim=1)
    solution = torch.linalg.lstsq(terms, change[:, None], driver="gelsd").solution.flatten()
    return float(solution[0]), float(solution[1])
