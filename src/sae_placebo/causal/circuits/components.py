"""The parts of decoder layers that write to and read from the residual stream, found by running the model.

There is no table of architectures. What attention and MLP read, and through which norm, is followed in one
forward pass of a few tokens. `head_layout` finds which outputs of which matrix belong to which head.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.causal.circuits.head_layout import N_TOKENS, HeadLayout, head_layout
from sae_placebo.causal.circuits.matrices import is_matrix, matrices_in, matrix, offset
from sae_placebo.causal.circuits.norms import Norm, read_norm
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.models.centring import is_centred
from sae_placebo.models.forward_pass import base_model
from sae_placebo.models.hookpoints import Hookpoint
from sae_placebo.models.module_inputs import LayerCall, branch_entry
from sae_placebo.models.sites import (
    StreamTerm,
    attention_module,
    decoder_layers,
    input_tensor,
    is_norm,
    resolve,
    text_config,
)


@dataclass(frozen=True, eq=False)
class Projection:
    """The queries, keys or values of the heads of a layer, as outputs of a matrix that reads the stream.

    Attributes:
        module: The matrix. Queries, keys and values may share one.
        columns: Which of its outputs belong to each head. Keys and values have fewer heads where heads
            share them.
    """

    module: torch.nn.Module
    columns: Int64[np.ndarray, "head head_dim"]

    @property
    def n_heads(self) -> int:
        """The number of heads, or of groups of heads that share a key and a value."""
        return len(self.columns)

    def weight(self) -> Float[torch.Tensor, "head head_dim d_model"]:
        """Return W, where W[h] x is the query, key or value of head h before its bias is added."""
        return matrix(self.module)[torch.from_numpy(self.columns)]

    def bias(self) -> Float[torch.Tensor, "head head_dim"]:
        """Return the bias of each head's query, key or value; zeros where there is none."""
        return offset(self.module)[torch.from_numpy(self.columns)]


@dataclass(frozen=True, eq=False)
class Attention:
    """The attention of a layer.

    Attributes:
        module: The whole attention.
        query: The queries by head.
        key: The keys by head, or by group of heads.
        value: The values by head, or by group of heads.
        output: The matrix that reads the mixed values of all heads, one head after the other, and returns
            what attention adds to the stream.
        group: Which key and value each head takes.
        term: The module whose output is added to the stream, and what the layer multiplies that by.
        centred: Whether what it adds is read without its mean over dimensions; see `models.centring`.
    """

    module: torch.nn.Module
    query: Projection
    key: Projection
    value: Projection
    output: torch.nn.Module
    group: Int64[np.ndarray, " head"]
    term: StreamTerm
    centred: bool = False

    @property
    def n_heads(self) -> int:
        """The number of heads that attend."""
        return self.query.n_heads

    @property
    def head_dim(self) -> int:
        """The width of a head's value."""
        return int(matrix(self.output).shape[1]) // self.n_heads

    def output_weight(self) -> Float[torch.Tensor, "head d_model head_dim"]:
        """Return W_O, where W_O[h] z_h is the output of head h before any norm, with z_h its mixed value."""
        weight = matrix(self.output)
        if self.centred:
            weight = weight - weight.mean(0)
        return weight.reshape(len(weight), self.n_heads, self.head_dim).transpose(0, 1)

    def head_outputs(
        self, mixed: Float[torch.Tensor, "*token width"]
    ) -> tuple[Float[torch.Tensor, "*token head d_model"], Float[torch.Tensor, "*token d_model"]]:
        """Return what each head adds to the residual stream, and what the output's bias adds.

        Heads and bias sum to the whole term (`attn_out`). Where a norm follows the output, its scale at each
        token is taken as given, so that the sum is still exact.

        Args:
            mixed: The input of `output`: the mixed values of all heads, one head after the other.

        Raises:
            ModelError: a norm that follows the output does more than scale it.
        """
        split = mixed.reshape(*mixed.shape[:-1], self.n_heads, self.head_dim)
        heads = torch.einsum("...he,hde->...hd", split, self.output_weight())
        bias = offset(self.output)
        if self.centred:
            bias = bias - bias.mean()
        whole = heads.sum(-2) + bias
        norm = self.norm_behind()
        factor = torch.full_like(whole, self.term.scale)
        if norm is not None:
            factor = norm.weight / norm.spread(whole) * self.term.scale
        return heads * factor.unsqueeze(-2), bias * factor

    def norm_behind(self) -> Norm | None:
        """Return the norm between the attention's output and the stream; None where there is none.

        Raises:
            ModelError: the norm does more than scale.
        """
        term = self.term.module
        if not is_norm(term) or isinstance(term, torch.nn.Identity):
            return None
        norm = read_norm(term, len(matrix(self.output)))
        if norm.centered or bool(norm.bias.abs().max() > 0):
            raise ModelError(
                f"{type(term).__name__} behind the attention's output subtracts or adds, so heads have "
                "no terms of their own in it; only norms that scale are allowed there."
            )
        return norm


