"""Sites chosen by compiled loops: in float32, or with candidates from 8-bit products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sae_placebo.core.lazy import torch
from sae_placebo.core.workers import Workers
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.selection import Selection, Sites, limits, select

_CHUNK_BYTES = 25 << 20
_CHECKED_TOKENS = 128
_CHECK_EVERY = 50
AGREEMENT = 0.999
"""Least share of the exact sites that a search must find; below, selection is exact from then on."""


class Search:
    """Looks for candidates in 8-bit products; values and the choice among them are float32.

    Rows of inputs and of `W_enc` are rounded to 8 bits, each by its own scale. For `row`, twice k
    candidates per token are computed anew in float32 and the k largest kept; for `batch`, all whose
    rounded value comes near the limit. A site whose rounded value falls short of the candidates' is
    missed. How many are is measured at the first step and at every 50th, on 128 tokens; where fewer
    than 99.9% are found, the search is given up and selection is exact for the rest of the run.
    """

    def __init__(self, encoder: Float[torch.Tensor, "d_sae d_in"]) -> None:
        self._small = torch.empty(encoder.shape, dtype=torch.int8)
        self._scales = np.empty(len(encoder), np.float32)
        self.given_up = False
        self.agreement = float("nan")
        self._step = 0

    def state(self) -> torch.Tensor:
        """Return what the next step depends on."""
        return torch.tensor([self._step, self.given_up, self.agreement], dtype=torch.float64)

    def restore(self, state: torch.Tensor) -> None:
        """Go on from `state`."""
        step, given_up, self.agreement = state.tolist()
        self._step, self.given_up = int(step), bool(given_up)

    def serves(self, chosen: Selection) -> bool:
        """Return whether candidates are searched for this selection."""
        if self.given_up or chosen.kind == "row":
            return not self.given_up
        common = chosen.threshold is not None and chosen.threshold.numel() == 1
        return common and float(chosen.threshold) > 0  # type: ignore[arg-type]

    def refresh(self, encoder: Float[torch.Tensor, "d_sae d_in"], workers: Workers) -> None:
        """Round the encoder's rows as they are now."""
        from sae_placebo.saes import compiled_selection as compiled

        rows, small, scales = encoder.numpy(), self._small.numpy(), self._scales
        workers.run(lambda _, a, b: compiled.quantize(rows, a, b, small, scales), len(rows), 64)

    def check(
        self,
        inputs: torch.Tensor,
        rows: Mapping[str, torch.Tensor],
        chosen: Selection,
        found: Sites,
    ) -> None:
        """Compare with the exact choice on some tokens, now and then."""
        due, self._step = self._step % _CHECK_EVERY == 0, self._step + 1
        if not due:
            return
        n = min(_CHECKED_TOKENS, len(inputs))
        exact = {"W_enc": rows["W_enc"].t(), "b_enc": rows["b_enc"]}
        wanted = select(inputs[:n], exact, chosen, Workspace())
        width = len(rows["b_enc"])
        stop = int(found.offsets[n])
        part = Sites(found.offsets[: n + 1], found.latents[:stop], found.z[:stop])
        mine = part.tokens() * width + part.latents
        theirs = wanted.tokens() * width + wanted.latents
        if len(theirs):
            self.agreement = float(torch.isin(theirs, mine).float().mean())
            self.given_up = self.agreement < AGREEMENT


@dataclass(frozen=True)
class Aside:
    """Further sites, chosen from the same products: each token's `k` largest among `members`."""

    members: Bool[torch.Tensor, " d_sae"]
    k: int


