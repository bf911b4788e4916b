"""Path patching: a finite edit of what one reader alone is given, to see whether it reads a direction.

Every other part of the model, other readers of the same layer included, is given the unedited activation.
This is path patching (Goldowsky-Dill et al., 2023, arXiv 2304.05969), with an edit along one direction in
place of another input. It sees what is read through saturated attention and through steps, where gradients
are flat.
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
from sae_placebo.models.sites import first_tensor, input_tensor, with_first, with_input


class PatchSpec(Spec):
    """The settings of a path patch."""

    nulls: int = Field(default=19, gt=0)
    """How many random directions, at the same angle to each activation, the direction is compared with."""
    window: int = Field(default=8, ge=0)
    """The predictions at this many later tokens are compared too."""


@dataclass(frozen=True, eq=False)
class ReaderConfirmation:
    """What it does to predictions to take a direction from one reader alone.

    Attributes:
        reader: The name of the reader.
        kl: KL(unedited || edited) at each firing, in nats, summed over the window.
        null: The same for random directions at the direction's angle to the activation.
        p: The rank of the mean of `kl` among the means of the random directions, (1 + how many are at least
            as large) / (1 + how many there are).
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
    """Return what it costs if one reader loses a direction, and if it loses random ones instead.

    Args:
        subject: The model and its held-out tokens.
        directions: All directions at the hookpoint.
        direction: The direction that is taken away.
        reader: The name of the reader, as in `Readers.names`.
        firings: The tokens at which it is taken away, each of which holds it.
        spec: How many random directions there are, and how many later predictions are compared.
        seed: The seed of the random directions.
        trace: The readers of the same model; they are found anew where it is not given.

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
    costs = np.zeros((len(firings), 1 + spec.nulls))
    for row_index, part in subject.by_row(firings):
        row = subject.clean(row_index)
        for i in part:
            token = int(firings[i])
            active, amounts = directions.at(token)
            amount = float(amounts[active == direction].sum())
            position = int(subject.tokens.places[token, 1])
            aimed = torch.cat([d[None], turned(random, d, row.site[position].float().cpu())])
            edit = _PathEdit(subject, row, position, -amount * aimed)
            costs[i] = edit.kl(branch, reader, spec.window).cpu().numpy()
    means = costs.mean(0)
    p = (1 + int((means[1:] >= means[0] * (1 - TIE)).sum())) / (1 + spec.nulls)
    return ReaderConfirmation(reader, costs[:, 0], costs[:, 1:], p)


@dataclass(frozen=True, eq=False)
class _PathEdit:
    """Edits of one token of a row, of which one reader alone is given each."""

    subject: Subject
    row: CleanRow
    position: int
    deltas: Float[torch.Tensor, "edit d_in"]

    def kl(self, branch: Branch | None, reader: str, window: int) -> Float[torch.Tensor, " edit"]:
        """Return what the edits cost if only this reader of the branch is given them, in nats.

        A branch of None is the unembedding.
        """
        behind = self.subject.downstream
        deltas = self.deltas.to(behind.device)
        # with a kept prefix the forward starts at the edited token
        at = 0 if self.row.prefix is not None else self.position
        hooks: contextlib.AbstractContextManager[Any]
        if branch is None:
            last = behind.layers[len(behind.layers) - 1]
            hooks = last.register_forward_hook(_adds(at, deltas))
        elif branch.projection is None:
            hooks = self._into_mlp(branch, at, deltas)
        else:
            hooks = self._into_head(branch, branch.names.index(reader), at, deltas)
        with hooks:
            return behind.kl_of_edits(self.row, self.position, torch.zeros_like(deltas), window)

    def _change(
        self, branch: Branch, x: torch.Tensor, deltas: torch.Tensor
    ) -> Float[torch.Tensor, "edit d_in"]:
        """Return by how much the edits change the output of the norm before the reader.

        Args:
            branch: The reader's branch.
            x: The stream there, unedited, once for each edit.
            deltas: The edits of the stream.
        """
        norm = branch.norm.module
        if norm is None:
            return deltas
        # `forward` passes by the norm's hooks, which are for what the model gives it
        changed: torch.Tensor = norm.forward(x + deltas.to(x.dtype)) - norm.forward(x)
        return changed

    @contextlib.contextmanager
    def _reading(self, branch: Branch, at: int) -> Iterator[list[torch.Tensor]]:
        """Yield a list that a forward inside fills with the stream that the branch reads at a position."""
        seen: list[torch.Tensor] = []

        def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[:] = [_by_row(input_tensor(args, kwargs), len(self.deltas))[:, at]]

        anchor = branch.norm.module or branch.host
        with anchor.register_forward_pre_hook(note, with_kwargs=True):
            yield seen

    @contextlib.contextmanager
    def _into_mlp(self, branch: Branch, at: int, deltas: torch.Tensor) -> Iterator[None]:
        """Give the edits to the MLP in the forward passes inside."""

        def edit(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = input_tensor(args, kwargs).clone()
            _by_row(value, len(deltas))[:, at] += self._change(branch, seen[0], deltas)
            return with_input(args, kwargs, value)

        with (
            self._reading(branch, at) as seen,
            branch.host.register_forward_pre_hook(edit, with_kwargs=True),
        ):
            yield

    @contextlib.contextmanager
    def _into_head(
        self, branch: Branch, head: int, at: int, deltas: torch.Tensor
    ) -> Iterator[None]:
        """Give the edits to the query, key or value of one head in the forward passes inside."""
        projection = branch.projection
        assert projection is not None
        columns = torch.from_numpy(projection.columns[head]).to(deltas.device)

        def edit(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
            value = output.clone()
            change = self._change(branch, seen[0], deltas).float() @ projection.weight()[head].T
            _by_row(value, len(deltas))[:, at, columns] += change.to(value.dtype)
            return value

        with self._reading(branch, at) as seen, projection.module.register_forward_hook(edit):
            yield


def _by_row(value: torch.Tensor, n: int) -> torch.Tensor:
    """Return hidden states as [row, pos, d], for modules that are given all positions in one axis."""
    return value.view(n, -1, value.shape[-1])


def _adds(at: int, deltas: torch.Tensor) -> Callable[..., Any]:
    """Return a hook that adds the edits to a module's output at a position."""

    def hook(_: Any, __: Any, output: Any) -> Any:
        value = first_tensor(output).clone()
        value[:, at] += deltas.to(value.dtype)
        return with_first(output, value)

    return hook
