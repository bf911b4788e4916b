"""The two ends of a language model, as matrices: token to residual stream, residual stream to logits."""

from __future__ import annotations

import copy
from typing import Any

from jaxtyping import Float

from sae_placebo.core.lazy import torch
from sae_placebo.models.centring import is_centred, without_mean
from sae_placebo.models.sites import decoder_layers, text_config


def embedding(model: torch.nn.Module) -> Float[torch.Tensor, "vocabulary d_embed"]:
    """Return W_E, the vector as which each token id enters the model: a copy in float16.

    Where a matrix stands between the embedding and the residual stream (OPT's `project_in`), it is
    multiplied in. Each row is without its mean where the stream is read without; see `centring`.
    """
    model_any: Any = model
    weight: torch.Tensor = model_any.get_input_embeddings().weight.detach().to("cpu")
    hidden = text_config(model).hidden_size
    between = _projection(model, (hidden, weight.shape[1]))
    if between is not None:
        weight = weight.float() @ between.float().T
    if is_centred(model):
        weight = without_mean(weight)
    return weight.to(torch.float16)


def unembedding(model: torch.nn.Module) -> Float[torch.Tensor, "vocabulary d_in"] | None:
    """Return W_U with the final norm's gain folded in, a copy in float16; None where there is none.

    Where a matrix stands between the residual stream and W_U (OPT's `project_out`), it is multiplied in.
    A direction of the residual stream times it is what that direction adds to the logits, but for the
    norm's division, which is a number per token.
    """
    weight = output_weight(model)
    if weight is None:
        return None
    gain = _final_gain(model, weight.shape[1])
    return (weight if gain is None else weight * gain).to(torch.float16)


def output_weight(model: torch.nn.Module) -> Float[torch.Tensor, "vocabulary d_in"] | None:
    """Return W_U as it reads the residual stream behind the final norm, in float32; None without one."""
    owner: Any = model
    head = owner.get_output_embeddings()
    if head is None:
        return None
    weight: torch.Tensor = head.weight.detach().to("cpu", torch.float32)
    hidden = text_config(model).hidden_size
    if weight.shape[1] == hidden:
        return weight
    between = _projection(model, (weight.shape[1], hidden))
    return None if between is None else weight @ between.float()


def _projection(model: torch.nn.Module, shape: tuple[int, int]) -> torch.Tensor | None:
    """Return the one matrix of this shape outside the layers, on the CPU; None where none is needed."""
    if shape[0] == shape[1]:
        return None
    inside = {id(m) for m in decoder_layers(model).modules()}
    found = [
        m.weight.detach().to("cpu")
        for m in model.modules()
        if id(m) not in inside and isinstance(m, torch.nn.Linear) and m.weight.shape == shape
    ]
    return found[0] if len(found) == 1 else None


def _final_gain(model: torch.nn.Module, d_in: int) -> torch.Tensor | None:
    """Return the gain of the norm behind the last layer; None where the model has none."""
    layers, behind, found = decoder_layers(model), False, None
    owner = next(m for m in model.modules() if any(c is layers for c in m.children()))
    for name, child in owner.named_children():
        weight = getattr(child, "weight", None)
        # OPT declares its final norm before its layers
        last = behind or "final" in name
        if last and isinstance(weight, torch.Tensor) and weight.shape == (d_in,):
            found = child
            break
        behind = behind or child is layers
    return None if found is None else _gain(found, d_in)


def _gain(norm: torch.nn.Module, d_in: int) -> torch.Tensor:
    """Return what a norm multiplies by, seen from outside: some add 1 to the weight that they keep."""
    probe = torch.ones(d_in)
    probe[1::2] = -1
    if d_in % 2:
        probe[-3:] = torch.tensor([1.0, 1.0, -2.0])
    # without a mean, and long, so that norms that center and what keeps them from 0 change nothing
    probe = probe * 1024
    own: Any = copy.deepcopy(norm).to("cpu", torch.float32)
    with torch.no_grad():
        # a bias cancels
        difference = (own(probe[None])[0] - own(-probe[None])[0]) / 2
    found: torch.Tensor = difference / probe * probe.square().mean().sqrt()
    return found
