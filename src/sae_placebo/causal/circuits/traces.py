"""The readers behind a hookpoint, and the part of a gradient that comes through each of them.

A **reader** is what takes something from the residual stream: the queries, keys or values of one attention
head, an MLP, or the unembedding behind the final norm. The stream is a sum whose skips are identities. So
the gradient at a hookpoint is the sum over readers of the gradient at what each reads, taken back through
the norm before it. That is exact, and it is checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxtyping import Float

from sae_placebo.causal.circuits.components import LayerParts, Projection, layer_parts
from sae_placebo.causal.circuits.norms import Norm
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.models.hookpoints import check_on_stream
from sae_placebo.models.sites import first_tensor, input_tensor, with_first, with_input

Kind = Literal["unembedding", "qk", "ov", "mlp"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The kinds of readers: queries and keys are `qk`, values are `ov`."""
_MISSED = 1e-2
"""The readers may fail to account for at most this share of the gradient at the hookpoint."""


@dataclass(frozen=True, eq=False)
class Branch:
    """Readers of one sort in one layer: the queries, keys or values of all heads, or the MLP.

    Attributes:
        letter: `q`, `k`, `v` or `mlp`.
        layer: The layer.
        norm: The norm between the stream and the readers.
        host: The module that is given the normalized stream: the attention, or the MLP.
        projection: The matrix of the queries, keys or values, by head; None for an MLP.
    """

    letter: str
    layer: int
    norm: Norm
    host: torch.nn.Module
    projection: Projection | None

    @property
    def kind(self) -> Kind:
        """The kind of its readers."""
        return {"q": "qk", "k": "qk", "v": "ov", "mlp": "mlp"}[self.letter]  # type: ignore[return-value]

    @property
    def names(self) -> list[str]:
        """The names of its readers, one for each head, such as q.3.0 for layer 3 and head 0, or mlp.3."""
        if self.projection is None:
            return [f"mlp.{self.layer}"]
        return [f"{self.letter}.{self.layer}.{h}" for h in range(self.projection.n_heads)]


def branches(behind: Downstream) -> list[Branch]:
    """Return the branches of all readers behind a hookpoint except the unembedding.

    Raises:
        ModelError: a layer behind the hookpoint is not understood, or the hookpoint is a module's input.
    """
    readers: list[Branch] = []
    check_on_stream(behind.hookpoint)
    parts = layer_parts(behind.model, behind.first) if behind.first < len(behind.layers) else []
    for part in parts:
        site = behind.hookpoint.site if part.index == behind.hookpoint.layer else "resid_pre"
        readers += _of_layer(part, site)
    return readers


def _of_layer(part: LayerParts, site: str) -> list[Branch]:
    """Return the branches of a layer that read what is edited at this site of it."""
    attention = part.attention
    by_head = [("q", attention.query), ("k", attention.key), ("v", attention.value)]
    heads = [
        Branch(letter, part.index, part.attention_norm, attention.module, projection)
        for letter, projection in by_head
    ]
    mlp = Branch("mlp", part.index, part.mlp_norm, part.mlp, None)
    if site == "resid_pre":
        return [*heads, mlp]
    return [mlp] if site == "attn_out" and not part.parallel else []


