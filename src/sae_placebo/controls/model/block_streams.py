"""The residual stream on a text, block by block: one block can be run again without the others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from sae_placebo.controls.model.base import SampleText
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.models.centring import is_centred, without_mean
from sae_placebo.models.components import Component, between_component, with_previous
from sae_placebo.models.diagnostics import ordinary
from sae_placebo.models.forward_pass import Stopped, own_code, run_until_stopped
from sae_placebo.models.sites import decoder_layers, first_tensor, input_tensor, with_input

_ROWS = 16
_ROUNDING = 1e-3
"""A block that is run alone gives what it gives in a forward, up to this share of its norm."""

Stream = list["torch.Tensor"]
"""The stream of each batch of rows: [row pos d_in]."""


class BlockStreams:
    """Runs single blocks of a model on a text, with what each was given beside the stream in one forward.

    Args:
        model: A causal language model.
        text: What is read.
        n_blocks: How many of its first blocks are run.

    Raises:
        ModelError: blocks that are run one after the other give something else than a forward does.
    """

    def __init__(self, model: torch.nn.Module, text: SampleText, n_blocks: int) -> None:
        self.text = text
        self.n_passes = 0
        self._layers = decoder_layers(model)[:n_blocks]
        self._centred = is_centred(model)
        self._calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []
        self.entered: Stream = []
        left: list[torch.Tensor] = []
        with torch.inference_mode(), own_code(model):
            for start in range(0, len(text.token_ids), _ROWS):
                left.append(self._forward(model, text.token_ids[start : start + _ROWS]))
            self._check(model, left)
        self.n_passes = 0

    def run(self, block: int, stream: Stream) -> Stream:
        """Return the stream behind a block that is given `stream`."""
        self.n_passes += 1
        with torch.inference_mode():
            return [self._run(block, i, x) for i, x in enumerate(stream)]

    def component(self, stream: Stream) -> Component:
        """Return the share of the stream's variance that the current token explains.

        Raises:
            NotEstimable: as `between_component`.
        """
        text, parts = self.text, []
        for start, x in zip(range(0, len(text.token_ids), _ROWS), stream, strict=True):
            parts.append(x[text.mask[start : start + _ROWS].to(x.device)].cpu())
        whole = torch.cat(parts)
        return component_of(without_mean(whole) if self._centred else whole, text)

    def _forward(self, model: torch.nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
        """Run the model on one batch; keep what enters the first block, and what else each is given."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        left: list[torch.Tensor] = []

        def entering(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not calls:
                entered = input_tensor(args, kwargs)
                if entered.shape[:-1] != token_ids.shape:  # XLNet's rows come second
                    raise _apart(model)
                self.entered.append(entered.clone())
            # the stream itself is not kept: each block is given another one
            calls.append(with_input(args, kwargs, torch.empty(0)))

        def leaving(_: Any, args: Any, output: Any) -> None:
            left.append(first_tensor(output).clone())
            raise Stopped

        with ExitStack() as stack:
            for layer in self._layers:
                handle = layer.register_forward_pre_hook(entering, with_kwargs=True)
                stack.callback(handle.remove)
            stack.callback(self._layers[-1].register_forward_hook(leaving).remove)
            run_until_stopped(model, token_ids)
        self._calls.append(calls)
        return left[0]

    def _run(self, block: int, batch: int, x: torch.Tensor) -> torch.Tensor:
        # a copy, since a layer may work in place
        args, kwargs = with_input(*self._calls[batch][block], x.clone())
        return first_tensor(self._layers[block](*args, **kwargs))

    def _check(self, model: torch.nn.Module, left: Stream) -> None:
        stream = self.entered[:1]
        for block in range(len(self._layers)):
            stream = [self._run(block, 0, stream[0])]
        if not (stream[0] - left[0]).norm() <= _ROUNDING * left[0].norm():
            raise _apart(model)


def _apart(model: torch.nn.Module) -> ModelError:
    return ModelError(
        f"blocks of {type(model).__name__} depend on more than the residual stream, so that they cannot be "
        "calibrated one by one; leave out the arms that calibrate."
    )


def component_of(x: torch.Tensor, text: SampleText, previous: bool = False) -> Component:
    """Return what the current token, or the previous and the current one, explains of activations.

    Args:
        x: Activations [token d_in] of the text's tokens that count.
        text: The text.
        previous: Whether the previous token is part of the key.

    Raises:
        NotEstimable: as `between_component`.
    """
    kept = ordinary(x, text.outlier_ratio)
    keys = with_previous(text.token_ids) if previous else text.token_ids
    rows = text.mask.nonzero()[kept, 0]
    return between_component(x[kept], keys[text.mask][kept], text.documents[rows])


Measure = Callable[[float], float]
"""This is what is measured with a gain."""


def seek(
    value: Measure, at_zero: float, target: float, precision: float, most: float, n_halvings: int
) -> tuple[float, float]:
    """Return the gain for which a value that falls with the gain comes nearest to a target, and the value.

    The gain is doubled from 1 up to `most` while the value is above the target, and then halved between by
    bisection. So gains are sums of few powers of two, which rounding does not move.

    Args:
        value: Measures the value with a gain.
        at_zero: The value with gain 0.
        target: What is sought.
        precision: The search ends this near to the target.
        most: The largest gain.
        n_halvings: How often the interval is halved at most.
    """
    tried = {0.0: at_zero}
    low, high = 0.0, 1.0
    tried[high] = value(high)
    while tried[high] > target + precision and high < most:
        low, high = high, 2 * high
        tried[high] = value(high)
    if tried[high] < target - precision and tried[low] > target:
        for _ in range(n_halvings):
            middle = (low + high) / 2
            tried[middle] = value(middle)
            if abs(tried[middle] - target) <= precision:
                break
            low, high = (middle, high) if tried[middle] > target else (low, middle)
    # of equals the largest: a block that may add something does
    best = min(tried, key=lambda gain: (round(abs(tried[gain] - target), 12), -gain))
    return best, tried[best]