def select_sites(
    inputs: Float[torch.Tensor, "token d_in"],
    rows: Mapping[str, torch.Tensor],
    chosen: Selection,
    workspace: Workspace,
    workers: Workers,
    search: Search | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return offsets [token + 1] (int64), latents [site] (int32) and pre-activations [site].

    Args:
        inputs: Activations less `b_dec`.
        rows: The tensors, `W_enc` as [d_sae, d_in].
        chosen: Which sites.
        workspace: For buffers.
        workers: Threads.
        search: Looks for candidates in 8-bit products, where that is asked for.
    """
    return select_both(inputs, rows, chosen, None, workspace, workers, search)[0]


def select_both(
    inputs: Float[torch.Tensor, "token d_in"],
    rows: Mapping[str, torch.Tensor],
    chosen: Selection,
    aside: Aside | None,
    workspace: Workspace,
    workers: Workers,
    search: Search | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Return what `select_sites` does, and after it the same for `aside`, if there is one."""
    from sae_placebo.saes import compiled_selection as compiled

    n, d_sae = len(inputs), len(rows["b_enc"])
    if chosen.kind == "batch":
        target = chosen.target(n, d_sae)
        params = {"W_enc": rows["W_enc"].t(), "b_enc": rows["b_enc"]}
        for limit in limits(inputs, params, chosen, workspace):
            above = Selection("above", threshold=limit)
            found = select_both(inputs, rows, above, aside, workspace, workers, search)
            if len(found[0][2]) >= target:
                break
        offsets, latents, z = found[0]
        ends, values = offsets.numpy(), z.numpy()
        compiled.keep_batch(values, values.view(np.int32), latents.numpy(), ends, target)
        return [(offsets, latents[: ends[-1]], z[: ends[-1]]), *found[1:]]
    part = _Part(inputs, rows, chosen, aside, workspace)
    if search is not None and search.serves(chosen):
        search.refresh(rows["W_enc"], workers)
        part.search = search
    parts = workers.run(part, n, 64)
    both = [
        _joined(name, counts, [taken[i] for taken in parts], inputs, workspace)
        for i, (name, counts) in enumerate(part.counts.items())
    ]
    if part.search is not None:
        offsets, latents, z = both[0]
        part.search.check(inputs, rows, chosen, Sites(offsets, latents.long(), z))
    return both


def _joined(
    name: str,
    counts: np.ndarray,
    parts: list[tuple[np.ndarray, np.ndarray]],
    like: torch.Tensor,
    workspace: Workspace,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sites that the threads chose, as one."""
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int64)
    torch.cumsum(torch.from_numpy(counts), dim=0, out=offsets[1:])
    total = int(offsets[-1])
    latents = workspace.buffer(f"{name} latents", (total,), like, torch.int32)
    z = workspace.buffer(f"{name} z", (total,), like)
    at = 0
    for found, places in parts:
        z[at : at + len(found)] = torch.from_numpy(found)
        latents[at : at + len(found)] = torch.from_numpy(places)
        at += len(found)
    return offsets, latents, z


class _Room:
    """What a thread has chosen so far, from z + `bias`."""

    def __init__(
        self,
        name: str,
        size: int,
        counts: np.ndarray,
        bias: np.ndarray,
        k: int,
        like: torch.Tensor,
        workspace: Workspace,
    ) -> None:
        self.counts, self.bias, self.k, self.at = counts, bias, k, 0
        places = workspace.buffer(f"{name} latents", (size,), like, torch.int32)
        self.found, self.places = workspace.buffer(name, (size,), like).numpy(), places.numpy()

    def double(self) -> None:
        """Make room for twice as much."""
        self.found, self.places = (np.pad(a, (0, len(a))) for a in (self.found, self.places))

    def taken(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pre-activations and the latents of the chosen sites."""
        return self.found[: self.at], self.places[: self.at]


class _Part:
    """Selects the sites of a range of tokens, chunk by chunk."""

    def __init__(
        self,
        inputs: torch.Tensor,
        rows: Mapping[str, torch.Tensor],
        chosen: Selection,
        aside: Aside | None,
        workspace: Workspace,
    ) -> None:
        self.inputs, self.rows, self.chosen, self.aside = inputs, rows, chosen, aside
        self.workspace = workspace
        names = ["site"] if aside is None else ["site", "aside"]
        self.counts = {name: np.zeros(len(inputs), np.int32) for name in names}
        self.bias = rows["b_enc"].detach().numpy()
        if aside is not None:  # below zero, and so never chosen, for those that are no members
            self.aside_bias = np.where(aside.members.numpy(), self.bias, np.float32(-np.inf))
        self.search: Search | None = None
        limit = chosen.threshold
        self.limit = (
            np.zeros(1, np.float32) if limit is None else limit.detach().reshape(-1).float().numpy()
        )

    def __call__(self, thread: int, first: int, stop: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the pre-activations and the latents of the tokens' sites, and of those aside."""
        from sae_placebo.saes import compiled_selection as compiled

        d_sae = len(self.bias)
        chunk = max(32, min(512, _CHUNK_BYTES // (4 * d_sae)))
        by_row = self.chosen.kind == "row"
        rooms = self._rooms(thread, stop - first)
        lanes = np.empty(d_sae // compiled.SEGMENTS + compiled.SEGMENTS, np.float32)
        for start in range(first, stop, chunk):
            tokens = slice(start, min(start + chunk, stop))
            given = self._products(thread, tokens)
            for room in rooms if by_row else rooms[1:]:
                self._of_rows(given, tokens, lanes, room)
            row = tokens.stop - start if by_row else 0
            while row < tokens.stop - start:
                row = self._above(given, tokens, lanes, rooms[0], row)
                if row < tokens.stop - start:
                    rooms[0].double()
        return [room.taken() for room in rooms]

    def _rooms(self, thread: int, n: int) -> list[_Room]:
        d_sae, like, workspace = len(self.bias), self.inputs, self.workspace
        k = int(self.chosen.k)
        size = n * (k if self.chosen.kind == "row" else 64) + 2 * d_sae
        name = f"found {thread}"
        rooms = [_Room(name, size, self.counts["site"], self.bias, k, like, workspace)]
        if self.aside is not None:
            most, counts = self.aside.k, self.counts["aside"]
            name, size = f"found aside {thread}", n * most + 2 * d_sae
            rooms.append(_Room(name, size, counts, self.aside_bias, most, like, workspace))
        return rooms

    def _products(self, thread: int, tokens: slice) -> Any:
        """Return a chunk's products with every encoder row: float32, or 8-bit with their scales."""
        from sae_placebo.saes import compiled_selection as compiled

        n, inputs = tokens.stop - tokens.start, self.inputs
        shape = (n, len(self.bias))
        if self.search is None:
            z = self.workspace.buffer(f"z {thread}", shape, inputs)
            return torch.mm(inputs[tokens], self.rows["W_enc"].t(), out=z).numpy()
        small = self.workspace.buffer(f"x8 {thread}", (n, inputs.shape[1]), inputs, torch.int8)
        scale = np.empty(n, np.float32)
        compiled.quantize(inputs[tokens].numpy(), 0, n, small.numpy(), scale)
        z = self.workspace.buffer(f"z8 {thread}", shape, inputs, torch.int32)
        torch._int_mm(small, self.search._small.t(), out=z)
        row = self.workspace.buffer(f"row {thread}", (len(self.bias),), inputs).numpy()
        return z.numpy(), scale, self.search._scales, row

    def _of_rows(self, given: Any, tokens: slice, lanes: Any, room: _Room) -> None:
        from sae_placebo.saes import compiled_selection as compiled

        counts, bits = room.counts[tokens], room.found.view(np.int32)
        out = (lanes, room.found, bits, room.places, counts, room.at)
        if self.search is None:
            room.at = compiled.select_rows(given, room.bias, room.k, *out)
            return
        products, scale, scales, row = given
        inputs, weights = self.inputs[tokens].numpy(), self.rows["W_enc"].numpy()
        room.at = compiled.search_rows(
            products, scale, scales, inputs, weights, room.bias, room.k, 2 * room.k, row, *out
        )

    def _above(self, given: Any, tokens: slice, lanes: Any, room: _Room, row: int) -> int:
        """Go on from `row`, as far as there is room; return the next row."""
        from sae_placebo.saes import compiled_selection as compiled

        out = (lanes, room.found, room.places, room.counts[tokens], row, room.at)
        if self.search is None:
            row, room.at = compiled.select_above(given, room.bias, self.limit, *out)
            return row
        products, scale, scales, buffer = given
        inputs, weights = self.inputs[tokens].numpy(), self.rows["W_enc"].numpy()
        limit = self.limit[0]
        row, room.at = compiled.search_above(
            products, scale, scales, inputs, weights, room.bias, np.float32(0.9) * limit, limit,
            buffer, *out,
        )  # fmt: skip
        return row
