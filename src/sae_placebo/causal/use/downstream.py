"""The part of a model behind a hookpoint: what becomes of its predictions when activations are edited.

An edit adds a vector to an activation. Everything else in the activation stays, the SAE's error included,
so an activation is never replaced by a reconstruction. Layers before the hookpoint do not run again. Nor do
the tokens before an edited one, whose keys and values are kept.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float, Int64

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch, transformers
from sae_placebo.models.hookpoints import ON_STREAM, Hookpoint, parse_hookpoint
from sae_placebo.models.sites import (
    decoder_layers,
    first_tensor,
    input_tensor,
    resolve,
    text_config,
    with_input,
)

_CACHED = 1 << 17
"""About so many logits are compared at once."""
_AGREE = 1e-3
"""Two passes are the same if their log probabilities differ by no more than this, in nats."""


@dataclass(frozen=True, eq=False)
class CleanRow:
    """One row of tokens as the model reads it, unedited.

    Attributes:
        token_ids: The ids of the row's tokens.
        site: The activations at the hookpoint.
        entering: The hidden states that enter the first layer that runs again; `site` where none does.
        log_probs: The log probabilities of the next token at each position, in nats.
        prefix: The keys and values of each layer that runs again; None where they cannot be kept.
        base: What is added at the hookpoint at every position, before any edit; None for nothing.
    """

    token_ids: Int64[torch.Tensor, " pos"]
    site: Float[torch.Tensor, "pos d_in"]
    entering: Float[torch.Tensor, "pos d_model"]
    log_probs: Float[torch.Tensor, "pos vocabulary"]
    prefix: list[tuple[torch.Tensor, torch.Tensor]] | None
    base: Float[torch.Tensor, "pos d_in"] | None = None


class Downstream:
    """A causal language model, run from a hookpoint to its predictions.

    Args:
        model: A causal language model, as `load_model` returns.
        hookpoint: The place at which activations are edited.
        like: One whose model has the same weights, and was found to run; else this one is checked.

    Attributes:
        model: The model.
        hookpoint: The place.
        layers: The model's decoder layers.
        first: The first layer that runs again; the number of layers where only the head does.
        keeps_prefix: Whether keys and values of the tokens before an edited one are kept.

    Raises:
        SpecError: the hookpoint is unknown, or its layer is past the last.
        ModelError: the model has no such place, cannot be run from there on, or gives no finite logits.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        hookpoint: str | Hookpoint,
        like: Downstream | None = None,
    ) -> None:
        place = parse_hookpoint(hookpoint) if isinstance(hookpoint, str) else hookpoint
        self.model: Any = model
        self.hookpoint = place
        self.layers = decoder_layers(model)
        self._sites = resolve(model, [place])
        self.first = place.layer + 1 if place.site == "resid_post" else place.layer
        self._is_stream = place.site in ON_STREAM
        # by layer that returns a tuple: which arguments it hands back beside its hidden states
        self._beside: dict[int, tuple[str | int | None, ...]] = {}
        self._copies: list[Downstream] = []
        self.keeps_prefix = True
        if like is None:
            self.keeps_prefix = self._checked()
        else:
            self.keeps_prefix, self._beside = like.keeps_prefix, dict(like._beside)

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        device = next(self.model.parameters()).device
        assert isinstance(device, torch.device)
        return device

    def copies(self, n: int) -> list[Downstream]:
        """Return `n` copies with models of their own, for threads. They are made once and kept."""
        while len(self._copies) < n:
            self._copies.append(Downstream(copy.deepcopy(self.model), self.hookpoint, self))
        return self._copies[:n]

    # --- unedited ------------------------------------------------------------------------------------

    def read(self, token_ids: Int64[torch.Tensor, " pos"]) -> CleanRow:
        """Return what the model makes of one row of tokens without padding."""
        ids = token_ids.to(self.device)
        with torch.no_grad(), self._noting() as seen:
            output = self.model(input_ids=ids[None], use_cache=self.keeps_prefix)
        return CleanRow(
            token_ids=ids,
            site=seen["site"][0],
            entering=seen["entering"][0],
            log_probs=output.logits[0].float().log_softmax(-1),
            prefix=self._kept(output, len(ids)),
        )

    def read_rows(
        self, token_ids: Int64[torch.Tensor, "row pos"]
    ) -> tuple[Float[torch.Tensor, "row pos d_in"], Float[torch.Tensor, "row pos d_model"]]:
        """Return the activations of whole rows at the hookpoint, and the states that `logits` starts from."""
        with torch.no_grad(), self._noting() as seen:
            self.model(input_ids=token_ids.to(self.device), use_cache=False)
        return seen["site"], seen["entering"]

    def on_top(self, row: CleanRow, base: Float[torch.Tensor, "pos d_in"]) -> CleanRow:
        """Return a row whose further edits come on top of `base`, added at every position.

        What they cost is still counted from the unedited predictions.
        """
        base = base.to(self.device)
        with torch.no_grad(), self._sites.hooked({self.hookpoint: lambda x: x + base}):
            output = self.model(input_ids=row.token_ids[None], use_cache=self.keeps_prefix)
        return replace(row, prefix=self._kept(output, len(row.token_ids)), base=base)

    # --- edited --------------------------------------------------------------------------------------

    def logits(
        self,
        token_ids: Int64[torch.Tensor, "row pos"],
        entering: Float[torch.Tensor, "row pos d_model"],
        delta: Float[torch.Tensor, "row pos d_in"] | None = None,
        past: Any = None,
    ) -> Float[torch.Tensor, "row pos vocabulary"]:
        """Return the next-token logits of rows with `delta` added at the hookpoint.

        Gradients reach `entering` and `delta` where the caller records them.

        Args:
            token_ids: The token ids of the rows; only models that read them past their embedding need them.
            entering: The hidden states that enter the first layer that runs.
            delta: What is added at the hookpoint; None for nothing.
            past: The keys and values of the tokens before, as `prefix_before` returns them.
        """
        hooks: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if delta is not None and self._is_stream:
            entering = entering + delta
        elif delta is not None:
            hooks = self._sites.hooked({self.hookpoint: lambda x: x + delta})
        with self._skipped(entering), hooks:
            output = self.model(
                input_ids=token_ids, past_key_values=past, use_cache=past is not None
            )
        logits: torch.Tensor = output.logits
        return logits

    def kl_of_edits(
        self, row: CleanRow, position: int, deltas: Float[torch.Tensor, "edit d_in"], window: int
    ) -> Float[torch.Tensor, " edit"]:
        """Return what each edit of one token costs: KL(unedited || edited), in nats.

        It is summed over the predictions at the token itself and at the `window` tokens after it, as far
        as the row goes.

        Args:
            row: The unedited row, as `read` returns it.
            position: The position of the edited token.
            deltas: What each edit adds to its activation.
            window: How many later predictions are compared.
        """
        stop = min(position + window + 1, len(row.token_ids))
        start = position if row.prefix is not None else 0
        n = len(deltas)
        span = slice(start, stop)
        delta = torch.zeros(n, stop - start, deltas.shape[1], device=self.device)
        if row.base is not None:
            delta += row.base[span]
        delta[:, position - start] += deltas.to(self.device)
        with torch.no_grad():
            logits = self.logits(
                row.token_ids[span].expand(n, -1),
                row.entering[span].expand(n, -1, -1),
                delta,
                self.prefix_before(row, position, n),
            )
            return kl(row.log_probs[position:stop], logits[:, position - start :]).sum(-1)

    # --- how -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _noting(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield a table that a forward inside fills with the states of `CleanRow`, `site` and `entering`."""
        seen: dict[str, torch.Tensor] = {}

        def note(name: str, value: torch.Tensor) -> None:
            seen[name] = value.clone()

        def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            note("entering", input_tensor(args, kwargs))

        with contextlib.ExitStack() as stack:
            noting = {self.hookpoint: lambda x: note("site", x)}
            stack.enter_context(self._sites.hooked(noting, whole=True))
            if self.first < len(self.layers):
                layer = self.layers[self.first]
                stack.enter_context(layer.register_forward_pre_hook(enter, with_kwargs=True))
            yield seen
        seen.setdefault("entering", seen["site"])
        seen["site"] = self._sites.as_read(self.hookpoint, seen["site"])

    @contextlib.contextmanager
    def _skipped(self, entering: torch.Tensor) -> Iterator[None]:
        """Run no layer before the first that runs again, and give that one `entering`.

        Where only the head runs again, the last layer returns `entering` instead of running.
        """
        only_head = self.first == len(self.layers)

        def enter(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return with_input(args, kwargs, entering)

        with contextlib.ExitStack() as stack:
            for i in range(self.first):
                layer: Any = self.layers[i]
                value = entering if only_head and i == self.first - 1 else None
                layer.forward = _gives(value, self._beside.get(i))
                stack.callback(delattr, layer, "forward")
            if not only_head:
                first: Any = self.layers[self.first]
                stack.enter_context(first.register_forward_pre_hook(enter, with_kwargs=True))
            yield

    def _kept(self, output: Any, length: int) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        """Return the keys and values of the layers that run again; None unless all of them are plain ones."""
        if not self.keeps_prefix:
            return None
        cache = getattr(output, "past_key_values", None)
        layers = getattr(cache, "layers", None)
        if layers is None or len(layers) != len(self.layers):
            return None
        plain = transformers.cache_utils.DynamicLayer
        kept = list(layers[self.first :])
        if any(type(layer) is not plain or layer.get_seq_length() != length for layer in kept):
            return None
        return [(layer.keys, layer.values) for layer in kept]

    def prefix_before(self, row: CleanRow, position: int, n: int) -> Any:
        """Return a cache of the keys and values before a position, repeated for each of `n` edits.

        It is None where none are kept, or where nothing comes before.
        """
        if row.prefix is None or position == 0:
            return None
        cache = transformers.DynamicCache(config=text_config(self.model))
        skipped = torch.zeros(1, 1, 1, 1, device=self.device).expand(n, 1, position, 1)
        layers: list[Any] = list(cache.layers)
        for i, layer in enumerate(layers):
            keys, values = skipped, skipped
            if i >= self.first:
                keys, values = (
                    x[:, :, :position].expand(n, -1, -1, -1) for x in row.prefix[i - self.first]
                )
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
        return cache

    def _checked(self) -> bool:
        """Return whether passes with a kept prefix predict what whole passes do.

        This runs the model on a few tokens. It also notes which arguments each layer hands back beside its
        hidden states, so that skipped layers can do the same.

        Raises:
            ModelError: passes from the hookpoint on are not those of the whole model, or not finite.
        """

        def note(i: int) -> Callable[..., None]:
            def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                first_tensor(output)
                if isinstance(output, (tuple, list)):
                    given = _named(args, kwargs)
                    self._beside[i] = tuple(_passed_on(part, given) for part in output[1:])

            return hook

        handles = [
            layer.register_forward_hook(note(i), with_kwargs=True)
            for i, layer in enumerate(self.layers)
        ]
        ids = (torch.arange(12) * 7 + 3).remainder(text_config(self.model).vocab_size)
        try:
            row = self._read_first(ids)
        finally:
            for handle in handles:
                handle.remove()
        self._refuse(row)
        if row.prefix is None:
            return False
        return self._apart(row, 6) <= _AGREE

    def _read_first(self, ids: torch.Tensor) -> CleanRow:
        """Return what the model makes of a row, and give up on keeping a prefix where that fails."""
        try:
            return self.read(ids)
        except Exception:
            # some models cannot keep anything for later (xLSTM with heads of this size)
            self.keeps_prefix = False
            return self.read(ids)

    def _refuse(self, row: CleanRow) -> None:
        """Refuse a model whose passes from the hookpoint on are not those of the whole model.

        Raises:
            ModelError: its logits are not finite; it changes the stream between the hookpoint and the next
                layer; or its predictions from the hookpoint on differ from its own.
        """
        name, place = type(self.model).__name__, self.hookpoint.name
        if not bool(row.log_probs.isfinite().all()):
            raise ModelError(
                f"{name} gives logits that are not finite, so no edit of it can be told."
            )
        entering = self._sites.as_read(self.hookpoint, row.entering)
        if self._is_stream and not torch.equal(row.site, entering):
            raise ModelError(
                f"{name} changes what leaves layer {self.first - 1} before layer {self.first} reads it, so "
                f"an edit at {place} is not one of what is read; use resid_pre.{self.first}."
            )
        apart = self._apart(row, 0)
        if not apart <= _AGREE:
            raise ModelError(
                f"{name} run from {place} on does not give what the whole model gives (log probabilities "
                f"differ by {apart:.2g} nats): something else than the residual stream reaches later "
                "layers."
            )

    def _apart(self, row: CleanRow, start: int) -> float:
        """Return how far a pass from `start` on, without an edit, is from the unedited row, in nats.

        It is the largest difference of log probabilities.
        """
        delta = torch.zeros(1, len(row.site) - start, row.site.shape[1], device=self.device)
        with torch.no_grad():
            logits = self.logits(
                row.token_ids[None, start:],
                row.entering[None, start:],
                delta,
                self.prefix_before(row, start, 1),
            )
        apart = (logits[0].float().log_softmax(-1) - row.log_probs[start:]).abs().max()
        return float(apart)


def kl(
    log_probs: Float[torch.Tensor, "pos vocabulary"],
    logits: Float[torch.Tensor, "row pos vocabulary"],
) -> Float[torch.Tensor, "row pos"]:
    """Return KL(p || q) of each row's predictions q from the predictions p, at every position, in nats.

    It is computed as the sum of p (e^r - 1 - r) with r = log q - log p, whose terms are all at least 0, so
    that small divergences are not lost in the rounding of large terms.

    Args:
        log_probs: The logarithms of p.
        logits: The logits of q.
    """
    if logits.requires_grad or logits.device.type != "cpu":
        ratio = logits.float().log_softmax(-1) - log_probs
        return ((torch.expm1(ratio) - ratio) * log_probs.exp()).sum(-1)
    # a few rows at a time and in place: what is in the cache is four times as fast as what is not
    divergence, p = logits.new_empty(logits.shape[:2], dtype=torch.float32), log_probs.exp()
    step = max(1, _CACHED // max(1, log_probs.numel()))
    for rows, out in zip(torch.split(logits, step), torch.split(divergence, step), strict=True):
        ratio = rows.float().log_softmax(-1).sub_(log_probs)
        torch.sum(torch.expm1(ratio).sub_(ratio).mul_(p), -1, out=out)
    return divergence


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str | int, Any]:
    """Return the arguments of a call by position and by name."""
    given: dict[str | int, Any] = dict(enumerate(args))
    given.update(kwargs)
    return given


def _passed_on(part: Any, given: Mapping[str | int, Any]) -> str | int | None:
    """Return the name or position of the argument that a layer handed back as it is; None if it is none."""
    return next((name for name, value in given.items() if part is not None and value is part), None)


def _gives(
    value: torch.Tensor | None, beside: tuple[str | int | None, ...] | None
) -> Callable[..., Any]:
    """Return a forward, to take the place of a layer's, that returns hidden states without any work.

    Args:
        value: The hidden states that it returns; None for those that it is called with.
        beside: The arguments that the layer hands back beside them, as `_passed_on` names them; None where
            the layer returns no tuple.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        result = input_tensor(args, kwargs) if value is None else value
        if beside is None:
            return result
        known = _named(args, kwargs)
        return (result, *(None if name is None else known.get(name) for name in beside))

    return forward