@dataclass(frozen=True, eq=False)
class LayerParts:
    """The attention and the MLP of one decoder layer, and the norms before them.

    Attributes:
        index: The index of the layer, from 0.
        attention_norm: The norm between the stream and the attention.
        attention: The attention.
        mlp_norm: The norm between the stream and the MLP.
        mlp: The module that is given the normalized stream: the MLP, or its first matrix where the layer
            has no module for the whole MLP.
        mlp_term: The module whose output the MLP adds to the stream.
        parallel: Whether the MLP reads the stream as it enters the layer, without what attention adds.
    """

    index: int
    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: torch.nn.Module
    mlp_term: StreamTerm
    parallel: bool


def layer_parts(
    model: torch.nn.Module, first: int = 0, stop: int | None = None
) -> list[LayerParts]:
    """Return the parts of the decoder layers from `first` to the one before `stop`, or to the last.

    Raises:
        ModelError: a layer does not add attention and MLP to the stream, or its attention does not split
            into heads in a way that is understood. The message says what was found.
    """
    layers = decoder_layers(model)
    wanted = range(first, len(layers) if stop is None else stop)
    try:
        terms = resolve(model, [Hookpoint("attn_out", i) for i in wanted]).terms
    except ModelError as refusal:
        # the advice to read another hookpoint is of no use here
        reason, _, _ = str(refusal).partition(" Use resid_pre")
        raise ModelError(
            f"heads and MLPs are told apart where layers add them, but {reason}"
        ) from refusal
    calls = _record(model, first)
    layouts: dict[Any, HeadLayout] = {}
    parts = []
    for i in wanted:
        attention = attention_module(layers[i])
        assert attention is not None  # or `resolve` would have raised
        signature = tuple((n, type(m), tuple(matrix(m).shape)) for n, m in matrices_in(attention))
        if signature not in layouts:
            call = next(c for c in calls[i] if c.module is attention)
            layouts[signature] = head_layout(model, attention, call.args, call.kwargs)
        found = _parts(i, layers[i], attention, terms, calls[i], layouts[signature])
        if is_centred(model):
            found = replace(found, attention=replace(found.attention, centred=True))
        parts.append(found)
    return parts


def final_norm(model: torch.nn.Module) -> Norm:
    """Return the norm behind the decoder layers, which is the last norm that is called outside them.

    Raises:
        ModelError: it is neither a LayerNorm nor an RMSNorm nor the identity.
    """
    inside = {id(m) for layer in decoder_layers(model) for m in layer.modules()}
    last: list[tuple[torch.nn.Module, int]] = []

    def note(module: torch.nn.Module, args: Any, _: Any) -> None:
        last[:] = [(module, args[0].shape[-1])]

    with ExitStack() as stack:
        for name, module in base_model(model).named_modules():
            if name and id(module) not in inside and is_norm(module):
                stack.callback(module.register_forward_hook(note).remove)
        _run(model)
    width = int(text_config(model).hidden_size)
    return read_norm(last[0][0], last[0][1]) if last else read_norm(None, width)


