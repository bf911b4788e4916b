"""The residual stream before a hookpoint as a sum: what each part of the model adds at every token.

Attention heads are kept as the mixed values that enter the output matrix, so that all heads of a layer
are as wide together as that input, and no head's own term [token, d_model] is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.causal.circuits.components import Attention, layer_parts
from sae_placebo.causal.circuits.norms import read_norm
from sae_placebo.causal.use.base import Subject
from sae_placebo.core.lazy import torch
from sae_placebo.models.forward_pass import Stopped, run_until_stopped
from sae_placebo.models.hookpoints import Hookpoint, Site
from sae_placebo.models.sites import resolve

_ROWS = 16


@dataclass(frozen=True)
class Part:
    """One part of the model that adds to the residual stream.

    Attributes:
        kind: `embedding` (of tokens and, where the model adds them, positions), `head`, `mlp`, or `rest`:
            biases, and what rounding leaves.
        layer: -1 where it belongs to none.
        head: -1 where it is none.
    """

    kind: str
    layer: int = -1
    head: int = -1

    @property
    def name(self) -> str:
        """For people: `embedding`, `L2.H5`, `L2.mlp`, `rest`."""
        if self.kind == "head":
            return f"L{self.layer}.H{self.head}"
        return self.kind if self.layer < 0 else f"L{self.layer}.{self.kind}"


@dataclass(frozen=True, eq=False)
class PartColumns:
    """Columns that are read together: all heads of a layer, or one other part.

    Attributes:
        parts: One, or the heads of a layer in order.
        output: [head, d_model, head_dim] from the heads' columns to the stream; None: columns are the
            stream's own.
    """

    parts: tuple[Part, ...]
    output: Float[torch.Tensor, "head d_model head_dim"] | None = None


class StreamReader:
    """Reads what every part adds to the activation at a hookpoint.

    Args:
        subject: The model behind the hookpoint, and its tokens.

    Raises:
        ModelError: the model's layers do not add up, or its attention does not split into heads.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.model: Any = subject.downstream.model
        place = subject.downstream.hookpoint
        stop = place.layer + (place.site == "resid_post")
        whole = place.site in ("resid_pre", "resid_post")
        self.attentions: dict[int, Attention] = {}
        if stop and place.site != "mlp_out":
            layers = range(stop) if whole else range(place.layer, place.layer + 1)
            found = layer_parts(self.model, layers[0], layers[-1] + 1)
            self.attentions = {p.index: p.attention for p in found}
        elif place.site == "attn_out":
            self.attentions = {0: layer_parts(self.model, 0, 1)[0].attention}
        self._norms = {i: _norm_behind(a) for i, a in self.attentions.items()}
        self._mlps = [Hookpoint("mlp_out", i) for i in range(stop)] if whole else []
        self._mlps += [place] if place.site == "mlp_out" else []
        self._start = [Hookpoint("resid_pre", 0)] if whole else []
        self._sites = resolve(self.model, [*self._start, *self._mlps, place])
        self.blocks = self._layout()

    def _layout(self) -> list[PartColumns]:
        blocks = [PartColumns((Part("embedding"),)) for _ in self._start]
        for i, attention in self.attentions.items():
            heads = tuple(Part("head", i, h) for h in range(attention.n_heads))
            blocks.append(PartColumns(heads, self.output_weight(i)))
        return blocks + [PartColumns((Part("mlp", place.layer),)) for place in self._mlps]

    def output_weight(self, layer: int) -> Float[torch.Tensor, "head d_model head_dim"]:
        """Return W_O of a layer's heads, with the gain of a norm behind it."""
        weight, norm = self.attentions[layer].output_weight().cpu(), self._norms[layer]
        return weight if norm is None else weight * norm.weight.cpu()[:, None]

    def scale(
        self, layer: int, whole: Float[torch.Tensor, "token d_model"]
    ) -> Float[torch.Tensor, "token 1"]:
        """Return what the layer multiplies the heads' terms by at each token, given what they sum to."""
        norm = self._norms[layer]
        scale = torch.full_like(whole[:, :1], self.attentions[layer].term.scale)
        return scale if norm is None else scale / norm.spread(whole)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts but the rest."""
        return tuple(part for block in self.blocks for part in block.parts)

    def read(
        self, rows: Int64[np.ndarray, " row"]
    ) -> Iterator[
        tuple[
            Int64[np.ndarray, " token"],
            list[Float[np.ndarray, "token width"]],
            Float[np.ndarray, "token d_in"],
        ]
    ]:
        """Yield, of some rows at a time, the tokens that count, each block's columns, and the activation.

        Tokens are indices into the subject's.
        """
        places = self.subject.tokens.places
        table = self.subject.tokens.rows
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            tokens = np.flatnonzero(np.isin(places[:, 0], some))
            if not len(tokens):
                continue
            width = int(table.lengths[some].max())
            ids = torch.from_numpy(table.token_ids[some, :width].astype(np.int64))
            at = (np.searchsorted(some, places[tokens, 0]), places[tokens, 1])
            columns, x = self._forward(ids, at)
            yield tokens.astype(np.int64), columns, x

    def _forward(
        self, ids: torch.Tensor, at: tuple[Any, Any]
    ) -> tuple[list[Float[np.ndarray, "token width"]], Float[np.ndarray, "token d_in"]]:
        seen: dict[Any, Any] = {}
        place = self.subject.downstream.hookpoint
        shape = tuple(ids.shape)

        def keep(name: Any) -> Any:
            def action(value: torch.Tensor) -> None:
                seen[name] = value[at].detach().float().cpu().numpy()
                if name == place:
                    raise Stopped

            return action

        def keep_mixed(i: int) -> Any:
            def hook(_: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
                mixed = args[0].reshape(*shape, -1)[at].float()
                whole = output.reshape(*shape, -1)[at].float()
                seen[i] = (mixed * self.scale(i, whole)).cpu().numpy()

            return hook

        sites = dict.fromkeys([*self._start, *self._mlps, place])
        with ExitStack() as stack, torch.no_grad():
            for i, attention in self.attentions.items():
                handle = attention.output.register_forward_hook(keep_mixed(i))
                stack.callback(handle.remove)
            stack.enter_context(self._sites.hooked({name: keep(name) for name in sites}))
            run_until_stopped(self.model, ids)
        order = [*self._start, *self.attentions, *self._mlps]
        return [seen[name] for name in order], seen[place]


def later_than(one: Hookpoint, other: Hookpoint) -> bool:
    """Return whether a hookpoint comes behind another in the model's order."""
    order = get_args(Site)
    return (one.layer, order.index(one.site)) > (other.layer, order.index(other.site))


def read_through(
    encoders: Float32[np.ndarray, "any d_in"], block: PartColumns
) -> Float32[np.ndarray, "any width"]:
    """Return encoders as rows over a block's columns: through W_O where these are heads' values."""
    if block.output is None:
        return encoders
    weight = block.output.numpy()
    flat = weight.transpose(1, 0, 2).reshape(weight.shape[1], -1)
    return np.asarray(encoders @ flat, dtype=np.float32)


def by_head(
    a: Float[np.ndarray, "any width"], b: Float[np.ndarray, "any width"], heads: int
) -> Float[np.ndarray, "any head"]:
    """Return the product of two rows of a block's columns, by head."""
    shape = (len(a), heads, -1)
    return np.asarray(np.einsum("mhd,mhd->mh", a.reshape(shape), b.reshape(shape)))


def _norm_behind(attention: Attention) -> Any:
    """Return the norm between the attention's output and the stream; None where there is none."""
    term = attention.term.module
    if "Norm" not in type(term).__name__:
        return None
    # components refuses norms that subtract or add
    attention.head_outputs(torch.zeros(1, attention.n_heads * attention.head_dim) + 0.1)
    return read_norm(term, int(attention.output_weight().shape[1]))
