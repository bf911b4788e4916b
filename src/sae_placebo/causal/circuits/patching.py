"""Whether one reader reads a direction: a finite edit of what this reader alone is given.

Everything else, readers of the same layer among it, is given the unedited activation, as in path patching
(Goldowsky-Dill et al., 2023, arXiv 2304.05969, with an edit along one direction in place of another
input). Saturated attention and steps are seen, where gradients see nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64
from pydantic import Field

from sae_placebo.causal.circuits.traces import Branch, ReaderTrace
from sae_placebo.causal.use.base import Directions, Subject
from sae_placebo.causal.use.downstream import CleanRow
from sae_placebo.causal.use.matched import shared_nulls
from sae_placebo.causal.use.null_directions import TIE, turned
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import Spec


class PatchSpec(Spec):
    """Settings of a path patch."""

    nulls: int = Field(default=19, gt=0)
    """Random directions at the same angle to each activation."""
    window: int = Field(default=8, ge=0)
    """Later tokens whose predictions are compared."""


@dataclass(frozen=True, eq=False)
class ReaderConfirmation:
    """What taking a direction from one reader alone does to predictions.

    Attributes:
        reader: Name of the reader.
        kl: KL(unedited || edited) of each firing, in nats, summed over the window.
        null: [firing, null] the same along random directions at the same angle to the activation.
        p: Rank of the mean of `kl` among those of the nulls.
    """

    reader: str
    kl: Float64[np.ndarray, " firing"]
    null: Float64[np.ndarray, "firing null"]
    p: float


def confirm_reader(
    subject: Subject,
    directions: Directions,
    direction: int,
    reader: str,
    firings: Int64[np.ndarray, " firing"],
    spec: PatchSpec,
    seed: int,
    trace: ReaderTrace | None = None,
) -> ReaderConfirmation:
    """Return what one reader's losing a direction costs, beside what losing random ones does.

    Args:
        subject: The model and its held-out tokens.
        directions: One of which is asked about.
        direction: Which.
        reader: Its name, as in `Readers.names`.
        firings: Tokens at which it is taken away, each of which holds it.
        spec: Nulls and window.
        seed: Names the nulls.
        trace: Of the same model; made where it is not given.

    Raises:
        SpecError: there is no such reader.
        NotEstimable: there are no firings.
    """
    if not len(firings):
        raise NotEstimable("no token holds the direction")
    trace = trace or ReaderTrace(subject.downstream)
    if reader not in trace.names:
        raise SpecError(
            f"no reader is called {reader!r} behind {subject.downstream.hookpoint.name}; there are "
            f"{', '.join(trace.names)}."
        )
    branch = next((b for b in trace.branches if reader in b.names), None)
    d = torch.from_numpy(directions.vectors[direction])
    random = shared_nulls(seed, spec.nulls, len(d))
    found = np.zeros((len(firings), 1 + spec.nulls))
    for row_index, here in subject.by_row(firings):
        row = subject.clean(row_index)
        for i in here:
            token = int(firings[i])
            active, amounts = directions.at(token)
            amount = float(amounts[active == direction].sum())
            position = int(subject.tokens.places[token, 1])
            aimed = torch.cat([d[None], turned(random, d, row.site[position].float().cpu())])
            edit = _PathEdit(subject, row, position, -amount * aimed)
            found[i] = edit.kl(branch, reader, spec.window).cpu().numpy()
    means = found.mean(0)
    p = (1 + int((means[1:] >= means[0] * (1 - TIE)).sum())) / (1 + spec.nulls)
    return ReaderConfirmation(reader, found[:, 0], found[:, 1:], p)


@dataclass(frozen=True, eq=False)
class _PathEdit:
    """Edits of one token of one row."""

    subject: Subject
    row: CleanRow
    position: int
    deltas: Float[torch.Tensor, "edit d_in"]

    def kl(self, branch: Branch | None, reader: str, window: int) -> Float[torch.Tensor, " edit"]:
        """Return what the edits cost where a branch's reader alone sees them; None: the unembedding."""
        behind = self.subject.downstream
        deltas = self.deltas.to(behind.device)
        # with a kept prefix the forward starts at the edited token
        at = 0 if self.row.prefix is not None else self.position
        if branch is None:
            last = behind.layers[len(behind.layers) - 1]
            hooks = _hooked(last.register_forward_hook(_adds(at, deltas)))
        elif branch.projection is None:
            hooks = self._into_mlp(branch, at, deltas)
        else:
            hooks = self._into_head(branch, branch.names.index(reader), at, deltas)
        with hooks:
            return behind.kl_of_edits(self.row, self.position, torch.zeros_like(deltas), window)

    def _change(
        self, branch: Branch, x: torch.Tensor, deltas: torch.Tensor
    ) -> Float[torch.Tensor, "edit d_in"]:
        """Return by how much the edits change what the norm gives, x [edit d_in] being the stream there."""
        norm = branch.norm.module
        if norm is None:
            return deltas
        # forward: the hooks on the norm are for what the model gives it
        changed: torch.Tensor = norm.forward(x + deltas.to(x.dtype)) - norm.forward(x)
        return changed

    @contextlib.contextmanager
    def _reading(self, branch: Branch, at: int, seen: list[torch.Tensor]) -> Iterator[None]:
        def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else kwargs["hidden_states"]
            seen[:] = [_by_row(value, len(self.deltas))[:, at]]

        anchor = branch.norm.module or branch.host
        with _hooked(anchor.register_forward_pre_hook(note, with_kwargs=True)):
            yield

    @contextlib.contextmanager
    def _into_mlp(self, branch: Branch, at: int, deltas: torch.Tensor) -> Iterator[None]:
        seen: list[torch.Tensor] = []

        def edit(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = (args[0] if args else kwargs["hidden_states"]).clone()
            _by_row(value, len(deltas))[:, at] += self._change(branch, seen[0], deltas)
            return (
                ((value, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": value})
            )

        with (
            self._reading(branch, at, seen),
            _hooked(branch.host.register_forward_pre_hook(edit, with_kwargs=True)),
        ):
            yield

    @contextlib.contextmanager
    def _into_head(
        self, branch: Branch, head: int, at: int, deltas: torch.Tensor
    ) -> Iterator[None]:
        seen: list[torch.Tensor] = []
        projection = branch.projection
        assert projection is not None
        columns = torch.from_numpy(projection.columns[head]).to(deltas.device)

        def edit(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
            value = output.clone()
            change = self._change(branch, seen[0], deltas).float() @ projection.weight()[head].T
            _by_row(value, len(deltas))[:, at, columns] += change.to(value.dtype)
            return value

        with (
            self._reading(branch, at, seen),
            _hooked(projection.module.register_forward_hook(edit)),
        ):
            yield


def _by_row(value: torch.Tensor, n: int) -> torch.Tensor:
    return value.view(n, -1, value.shape[-1])


@contextlib.contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _adds(at: int, deltas: torch.Tensor) -> Callable[..., Any]:
    def hook(_: Any, __: Any, output: Any) -> Any:
        value = (output[0] if isinstance(output, (tuple, list)) else output).clone()
        value[:, at] += deltas.to(value.dtype)
        return (value, *output[1:]) if isinstance(output, (tuple, list)) else value

    return hook
