"""The weights and biases of linear modules, whichever way round they keep them."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float

from sae_placebo.core.lazy import torch


def matrix(module: torch.nn.Module) -> Float[torch.Tensor, "d_out d_in"]:
    """Return W of a linear module, y = W x + b. GPT-2's modules keep it transposed."""
    weight: Any = module.weight
    kept: torch.Tensor = weight.detach().float()
    return kept.T if type(module).__name__ == "Conv1D" else kept


def offset(module: torch.nn.Module) -> Float[torch.Tensor, " d_out"]:
    """Return b of a linear module; zeros where it has none."""
    bias: Any = getattr(module, "bias", None)
    if bias is None:
        weight = matrix(module)
        return torch.zeros(len(weight), device=weight.device)
    kept: torch.Tensor = bias.detach().float()
    return kept


def matrices_in(module: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """Return the linear modules in a module with their names; its own, if it is linear, is empty."""
    return [(name, inner) for name, inner in module.named_modules() if is_matrix(inner)]


def is_matrix(module: torch.nn.Module) -> bool:
    """Return whether a module is linear: a matrix, with a bias or without."""
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
