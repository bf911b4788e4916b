"""The card of an arm tells what its model does to its input, before any SAE.

A re-drawn model whose blocks swamp the embedding, or hardly touch it, decides a trial by that alone;
the card makes it visible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jaxtyping import Bool, Float, Int64

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.lazy import torch
from sae_placebo.core.precision import ROUNDING_ENERGY
from sae_placebo.models.components import between_component, with_previous
from sae_placebo.models.forward_pass import Stopped, eager_attention, own_code, run_until_stopped
from sae_placebo.models.hookpoints import MODULE_INPUTS, TERMS, Hookpoint, parse_hookpoint
from sae_placebo.models.loading import Reader
from sae_placebo.models.sites import attention_module, decoder_layers

_ROWS = 8
_ATTENTION_ROWS = 4


def card(
    model: torch.nn.Module,
    hookpoints: Sequence[str | Hookpoint],
    token_ids: Int64[torch.Tensor, "row pos"],
    mask: Bool[torch.Tensor, "row pos"],
    outlier_ratio: float = math.inf,
    documents: Int64[torch.Tensor, " row"] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the diagnostics of each hookpoint, ready for JSON: `value`, `unit`, `n`, `reason`.

    A value that cannot be estimated is None and `reason` says why; it is never NaN. `n` counts
    tokens. The quantities:

    - `outlier_share`: share of the tokens whose norm exceeds `outlier_ratio` medians at the
      hookpoint. They enter none of the other quantities but the attention entropy.
    - `residual_norm`: mean L2 norm of the activation.
    - `block_to_embedding_ratio`: mean norm of what the blocks have added, over the mean norm of what
      enters the first layer (token and learned position embeddings). Added is the residual stream
      less what enters the first layer; at `attn_out` and `mlp_out` it is that one term. It is None at
      `z` and `mlp_in`, where nothing that blocks have added is read.
    - `token_r2`: share of variance that the current token explains; see `r2_of_token`.
    - `token_component`, `pair_component`: share of variance between current tokens, and between pairs of
      previous and current token, from occurrences in different documents; see
      `models.components.between_component`. Only where the documents are given.
    - `participation_ratio`: see `participation_ratio`.
    - `attention_entropy`: mean over heads and positions, for the last attention that can have reached
      the hookpoint, on the first few rows; `attention_entropy_max` is what uniform attention over
      the positions in reach would have.

    Args:
        model: A causal language model.
        hookpoints: Names as `parse_hookpoint` takes them.
        token_ids: Rows of tokens, padded on the right.
        mask: True where a token counts. All tokens are read, also as context.
        outlier_ratio: See above; no token is an outlier by default.
        documents: Which document each row is of.

    Raises:
        SpecError: an unknown hookpoint, or a layer past the last.
        ModelError: the model has no such place, or values there are not finite.
    """
    places = [parse_hookpoint(h) if isinstance(h, str) else h for h in hookpoints]
    entry = Hookpoint("resid_pre", 0)
    activations = _read(model, [*places, entry], token_ids, mask)
    tokens = token_ids[mask].cpu()
    embedding = activations[entry.name]
    wanted = {layer for p in places if (layer := _attention_layer(p)) is not None}
    entropies = _attention_entropies(model, wanted, token_ids, mask)
    cards: dict[str, dict[str, dict[str, Any]]] = {}
    for place in places:
        every = activations[place.name]
        kept = ordinary(every, outlier_ratio)
        x, entered = every[kept], embedding[kept]
        cards[place.name] = {
            "outlier_share": _row("share", len(every), partial(_share, ~kept)),
            "residual_norm": _row("model units", len(x), partial(_mean_norm, x)),
            "block_to_embedding_ratio": _row("ratio", len(x), partial(_added, place, x, entered)),
            "token_r2": _r2_row(x, tokens[kept]),
            **_component_rows(x, token_ids, mask, documents, kept),
            "participation_ratio": _row("dimensions", len(x), partial(participation_ratio, x)),
            **_entropy_rows(place, entropies),
        }
    return cards


def ordinary(x: Float[torch.Tensor, "token d_in"], outlier_ratio: float) -> torch.Tensor:
    """Return which tokens are no norm outliers, above so many medians: bool [token]."""
    norms = x.norm(dim=1)
    if len(x) == 0 or math.isinf(outlier_ratio):
        return torch.ones_like(norms, dtype=torch.bool)
    ordinary: torch.Tensor = norms <= outlier_ratio * norms.median()
    return ordinary


