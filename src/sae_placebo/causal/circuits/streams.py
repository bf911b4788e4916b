"""The residual stream at a hookpoint as a sum of what each part of the model before it adds.

For attention heads the mixed values that enter the output matrix are kept. All heads of a layer together are
as wide as that input, and what each single head adds, which would be [token, d_model], is never computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from jaxtyping import Float, Float32, Int64

from sae_placebo.causal.circuits.components import Attention, layer_parts
from sae_placebo.causal.use.base import Subject
from sae_placebo.core.lazy import torch
from sae_placebo.models.forward_pass import Stopped, run_until_stopped
from sae_placebo.models.hookpoints import ON_STREAM, Hookpoint, Site, check_on_stream
from sae_placebo.models.sites import resolve

_ROWS = 16
"""So many rows are read at once."""


@dataclass(frozen=True)
class Part:
    """One part of the model that adds to the residual stream.

    Attributes:
        kind: `embedding` (of tokens and, where the model adds them, of positions), `head`, `mlp`, or `rest`
            (biases, and what rounding leaves).
        layer: The layer that it belongs to; -1 for none.
        head: The number of the head in its layer; -1 for other parts.
    """

    kind: str
    layer: int = -1
    head: int = -1

    @property
    def name(self) -> str:
        """The name that people read: `embedding`, `L2.H5`, `L2.mlp`, `rest`."""
        if self.kind == "head":
            return f"L{self.layer}.H{self.head}"
        return self.kind if self.layer < 0 else f"L{self.layer}.{self.kind}"


@dataclass(frozen=True, eq=False)
class PartColumns:
    """Parts that are read together, as the columns of one array: all heads of a layer, or one other part.

    Attributes:
        parts: The heads of a layer in order, or the one part.
        output: The matrix of each head that maps its columns to the stream. None where the columns are what
            the part adds to the stream.
    """

    parts: tuple[Part, ...]
    output: Float[torch.Tensor, "head d_model head_dim"] | None = None


class StreamReader:
    """A reader of what every part of the model adds to the activation at a hookpoint.

    Args:
        subject: The model behind the hookpoint, and its tokens.

    Attributes:
        subject: The same.
        model: The model.
        attentions: By layer, the attentions that add to the activation.
        blocks: The parts, as they are read together.

    Raises:
        ModelError: the model's layers do not add attention and MLP to a stream, or its attention does not
            split into heads; or the hookpoint is a module's input.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.model: Any = subject.downstream.model
        place = subject.downstream.hookpoint
        check_on_stream(place)
        stop = place.layer + (place.site == "resid_post")
        whole = place.site in ON_STREAM
        self.attentions: dict[int, Attention] = {}
        if stop and place.site != "mlp_out":
            layers = range(stop) if whole else range(place.layer, place.layer + 1)
            parts = layer_parts(self.model, layers[0], layers[-1] + 1)
            self.attentions = {p.index: p.attention for p in parts}
        elif place.site == "attn_out":
            self.attentions = {0: layer_parts(self.model, 0, 1)[0].attention}
        self._norms = {i: a.norm_behind() for i, a in self.attentions.items()}
        self._mlps = [Hookpoint("mlp_out", i) for i in range(stop)] if whole else []
        self._mlps += [place] if place.site == "mlp_out" else []
        self._start = [Hookpoint("resid_pre", 0)] if whole else []
        self._sites = resolve(self.model, [*self._start, *self._mlps, place])
        self.blocks = self._layout()

    def _layout(self) -> list[PartColumns]:
        """Return the parts as they are read together: embedding, the heads of each layer, each MLP."""
        blocks = [PartColumns((Part("embedding"),)) for _ in self._start]
        for i, attention in self.attentions.items():
            heads = tuple(Part("head", i, h) for h in range(attention.n_heads))
            blocks.append(PartColumns(heads, self.output_weight(i)))
        return blocks + [PartColumns((Part("mlp", place.layer),)) for place in self._mlps]

    def output_weight(self, layer: int) -> Float[torch.Tensor, "head d_model head_dim"]:
        """Return W_O of a layer's heads, with the gain of the norm behind it, if there is one."""
        weight, norm = self.attentions[layer].output_weight().cpu(), self._norms[layer]
        return weight if norm is None else weight * norm.weight.cpu()[:, None]

    def scale(
        self, layer: int, whole: Float[torch.Tensor, "token d_model"]
    ) -> Float[torch.Tensor, "token 1"]:
        """Return by what the layer multiplies the heads' outputs at each token, gains left aside.

        Args:
            layer: The layer.
            whole: The output of the attention's output matrix, which is the sum over heads and the bias.
        """
        norm = self._norms[layer]
        scale = torch.full_like(whole[:, :1], self.attentions[layer].term.scale)
        return scale if norm is None else scale / norm.spread(whole)

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts except the rest."""
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
        """Yield the tokens of a few rows at a time, the columns of each block, and the activations.

        Args:
            rows: The rows that are read, ascending.
        """
        places = self.subject.tokens.places
        table = self.subject.tokens.rows
        for start in range(0, len(rows), _ROWS):
            batch = rows[start : start + _ROWS]
            tokens = self.subject.tokens_in(batch)
            if not len(tokens):
                continue
            width = int(table.lengths[batch].max())
            ids = torch.from_numpy(table.token_ids[batch, :width].astype(np.int64))
            at = (np.searchsorted(batch, places[tokens, 0]), places[tokens, 1])
            columns, x = self._forward(ids, at)
            yield tokens, columns, x

    def _forward(
        self, ids: torch.Tensor, at: tuple[Any, Any]
    ) -> tuple[list[Float[np.ndarray, "token width"]], Float[np.ndarray, "token d_in"]]:
        """Return the columns of each block, and the activations, at the rows and positions `at`."""
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


def later_than(place: Hookpoint, other: Hookpoint) -> bool:
    """Return whether `place` comes after the other hookpoint in the model."""
    order = get_args(Site)
    return (place.layer, order.index(place.site)) > (other.layer, order.index(other.site))


def read_through(
    encoders: Float32[np.ndarray, "any d_in"], block: PartColumns
) -> Float32[np.ndarray, "any width"]:
    """Return encoders as vectors over a block's columns: the product with columns is the part's e . out.

    Where the columns are mixed values of heads, an encoder is taken through W_O.
    """
    if block.output is None:
        return encoders
    weight = block.output.numpy()
    flat = weight.transpose(1, 0, 2).reshape(weight.shape[1], -1)
    return np.asarray(encoders @ flat, dtype=np.float32)


def by_head(
    a: Float[np.ndarray, "any width"], b: Float[np.ndarray, "any width"], heads: int
) -> Float[np.ndarray, "any head"]:
    """Return the scalar product of each row of `a` with that of `b`, by head."""
    shape = (len(a), heads, -1)
    return np.asarray(np.einsum("mhd,mhd->mh", a.reshape(shape), b.reshape(shape)))
