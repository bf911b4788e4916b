"""Sites chosen by compiled loops: in float32, or with candidates from 8-bit products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from sae_placebo.lazy import torch
from sae_placebo.saes.crew import Crew
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

    def refresh(self, encoder: Float[torch.Tensor, "d_sae d_in"], crew: Crew) -> None:
        """Round the encoder's rows as they are now."""
        from sae_placebo.saes import compiled_selection as compiled

        rows, small, scales = encoder.numpy(), self._small.numpy(), self._scales
        crew.run(lambda _, a, b: compiled.quantize(rows, a, b, small, scales), len(rows), 64)

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


def select_sites(
    inputs: Float[torch.Tensor, "token d_in"],
    rows: Mapping[str, torch.Tensor],
    chosen: Selection,
    workspace: Workspace,
    crew: Crew,
    search: Search | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return offsets [token + 1] (int64), latents [site] (int32) and pre-activations [site].

    Args:
        inputs: Activations less `b_dec`.
        rows: The tensors, `W_enc` as [d_sae, d_in].
        chosen: Which sites.
        workspace: For buffers.
        crew: Threads.
        search: Looks for candidates in 8-bit products, where that is asked for.
    """
    from sae_placebo.saes import compiled_selection as compiled

    n, d_sae = len(inputs), len(rows["b_enc"])
    if chosen.kind == "batch":
        target = chosen.target(n, d_sae)
        params = {"W_enc": rows["W_enc"].t(), "b_enc": rows["b_enc"]}
        for limit in limits(inputs, params, chosen, workspace):
            above = Selection("above", threshold=limit)
            offsets, latents, z = select_sites(inputs, rows, above, workspace, crew, search)
            if len(z) >= target:
                break
        ends, found = offsets.numpy(), z.numpy()
        compiled.keep_batch(found, found.view(np.int32), latents.numpy(), ends, target)
        return offsets, latents[: ends[-1]], z[: ends[-1]]
    counts = np.zeros(n, np.int32)
    part = _Part(inputs, rows, chosen, counts, workspace)
    if search is not None and search.serves(chosen):
        search.refresh(rows["W_enc"], crew)
        part.search = search
    parts = crew.run(part, n, 64)
    offsets = torch.zeros(n + 1, dtype=torch.int64)
    torch.cumsum(torch.from_numpy(counts), dim=0, out=offsets[1:])
    total = int(offsets[-1])
    latents = workspace.buffer("site latents", (total,), inputs, torch.int32)
    z = workspace.buffer("site z", (total,), inputs)
    at = 0
    for found, at_latents in parts:
        z[at : at + len(found)] = torch.from_numpy(found)
        latents[at : at + len(found)] = torch.from_numpy(at_latents)
        at += len(found)
    if part.search is not None:
        part.search.check(inputs, rows, chosen, Sites(offsets, latents.long(), z))
    return offsets, latents, z


class _Part:
    """Selects the sites of a range of tokens, chunk by chunk."""

    def __init__(
        self,
        inputs: torch.Tensor,
        rows: Mapping[str, torch.Tensor],
        chosen: Selection,
        counts: np.ndarray,
        workspace: Workspace,
    ) -> None:
        self.inputs, self.rows, self.chosen = inputs, rows, chosen
        self.counts, self.workspace = counts, workspace
        self.bias = rows["b_enc"].detach().numpy()
        self.search: Search | None = None
        limit = chosen.threshold
        self.limit = (
            np.zeros(1, np.float32) if limit is None else limit.detach().reshape(-1).float().numpy()
        )

    def __call__(self, thread: int, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the pre-activations and the latents of the tokens' sites."""
        from sae_placebo.saes import compiled_selection as compiled

        d_sae, k = len(self.bias), int(self.chosen.k)
        chunk = max(32, min(512, _CHUNK_BYTES // (4 * d_sae)))
        by_row = self.chosen.kind == "row"
        room = (stop - first) * (k if by_row else 64) + 2 * d_sae
        like = self.inputs
        found = self.workspace.buffer(f"found {thread}", (room,), like).numpy()
        latents = self.workspace.buffer(f"found latents {thread}", (room,), like, torch.int32)
        places = latents.numpy()
        lanes = np.empty(d_sae // compiled.SEGMENTS + compiled.SEGMENTS, np.float32)
        at = 0
        for start in range(first, stop, chunk):
            tokens = slice(start, min(start + chunk, stop))
            given = self._products(thread, tokens)
            if by_row:
                at = self._of_rows(given, tokens, k, lanes, found, places, at)
                continue
            row = 0
            while row < tokens.stop - start:
                row, at = self._above(given, tokens, lanes, found, places, row, at)
                if row < tokens.stop - start:  # no room left: twice as much
                    found, places = (np.pad(a, (0, len(a))) for a in (found, places))
        return found[:at], places[:at]

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

    def _of_rows(
        self, given: Any, tokens: slice, k: int, lanes: Any, found: Any, places: Any, at: int
    ) -> int:
        from sae_placebo.saes import compiled_selection as compiled

        bits, counts = found.view(np.int32), self.counts[tokens]
        if self.search is None:
            return int(
                compiled.select_rows(given, self.bias, k, lanes, found, bits, places, counts, at)
            )
        products, scale, scales, row = given
        return int(
            compiled.search_rows(
                products, scale, scales, self.inputs[tokens].numpy(), self.rows["W_enc"].numpy(),
                self.bias, k, 2 * k, row, lanes, found, bits, places, counts, at,
            )
        )  # fmt: skip

    def _above(
        self, given: Any, tokens: slice, lanes: Any, found: Any, places: Any, row: int, at: int
    ) -> tuple[int, int]:
        from sae_placebo.saes import compiled_selection as compiled

        counts = self.counts[tokens]
        if self.search is None:
            return compiled.select_above(  # type: ignore[no-any-return]
                given, self.bias, self.limit, lanes, found, places, counts, row, at
            )
        products, scale, scales, buffer = given
        limit = self.limit[0]
        return compiled.search_above(  # type: ignore[no-any-return]
            products, scale, scales, self.inputs[tokens].numpy(), self.rows["W_enc"].numpy(),
            self.bias, np.float32(0.9) * limit, limit, buffer, lanes, found, places, counts, row, at,
        )  # fmt: skip
