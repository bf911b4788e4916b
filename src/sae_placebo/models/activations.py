"""One token stream, every arm's activations.

Rows are read in one random order, block by block; inside a block the usable tokens are permuted. Both
permutations are drawn from the trial's seed alone, so every arm sees the same tokens in the same
order. Nothing is kept but the block in hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Int64
from pydantic import Field

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.core.precision import ROUNDING_ENERGY
from sae_placebo.core.prefetching import ahead, cores_are_free
from sae_placebo.core.spec import Spec, numpy_generator
from sae_placebo.data.text import Rows
from sae_placebo.models.reading import check_finite


class HarvestSpec(Spec):
    """The settings by which activations are read and masked.

    Attributes:
        block_rows: Rows read before their tokens are shuffled together.
        calibration_rows: Rows at the head of the training stream that give an arm's mean, scale and
            norm limit.
        card_rows: Held-out rows that the diagnostics card is made from.
        outlier_ratio: A token whose norm exceeds this multiple of the arm's median norm is left out of
            training, and, when any arm leaves it out, of every arm's measurements. Attention sinks
            are what it is for; see docs/concepts/masking.md for why 3 and not the usual 10.
        precision: In what the models run. `auto`: each arm in bfloat16 if its error on the calibration
            rows is within the bound at every hookpoint, else in float32. See
            docs/concepts/precision.md before comparing arms that decided differently.
        bf16_error_bound: Largest mean squared error over the activations' variance for `auto`.
    """

    block_rows: int = Field(256, ge=1)
    calibration_rows: int = Field(64, ge=1)
    card_rows: int = Field(64, ge=1)
    outlier_ratio: float = Field(3.0, gt=1.0)
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    bf16_error_bound: float = Field(1e-3, gt=0.0, lt=1.0)


# rows in one forward: changes no result beyond rounding, which is fixed with the rest of the recipe
FORWARD_ROWS = 16
_FEW_TOKENS = 100  # fewer that do not vary say nothing of the hookpoint


@dataclass(frozen=True)
class ActivationBlock:
    """Activations of the usable tokens of some rows, in reading order.

    Attributes:
        token_ids: [token].
        documents: [token] index into the rows' document names.
        places: [token, 2] row and position.
        activations: hookpoint name -> [token, d_in]. Views of kept buffers: the next block
            overwrites them.
    """

    token_ids: Int64[torch.Tensor, " token"]
    documents: Int64[torch.Tensor, " token"]
    places: Int64[torch.Tensor, "token two"]
    activations: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Calibration:
    """A calibration says how one arm's activations at one hookpoint are masked, centered and scaled.

    Attributes:
        mean: [d_in] mean of the sample, outliers left out.
        factor: x' = (x - mean) * factor has mean squared norm d_in on the sample.
        median_norm: Median of ||x|| in the sample.
        largest_norm: Largest ||x|| in the sample.
        norm_limit: Tokens above it are outliers.
        n_tokens: Size of the sample, outliers included.
        n_outliers: Tokens of the sample above the limit.
    """

    mean: Float[torch.Tensor, " d_in"]
    factor: float
    median_norm: float
    largest_norm: float
    norm_limit: float
    n_tokens: int
    n_outliers: int

    def keeps(self, x: Float[torch.Tensor, "token d_in"]) -> Bool[torch.Tensor, " token"]:
        """Return which tokens are within the norm limit; the others are outliers."""
        within: torch.Tensor = x.norm(dim=1) <= self.norm_limit
        return within

    def record(self) -> dict[str, float | int]:
        """Return everything but the mean, for the trial's record."""
        return {
            "factor": self.factor,
            "median_norm": self.median_norm,
            "largest_norm": self.largest_norm,
            "norm_limit": self.norm_limit,
            "n_tokens": self.n_tokens,
            "n_outliers": self.n_outliers,
        }


def blocks(
    reader: Any,
    rows: Rows,
    order: Int[np.ndarray, " row"],
    block_rows: int,
    *,
    device: str | torch.device = "cpu",
    prefetch: bool | None = None,
) -> Iterator[ActivationBlock]:
    """Yield the activations of `rows`, taken in `order`, `block_rows` at a time.

    Args:
        reader: `models.reading.Reader`: `widths` by name and `read(token_ids) -> {name: [row pos d_in]}`; a
            `read_into` is used where there is one.
        rows: What to read.
        order: Indices of the rows, in reading order.
        block_rows: Rows in a block; the last one may be smaller.
        device: Where activations go; ids and places stay on the CPU.
        prefetch: Whether the next block is read on a thread of its own while one is used, which takes a
            second block of memory and changes no bit. None: where cores are free, or where the model
            is on an accelerator.

    Raises:
        ModelError: as `Reader.read`.
    """
    place = torch.device(device)
    if prefetch is None:
        accelerated = getattr(reader, "device", place).type != "cpu"
        prefetch = len(order) > block_rows and (accelerated or cores_are_free())
    if not prefetch:
        yield from _read_blocks(reader, rows, order, block_rows, place)
        return
    yield from ahead(
        lambda go_on: _read_blocks(reader, rows, order, block_rows, place, go_on=go_on, n_buffers=2)
    )


