"""Reading activations at hookpoints, and putting others in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from jaxtyping import Float, Int64

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.models.forward_kernels import FastForms, fast_forms
from sae_placebo.models.forward_pass import Stopped, own_code, run_until_stopped
from sae_placebo.models.hookpoints import Hookpoint, parse_hookpoint
from sae_placebo.models.sites import HookedModules, decoder_layers, resolve, text_config

# error variance over variance up to which the faster forms count as equal in float32, and in less:
# rounding that random blocks have amplified stays far below it, another formula far above
_EQUAL, _EQUAL_REDUCED = 1e-7, 2e-2


class Reader:
    """Reads one model's activations at a few hookpoints; each forward stops after the last one.

    Args:
        model: A causal language model, as `load_model` returns.
        hookpoints: Names as `parse_hookpoint` takes them; results carry the canonical ones.
        fast: Use faster forms of attention, activations and norms on CPU (`forward_kernels`), if on a
            few tokens they give the model's own values but for rounding.

    Raises:
        SpecError: an unknown hookpoint, or a layer past the last.
        ModelError: the model has no such place.

    Attributes:
        widths: The width of the activations at each hookpoint, by canonical name.
    """

    def __init__(
        self, model: torch.nn.Module, hookpoints: Sequence[str | Hookpoint], fast: bool = False
    ) -> None:
        parsed = [parse_hookpoint(h) if isinstance(h, str) else h for h in hookpoints]
        self.hookpoints: tuple[Hookpoint, ...] = tuple(dict.fromkeys(parsed))
        self.model = model
        embedding: Any = model
        self._n_ids: int = embedding.get_input_embeddings().weight.shape[0]
        self._sites: HookedModules = resolve(model, list(self.hookpoints))
        self.widths: dict[str, int] = {h.name: self._sites.width(h) for h in self.hookpoints}
        self._forms: FastForms | None = self._checked_forms() if fast else None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the canonical names, in the order asked for."""
        return tuple(h.name for h in self.hookpoints)

    @property
    def device(self) -> torch.device:
        """Return the device that the model is on."""
        return next(self.model.parameters()).device

    @property
    def is_fast(self) -> bool:
        """Return whether faster forms are used: they were asked for, exist, and agree with the model."""
        return self._forms is not None

    def forms(self) -> AbstractContextManager[None]:
        """Return a context in which the model runs in the faster forms, where this reader uses them."""
        return nullcontext() if self._forms is None else self._forms.applied()

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
        found: dict[str, torch.Tensor] = {}

        def keep(name: str, value: torch.Tensor) -> None:
            # an ordinary tensor: autograd refuses to save one made in inference mode
            with torch.inference_mode(False):
                found[name] = value.clone()

        self._forward(token_ids, keep)
        for name, value in found.items():
            check_finite(name, value)
        return {name: found[name] for name in self.names}

    def read_into(
        self,
        token_ids: Int64[torch.Tensor, "row pos"],
        places: Int64[torch.Tensor, " token"],
        out: Mapping[str, Float[torch.Tensor, "token d_in"]],
    ) -> None:
        """Write the activations of some positions into `out`, in its precision and on its device.

        Nothing is checked for being finite, and nothing waits: a copy from an accelerator into pinned
        memory may still be under way. `check_finite` and `settled` are the caller's, once per block.

        Args:
            token_ids: As for `read`.
            places: Index of each wanted position in the flattened rows.
            out: Where to, by canonical name.

        Raises:
            ModelError: as `read`, but for values that are not finite.
        """
        here = places.to(self.device, non_blocking=True)

        def keep(name: str, value: torch.Tensor) -> None:
            flat, target = value.reshape(-1, value.shape[-1]), out[name]
            if flat.dtype == target.dtype and flat.device == target.device:
                torch.index_select(flat, 0, here, out=target)
            else:
                target.copy_(flat.index_select(0, here), non_blocking=True)

        self._forward(token_ids, keep)

    def settled(self) -> None:
        """Wait until what was read has arrived."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _forward(self, token_ids: torch.Tensor, keep: Callable[[str, torch.Tensor], None]) -> None:
        """Run the model up to the last hookpoint; `keep` gets every value when it is there."""
        self._check_ids(token_ids)
        found: set[str] = set()

        def action(name: str) -> Callable[[torch.Tensor], None]:
            def act(value: torch.Tensor) -> None:
                keep(name, value)
                found.add(name)
                if len(found) == len(self.hookpoints):
                    raise Stopped

            return act

        hooks = self._sites.hooked({h: action(h.name) for h in self.hookpoints})
        with torch.inference_mode(), self.forms(), hooks, own_code(self.model):
            self._run(token_ids)

    def _checked_forms(self) -> FastForms | None:
        """Return the model's faster forms; None without any, or where a forward says otherwise."""
        forms = fast_forms(self.model)
        if not forms.forwards and not forms.configs:
            return None
        limit = getattr(text_config(self.model), "max_position_embeddings", None) or 80
        token_ids = (torch.arange(2 * min(80, limit)) * 7 + 3).remainder(self._n_ids).view(2, -1)
        values = []
        for used in (None, forms):
            self._forms = used
            try:
                values.append(self.read(token_ids))
            except (ModelError, RuntimeError, TypeError):
                if used is None:  # then it is the model's own
                    raise
                return None
        for name, expected in values[0].items():
            bound = _EQUAL if expected.dtype == torch.float32 else _EQUAL_REDUCED
            expected = expected.double()
            spread = (expected - expected.mean((0, 1))).square().sum()
            if not (values[1][name] - expected).square().sum() <= bound * spread:
                return None
        return forms

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


