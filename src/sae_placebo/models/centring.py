"""Models whose residual stream is read without each token's mean over its dimensions.

A LayerNorm subtracts that mean before anything reads the stream, so nothing behind depends on it.
TransformerLens's `center_writing_weights` takes it out of every weight that writes to the stream: the
predictions stay, and the stream, and what attention and MLP add to it, lose their means. Reading the model
as it is and subtracting the mean of what is read gives the same activations. `z` stays as it is: no writing
weight lies between the LayerNorm before attention and it. `mlp_in` is behind a LayerNorm itself.

TransformerLens leaves models with RMSNorm as they are, and post-norm ones too: their mean is read.

Source: TransformerLens 4.0, `weight_processing.py`, `ProcessWeights.center_writing_weights` and
`process_weights`. Differs: where a norm comes between the embedding and the first layer (BLOOM),
TransformerLens centres the embedding before that norm, and what leaves it has a mean again; here it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from jaxtyping import Float

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.models.layers import decoder_layers, input_tensor, text_config, with_input

_MARK = "_sae_placebo_centred"
_TOKENS = 12
_READ = 1e-3
"""Logits that change by more than this share of their spread have been moved by the mean."""

Action = Callable[["torch.Tensor"], "torch.Tensor | None"]


def centre(model: torch.nn.Module) -> None:
    """Have a model, and every copy made of it, be read without each token's mean over dimensions.

    No weight is changed. What is put in the place of an activation gets the mean that was there, so the
    model is given its own stream where nothing else was changed.

    Raises:
        ModelError: the model reads that mean, so that it is a part of what the stream holds.
    """
    if (moved := moved_by_mean(model)) > _READ:
        norms = sorted({type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__})
        raise ModelError(
            f"{type(model).__name__} reads the mean of its residual stream over dimensions (its norms: "
            f"{', '.join(norms) or 'none'}; adding to that mean moves the logits by {moved:.2g} of their "
            "spread), and TransformerLens does not centre such a model either: set [model] centred = false."
        )
    setattr(model, _MARK, True)


def is_centred(model: torch.nn.Module) -> bool:
    """Return whether a model is read without each token's mean; see `centre`."""
    return bool(getattr(model, _MARK, False))


def without_mean(x: Float[torch.Tensor, "*any d_model"]) -> Float[torch.Tensor, "*any d_model"]:
    """Return vectors less the mean of their entries, in their own precision; the mean is of float32."""
    exact = x if x.dtype == torch.float64 else x.float()
    centred: torch.Tensor = (exact - exact.mean(-1, keepdim=True)).to(x.dtype)
    return centred


def about_mean(action: Action) -> Action:
    """Return an action that is given activations without their means, and whose result gets them back."""

    def act(value: torch.Tensor) -> torch.Tensor | None:
        centred = without_mean(value)
        new = action(centred)
        # the mean is read by nothing behind, so no gradient goes by way of it
        return None if new is None else new + (value - centred).detach()

    return act


def moved_by_mean(model: torch.nn.Module) -> float:
    """Return how far the logits of a few tokens move if every layer's input gets another mean.

    It is the largest difference, as a share of the logits' spread, where the mean grows by the size of the
    stream: 0 but for rounding if LayerNorms, a final one among them, stand before all that reads the stream.
    """
    layers = decoder_layers(model)
    device = next(model.parameters()).device
    ids = (torch.arange(_TOKENS) * 7 + 3).remainder(text_config(model).vocab_size)[None].to(device)

    def shifted(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = input_tensor(args, kwargs)
        return with_input(args, kwargs, x + x.square().mean(-1, keepdim=True).sqrt())

    owner: Any = model
    with torch.no_grad():
        plain = owner(input_ids=ids, use_cache=False).logits.float()
        with ExitStack() as stack:
            for layer in layers:
                handle = layer.register_forward_pre_hook(shifted, with_kwargs=True)
                stack.callback(handle.remove)
            moved = owner(input_ids=ids, use_cache=False).logits.float()
    return float((moved - plain).abs().max() / plain.std().clamp_min(1e-30))
