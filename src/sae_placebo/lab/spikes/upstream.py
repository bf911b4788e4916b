"""Spikes planted in a model's residual stream before the hookpoint, so that later blocks process them.

What an SAE is trained on is then what the model makes of a spike, and the truth is measured: read the same
rows with and without, and the difference at the SAE's hookpoint is what the spike became. With several
spikes at once the differences are shared out by least squares on the planted codes; where spikes do not
meet on a token this is the mean difference per unit planted.

The direction that is found is the linear part. `Became.cosine` says how much of the difference it is, and
`Became.spilled` how much of it lies on tokens without any spike, carried there by attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int, Int64

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.data.rows import Rows
from sae_placebo.lab.generators.base import compose
from sae_placebo.lab.spikes.keys import TokenKeys
from sae_placebo.lab.spikes.plant import Planting
from sae_placebo.models.activations import FORWARD_ROWS, ActivationBlock
from sae_placebo.models.hookpoints import parse_hookpoint
from sae_placebo.models.reading import Reader, replaced


@dataclass(frozen=True)
class Upstream:
    """A plan, and where in the model it is planted.

    Attributes:
        reader: Reads the SAE's hookpoint.
        plan: In the units of the activations at `hookpoint`.
        hookpoint: Where spikes are added, at or before what the reader reads.
        block_rows: Rows of a block.
    """

    reader: Reader
    plan: Planting
    hookpoint: str
    block_rows: int = 256

    def __call__(
        self, rows: Rows, order: Int[np.ndarray, " row"]
    ) -> Iterator[tuple[ActivationBlock, TokenKeys]]:
        """Yield the activations of rows with the spikes planted, and what names their tokens.

        Spikes are planted on usable tokens only: not on the first of a row, and not on padding.

        Raises:
            SpecError: the reader reads before the place of planting, so nothing would arrive.
            ModelError: as `Reader.read`.
        """
        self._check()
        for first in range(0, len(order), self.block_rows):
            yield self.block(rows, order[first : first + self.block_rows], planted=True)

    def block(
        self, rows: Rows, chosen: Int[np.ndarray, " row"], planted: bool
    ) -> tuple[ActivationBlock, TokenKeys]:
        """Return the activations of some rows, with the spikes or without."""
        usable = rows.usable()[chosen]
        row, position = np.nonzero(usable)
        places = np.stack([chosen[row], position], axis=1).astype(np.int64)
        keys = TokenKeys.of_rows(rows, places)
        ids = torch.from_numpy(rows.token_ids[chosen].astype(np.int64))
        delta = None
        if planted:
            delta = torch.zeros(*ids.shape, self.plan.dictionary.shape[1])
            codes = self.plan.codes(keys)
            delta[torch.from_numpy(usable)] = compose(codes, self.plan.dictionary)
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in self.reader.names}
        mask = torch.from_numpy(usable)
        for start in range(0, len(chosen), FORWARD_ROWS):
            part = slice(start, start + FORWARD_ROWS)
            found = self._read(ids[part], None if delta is None else delta[part])
            for name, x in found.items():
                parts[name].append(x.cpu().float()[mask[part]])
        block = ActivationBlock(
            token_ids=ids[mask],
            documents=torch.from_numpy(rows.documents[chosen][row].astype(np.int64)),
            places=torch.from_numpy(places),
            activations={name: torch.cat(part) for name, part in parts.items()},
        )
        return block, keys

    def _read(self, ids: torch.Tensor, delta: torch.Tensor | None) -> dict[str, torch.Tensor]:
        if delta is None:
            return self.reader.read(ids)
        moved = delta.to(self.reader.device)
        with replaced(self.reader.model, self.hookpoint, lambda x: x + moved.to(x.dtype)):
            return self.reader.read(ids)

    def _check(self) -> None:
        order = ("resid_pre", "attn_out", "mlp_out", "resid_post")
        here = parse_hookpoint(self.hookpoint)
        if here.site not in ("resid_pre", "resid_post"):
            raise SpecError(
                f"spikes are planted in the residual stream, not at {self.hookpoint!r}: give a "
                "resid_pre or resid_post"
            )
        for read in self.reader.hookpoints:
            if (read.layer, order.index(read.site)) < (here.layer, order.index(here.site)):
                raise SpecError(
                    f"{read.name} lies before {self.hookpoint}, where spikes would be planted: "
                    "plant earlier or read later"
                )


@dataclass(frozen=True)
class Became:
    """What a model made of planted spikes at a later hookpoint; arrays over rows of the plan's dictionary.

    Attributes:
        plan: The plan with the directions that arrived, unit rows, to hold decoder rows against; its
            `scale` is still that of the place of planting.
        gain: Length that arrives per unit planted.
        cosine: Mean cosine, over tokens where the spike is active alone, of the difference with the
            direction that arrived (its negative where a circle's code is negative). 1: the model left it
            one direction. NaN where it is never alone.
        kept: Cosine of the direction that arrived with the planted one.
        n_tokens: Tokens on which each is active.
        spilled: Share of the squared difference that lies on tokens without any spike.
        explained: Share of it, on tokens with a spike, that the linear part explains.
    """

    plan: Planting
    gain: Float64[np.ndarray, " feature"]
    cosine: Float64[np.ndarray, " feature"]
    kept: Float64[np.ndarray, " feature"]
    n_tokens: Int64[np.ndarray, " feature"]
    spilled: float
    explained: float


def became(
    upstream: Upstream, rows: Rows, order: Int[np.ndarray, " row"], hookpoint: str
) -> Became:
    """Return what spikes planted upstream are at a hookpoint, from rows read with and without.

    Held in memory: second moments of the codes, their products with the differences, and a block.

    Args:
        upstream: The plan and its place.
        rows: The text.
        order: Rows to read twice.
        hookpoint: One that the reader reads, by its canonical name.

    Raises:
        NotEstimable: a spike is active on no token of these rows.
        SpecError: as `Upstream`.
    """
    upstream._check()
    n = len(upstream.plan.dictionary)
    gram, products = np.zeros((n, n)), np.zeros((n, upstream.reader.d_in))
    energy, outside = 0.0, 0.0
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for first in range(0, len(order), upstream.block_rows):
        codes, difference = _difference(
            upstream, rows, order[first : first + upstream.block_rows], hookpoint
        )
        on = (codes != 0).any(1)
        squares = np.square(difference).sum(1)
        energy, outside = energy + squares.sum(), outside + squares[~on].sum()
        gram += codes[on].T @ codes[on]
        products += codes[on].T @ difference[on]
        kept.append((codes[on].astype(np.float32), difference[on].astype(np.float32)))
    codes = np.concatenate([one for one, _ in kept])
    difference = np.concatenate([one for _, one in kept])
    counts = (codes != 0).sum(0)
    if not counts.all():
        raise NotEstimable(
            f"{int((counts == 0).sum())} of {n} directions are planted on no token of these rows: read more"
        )
    arrived = np.linalg.lstsq(gram, products, rcond=None)[0]
    gain = np.linalg.norm(arrived, axis=1)
    unit = arrived / np.maximum(gain, 1e-30)[:, None]
    rest = float(np.square(difference - codes @ arrived).sum())
    same_width = upstream.plan.dictionary.shape[1] == unit.shape[1]
    planted = upstream.plan.dictionary.numpy() if same_width else np.full(unit.shape, np.nan)
    return Became(
        plan=upstream.plan.pointing(torch.from_numpy(unit).float()),
        gain=gain,
        cosine=_alone(codes, difference, unit),
        kept=np.sum(unit * planted, axis=1),
        n_tokens=counts.astype(np.int64),
        spilled=float(outside / energy) if energy else float("nan"),
        explained=float(1 - rest / np.square(difference).sum()),
    )


def _difference(
    upstream: Upstream, rows: Rows, chosen: Int[np.ndarray, " row"], hookpoint: str
) -> tuple[Float64[np.ndarray, "token feature"], Float64[np.ndarray, "token d_in"]]:
    with_spikes, keys = upstream.block(rows, chosen, planted=True)
    without, _ = upstream.block(rows, chosen, planted=False)
    difference = with_spikes.activations[hookpoint] - without.activations[hookpoint]
    return upstream.plan.codes(keys).dense().double().numpy(), difference.double().numpy()


def _alone(
    codes: Float32[np.ndarray, "token feature"],
    difference: Float32[np.ndarray, "token d_in"],
    unit: Float64[np.ndarray, "feature d_in"],
) -> Float64[np.ndarray, " feature"]:
    """Return the mean cosine of the difference with each direction, where it is active alone."""
    alone = (codes != 0).sum(1) == 1
    found: Any = np.full(len(unit), np.nan)
    lengths = np.linalg.norm(difference, axis=1)
    for i, direction in enumerate(unit):
        here = alone & (codes[:, i] != 0) & (lengths > 0)
        if here.any():
            along = difference[here] @ direction * np.sign(codes[here, i]) / lengths[here]
            found[i] = along.mean()
    return np.asarray(found, dtype=np.float64)