class JoinedReader:
    """Reads hookpoints of which each has a model of its own, or shares one, as `Reader` reads one model's.

    Args:
        readers: What reads each model; no hookpoint is read by two.
        names: Every hookpoint, in the order in which results carry them.

    Attributes:
        widths: The width of the activations at each hookpoint, by canonical name.
    """

    def __init__(self, readers: Sequence[Reader], names: Sequence[str]) -> None:
        self.readers = tuple(readers)
        self.names = tuple(names)
        widths = {name: width for reader in readers for name, width in reader.widths.items()}
        self.widths = {name: widths[name] for name in names}

    @property
    def device(self) -> torch.device:
        """Return the device that the models are on."""
        return self.readers[0].device

    def read(
        self, token_ids: Int64[torch.Tensor, "row pos"]
    ) -> dict[str, Float[torch.Tensor, "row pos d_in"]]:
        """Return the activations by canonical name; see `Reader.read`."""
        found: dict[str, torch.Tensor] = {}
        for reader in self.readers:
            found |= reader.read(token_ids)
        return {name: found[name] for name in self.names}

    def read_into(
        self,
        token_ids: Int64[torch.Tensor, "row pos"],
        places: Int64[torch.Tensor, " token"],
        out: Mapping[str, Float[torch.Tensor, "token d_in"]],
    ) -> None:
        """Write the activations of some positions into `out`; see `Reader.read_into`."""
        for reader in self.readers:
            reader.read_into(token_ids, places, {name: out[name] for name in reader.names})

    def settled(self) -> None:
        """Wait until what was read has arrived."""
        for reader in self.readers:
            reader.settled()


def check_finite(name: str, value: torch.Tensor) -> None:
    """Refuse activations that hold an infinity or NaN, or whose squares do; one wait for an accelerator.

    Raises:
        ModelError: a value or the sum of squares is not finite.
    """
    # the norm is infinite or NaN whenever an entry is; the slow test runs only then
    if torch.isfinite(torch.linalg.vector_norm(value)):
        return
    if not torch.isfinite(value).all():
        raise ModelError(
            f"{name} holds values that are not finite; the model cannot be read there in "
            f"{value.dtype}."
        )
    raise ModelError(
        f"{name} holds values up to {float(value.abs().max()):.1e}, whose squares are not finite; the "
        "model cannot be read there."
    )


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
