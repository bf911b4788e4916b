"""The modules behind hookpoints, found by structure and never from a table of architectures.

The decoder layers are the one `ModuleList` as long as the config says; what attention and MLP add to
the residual stream is identified on a probe forward, where the sum has to come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.models.forward_pass import Stopped, own_code, run_until_stopped
from sae_placebo.models.hookpoints import Hookpoint, check_layer


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


def _is_attention(name: str, module: torch.nn.Module) -> bool:
    kind = type(module).__name__
    plain = "Norm" in kind or "Dropout" in kind
    return not plain and ("attn" in name or "ttention" in name + kind)


def attention_module(layer: torch.nn.Module) -> torch.nn.Module | None:
    """Return the layer's child that is called attention, or whose class is; None without one."""
    return next((m for name, m in layer.named_children() if _is_attention(name, m)), None)


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


@dataclass(frozen=True)
class StreamTerm:
    """A term is how to read what one module adds to the residual stream: scale * (output - input)."""

    module: torch.nn.Module
    subtract: int | None = None
    """The module has already added this positional input to its output (BLOOM, MPT), if any."""
    scale: float = 1.0
    """The layer multiplies the term by this number before adding it (Granite)."""


@dataclass
class HookedModules:
    """The modules behind the hookpoints of one model."""

    model: torch.nn.Module
    layers: torch.nn.ModuleList
    terms: dict[Hookpoint, StreamTerm] = field(default_factory=dict)

    @contextmanager
    def hooked(
        self, actions: Mapping[Hookpoint, Callable[[torch.Tensor], torch.Tensor | None]]
    ) -> Iterator[None]:
        """Call each action with its hookpoint's value [row pos d_in] in every forward inside.

        A tensor that an action returns takes the value's place in the rest of the forward; `None`
        leaves it. Inputs (`resid_pre`) are hooked as inputs, everything else as outputs. The hooks
        are removed at the end, whatever happens.
        """
        with ExitStack() as stack:
            for hookpoint, action in actions.items():
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
        term, shape = self.terms[hookpoint], torch.Size()

        def note_shape(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal shape
            shape = input_tensor(args, kwargs).shape

        def on_term(_: Any, args: tuple[Any, ...], output: Any) -> Any:
            flat = first_tensor(output)  # OPT's MLP works on [row*pos d_in]
            base = torch.zeros((), device=flat.device) if term.subtract is None else None
            offset = base if base is not None else args[term.subtract or 0]
            value = flat if base is not None else flat - offset
            value = value if term.scale == 1.0 else value * term.scale
            new = action(value.reshape(shape))
            if new is None:
                return None
            return with_first(output, new.reshape(flat.shape) / term.scale + offset)

        return [
            layer.register_forward_pre_hook(note_shape, with_kwargs=True),
            term.module.register_forward_hook(on_term),
        ]


def resolve(model: torch.nn.Module, hookpoints: list[Hookpoint]) -> HookedModules:
    """Return the modules behind `hookpoints`, each checked on a probe forward where it needs one.

    Raises:
        SpecError: a layer is past the last.
        ModelError: no layers are found, or `attn_out` and `mlp_out` have no meaning in this model.
    """
    layers = decoder_layers(model)
    sites = HookedModules(model, layers)
    for hookpoint in hookpoints:
        check_layer(hookpoint, len(layers))
    for index in sorted({h.layer for h in hookpoints if h.site in ("attn_out", "mlp_out")}):
        attention, mlp = _find_terms(model, layers[index], index)
        sites.terms[Hookpoint("attn_out", index)] = attention
        sites.terms[Hookpoint("mlp_out", index)] = mlp
    return sites


@dataclass(eq=False)
class _ModuleCall:
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
    calls: list[_ModuleCall]
    pre: torch.Tensor
    post: torch.Tensor


def _run_probe(model: torch.nn.Module, layer: torch.nn.Module) -> _Probe:
    """Record one layer and its children on eight tokens.

    The layer is fed its own input scaled to unit root mean square per token: in a trained model the
    residual can be a thousand times larger than a term, and the sum would then fit any candidate.
    """
    seen: dict[torch.nn.Module, list[_ModuleCall]] = {}
    ends: dict[str, torch.Tensor] = {}

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = input_tensor(args, kwargs)
        value = value / value.pow(2).mean(-1, keepdim=True).sqrt().clamp_min(1e-12)
        ends["pre"] = value.clone()
        return with_input(args, kwargs, value)

    def after(_: Any, args: Any, output: Any) -> None:
        ends["post"] = first_tensor(output).clone()
        raise Stopped

    def child(name: str) -> Callable[..., None]:
        def record(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if call := _call(name, module, args, kwargs, output, ends["pre"].shape):
                seen.setdefault(module, []).append(call)

        return record

    vocabulary = text_config(model).vocab_size
    tokens = (torch.arange(8) * 7 + 3).remainder(vocabulary)[None]
    with ExitStack() as stack, torch.inference_mode():
        handles = [layer.register_forward_pre_hook(before, with_kwargs=True)]
        for name, module in layer.named_children():
            handles.append(module.register_forward_hook(child(name), with_kwargs=True))
        handles.append(layer.register_forward_hook(after))
        for handle in handles:
            stack.callback(handle.remove)
        with own_code(model):
            run_until_stopped(model, tokens)
    # a module called twice (Phi's dropout) gives no single value to read
    return _Probe([c[0] for c in seen.values() if len(c) == 1], ends["pre"], ends["post"])


def _call(
    name: str,
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
    shape: torch.Size,
) -> _ModuleCall | None:
    value = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(value, torch.Tensor) or value.numel() != shape.numel():
        return None
    fits = [isinstance(a, torch.Tensor) and a.numel() == value.numel() for a in args]
    added = {
        position: args[position].reshape(shape).clone()
        for position in range(1, len(args))
        if fits[position] and _adds(module, args, kwargs, position, value)
    }
    attention = _is_attention(name, module)
    first = args[0].reshape(shape).clone() if args and fits[0] else None
    # clones: Falcon adds its attention's output into its MLP's output in place
    return _ModuleCall(module, first, value.reshape(shape).clone(), added, attention)


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


def _find_terms(
    model: torch.nn.Module, layer: torch.nn.Module, index: int
) -> tuple[StreamTerm, StreamTerm]:
    """Return the layer's attention and MLP terms: the pair that makes the residual's sum come out."""
    probe = _run_probe(model, layer)
    attention = _attention_chain(probe.calls)
    others = [call for call in probe.calls if call not in attention[:1]]
    pairs = [
        (a, b)
        for a, b in product(_readings(attention), _readings(others))
        if a[0].module is not b[0].module
    ]
    name = type(model).__name__
    if not pairs:
        raise ModelError(
            f"attn_out.{index} and mlp_out.{index} cannot be read from {name}: its layer has no "
            f"attention module beside an MLP. Use resid_pre.{index} or resid_post.{index}."
        )
    change = (probe.post.cpu().double() - probe.pre.cpu().double()).flatten()
    tolerance = min(64 * torch.finfo(probe.post.dtype).eps, 0.05)
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


_Reading = tuple[StreamTerm, "torch.Tensor"]


def _readings(calls: list[_ModuleCall]) -> list[_Reading]:
    """Return each module's output, also less each input that the module has added to it."""
    found: list[_Reading] = []
    for call in calls:
        output = call.output.cpu().double().flatten()
        found.append((StreamTerm(call.module), output))
        for position, value in call.added.items():
            found.append(
                (StreamTerm(call.module, position), output - value.cpu().double().flatten())
            )
    return found


def _attention_chain(calls: list[_ModuleCall]) -> list[_ModuleCall]:
    """Return the attention module and what is applied to its output alone, such as a post-norm."""
    chain = [call for call in calls if call.is_attention][:1]
    for call in calls:
        if chain and call.first is not None and torch.equal(call.first, chain[-1].output):
            chain.append(call)
    return chain


def _misfit(
    probe: _Probe,
    change: torch.Tensor,
    pair: tuple[_Reading, _Reading],
    scales: tuple[float, float],
) -> float:
    (_, a), (_, b) = pair
    size = probe.pre.cpu().double().norm() + scales[0] * a.norm() + scales[1] * b.norm()
    return float((change - scales[0] * a - scales[1] * b).norm() / size)


def _fit_scales(change: torch.Tensor, pair: tuple[_Reading, _Reading]) -> tuple[float, float]:
    terms = torch.stack([pair[0][1], pair[1][1]], dim=1)
    solution = torch.linalg.lstsq(terms, change[:, None], driver="gelsd").solution.flatten()
    return float(solution[0]), float(solution[1])
