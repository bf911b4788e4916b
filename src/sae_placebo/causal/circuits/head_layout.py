"""Which outputs of which matrix are the query, key or value of which head, found by moving them.

They are moved in a copy of the attention with random weights, since in the model's own a head may be silent
or saturated.
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
from sae_placebo.causal.circuits.norms import is_norm
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator
from sae_placebo.models.sites import text_config

N_TOKENS = 3
"""Tokens in the forwards by which parts are found."""
_MOVED = 1e-4
"""Change of a head's output, of which typical entries are about 0.3, from which on it has been moved."""

Columns = tuple[str, "Int64[np.ndarray, 'head head_dim']"]
Shared = tuple[str, "Int64[np.ndarray, 'kv_head head_dim']"]


@dataclass(frozen=True, eq=False)
class HeadLayout:
    """Names of the matrices inside the attention, and which of their outputs belong to which head."""

    query: Columns
    key: Shared
    value: Shared
    output: str
    group: Int64[np.ndarray, " head"]


def _passing() -> torch.nn.Module:
    """Return a module that gives what it was given first; norms with a gate are given that as well."""
    module = torch.nn.Identity()
    module.forward = lambda x, *_, **__: x  # type: ignore[method-assign]
    return module


class _Mover:
    """A copy of an attention with random weights, whose inner outputs can be moved."""

    def __init__(
        self, attention: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.module = copy.deepcopy(attention).float().eval()
        for name, inner in list(self.module.named_modules()):
            if name and is_norm(inner):  # norms over all heads would tie them together
                self.module.set_submodule(name, _passing())
        random = generator(0, "moving")
        for parameter in self.module.parameters():
            drawn = torch.randn(parameter.shape, generator=random)
            drawn = drawn / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else drawn / 10
            parameter.data.copy_(drawn)
        self.inside = dict(matrices_in(self.module))
        read: torch.Tensor = args[0] if args else kwargs["hidden_states"]
        # small, so that no head's attention saturates
        self.input = 0.3 * torch.randn(read.shape, generator=random).to(read.device)
        self.args = tuple(self._plain(a) for a in args)
        self.kwargs = {name: self._plain(a) for name, a in kwargs.items()}
        if self.args:
            self.args = (self.input, *self.args[1:])
        else:
            self.kwargs["hidden_states"] = self.input

    def _plain(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._plain(v) for v in value)
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.float() if floating else value

    def run(
        self, name: str = "", columns: slice = slice(0), position: int = 0
    ) -> dict[str, torch.Tensor]:
        """Return what each matrix read [pos, width], in order, with outputs of one matrix moved."""
        seen: dict[str, torch.Tensor] = {}

        def read(name: str) -> Callable[..., None]:
            def hook(_: Any, args: tuple[Any, ...], __: Any) -> None:
                seen[name] = args[0].detach().reshape(N_TOKENS, -1).clone()

            return hook

        def move(_: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            moved = output.clone()
            here = moved.view(N_TOKENS, -1)[position, columns]
            here += torch.linspace(-1, 1, len(here), device=here.device) * 2 + 0.5
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
    """Find the heads by moving a head's width of outputs at a time, at the first and the last token.

    The first token attends to itself alone: what moves its output there is a value, for whatever head.
    What moves the last token's output from the first is a key, and from itself alone a query.
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
    """Return what some outputs of a matrix are, and of which heads; an empty name where of none."""

    def change(position: int) -> Float[torch.Tensor, "pos head"]:
        apart = mover.run(*moved, position)[output] - clean
        return apart.reshape(N_TOKENS, n_heads, -1).abs().amax(-1)

    early = change(0)
    here = early[0]
    role = "value"
    if float(here.max()) <= _MOVED:
        here, role = early[-1], "key"
    if float(here.max()) <= _MOVED:
        here, role = change(N_TOKENS - 1)[-1], "query"
    if float(here.max()) <= _MOVED:
        return "", []
    return role, [int(h) for h in torch.nonzero(here > _MOVED)[:, 0]]


def _assembled(
    roles: dict[str, list[tuple[list[int], str, Any]]], output: str, n_heads: int, found: str
) -> HeadLayout:
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