def mlp_matrices(
    model: torch.nn.Module, parts: list[LayerParts]
) -> dict[int, list[torch.nn.Module]]:
    """Return, by layer, the matrices of the MLP that read the stream: its first, and a gate if it has one."""
    given: dict[int, Any] = {}
    reading: dict[int, list[torch.nn.Module]] = {part.index: [] for part in parts}

    def enter(index: int) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            given[index] = input_tensor(args, kwargs)

        return hook

    def read(index: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any) -> None:
            if index in given and _same_place(args[0], given[index]):
                reading[index].append(module)

        return hook

    with ExitStack() as stack:
        for part in parts:
            handle = part.mlp.register_forward_pre_hook(enter(part.index), with_kwargs=True)
            stack.callback(handle.remove)
            inner = [part.mlp] if is_matrix(part.mlp) else []
            for module in [*inner, *(m for _, m in matrices_in(part.mlp) if m is not part.mlp)]:
                hook = module.register_forward_pre_hook(read(part.index))
                stack.callback(hook.remove)
        _run(model)
    return reading


def _run(model: torch.nn.Module) -> None:
    """Run the model on a few tokens, for its hooks."""
    device = next(model.parameters()).device
    ids = (torch.arange(N_TOKENS) * 7 + 3).remainder(text_config(model).vocab_size)
    with torch.no_grad():
        base_model(model)(input_ids=ids[None].to(device), use_cache=False)


# --- what reads what ---------------------------------------------------------------------------------


def _record(model: torch.nn.Module, first: int) -> dict[int, list[LayerCall]]:
    """Return, by layer, the calls of its children in order, with the layer's own call last."""
    calls: dict[int, list[LayerCall]] = {}

    def note(i: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls.setdefault(i, []).append(LayerCall(module, args, kwargs, output))

        return hook

    with ExitStack() as stack:
        for i, layer in enumerate(decoder_layers(model)):
            for module in (*layer.children(), layer) if i >= first else ():
                handle = module.register_forward_hook(note(i), with_kwargs=True)
                stack.callback(handle.remove)
        _run(model)
    return calls


def _same_place(a: Any, b: Any) -> bool:
    """Return whether two tensors share their memory."""
    return isinstance(a, torch.Tensor) and a.data_ptr() == b.data_ptr()


def _parts(
    index: int,
    layer: torch.nn.Module,
    attention: torch.nn.Module,
    terms: dict[Hookpoint, StreamTerm],
    calls: list[LayerCall],
    layout: HeadLayout,
) -> LayerParts:
    """Return the parts of a layer, from the calls of one forward pass and the layout of its heads."""
    width = int(calls[-1].read.shape[-1])
    attention_norm, _ = branch_entry(calls[:-1], attention)
    mlp_term = terms[Hookpoint("mlp_out", index)]
    mlp_norm, mlp = branch_entry(calls[:-1], mlp_term.module)
    source = next((c.read for c in calls if c.module is mlp_norm), mlp.read)
    named = dict(attention.named_modules())
    query, key, value = (
        Projection(named[name], columns)
        for name, columns in (layout.query, layout.key, layout.value)
    )
    parts = Attention(
        attention, query, key, value, named[layout.output], layout.group,
        terms[Hookpoint("attn_out", index)],
    )  # fmt: skip
    return LayerParts(
        index=index,
        attention_norm=read_norm(attention_norm, width),
        attention=parts,
        mlp_norm=read_norm(mlp_norm, width),
        mlp=mlp.module,
        mlp_term=mlp_term,
        parallel=_same_place(source, calls[-1].read),
    )
