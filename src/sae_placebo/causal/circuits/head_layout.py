"""The layout of heads: which outputs of which of an attention's matrices are the query, key or value of each.

It is found by moving outputs and looking which heads change. That is done in a copy of the attention with
random weights, since in the model's own a head may be silent or saturated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from sae_placebo.causal.circuits.matrices import matrices_in, matrix
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.models.sites import input_tensor, is_norm, text_config

N_TOKENS = 3
"""The forward passes by which parts are found have this many tokens."""
_MOVED = 1e-4
"""A head's output has been moved if it changes by more than this; its typical entries are about 0.3."""

Columns = tuple[str, "Int64[np.ndarray, 'head head_dim']"]
"""The name of a matrix inside the attention, and which of its outputs belong to each head."""
Shared = tuple[str, "Int64[np.ndarray, 'kv_head head_dim']"]
"""The same for keys and values, which heads may share."""


@dataclass(frozen=True, eq=False)
class HeadLayout:
    """The matrices inside an attention, and which of their outputs belong to which head.

    Attributes:
        query: The matrix of the queries, and its outputs by head.
        key: The matrix of the keys, and its outputs by head or group of heads.
        value: The matrix of the values, likewise.
        output: The name of the matrix that reads the mixed values of all heads.
        group: The group of each head, which is the index of its key and value.
    """

    query: Columns
    key: Shared
    value: Shared
    output: str
    group: Int64[np.ndarray, " head"]


def _passing() -> torch.nn.Module:
    """Return a module that returns its first argument, whatever else it is called with, such as a gate."""
    module = torch.nn.Identity()
    module.forward = lambda x, *_, **__: x  # type: ignore[method-assign]
    return module


