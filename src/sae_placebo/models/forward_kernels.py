"""Faster forms of what a forward on CPU spends its time on, put in place while a model is read.

Three parts of transformers' models cost more on CPU than they need: fused attention at short rows
(four times its arithmetic at 128 tokens), GELU written out in eight operations, and RMS norms. Each
form here is the same formula in another order of operations, so that values differ by rounding. None
is taken on trust: activations and norms are compared with the module's own forward before they are
used, and `Reader` compares whole forwards.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float

from sae_placebo.core.lazy import torch, transformers

ATTENTION = "sae_placebo_blocked"
"""The name under which transformers knows `blocked_attention`."""

_QUERIES = 64  # queries in a block: keys after its end are never touched
_SCORES = 1 << 19  # scores in hand at once, 2 MiB in float32: they stay in the cache
_LONGEST = 1_024  # longer rows go to torch's own kernel, whose blocks then pay
_CLOSE = 1e-5  # of the largest value: float32 rounding of either form is below 2e-6


@functools.lru_cache(maxsize=256)
def _later(start: int, stop: int, dtype: torch.dtype) -> Float[torch.Tensor, "query key"]:
    """Return what is added to scores of queries start..stop: -inf where the key comes later."""
    with torch.inference_mode(False):
        full = torch.full((stop - start, stop), float("-inf"), dtype=dtype)
        return full.triu_(1 + start)


def causal_attention(
    query: Float[torch.Tensor, "row head pos d_head"],
    key: Float[torch.Tensor, "row head pos d_head"],
    value: Float[torch.Tensor, "row head pos d_value"],
    scale: float,
) -> Float[torch.Tensor, "row pos head d_value"]:
    """Return softmax(scale * query key^T, keys up to the query's own) value, for every head.

    Rows and queries are taken in blocks whose scores stay in the cache; products are batched ones,
    which on CPU run several times faster than those inside torch's fused kernel on short rows.
    """
    n_rows, n_heads, n, width = query.shape
    out = query.new_empty(n_rows, n, n_heads, value.shape[-1])
    step = max(1, _SCORES // max(1, n_heads * min(n, _QUERIES) * n))
    for first in range(0, n_rows, step):
        rows = slice(first, first + step)
        q = query[rows].reshape(-1, n, width)
        k = key[rows].reshape(-1, n, width).transpose(1, 2)
        v = value[rows].reshape(-1, n, value.shape[-1])
        for start in range(0, n, _QUERIES):
            stop = min(start + _QUERIES, n)
            mask = _later(start, stop, query.dtype)
            scores = torch.baddbmm(mask, q[:, start:stop], k[:, :, :stop], alpha=scale)
            torch.softmax(scores, -1, out=scores)
            found = torch.bmm(scores, v[:, :stop])
            out[rows, start:stop] = found.view(-1, n_heads, stop - start, v.shape[-1]).transpose(
                1, 2
            )
    return out


def blocked_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """Return causal attention as transformers' attention functions do; [row pos head d_value].

    Whatever is not plain causal attention over a short row on CPU (a mask, a bias, a cache, other
    lengths of queries and keys) goes to transformers' own function.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = settings.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    odd = any(settings.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    n = query.shape[2]
    plain = causal and attention_mask is None and not odd and not settings.get("dropout")
    if not plain or n != key.shape[2] or n > _LONGEST or query.device.type != "cpu":
        found = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return found[0], None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scale = settings.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return causal_attention(query, key, value, float(scale)), None


def _register() -> None:
    """Tell transformers of the attention, once; masks are made as for its `sdpa`."""
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    transformers.AttentionInterface.register(ATTENTION, blocked_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


Form = Callable[["torch.Tensor"], "torch.Tensor"]


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def _rms_norm(module: Any, epsilon: float) -> Form:
    own, weight = module.forward, module.weight

    def normed(x: torch.Tensor) -> torch.Tensor:
        # Falcon Mamba has norms without weights, whose buffer of ones is not as wide as what they read
        fits = x.shape[-1] == len(weight)
        if not fits or x.dtype != torch.float32 or weight.dtype != torch.float32:
            result: torch.Tensor = own(x)
            return result
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        found: torch.Tensor = (x * scale).mul_(weight)
        return found

    return normed


def _form(module: Any) -> Form | None:
    """Return the faster form of a module that has one and computes what its name says."""
    kind, d_in = type(module).__name__, 64
    form: Form | None = None
    if kind in ("NewGELUActivation", "FastGELUActivation"):
        form = _gelu
    elif kind.endswith("RMSNorm") and isinstance(getattr(module, "weight", None), torch.Tensor):
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if isinstance(epsilon, float) and module.weight.dtype == torch.float32:
            form, d_in = _rms_norm(module, epsilon), len(module.weight)
    if form is None:
        return None
    x = torch.linspace(-6, 6, 4 * d_in).view(4, d_in)
    expected, found = module(x), form(x)
    close = float((expected - found).abs().max()) <= _CLOSE * float(expected.abs().max())
    return form if close else None


@dataclass(frozen=True)
class FastForms:
    """The faster forms of one model's parts.

    Attributes:
        forwards: Modules, and what takes the place of their forward.
        configs: Configs that say which attention is used; all of them say `sdpa`.
    """

    forwards: tuple[tuple[Any, Form], ...]
    configs: tuple[Any, ...]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the forms in forwards inside; the model is as before at the end."""
        for module, form in self.forwards:
            module.forward = form
        for config in self.configs:
            config._attn_implementation_internal = ATTENTION
        try:
            yield
        finally:
            for module, _ in self.forwards:
                del module.forward
            for config in self.configs:
                config._attn_implementation_internal = "sdpa"


def fast_forms(model: torch.nn.Module) -> FastForms:
    """Return the faster forms of a model's parts; none where the model is not on CPU."""
    if next(model.parameters()).device.type != "cpu":
        return FastForms((), ())
    with torch.inference_mode():
        found = [(module, _form(module)) for module in model.modules()]
    forwards = tuple((module, form) for module, form in found if form is not None)
    configs = {
        id(config): config
        for module in model.modules()
        for config in (getattr(module, "config", None),)
        if getattr(config, "_attn_implementation_internal", None) == "sdpa"
    }
    if configs:
        _register()
    return FastForms(forwards, tuple(configs.values()))
