"""What a module of a model writes with: its last matrix and loose biases, found in a forward of a few tokens.

There is no table of architectures. Whoever uses what is found here measures that it is so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from sae_placebo.core.lazy import torch
from sae_placebo.models.forward_pass import own_code, run_until_stopped
from sae_placebo.models.sites import text_config

_N_TOKENS = 8


def last_matrices(
    model: torch.nn.Module, modules: Sequence[torch.nn.Module]
) -> list[torch.nn.Module | None]:
    """Return the last matrix that is called inside of each module; None where there is none."""
    last: dict[int, torch.nn.Module] = {}

    def note(index: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, *_: Any) -> None:
            last[index] = module

        return hook

    with ExitStack() as stack:
        for index, outer in enumerate(modules):
            for module in filter(is_matrix, outer.modules()):
                stack.callback(module.register_forward_hook(note(index)).remove)
        run_few_tokens(model)
    return [last.get(index) for index in range(len(modules))]


def is_matrix(module: torch.nn.Module) -> bool:
    """Return whether a module multiplies by a matrix that it owns."""
    weight = getattr(module, "weight", None)
    known = isinstance(weight, torch.nn.Parameter) and weight.ndim >= 2
    return known and not isinstance(module, torch.nn.Embedding)


def loose_biases(outer: torch.nn.Module, width: int) -> list[torch.nn.Parameter]:
    """Return biases as wide as the residual stream that no matrix or norm adds to its own output.

    GPT-NeoX-Japanese and JetMoE add such a bias to what attention returns.
    """
    return [
        parameter
        for module in outer.modules()
        if not is_matrix(module) and "Norm" not in type(module).__name__
        for name, parameter in module.named_parameters(recurse=False)
        if name.endswith("bias") and parameter.shape == (width,)
    ]


def run_few_tokens(model: torch.nn.Module) -> None:
    """Run the model on a few tokens, for its hooks."""
    ids = (torch.arange(_N_TOKENS) * 7 + 3).remainder(text_config(model).vocab_size)
    with own_code(model):
        run_until_stopped(model, ids[None])