def _read_blocks(
    reader: Any,
    rows: Rows,
    order: Int[np.ndarray, " row"],
    block_rows: int,
    device: torch.device,
    *,
    go_on: Callable[[], None] = lambda: None,
    n_buffers: int = 1,
) -> Iterator[ActivationBlock]:
    """Yield blocks whose activations live in `n_buffers` kept buffers in turn."""
    usable = rows.usable()
    capacity = int(np.sort(usable.sum(1))[::-1][:block_rows].sum())
    # pinned, so that copies from an accelerator need no waiting
    pinned = device.type == "cpu" and getattr(reader, "device", device).type == "cuda"
    kept: list[dict[str, torch.Tensor]] = []
    for index, first in enumerate(range(0, len(order), block_rows)):
        if len(kept) < n_buffers:
            kept.append(
                {
                    n: torch.empty((capacity, width), device=device, pin_memory=pinned)
                    for n, width in reader.widths.items()
                }
            )
        buffers = kept[index % n_buffers]
        chosen = order[first : first + block_rows]
        filled = 0
        for part in np.array_split(chosen, -(-len(chosen) // FORWARD_ROWS)):
            go_on()
            places = torch.from_numpy(np.flatnonzero(usable[part]))
            ids = torch.from_numpy(rows.token_ids[part].astype(np.int64))
            end = filled + len(places)
            _read_part(reader, ids, places, {n: x[filled:end] for n, x in buffers.items()})
            filled = end
        activations = {name: buffer[:filled] for name, buffer in buffers.items()}
        if hasattr(reader, "read_into"):
            reader.settled()
            for name, x in activations.items():
                check_finite(name, x)
        row, position = np.nonzero(usable[chosen])
        yield ActivationBlock(
            token_ids=torch.from_numpy(rows.token_ids[chosen][row, position].astype(np.int64)),
            documents=torch.from_numpy(rows.documents[chosen][row].astype(np.int64)),
            places=torch.from_numpy(np.stack([chosen[row], position], axis=1).astype(np.int64)),
            activations=activations,
        )


def _read_part(
    reader: Any, ids: torch.Tensor, places: torch.Tensor, out: Mapping[str, torch.Tensor]
) -> None:
    if hasattr(reader, "read_into"):
        reader.read_into(ids, places, out)
        return
    for name, values in reader.read(ids).items():
        flat = values.reshape(-1, values.shape[-1])
        out[name].copy_(flat.index_select(0, places.to(flat.device)))


def row_order(n_rows: int, seed: int) -> Int64[np.ndarray, " row"]:
    """Return the order in which every arm reads the training rows."""
    return numpy_generator(seed, "row order").permutation(n_rows)


def calibrate(block: ActivationBlock, outlier_ratio: float) -> dict[str, Calibration]:
    """Return each hookpoint's calibration from a sample of its activations.

    Raises:
        ModelError: the activations do not vary, so they cannot be scaled.
    """
    result = {}
    for name, x in block.activations.items():
        norms = x.norm(dim=1)
        median = float(norms.median())
        limit = outlier_ratio * median
        kept = x[norms <= limit].double()
        mean = kept.mean(0)
        energy = float((kept - mean).square().sum(1).mean())
        if not energy > ROUNDING_ENERGY * float(mean.square().sum()):
            few = len(x) < _FEW_TOKENS
            advice = "raise text.train_tokens" if few else "choose another hookpoint or control"
            tokens = f"{len(x):,} token" + ("" if len(x) == 1 else "s")
            raise ModelError(
                f"the activations at {name} are constant over {tokens}: there is nothing to learn; {advice}"
            )
        result[name] = Calibration(
            mean=mean.float(),
            factor=float((x.shape[1] / energy) ** 0.5),
            median_norm=median,
            largest_norm=float(norms.max()),
            norm_limit=limit,
            n_tokens=len(x),
            n_outliers=int((norms > limit).sum()),
        )
    return result


def within_limits(
    block: ActivationBlock, calibrations: Mapping[str, Calibration]
) -> Iterator[tuple[str, Bool[torch.Tensor, " token"], Float[torch.Tensor, "kept d_in"]]]:
    """Yield each hookpoint, which tokens of a block are no outliers there, and their activations.

    The activations are on the CPU, and views of the block's where no token is left out.
    """
    for name, values in block.activations.items():
        x = values.cpu()
        kept = calibrations[name].keeps(x)
        yield name, kept, x if bool(kept.all()) else x[kept]


def batches(
    block: ActivationBlock,
    calibrations: Mapping[str, Calibration],
    batch_tokens: int,
    seed: int,
    index: int,
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Yield the size and the shuffled, centered and scaled tokens of each batch of one block.

    The size counts the outliers that were left out, so it is the same in every arm.

    The block is cut into equal batches of at most `batch_tokens`. The permutation depends on `seed`
    and on the block's `index` alone; a left-out token shortens its batch and moves no other.

    Args:
        block: Activations in model units.
        calibrations: One per hookpoint.
        batch_tokens: Most tokens in a batch.
        seed: The trial's seed.
        index: The block's place in the stream.
    """
    parts = batch_places(len(block.token_ids), batch_tokens, seed, index)
    # on the CPU: what is left out decides shapes, and asking an accelerator per batch would wait for it
    kept = {name: calibrations[name].keeps(x).cpu() for name, x in block.activations.items()}
    means = {name: calibrations[name].mean.to(x.device) for name, x in block.activations.items()}
    for part in parts:
        batch = {}
        for name, x in block.activations.items():
            calibration = calibrations[name]
            chosen = part[kept[name][part]].to(x.device, non_blocking=True)
            batch[name] = x.index_select(0, chosen).sub_(means[name]).mul_(calibration.factor)
        yield len(part), batch


def batch_places(
    n_tokens: int, batch_tokens: int, seed: int, index: int
) -> tuple[Int64[torch.Tensor, " batch"], ...]:
    """Return the places in one block of the tokens of each of its batches; see `batches`."""
    order = torch.from_numpy(numpy_generator(seed, "shuffle", index).permutation(n_tokens))
    return order.chunk(-(-n_tokens // batch_tokens))


class TokenMeans:
    """Streaming E[x | token] with shrinkage: the lookup table that an SAE has to beat.

    The table's entry is mean + n / (n + c) * (token's own mean - mean), with c the within-token over
    the between-token variance, so that a token seen once does not carry its whole noise; a token
    never seen gets the mean. Shrinkage makes the baseline better, hence the score stricter.

    Args:
        vocabulary_size: Number of token ids.
        center: [d_in] a point near the mean. It is taken off first, and sums are kept in float64:
            a common token is seen millions of times.
    """

    def __init__(self, vocabulary_size: int, center: Float[torch.Tensor, " d_in"]) -> None:
        self.center = center
        self.sums = torch.zeros(vocabulary_size, len(center), dtype=torch.float64)
        self.energy = torch.zeros(vocabulary_size, dtype=torch.float64)
        self.counts = torch.zeros(vocabulary_size, dtype=torch.float64)

    def add(
        self, token_ids: Int64[torch.Tensor, " token"], x: Float[torch.Tensor, "token d_in"]
    ) -> None:
        """Count `x`, in model units, under its tokens."""
        x = x - self.center
        ids, place, counts = torch.unique(token_ids, return_inverse=True, return_counts=True)
        block = torch.zeros(len(ids), x.shape[1]).index_add_(0, place, x)
        self.sums[ids] += block
        self.energy.index_add_(0, token_ids, x.double().square().sum(1))
        self.counts[ids] += counts

    def table(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ids seen [entry] and the table [entry + 1, d_in]; the last row is the mean."""
        seen = self.counts.nonzero().flatten()
        n = self.counts[seen]
        sums = self.sums[seen]
        mean = sums.sum(0) / n.sum()
        own = sums / n[:, None]
        within = (self.energy[seen] - n * own.square().sum(1)).clamp_min(0).sum()
        noise = float(within / (n.sum() - len(n)).clamp_min(1))
        # the spread of token means holds their own noise, noise / n; take it out
        spread = float(((own - mean).square().sum(1) * n).sum() / n.sum()) - noise * len(n) / float(
            n.sum()
        )
        share = n / (n + noise / spread) if spread > 0 else torch.zeros_like(n)
        table = mean + share[:, None] * (own - mean)
        return seen, (torch.cat([table, mean[None]]) + self.center).float()
