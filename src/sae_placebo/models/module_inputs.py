"""The modules whose input is read at `mlp_in` and `z`, found by structure and checked on probe forwards.

`z` is the input of the matrix that maps attention's heads to its output: that matrix is one whose output is
what the attention returns. `mlp_in` is the input of the MLP: with that held fixed, what the MLP adds to the
residual stream stays as it is, whatever else the layer reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.models.layers import attention_module, first_tensor, is_norm, with_input
from sae_placebo.models.stream_terms import (
    ModuleCall,
    StreamTerm,
    find_terms,
    readings,
    recorded,
    rounding,
    run_layer,
)


@dataclass(frozen=True)
class ModuleInput:
    """A module whose input is read.

    Attributes:
        module: The module.
        width: The width of its input.
    """

    module: torch.nn.Module
    width: int


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a layer's child, or of the layer itself, with the very tensors of the forward pass."""

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def read(self) -> Any:
        """The hidden states that it was given."""
        return self.args[0] if self.args else self.kwargs.get("hidden_states")

    @property
    def gave(self) -> Any:
        """The hidden states that it returned."""
        return self.output[0] if isinstance(self.output, (tuple, list)) else self.output


def branch_entry(
    calls: Sequence[LayerCall], last: torch.nn.Module
) -> tuple[torch.nn.Module | None, LayerCall]:
    """Return the norm at the start of the branch that ends in `last`, and the first call behind that norm.

    The branch is followed back from call to call, by the tensor that each was given. The norm is None where
    the branch reads the stream itself.
    """
    at = max(i for i, call in enumerate(calls) if call.module is last)
    entry, inside = calls[at], not is_norm(last)
    for call in reversed(calls[:at]):
        if call.gave is None or entry.read is not call.gave:
            continue
        if inside and is_norm(call.module):
            return call.module, entry
        if not isinstance(call.module, torch.nn.Dropout):
            entry, inside = call, inside or not is_norm(call.module)
    return None, entry


# --- z -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _MatrixCall:
    """What a matrix in an attention was given and returned."""

    module: torch.nn.Module
    width: int
    output: torch.Tensor


def find_output_projection(
    model: torch.nn.Module, layer: torch.nn.Module, index: int
) -> ModuleInput:
    """Return the matrix of a layer's attention that reads all heads, one after the other.

    It is the last matrix whose output is what the attention returns, but for an input that the attention
    has added to it (BLOOM).

    Raises:
        ModelError: the layer has no attention, or the attention no such matrix.
    """
    attention = _innermost(layer)
    name = f"z.{index} cannot be read from {type(model).__name__}"
    instead = f"Use resid_pre.{index} or resid_post.{index}."
    if attention is None:
        raise ModelError(f"{name}: its layer has no attention module. {instead}")
    matrices, call, pre = _run_attention(model, layer, attention)
    if call is not None:
        for found in reversed(matrices):
            same = found.output.numel() == call.output.numel()
            if same and _is_returned(found.output, call, pre):
                return ModuleInput(found.module, found.width)
    raise ModelError(
        f"{name}: what its {type(attention).__name__} returns is not the output of a matrix that it calls "
        f"once, so no projection of its own reads its heads. {instead}"
    )


def _innermost(layer: torch.nn.Module) -> torch.nn.Module | None:
    """Return the attention of a layer that holds no other (Zamba2's outer one holds an MLP); None without."""
    found = attention_module(layer)
    while found is not None:
        inner = attention_module(found)
        if inner is None or not list(inner.children()):
            break
        found = inner
    return found


