"""Reading activations at hookpoints, and putting others in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float, Int64

from sae_placebo.errors import ModelError
from sae_placebo.hookpoints import Hookpoint, parse_hookpoint
from sae_placebo.lazy import torch
from sae_placebo.sites import (
    Sites,
    Stopped,
    decoder_layers,
    resolve,
    run_until_stopped,
    text_config,
)


class Reader:
    """Reads one model's activations at a few hookpoints; each forward stops after the last one.

    Args:
        model: A causal language model, as `load_model` returns.
        hookpoints: Names as `parse_hookpoint` takes them; results carry the canonical ones.

    Raises:
        SpecError: an unknown hookpoint, or a layer past the last.
        ModelError: the model has no such place.
    """

    def __init__(self, model: torch.nn.Module, hookpoints: Sequence[str | Hookpoint]) -> None:
        parsed = [parse_hookpoint(h) if isinstance(h, str) else h for h in hookpoints]
        self.hookpoints: tuple[Hookpoint, ...] = tuple(dict.fromkeys(parsed))
        self.model = model
        embedding: Any = model
        self._n_ids: int = embedding.get_input_embeddings().weight.shape[0]
        self.d_in: int = text_config(model).hidden_size
        self._sites: Sites = resolve(model, list(self.hookpoints))

    @property
    def names(self) -> tuple[str, ...]:
        """The canonical names, in the order asked for."""
        return tuple(h.name for h in self.hookpoints)

    def read(
        self, token_ids: Int64[torch.Tensor, "row pos"]
    ) -> dict[str, Float[torch.Tensor, "row pos d_in"]]:
        """Return the activations by canonical name, in model units, on the model's device.

        Padding must be on the right: no mask is passed, since no token sees a later one. Values are
        copies, so what the layer does next in place cannot reach them.

        Raises:
            ModelError: a value is not finite (the message names the hookpoint), a token id lies outside
                the embedding, or a row is longer than the model's positions.
        """
        self._check_ids(token_ids)
        found: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[[torch.Tensor], None]:
            def action(value: torch.Tensor) -> None:
                # an ordinary tensor: autograd refuses to save one made in inference mode
                with torch.inference_mode(False):
                    found[name] = value.clone()
                if len(found) == len(self.hookpoints):
                    raise Stopped

            return action

        with torch.inference_mode(), self._sites.hooked({h: keep(h.name) for h in self.hookpoints}):
            self._run(token_ids)
        for name, value in found.items():
            # one sum is infinite or NaN whenever an entry is; the slow test runs only then
            if not torch.isfinite(value.sum()) and not torch.isfinite(value).all():
                raise ModelError(
                    f"{name} holds values that are not finite; the model cannot be read there in "
                    f"{value.dtype}."
                )
        return {name: found[name] for name in self.names}

    def _check_ids(self, token_ids: torch.Tensor) -> None:
        if token_ids.numel() == 0:
            return
        low, high = (int(end) for end in token_ids.aminmax())
        if high >= self._n_ids:
            raise ModelError(
                f"the tokenizer gives ids up to {high}, the model's embedding has {self._n_ids} rows; "
                "use the tokenizer that the model was trained with."
            )
        if low < 0:
            raise ModelError(f"token ids count from 0; {low} was found.")

    def _run(self, token_ids: torch.Tensor) -> None:
        try:
            run_until_stopped(self.model, token_ids)
        except (IndexError, RuntimeError) as error:
            config, length = text_config(self.model), token_ids.shape[1]
            limit = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
            if limit is None or length <= limit:
                raise
            raise ModelError(
                f"rows hold {length} tokens, and the model has {limit} positions; lower "
                "text.context_tokens."
            ) from error


@contextmanager
def replaced(
    model: torch.nn.Module,
    hookpoint: str | Hookpoint,
    function: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[None]:
    """Put `function(value)` in the place of the hookpoint's value [row pos d_in] in forwards inside.

    Raises:
        SpecError: an unknown hookpoint, or a layer past the last.
        ModelError: the model has no such place.
    """
    place = parse_hookpoint(hookpoint) if isinstance(hookpoint, str) else hookpoint
    with resolve(model, [place]).hooked({place: function}):
        yield


def truncate(model: torch.nn.Module, hookpoints: Sequence[str | Hookpoint]) -> None:
    """Free the layers after the last hookpoint, in place, for a model that is only read from then on.

    A `Reader` works as before; a full forward fails.
    """
    parsed = [parse_hookpoint(h) if isinstance(h, str) else h for h in hookpoints]
    layers = decoder_layers(model)
    for index in range(max(h.layer for h in parsed) + 1, len(layers)):
        layers[index] = torch.nn.Identity()
