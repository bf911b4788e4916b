"""The readers behind a hookpoint, and the part of a gradient that comes through each.

The residual stream is a sum and its skips are identities, so the gradient at a hookpoint is the sum of the
gradients at what each reader reads there: queries, keys and values of each head, each MLP, and the final
norm before the unembedding, each taken back through the norm that stands before it.
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

Kind = Literal["unembedding", "qk", "ov", "mlp"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_MISSED = 1e-2


@dataclass(frozen=True, eq=False)
class Branch:
    """What reads the stream through one norm with one module.

    Attributes:
        letter: q, k, v or mlp.
        layer: Of the model.
        norm: Between the stream and it.
        host: The module that is given the normalized stream: the attention, or the MLP.
        projection: By head; None for an MLP.
    """

    letter: str
    layer: int
    norm: Norm
    host: torch.nn.Module
    projection: Projection | None

    @property
    def kind(self) -> Kind:
        """Its kind."""
        return {"q": "qk", "k": "qk", "v": "ov", "mlp": "mlp"}[self.letter]  # type: ignore[return-value]

    @property
    def names(self) -> list[str]:
        """One name for each head, such as q.3.0: layer 3, head 0."""
        if self.projection is None:
            return [f"mlp.{self.layer}"]
        return [f"{self.letter}.{self.layer}.{h}" for h in range(self.projection.n_heads)]


def branches(behind: Downstream) -> list[Branch]:
    """Return all that reads the stream behind a hookpoint, save the unembedding.

    Raises:
        ModelError: a layer behind it is not understood.
    """
    found: list[Branch] = []
    parts = layer_parts(behind.model, behind.first) if behind.first < len(behind.layers) else []
    for part in parts:
        site = behind.hookpoint.site if part.index == behind.hookpoint.layer else "resid_pre"
        found += _of_layer(part, site)
    return found


def _of_layer(part: LayerParts, site: str) -> list[Branch]:
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
    """Follows forwards, so that the gradient at a hookpoint can be split by reader.

    Args:
        behind: The model behind a hookpoint.

    Attributes:
        names: Of the readers; the unembedding is the last.
        kinds: Of the readers.

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
        """Readers."""
        return len(self.names)

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Note what every norm and reader is given, and give each reader its own copy."""
        self._seen.clear()
        with contextlib.ExitStack() as stack:

            def before(module: torch.nn.Module, hook: Callable[..., Any]) -> None:
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)

            for branch in self.branches:
                before(
                    branch.norm.module or branch.host,
                    self._note("in", branch.norm.module or branch.host),
                )
                if branch.projection is None:
                    before(branch.host, self._fork(branch.host))
                else:
                    module = branch.projection.module
                    stack.callback(module.register_forward_hook(self._output(module)).remove)
            last = self.behind.layers[len(self.behind.layers) - 1]
            stack.callback(last.register_forward_hook(self._output(last, fork=True)).remove)
            yield

    def leaves(self) -> list[torch.Tensor]:
        """Return the tensors whose gradients tell the readers apart."""
        return [self._seen["leaf", key] for key in self._leaf_keys()]

    def _leaf_keys(self) -> list[int]:
        modules = [b.projection.module if b.projection else b.host for b in self.branches]
        last = self.behind.layers[len(self.behind.layers) - 1]
        return list(dict.fromkeys(id(m) for m in (*modules, last)))

    def assembled(
        self, gradients: list[torch.Tensor], kept: tuple[torch.Tensor, torch.Tensor]
    ) -> Float[torch.Tensor, "token reader d_in"]:
        """Return the gradient at the stream through each reader.

        Args:
            gradients: Of `leaves()`.
            kept: Rows and positions.
        """
        shape = self._seen["leaf", self._leaf_keys()[-1]].shape[:2]
        of = {
            key: g.reshape(*shape, -1)[kept].float()
            for key, g in zip(self._leaf_keys(), gradients, strict=True)
        }
        found = []
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
            found.append(branch.norm.pulled(read, x[:, None]))
        last = self._leaf_keys()[-1]
        return torch.cat([*found, of[last][:, None]], 1)

    def _note(self, name: str, module: torch.nn.Module) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else kwargs["hidden_states"]
            self._seen[name, id(module)] = value.detach()

        return hook

    def _fork(self, module: torch.nn.Module) -> Callable[..., Any]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = args[0] if args else kwargs["hidden_states"]
            own = value.view_as(value)
            self._seen["leaf", id(module)] = own
            return ((own, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": own})

        return hook

    def _output(self, module: torch.nn.Module, fork: bool = False) -> Callable[..., Any]:
        def hook(_: Any, args: Any, output: Any) -> Any:
            value = output[0] if isinstance(output, (tuple, list)) else output
            own = value.view_as(value) if fork else value
            self._seen["leaf", id(module)] = own
            return (own, *output[1:]) if isinstance(output, (tuple, list)) else own

        return hook


def check_sum(
    readers: Float[torch.Tensor, "sample token reader d_in"],
    site: Float[torch.Tensor, "sample token d_in"],
) -> None:
    """Refuse gradients through the readers that do not sum to the one at the hookpoint.

    Raises:
        ModelError: something else reads the stream, or a skip is no identity.
    """
    missed = float((readers.sum(2) - site).norm() / site.norm().clamp_min(1e-30))
    if float(site.norm()) > 0 and missed > _MISSED:
        raise ModelError(
            f"the readers found account for all but {missed:.1%} of the gradient at the hookpoint; "
            "something else in this model reads the residual stream, so a split by readers is not given."
        )