class _Mover:
    """A copy of an attention with random weights, in which the outputs of inner matrices can be moved.

    Args:
        attention: The attention.
        args: The arguments of a call of it, by position.
        kwargs: The arguments of the same call by name.
    """

    def __init__(
        self, attention: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.module = copy.deepcopy(attention).float().eval()
        for name, inner in list(self.module.named_modules()):
            if name and is_norm(
                inner
            ):  # a norm over all heads would make each depend on the others
                self.module.set_submodule(name, _passing())
        random = generator(0, "moving")
        for parameter in self.module.parameters():
            drawn = torch.randn(parameter.shape, generator=random)
            drawn = drawn / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else drawn / 10
            parameter.data.copy_(drawn)
        self.inside = dict(matrices_in(self.module))
        read = input_tensor(args, kwargs)
        # small numbers, so that no head's attention saturates
        self.input = 0.3 * torch.randn(read.shape, generator=random).to(read.device)
        self.args = tuple(self._plain(a) for a in args)
        self.kwargs = {name: self._plain(a) for name, a in kwargs.items()}
        if self.args:
            self.args = (self.input, *self.args[1:])
        else:
            self.kwargs["hidden_states"] = self.input

    def _plain(self, value: Any) -> Any:
        """Return an argument with its tensors in float32."""
        if isinstance(value, tuple):
            return tuple(self._plain(v) for v in value)
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.float() if floating else value

    def run(
        self, name: str = "", columns: slice = slice(0), position: int = 0
    ) -> dict[str, torch.Tensor]:
        """Return the input of each matrix as [pos, width], by name in the order of calls.

        Args:
            name: The matrix some outputs of which are moved; an empty string for none.
            columns: These outputs.
            position: The token at which they are moved.
        """
        seen: dict[str, torch.Tensor] = {}

        def read(name: str) -> Callable[..., None]:
            def hook(_: Any, args: tuple[Any, ...], __: Any) -> None:
                seen[name] = args[0].detach().reshape(N_TOKENS, -1).clone()

            return hook

        def move(_: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            moved = output.clone()
            part = moved.view(N_TOKENS, -1)[position, columns]
            part += torch.linspace(-1, 1, len(part), device=part.device) * 2 + 0.5
            return moved

        with ExitStack() as stack, torch.no_grad():
            for inner, module in self.inside.items():
                stack.callback(module.register_forward_hook(read(inner)).remove)
            if name:
                stack.callback(self.inside[name].register_forward_hook(move).remove)
            self.module(*self.args, **self.kwargs)
        return seen


def head_layout(
    model: torch.nn.Module,
    attention: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> HeadLayout:
    """Return the layout of an attention's heads.

    It is found by moving outputs of its matrices, a head's width at a time. The first token attends to
    itself alone. So what changes its own output, moved at the first token, is a value. What changes the
    last token's output only, moved at the first token, is a key. What changes the last token's output,
    moved at the last token, and not before, is a query. The heads whose outputs change are those it
    belongs to.

    Args:
        model: The model, whose config says how many heads there are.
        attention: The attention.
        args: The arguments of a call of it, by position.
        kwargs: The arguments of the same call by name.

    Raises:
        ModelError: the attention does not split into heads in a way that is understood.
    """
    mover = _Mover(attention, args, kwargs)
    clean = mover.run()
    n_heads = int(getattr(text_config(model), "num_attention_heads", None) or 0)
    whole = mover.input.reshape(N_TOKENS, -1)
    readers = [n for n, x in clean.items() if x.shape == whole.shape and torch.equal(x, whole)]
    others = [n for n in clean if n not in readers]
    found = f"{type(attention).__name__} with " + ", ".join(
        f"{n} {tuple(matrix(m).shape)}" for n, m in mover.inside.items()
    )
    if not n_heads:
        raise ModelError(f"{found} has no heads: the model's config does not say how many.")
    if len(others) != 1 or not readers or clean[others[0]].shape[1] % n_heads:
        raise ModelError(
            f"{found} does not split into {n_heads} heads in a way that is understood; allowed are "
            "matrices that read its input and one that reads all heads."
        )
    output = others[0]
    width = clean[output].shape[1] // n_heads
    roles: dict[str, list[tuple[list[int], str, Any]]] = {"query": [], "key": [], "value": []}
    for name in readers:
        for start in range(0, len(matrix(mover.inside[name])), width):
            columns = slice(start, start + width)
            role, heads = _role(mover, clean[output], (name, columns), output, n_heads)
            if role:
                roles[role].append((heads, name, np.arange(start, start + width)))
    return _assembled(roles, output, n_heads, found)


def _role(
    mover: _Mover,
    clean: torch.Tensor,
    moved: tuple[str, slice],
    output: str,
    n_heads: int,
) -> tuple[str, list[int]]:
    """Return whether outputs of a matrix are a query, key or value, and of which heads.

    Where they change no head the first is an empty string.
    """

    def change(position: int) -> Float[torch.Tensor, "pos head"]:
        """Return by how much each head's output changes if the outputs are moved at a position."""
        apart = mover.run(*moved, position)[output] - clean
        return apart.reshape(N_TOKENS, n_heads, -1).abs().amax(-1)

    early = change(0)
    moves, role = early[0], "value"
    if float(moves.max()) <= _MOVED:
        moves, role = early[-1], "key"
    if float(moves.max()) <= _MOVED:
        moves, role = change(N_TOKENS - 1)[-1], "query"
    if float(moves.max()) <= _MOVED:
        return "", []
    return role, [int(h) for h in torch.nonzero(moves > _MOVED)[:, 0]]


def _assembled(
    roles: dict[str, list[tuple[list[int], str, Any]]], output: str, n_heads: int, found: str
) -> HeadLayout:
    """Return the layout from the outputs found for each role.

    Args:
        roles: By role, groups of heads with the matrix and the outputs that are theirs.
        output: The name of the output matrix.
        n_heads: How many heads there are.
        found: A description of the attention, for errors.

    Raises:
        ModelError: a role is not given to each head once from one matrix, or keys and values are shared
            by different heads.
    """
    columns: dict[str, Columns] = {}
    groups: dict[str, list[list[int]]] = {}
    for role, blocks in roles.items():
        ordered = sorted(blocks, key=lambda block: block[0])
        names = {name for _, name, _ in ordered}
        covered = sorted(head for heads, _, _ in ordered for head in heads)
        if len(names) != 1 or covered != list(range(n_heads)):
            raise ModelError(
                f"{found} gives no {role} to each of {n_heads} heads, once, from one matrix: heads "
                f"{covered} were found in {sorted(names)}. Readers and writers need that."
            )
        columns[role] = (names.pop(), np.stack([block for _, _, block in ordered]))
        groups[role] = [heads for heads, _, _ in ordered]
    if groups["key"] != groups["value"] or len(groups["query"]) != n_heads:
        raise ModelError(f"{found} shares keys and values among different heads.")
    group = np.zeros(n_heads, dtype=np.int64)
    for i, heads in enumerate(groups["key"]):
        group[heads] = i
    return HeadLayout(columns["query"], columns["key"], columns["value"], output, group)