def _run_attention(
    model: torch.nn.Module, layer: torch.nn.Module, attention: torch.nn.Module
) -> tuple[list[_MatrixCall], ModuleCall | None, torch.Tensor]:
    """Return the matrices that an attention calls once, in order, its own call, and the layer's input."""
    seen: dict[torch.nn.Module, list[_MatrixCall]] = {}
    calls: list[ModuleCall | None] = []
    ends: dict[str, torch.Tensor] = {}

    def of_matrix(module: torch.nn.Module, args: Any, output: Any) -> None:
        # nothing is noted once the attention has returned: it is run again to see what it adds
        if not calls and args and isinstance(output, torch.Tensor):
            found = _MatrixCall(module, int(args[0].shape[-1]), output.clone())
            seen.setdefault(module, []).append(found)

    def of_attention(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append(None)
        calls[-1] = recorded("attention", module, args, kwargs, output, ends["pre"].shape)

    handles = [m.register_forward_hook(of_matrix) for m in attention.modules() if _is_matrix(m)]
    handles.append(attention.register_forward_hook(of_attention, with_kwargs=True))
    run_layer(model, layer, handles, ends)
    once = [found[0] for found in seen.values() if len(found) == 1]
    return once, calls[0] if len(calls) == 1 else None, ends["pre"]


def _is_matrix(module: torch.nn.Module) -> bool:
    """Return whether a module multiplies by one matrix that it owns."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.nn.Parameter) and weight.ndim == 2


def _is_returned(output: torch.Tensor, call: ModuleCall, pre: torch.Tensor) -> bool:
    """Return whether a matrix's output is what the attention returns, less an input that it has added."""
    flat = output.cpu().double().flatten()
    for term, value in readings([call]):
        # what was added is taken off again with rounding of its own size
        size = flat.norm() if term.subtract is None else flat.norm() + pre.cpu().double().norm()
        if float((flat - value).norm()) <= rounding(output) * float(size):
            return True
    return False


# --- mlp_in ------------------------------------------------------------------------------------------


def find_mlp_input(model: torch.nn.Module, layer: torch.nn.Module, index: int) -> ModuleInput:
    """Return the module of a layer that is given the MLP's input, behind the norm where there is one.

    It is the MLP, a block of experts with its router, or the MLP's first matrix where the layer has no
    module for the whole MLP (OPT).

    Raises:
        ModelError: the layer does not add an MLP to the stream, or what it adds depends on more than the
            input of that module.
    """
    name = f"mlp_in.{index} cannot be read from {type(model).__name__}"
    try:
        _, term = find_terms(model, layer, index)
    except ModelError as refusal:
        raise ModelError(
            str(refusal).replace("attn_out.", f"mlp_in.{index}, attn_out.", 1)
        ) from refusal
    calls = _run_children(model, layer)
    _, entry = branch_entry(calls, term.module)
    if isinstance(entry.read, torch.Tensor):
        found = ModuleInput(entry.module, int(entry.read.shape[-1]))
        if _decides(model, layer, entry.module, term):
            return found
    raise ModelError(
        f"{name}: what its MLP adds depends on more than the input of {type(entry.module).__name__}, so it "
        f"has no one input. Use mlp_out.{index}, resid_pre.{index} or resid_post.{index}."
    )


def _run_children(model: torch.nn.Module, layer: torch.nn.Module) -> list[LayerCall]:
    """Return the calls of a layer's children in order, with the very tensors of a forward pass."""
    calls: list[LayerCall] = []

    def note(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append(LayerCall(module, args, kwargs, output))

    handles = [m.register_forward_hook(note, with_kwargs=True) for m in layer.children()]
    run_layer(model, layer, handles, {})
    return calls


def _decides(
    model: torch.nn.Module, layer: torch.nn.Module, module: torch.nn.Module, term: StreamTerm
) -> bool:
    """Return whether a term stays as it is when the layer reads other states, but a module the same input."""
    given: list[torch.Tensor] = []
    terms: list[torch.Tensor] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if given:
            return with_input(args, kwargs, given[0].clone())
        value = args[0] if args else kwargs["hidden_states"]
        given.append(value.clone())
        return None

    def keep(_: Any, args: tuple[Any, ...], output: Any) -> None:
        terms.append(term.value(args, first_tensor(output)).cpu().double().clone())

    ends: dict[str, torch.Tensor] = {}
    for moved in (None, _moved):
        before = module.register_forward_pre_hook(note, with_kwargs=True)
        after = term.module.register_forward_hook(keep)
        run_layer(model, layer, (before, after), ends, moved)
    if len(terms) != 2:  # a module that is called more than once
        return False
    size = terms[0].norm()
    if term.subtract is not None:
        size = size + ends["pre"].cpu().double().norm()
    return float((terms[1] - terms[0]).norm()) <= rounding(ends["pre"]) * float(size)


def _moved(x: torch.Tensor) -> torch.Tensor:
    """Return other states of the same size: those of the positions in reverse, with the sign changed."""
    return -x.flip(1)
