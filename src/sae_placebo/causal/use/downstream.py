"""The part of a model behind a hookpoint: what becomes of its predictions when an activation is edited.

An edit adds a vector to the activation of one token and leaves everything else of it as it was, the
SAE's error among it: nothing is ever replaced by a reconstruction. Layers before the hookpoint do not run
again, and neither do tokens before the edited one: their keys and values are kept.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int64

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch, transformers
from sae_placebo.models.hookpoints import Hookpoint, parse_hookpoint
from sae_placebo.models.sites import decoder_layers, first_tensor, resolve, text_config

_CACHED = 1 << 17
"""Numbers of logits that are compared at once."""
_AGREE = 1e-3
"""Largest difference of log probabilities, in nats, up to which a pass with kept prefix is the same."""


@dataclass(frozen=True, eq=False)
class CleanRow:
    """One row of tokens as the model reads it, unedited.

    Attributes:
        token_ids: Of the row.
        site: Activations at the hookpoint.
        entering: What enters the first layer that runs again.
        log_probs: Of the next token, in nats.
        prefix: Keys and values of the layers that run again; None where they cannot be kept.
    """

    token_ids: Int64[torch.Tensor, " pos"]
    site: Float[torch.Tensor, "pos d_in"]
    entering: Float[torch.Tensor, "pos d_model"]
    log_probs: Float[torch.Tensor, "pos vocabulary"]
    prefix: list[tuple[torch.Tensor, torch.Tensor]] | None


class Downstream:
    """A causal language model, run from a hookpoint to its predictions.

    Args:
        model: A causal language model, as `load_model` returns.
        hookpoint: Where activations are edited.

    Raises:
        SpecError: an unknown hookpoint, or a layer past the last.
        ModelError: the model has no such place, cannot be run from there on, or gives no finite logits.
    """

    def __init__(self, model: torch.nn.Module, hookpoint: str | Hookpoint) -> None:
        place = parse_hookpoint(hookpoint) if isinstance(hookpoint, str) else hookpoint
        self.model: Any = model
        self.hookpoint = place
        self.layers = decoder_layers(model)
        self._sites = resolve(model, [place])
        self.first = place.layer + 1 if place.site == "resid_post" else place.layer
        """First layer that runs again; as many as there are layers where only the head does."""
        self._is_stream = place.site in ("resid_pre", "resid_post")
        self._beside: dict[int, tuple[str | int | None, ...]] = {}
        self._copies: list[Downstream] = []
        self.keeps_prefix = True
        self.keeps_prefix = self._checked()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device = next(self.model.parameters()).device
        assert isinstance(device, torch.device)
        return device

    def copies(self, n: int) -> list[Downstream]:
        """Return `n` copies with models of their own, for threads; made once and kept."""
        while len(self._copies) < n:
            self._copies.append(Downstream(copy.deepcopy(self.model), self.hookpoint))
        return self._copies[:n]

    # --- unedited ------------------------------------------------------------------------------------

    def read(self, token_ids: Int64[torch.Tensor, " pos"]) -> CleanRow:
        """Return what the model makes of a row of tokens, with no padding in it."""
        ids = token_ids.to(self.device)
        seen: dict[str, torch.Tensor] = {}
        hooks = [self._sites.hooked({self.hookpoint: lambda x: _put(seen, "site", x)})]
        if self.first < len(self.layers):
            hooks.append(self._entering(lambda x: _put(seen, "entering", x)))
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for hook in hooks:
                stack.enter_context(hook)
            found = self.model(input_ids=ids[None], use_cache=self.keeps_prefix)
        site = seen["site"][0]
        return CleanRow(
            token_ids=ids,
            site=site,
            entering=seen["entering"][0] if "entering" in seen else site,
            log_probs=found.logits[0].float().log_softmax(-1),
            prefix=self._kept(found, len(ids)),
        )

    def read_rows(
        self, token_ids: Int64[torch.Tensor, "row pos"]
    ) -> tuple[Float[torch.Tensor, "row pos d_in"], Float[torch.Tensor, "row pos d_model"]]:
        """Return the activations at the hookpoint of whole rows, and what `logits` starts from."""
        seen: dict[str, torch.Tensor] = {}
        with torch.no_grad(), contextlib.ExitStack() as stack:
            stack.enter_context(
                self._sites.hooked({self.hookpoint: lambda x: _put(seen, "site", x)})
            )
            if self.first < len(self.layers):
                stack.enter_context(self._entering(lambda x: _put(seen, "entering", x)))
            self.model(input_ids=token_ids.to(self.device), use_cache=False)
        return seen["site"], seen.get("entering", seen["site"])

    # --- edited --------------------------------------------------------------------------------------

    def logits(
        self,
        token_ids: Int64[torch.Tensor, "row pos"],
        entering: Float[torch.Tensor, "row pos d_model"],
        delta: Float[torch.Tensor, "row pos d_in"] | None = None,
        past: Any = None,
    ) -> Float[torch.Tensor, "row pos vocabulary"]:
        """Return next-token logits of the rows with `delta` added at the hookpoint.

        Gradients reach `entering` and `delta` where the caller records them.

        Args:
            token_ids: Of the rows; only models that read them past their embedding need them.
            entering: What enters the first layer that runs.
            delta: What is added at the hookpoint; None for nothing.
            past: Keys and values of the tokens before, as `window` gives them.
        """
        hooks: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if delta is not None and self._is_stream:
            entering = entering + delta
        elif delta is not None:
            hooks = self._sites.hooked({self.hookpoint: lambda x: x + delta})
        with self._skipped(entering), hooks:
            found = self.model(
                input_ids=token_ids, past_key_values=past, use_cache=past is not None
            )
        logits: torch.Tensor = found.logits
        return logits

    def kl_of_edits(
        self, row: CleanRow, position: int, deltas: Float[torch.Tensor, "edit d_in"], window: int
    ) -> Float[torch.Tensor, " edit"]:
        """Return what each edit of one token costs: KL(unedited || edited), in nats.

        Summed over the predictions at the token itself and at the `window` tokens behind it, as far as
        the row goes.

        Args:
            row: As `read` returns it.
            position: Of the edited token.
            deltas: What is added to its activation, one edit each.
            window: Later tokens whose predictions are compared.
        """
        stop = min(position + window + 1, len(row.token_ids))
        start = position if row.prefix is not None else 0
        n = len(deltas)
        here = slice(start, stop)
        delta = torch.zeros(n, stop - start, deltas.shape[1], device=self.device)
        delta[:, position - start] = deltas.to(self.device)
        with torch.no_grad():
            logits = self.logits(
                row.token_ids[here].expand(n, -1),
                row.entering[here].expand(n, -1, -1),
                delta,
                self.prefix_before(row, position, n),
            )
            return kl(row.log_probs[position:stop], logits[:, position - start :]).sum(-1)

    # --- how -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _entering(self, action: Callable[[torch.Tensor], None]) -> Iterator[None]:
        """Give `action` what enters the first layer that runs again, in every forward inside."""

        def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            action(args[0] if args else kwargs["hidden_states"])

        handle = self.layers[self.first].register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _skipped(self, entering: torch.Tensor) -> Iterator[None]:
        """Run no layer before the first, which is given `entering`; without one, the last gives it."""
        skipped = [self.layers[i] for i in range(self.first)]
        only_head = self.first == len(self.layers)
        for i, layer in enumerate(skipped):
            value = entering if only_head and i == self.first - 1 else None
            layer.forward = _gives(value, self._beside.get(i))
        handle = None
        if not only_head:
            first: Any = self.layers[self.first]
            handle = first.register_forward_pre_hook(_with_first_input(entering), with_kwargs=True)
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()
            for layer in skipped:
                del layer.forward

    def _kept(self, found: Any, length: int) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        """Return keys and values of the layers that run again, if all of them are there."""
        if not self.keeps_prefix:
            return None
        cache = getattr(found, "past_key_values", None)
        layers = getattr(cache, "layers", None)
        if layers is None or len(layers) != len(self.layers):
            return None
        plain = transformers.cache_utils.DynamicLayer
        kept = list(layers[self.first :])
        if any(type(layer) is not plain or layer.get_seq_length() != length for layer in kept):
            return None
        return [(layer.keys, layer.values) for layer in kept]

    def prefix_before(self, row: CleanRow, position: int, n: int) -> Any:
        """Return the kept prefix before a token, once for each of `n` edits."""
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
        """Return whether passes with a kept prefix give what whole passes do; learn what layers return.

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
        try:
            return self.read(ids)
        except (
            Exception
        ):  # some models cannot keep anything for later (xLSTM with heads of this size)
            self.keeps_prefix = False
            return self.read(ids)

    def _refuse(self, row: CleanRow) -> None:
        """Refuse a model whose passes from the hookpoint on are not those of the whole of it."""
        name, place = type(self.model).__name__, self.hookpoint.name
        if not bool(row.log_probs.isfinite().all()):
            raise ModelError(
                f"{name} gives logits that are not finite, so no edit of it can be told."
            )
        if self._is_stream and not torch.equal(row.site, row.entering):
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
        """Return the largest difference of a pass without an edit, from `start` on, in nats."""
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
    """Return KL(p || q) in nats of each row's q, given by logits, from p.

    As the sum of p (e^r - 1 - r), r = log q - log p, each term of which is at least 0, so that small
    divergences are not lost in the rounding of large terms.
    """
    if logits.requires_grad or logits.device.type != "cpu":
        ratio = logits.float().log_softmax(-1) - log_probs
        return ((torch.expm1(ratio) - ratio) * log_probs.exp()).sum(-1)
    # a few rows at a time and in place: what is in the cache is four times as fast as what is not
    found, p = logits.new_empty(logits.shape[:2], dtype=torch.float32), log_probs.exp()
    step = max(1, _CACHED // max(1, log_probs.numel()))
    for some, out in zip(torch.split(logits, step), torch.split(found, step), strict=True):
        ratio = some.float().log_softmax(-1).sub_(log_probs)
        torch.sum(torch.expm1(ratio).sub_(ratio).mul_(p), -1, out=out)
    return found


def _put(seen: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
    seen[name] = value.clone()


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str | int, Any]:
    """Return the arguments of a call by position and by name."""
    given: dict[str | int, Any] = dict(enumerate(args))
    given.update(kwargs)
    return given


def _passed_on(part: Any, given: Mapping[str | int, Any]) -> str | int | None:
    """Return the name or position of the argument that a layer gives back as it is; None for others."""
    return next((name for name, value in given.items() if part is not None and value is part), None)


def _gives(
    value: torch.Tensor | None, beside: tuple[str | int | None, ...] | None
) -> Callable[..., Any]:
    """Return a layer's forward that gives `value`, or what it was given.

    Args:
        value: None for what it was given.
        beside: What layers of this kind give beside it, as `_passed_on` says; None where no tuple.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        result = given if value is None else value
        if beside is None:
            return result
        known = _named(args, kwargs)
        return (result, *(None if name is None else known.get(name) for name in beside))

    return forward


def _with_first_input(value: torch.Tensor) -> Callable[..., Any]:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (value, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": value}

    return hook