class ReaderTrace:
    """A trace of forward passes, by which the gradient at a hookpoint is split by reader.

    Args:
        behind: The model behind the hookpoint.

    Attributes:
        names: The names of the readers; the unembedding is the last.
        kinds: The kinds of the readers, in the same order.

    Raises:
        ModelError: a layer behind the hookpoint is not understood.
    """

    def __init__(self, behind: Downstream) -> None:
        self.behind = behind
        self.branches = branches(behind)
        self.names = [n for branch in self.branches for n in branch.names] + ["unembedding"]
        self.kinds: list[Kind] = [b.kind for b in self.branches for _ in b.names] + ["unembedding"]
        self._seen: dict[tuple[str, int], torch.Tensor] = {}
        self._weights = {
            (b.letter, b.layer): b.projection.weight() for b in self.branches if b.projection
        }

    @property
    def n_readers(self) -> int:
        """The number of readers."""
        return len(self.names)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Note what every norm and reader is given in the forward passes inside.

        Each MLP is given its own view of its input, and the final norm of the stream, so that the gradient
        at that view is the one through this reader alone. The gradients of heads are read at the outputs
        of their projections.
        """
        self._seen.clear()
        with contextlib.ExitStack() as stack:

            def before(module: torch.nn.Module, hook: Callable[..., Any]) -> None:
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)

            for branch in self.branches:
                anchor = branch.norm.module or branch.host
                before(anchor, self._note(anchor))
                if branch.projection is None:
                    before(branch.host, self._fork(branch.host))
                else:
                    module = branch.projection.module
                    stack.callback(module.register_forward_hook(self._output(module)).remove)
            last = self.behind.layers[len(self.behind.layers) - 1]
            stack.callback(last.register_forward_hook(self._output(last, fork=True)).remove)
            yield

    def leaves(self) -> list[torch.Tensor]:
        """Return the tensors whose gradients are those of single readers, or of the heads of a layer."""
        return [self._seen["leaf", key] for key in self._leaf_keys()]

    def _leaf_keys(self) -> list[int]:
        """Return the ids of the modules that leaves belong to, each once; that of the last layer is last."""
        modules = [b.projection.module if b.projection else b.host for b in self.branches]
        last = self.behind.layers[len(self.behind.layers) - 1]
        return list(dict.fromkeys(id(m) for m in (*modules, last)))

    def assembled(
        self, gradients: list[torch.Tensor], kept: tuple[torch.Tensor, torch.Tensor]
    ) -> Float[torch.Tensor, "token reader d_in"]:
        """Return the gradient at the stream through each reader.

        Args:
            gradients: The gradients at the tensors that `leaves` returns.
            kept: Row and position of each token wanted.
        """
        shape = self._seen["leaf", self._leaf_keys()[-1]].shape[:2]
        of = {
            key: g.reshape(*shape, -1)[kept].float()
            for key, g in zip(self._leaf_keys(), gradients, strict=True)
        }
        through = []
        for branch in self.branches:
            anchor = branch.norm.module or branch.host
            x = self._seen["in", id(anchor)].reshape(*shape, -1)[kept].float()
            if branch.projection is None:
                read = of[id(branch.host)][:, None]
            else:
                columns = torch.from_numpy(branch.projection.columns).to(x.device)
                by_head = of[id(branch.projection.module)][:, columns]
                read = torch.einsum(
                    "the,hed->thd", by_head, self._weights[branch.letter, branch.layer]
                )
            through.append(branch.norm.pulled(read, x[:, None]))
        last = self._leaf_keys()[-1]
        return torch.cat([*through, of[last][:, None]], 1)

    def _note(self, module: torch.nn.Module) -> Callable[..., None]:
        """Return a hook that notes what a module is given."""

        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._seen["in", id(module)] = input_tensor(args, kwargs).detach()

        return hook

    def _fork(self, module: torch.nn.Module) -> Callable[..., Any]:
        """Return a hook that gives a module a view of its input, and notes this as a leaf."""

        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = input_tensor(args, kwargs)
            leaf = self._seen["leaf", id(module)] = value.view_as(value)
            return with_input(args, kwargs, leaf)

        return hook

    def _output(self, module: torch.nn.Module, fork: bool = False) -> Callable[..., Any]:
        """Return a hook that notes a module's output, or a view that takes its place, as a leaf."""

        def hook(_: Any, args: Any, output: Any) -> Any:
            value = first_tensor(output)
            leaf = self._seen["leaf", id(module)] = value.view_as(value) if fork else value
            return with_first(output, leaf)

        return hook


def check_sum(
    readers: Float[torch.Tensor, "sample token reader d_in"],
    site: Float[torch.Tensor, "sample token d_in"],
) -> None:
    """Refuse gradients through the readers that do not sum to the gradient at the hookpoint.

    Args:
        readers: The gradient through each reader.
        site: The gradient at the hookpoint.

    Raises:
        ModelError: something else reads the stream, or a skip is no identity.
    """
    missed = float((readers.sum(2) - site).norm() / site.norm().clamp_min(1e-30))
    if float(site.norm()) > 0 and missed > _MISSED:
        raise ModelError(
            f"the readers found account for all but {missed:.1%} of the gradient at the hookpoint; "
            "something else in this model reads the residual stream, so a split by readers is not given."
        )
