"""A forward pass of a model: run without the output head, ended early, its failures put into words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any

from sae_placebo.core.errors import ModelError, PlaceboError
from sae_placebo.core.lazy import torch


class Stopped(Exception):
    """A hook raises it to end a forward pass before the layers that nobody reads."""


def base_model(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model without its output head."""
    inner = getattr(model, "base_model", model)
    assert isinstance(inner, torch.nn.Module)
    return inner


def run_until_stopped(model: torch.nn.Module, token_ids: torch.Tensor) -> None:
    """Run the model without its output head until a hook raises `Stopped`, or to the end.

    Args:
        model: The model; the hooks are on its modules already.
        token_ids: Token ids [row pos], on any device.
    """
    device = next(model.parameters()).device
    try:
        base_model(model)(input_ids=token_ids.to(device), use_cache=False)
    except Stopped:
        return


@contextmanager
def own_code(model: torch.nn.Module, source: str | None = None) -> Iterator[None]:
    """Turn what the model's own code raises inside the `with` block into one sentence.

    Errors that are no fault of the model stay as they are: memory that is used up, a fault of the
    accelerator, and what functions of this package, such as hooks, raise inside the forward pass.

    Args:
        model: The model that is run inside.
        source: What the sentence calls the model; the name of its class unless given.

    Raises:
        ModelError: the model's code failed; the error that it raised is the cause of this one.
    """
    try:
        yield
    except (PlaceboError, Stopped, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # a model's code may raise every class there is
        text = " ".join(str(error).split())
        if "memory" in text or _raised_by_us(error):
            raise
        raise ModelError(
            f"{source or type(model).__name__} cannot be run as its config.json describes it "
            f"({type(error).__name__}: {text[:300]}); mend config.json or load another model."
        ) from error


def _raised_by_us(error: Exception) -> bool:
    """Return whether a function of this package, such as a hook, failed inside of the forward pass."""
    names = [str(frame.f_globals.get("__name__")) for frame, _ in walk_tb(error.__traceback__)]
    inside = next((i for i, name in enumerate(names) if name.startswith("torch.nn.")), len(names))
    callers = [name for name in names[inside:] if not name.startswith("torch.")]
    return bool(callers) and callers[-1].startswith("sae_placebo.")


@contextmanager
def eager_attention(model: torch.nn.Module) -> Iterator[None]:
    """Have every attention module compute its weights explicitly inside the `with` block, and return them."""
    config: Any = model.config
    before = config._attn_implementation
    # set in the config, which every layer reads: set_attn_implementation passes over some (Falcon)
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