def _added(place: Hookpoint, x: torch.Tensor, entered: torch.Tensor) -> float:
    """Return the mean norm of what blocks have added at a place, over that of what entered the first."""
    if place.site in MODULE_INPUTS:
        raise NotEstimable(
            f"{place.name} is the input of a module, not what blocks have added to the residual stream"
        )
    return _ratio(x if place.site in TERMS else x - entered, entered)


def _share(flags: torch.Tensor) -> float:
    if len(flags) == 0:
        raise NotEstimable("no token is left by the mask")
    return float(flags.double().mean())


def _row(unit: str, n: int, value: Callable[[], float]) -> dict[str, Any]:
    try:
        found = value()
        if not math.isfinite(found):
            raise NotEstimable(
                f"the activations are too large or too small: it comes out as {found}"
            )
        return {"value": found, "unit": unit, "n": n, "reason": None}
    except NotEstimable as error:
        return {"value": None, "unit": unit, "n": n, "reason": str(error)}


def _read(
    model: torch.nn.Module,
    places: list[Hookpoint],
    token_ids: torch.Tensor,
    mask: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Return the activations of the tokens that count, [token d_in] in float64 on the CPU."""
    reader = Reader(model, places)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in reader.names}
    for start in range(0, len(token_ids), _ROWS):
        keep = mask[start : start + _ROWS]
        for name, value in reader.read(token_ids[start : start + _ROWS]).items():
            parts[name].append(value[keep.to(value.device)].cpu().double())
    return {name: torch.cat(values) for name, values in parts.items()}


def _mean_norm(x: torch.Tensor) -> float:
    if len(x) == 0:
        raise NotEstimable("no token is left by the mask")
    return float(x.norm(dim=1).mean())


def _ratio(added: torch.Tensor, embedding: torch.Tensor) -> float:
    size = _mean_norm(embedding)
    if size == 0.0:
        raise NotEstimable("what enters the first layer is zero")
    return _mean_norm(added) / size


def _r2_row(x: torch.Tensor, tokens: torch.Tensor) -> dict[str, Any]:
    which, counts = _occurrences(tokens)
    return _row(
        "share of variance", int((counts[which] >= 2).sum()), partial(r2_of_token, x, tokens)
    )


def _component_rows(
    x: torch.Tensor,
    token_ids: torch.Tensor,
    mask: torch.Tensor,
    documents: torch.Tensor | None,
    kept: torch.Tensor,
) -> dict[str, dict[str, Any]]:
    """Return what lies between current tokens, and between pairs, where the documents are known."""
    if documents is None:
        return {}
    owners, rows = documents.cpu(), mask.cpu().nonzero()[kept, 0]
    current, pairs = (k.cpu()[mask.cpu()][kept] for k in (token_ids, with_previous(token_ids)))
    found = {}
    for name, keys in (("token_component", current), ("pair_component", pairs)):
        sizes: list[int] = []

        def value(keys: torch.Tensor = keys, sizes: list[int] = sizes) -> float:
            component = between_component(x, keys, owners[rows])
            sizes.append(component.n)
            return component.value

        row = _row("share of variance", 0, value)
        found[name] = row | {"n": sizes[0] if sizes else 0}
    return found


def _occurrences(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which distinct token each one is, and how often each distinct one occurs."""
    _, which, counts = torch.unique(tokens, return_inverse=True, return_counts=True)
    return which, counts


def r2_of_token(
    x: Float[torch.Tensor, "token d_in"], tokens: Int64[torch.Tensor, " token"]
) -> float:
    """Return the share of the activations' variance that the current token explains.

    Over the occurrences of tokens that occur at least twice: 1 - sum ||x - m_w||^2 / sum ||x - m||^2,
    where m_w is the mean over the *other* occurrences of the same token and m the mean over all other
    tokens in the sum. Leaving out the token itself keeps rare tokens from explaining themselves: the
    value is 1 where the token decides everything and at or below 0 where it says nothing.

    Raises:
        NotEstimable: fewer than two distinct tokens are repeated, or there is no variance.
    """
    which, counts = _occurrences(tokens)
    keep = counts[which] >= 2
    n, kinds = int(keep.sum()), int((counts >= 2).sum())
    if kinds < 2:
        raise NotEstimable(f"{kinds} distinct tokens occur at least twice; two are needed")
    x, which = x[keep].double(), which[keep]
    whole = float(x.square().sum())
    x = x - x.mean(0)
    sums = torch.zeros(len(counts), x.shape[1], dtype=x.dtype).index_add_(0, which, x)
    count = counts[which].double()[:, None]
    # x - (sum - x) / (c - 1) = (x - sum / c) * c / (c - 1)
    missed = float(((x - sums[which] / count) * (count / (count - 1))).square().sum())
    total = float((x * (n / (n - 1))).square().sum())
    if total <= ROUNDING_ENERGY * whole:
        raise NotEstimable("the activations have no variance")
    return 1.0 - missed / total


def participation_ratio(x: Float[torch.Tensor, "token d_in"]) -> float:
    """Return how many dimensions the variance is spread over: (sum l)^2 / sum l^2.

    l are the eigenvalues of the activations' covariance. 1 is a line, d_in is a sphere; a sample of n
    tokens cannot show more than n - 1.

    Raises:
        NotEstimable: fewer than two tokens, or no variance.
    """
    if len(x) < 2:
        raise NotEstimable(f"{len(x)} tokens are left by the mask; two are needed")
    whole = float(x.double().square().sum())
    x = x.double() - x.double().mean(0)
    # the traces of the covariance and of its square; the Gram matrix has the same and may be smaller
    square = x.T @ x if x.shape[1] <= len(x) else x @ x.T
    if float(square.trace()) <= ROUNDING_ENERGY * whole:
        raise NotEstimable("the activations have no variance")
    square = square / square.trace()
    return float(1.0 / square.square().sum())


def _attention_layer(place: Hookpoint) -> int | None:
    """Return the layer of the last attention that can have reached `place`."""
    layer = place.layer - (place.site == "resid_pre")
    return layer if layer >= 0 else None


def _entropy_rows(
    place: Hookpoint, entropies: dict[int, tuple[float, float, int] | str]
) -> dict[str, dict[str, Any]]:
    layer = _attention_layer(place)
    found = "no attention lies below the first layer" if layer is None else entropies[layer]
    names = ("attention_entropy", "attention_entropy_max")
    if isinstance(found, str):
        return {n: {"value": None, "unit": "bits", "n": 0, "reason": found} for n in names}
    *values, n_tokens = found
    return {
        name: _row("bits", n_tokens, partial(float, value))
        for name, value in zip(names, values, strict=True)
    }


def _attention_entropies(
    model: torch.nn.Module, wanted: set[int], token_ids: torch.Tensor, mask: torch.Tensor
) -> dict[int, tuple[float, float, int] | str]:
    """Return per layer the mean entropy, its maximum and the number of tokens; or why there is none."""
    layers = decoder_layers(model)
    keep = mask.any(1).nonzero()[:_ATTENTION_ROWS, 0]
    rows, counted = token_ids[keep], mask[keep]
    if len(rows) == 0:
        return dict.fromkeys(wanted, "no token is left by the mask")
    found: dict[int, tuple[float, float, int] | str] = dict.fromkeys(
        wanted, "this model's attention does not return its weights"
    )

    def record(index: int) -> Callable[..., None]:
        def hook(_: Any, args: Any, output: Any) -> None:
            for part in output if isinstance(output, (tuple, list)) else ():
                if isinstance(part, torch.Tensor) and _is_attention_pattern(part, rows.shape):
                    found[index] = _entropy(part.cpu().double(), counted.cpu())

        return hook

    def stop(*_: Any) -> None:
        raise Stopped

    handles = []
    for index in wanted:
        module = attention_module(layers[index])
        if module is not None:
            handles.append(module.register_forward_hook(record(index)))
    if wanted:
        handles.append(layers[max(wanted)].register_forward_hook(stop))
    try:
        with torch.inference_mode(), eager_attention(model), own_code(model):
            run_until_stopped(model, rows)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _is_attention_pattern(part: torch.Tensor, shape: torch.Size) -> bool:
    rows, positions = shape
    if part.ndim != 4 or part.shape[0] != rows or part.shape[2:] != (positions, positions):
        return False
    return not bool(part.triu(1).any())  # else some other tensor, or a mask was lost on the way


def _entropy(
    pattern: Float[torch.Tensor, "row head pos pos"], counted: Bool[torch.Tensor, "row pos"]
) -> tuple[float, float, int]:
    bits = -torch.special.xlogy(pattern, pattern).sum(-1).mean(1) / math.log(2)
    # a position is in reach when any head of any row looks at it: sliding windows show up as such
    reach = (pattern > 0).any(0).any(0).sum(-1).double()
    most = reach.log2().expand(counted.shape)
    return float(bits[counted].mean()), float(most[counted].mean()), int(counted.sum())
