"""Spikes are planted in a model's residual stream before the hookpoint, so that later blocks process them.

An SAE is then trained on what the model makes of a spike, and the truth is measured: the same rows are read
with the spikes and without, and the difference at the SAE's hookpoint is what the spikes became. Several
spikes are told apart by least squares on the planted codes; where no two spikes meet on a token, this is the
mean difference per unit planted.

The direction that least squares gives is the linear part of the difference. `Became.cosine` says how much of
the difference points along it, and `Became.spilled` how much lies on tokens without any spike, where
attention carried it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int, Int64

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.data.rows import Rows
from sae_placebo.lab.generators.base import compose
from sae_placebo.lab.spikes.keys import TokenKeys
from sae_placebo.lab.spikes.planting import Planting
from sae_placebo.models.activations import FORWARD_ROWS, ActivationBlock
from sae_placebo.models.hookpoints import ON_STREAM, SITES, parse_hookpoint
from sae_placebo.models.reading import Reader, replaced


@dataclass(frozen=True)
class Upstream:
    """A plan of spikes, and where in the model it is planted; it is called to read activations.

    Attributes:
        reader: Reads the SAE's hookpoint.
        plan: The spikes, in units of the activations at `hookpoint`.
        hookpoint: Name of the hookpoint where spikes are added, at or before those that the reader reads.
        block_rows: Number of rows in a block.
    """

    reader: Reader
    plan: Planting
    hookpoint: str
    block_rows: int = 256

    def __call__(
        self, rows: Rows, order: Int[np.ndarray, " row"]
    ) -> Iterator[tuple[ActivationBlock, TokenKeys]]:
        """Yield the activations of rows with the spikes planted, and the keys of their tokens.

        Spikes are planted on usable tokens only: not on the first token of a row, and not on padding.

        Args:
            rows: The text.
            order: Indices of the rows, in the order of reading.

        Raises:
            SpecError: `hookpoint` is not in the residual stream, or lies behind one that the reader reads.
            ModelError: the reader fails; see `Reader.read`.
        """
        self._check()
        for first in range(0, len(order), self.block_rows):
            yield self.block(rows, order[first : first + self.block_rows], planted=True)

    def block(
        self, rows: Rows, chosen: Int[np.ndarray, " row"], planted: bool
    ) -> tuple[ActivationBlock, TokenKeys]:
        """Return the activations of rows and the keys of their tokens.

        Args:
            rows: The text.
            chosen: Indices of the rows that are read.
            planted: Whether the spikes are planted.
        """
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
            read = self._read(ids[part], None if delta is None else delta[part])
            for name, x in read.items():
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
        place = parse_hookpoint(self.hookpoint)
        if place.site not in ON_STREAM:
            raise SpecError(
                f"spikes are planted in the residual stream, not at {self.hookpoint!r}: give a "
                "resid_pre or resid_post"
            )
        for read in self.reader.hookpoints:
            if (read.layer, SITES.index(read.site)) < (place.layer, SITES.index(place.site)):
                raise SpecError(
                    f"{read.name} lies before {self.hookpoint}, where spikes would be planted: "
                    "plant earlier or read later"
                )


@dataclass(frozen=True)
class Became:
    """What a model made of planted spikes at a later hookpoint; arrays over rows of the plan's dictionary.

    Attributes:
        plan: The plan with the directions that arrived, rows of length 1, to compare decoder rows with; its
            `scale` is still that of the place of planting.
        gain: Length that arrives per unit planted.
        cosine: Mean cosine of the difference with the direction that arrived (with its negative where a
            circle's code is negative), over tokens where the spike is active alone. 1 says that the spike is
            still one direction. NaN where the spike is never alone.
        kept: Cosine of the direction that arrived with the planted one; NaN where the widths differ.
        n_tokens: Number of tokens on which the spike is active.
        spilled: Share of the squared difference that lies on tokens without any spike.
        explained: Share of the squared difference on tokens with a spike that the linear part explains.
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
    """Return what spikes planted upstream become at a hookpoint, from rows read with them and without.

    The codes and differences of all tokens with a spike are held in memory.

    Args:
        upstream: The plan and where it is planted.
        rows: The text.
        order: Indices of the rows that are read, each twice.
        hookpoint: Canonical name of a hookpoint that the reader reads.

    Raises:
        NotEstimable: a spike is active on no token of these rows.
        SpecError: the place of planting is refused; see `Upstream`.
    """
    upstream._check()
    n = len(upstream.plan.dictionary)
    gram, products = np.zeros((n, n)), np.zeros((n, upstream.reader.widths[hookpoint]))
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
    codes, difference = (np.concatenate(parts) for parts in zip(*kept, strict=True))
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
    """Return the planted codes of rows, and the difference that the spikes make at the hookpoint."""
    with_spikes, keys = upstream.block(rows, chosen, planted=True)
    without, _ = upstream.block(rows, chosen, planted=False)
    difference = with_spikes.activations[hookpoint] - without.activations[hookpoint]
    return upstream.plan.codes(keys).dense().double().numpy(), difference.double().numpy()


def _alone(
    codes: Float32[np.ndarray, "token feature"],
    difference: Float32[np.ndarray, "token d_in"],
    unit: Float64[np.ndarray, "feature d_in"],
) -> Float64[np.ndarray, " feature"]:
    """Return the mean cosine of the difference with each direction, over tokens where it is active alone."""
    alone = (codes != 0).sum(1) == 1
    cosines = np.full(len(unit), np.nan)
    lengths = np.linalg.norm(difference, axis=1)
    for i, direction in enumerate(unit):
        tokens = alone & (codes[:, i] != 0) & (lengths > 0)
        if tokens.any():
            along = difference[tokens] @ direction * np.sign(codes[tokens, i]) / lengths[tokens]
            cosines[i] = along.mean()
    return cosines
