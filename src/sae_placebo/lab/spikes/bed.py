"""One arm's activations, read once and kept, to plant into and to train on many times.

A trial streams its training tokens because there are many; to measure a detection limit there have to be
many trainings on few. A bed holds both splits in memory: tokens x d_in x 4 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from sae_placebo.core.errors import SpecError
from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import numpy_generator
from sae_placebo.data.rows import Rows
from sae_placebo.lab.generators.base import Scaling
from sae_placebo.lab.spikes.keys import TokenKeys
from sae_placebo.lab.spikes.plant import Planting, Spike
from sae_placebo.models.activations import ActivationBlock, HarvestSpec, blocks, row_order
from sae_placebo.saes import SAE, SAESpec
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.training import Fit
from sae_placebo.saes.training_spec import TrainingSpec

_CHUNK_BATCHES = 16

Read = Callable[[Rows, np.ndarray], Iterator[tuple[ActivationBlock, TokenKeys]]]
"""Reads rows in an order, and says what names the tokens of each block."""


@dataclass(frozen=True, eq=False)
class Bed:
    """Activations of one arm at one hookpoint, norm outliers left out.

    Attributes:
        x: Training tokens, in the order in which they are trained on.
        keys: What names them.
        heldout: Tokens of other documents, in reading order.
        heldout_keys: What names them.
    """

    x: Float32[torch.Tensor, "token d_in"]
    keys: TokenKeys
    heldout: Float32[torch.Tensor, "other d_in"]
    heldout_keys: TokenKeys

    @classmethod
    def of(
        cls,
        read: Read,
        rows: Mapping[str, Rows],
        hookpoint: str,
        harvest: HarvestSpec,
        seed: int,
    ) -> Bed:
        """Return the bed of what `read` gives; tokens whose norm is beyond the trial's limit are left out.

        The training tokens are permuted as a whole, where a trial permutes them block by block.

        Args:
            read: Reads activations: `reading_of(reader, harvest)`, or one that plants upstream.
            rows: The splits `train` and `heldout`.
            hookpoint: Of the activations.
            harvest: How activations are masked: `outlier_ratio`.
            seed: Of the order.
        """
        order = row_order(len(rows["train"].lengths), seed)
        x, keys = _gathered(read(rows["train"], order), hookpoint)
        other, other_keys = _gathered(
            read(rows["heldout"], np.arange(len(rows["heldout"].lengths))), hookpoint
        )
        limit = harvest.outlier_ratio * float(x.norm(dim=1).median())
        kept = (x.norm(dim=1) <= limit).numpy().nonzero()[0]
        kept = kept[numpy_generator(seed, "bed").permutation(len(kept))]
        within = (other.norm(dim=1) <= limit).numpy().nonzero()[0]
        return cls(
            x[torch.from_numpy(kept)],
            keys[kept],
            other[torch.from_numpy(within)],
            other_keys[within],
        )

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.x.shape[1]

    def scale(self) -> float:
        """Return the rms norm of the training tokens about their mean: the unit of magnitudes."""
        return math.sqrt(self.d_in) / Scaling.of(self.x).factor

    def covariance(self) -> Float64[np.ndarray, "d_in d_in"]:
        """Return the covariance of the training tokens."""
        centered = self.x - self.x.mean(0)
        found: np.ndarray = (centered.t() @ centered).double().numpy() / len(self.x)
        return found

    def plan(self, spikes: list[Spike], seed: int, orthogonal: bool = True) -> Planting:
        """Return a plan of spikes in this bed's units."""
        needed = any(spike.direction == "covariance" for spike in spikes)
        covariance = self.covariance() if needed else None
        return Planting.of(spikes, seed, self.d_in, self.scale(), covariance, orthogonal)

    def planted(self, plan: Planting | None) -> Float32[torch.Tensor, "other d_in"]:
        """Return the held-out tokens with the plan's spikes in them."""
        return self.heldout if plan is None else plan.plant(self.heldout, self.heldout_keys)[0]

    def train(
        self,
        plan: Planting | None,
        sae: SAESpec,
        training: TrainingSpec,
        seed: int,
        advance: Callable[[int], None] = lambda _: None,
    ) -> SAE:
        """Return an SAE of the bed's units, trained in one pass over the tokens with spikes planted.

        Everything else is as in a trial: the same start for a seed, activations centered and scaled by
        the head of the stream, as they are with the spikes in them.

        Args:
            plan: What is planted; None: nothing.
            sae: The architecture.
            training: How it is trained.
            seed: Of the initial bits.
            advance: Called with the number of tokens after each step.

        Raises:
            SpecError: there are fewer tokens than a batch holds, or training diverged.
        """
        size = training.batch_tokens
        chunk = size * _CHUNK_BATCHES
        if len(self.x) < size:
            raise SpecError(f"{len(self.x)} tokens are less than a batch of {size}: read more")
        scaling, fit, workspace = (
            None,
            Fit(sae.create(self.d_in, seed), training, len(self.x)),
            Workspace(),
        )
        for first in range(0, len(self.x), chunk):
            x = self.x[first : first + chunk]
            if plan is not None:
                x, _ = plan.plant(x, self.keys[np.arange(first, first + len(x))])
            scaling = scaling or Scaling.of(x)
            for batch in torch.split(scaling.apply(x), size):
                fit.step(batch, workspace)
                advance(len(batch))
        assert scaling is not None
        return fit.sae().fold(scaling.mean, scaling.factor)


def reading_of(reader: object, harvest: HarvestSpec) -> Read:
    """Return what reads activations with `reader` as they are."""

    def read(rows: Rows, order: np.ndarray) -> Iterator[tuple[ActivationBlock, TokenKeys]]:
        for block in blocks(reader, rows, order, harvest.block_rows):
            yield block, TokenKeys.of_rows(rows, block.places.numpy())

    return read


def _gathered(
    read: Iterator[tuple[ActivationBlock, TokenKeys]], hookpoint: str
) -> tuple[torch.Tensor, TokenKeys]:
    parts, keys = [], []
    for block, names in read:
        # a block's buffers are written over by the next one
        parts.append(block.activations[hookpoint].float().clone())
        keys.append(names)
    joined = TokenKeys(
        np.concatenate([k.documents for k in keys]),
        np.concatenate([k.positions for k in keys]),
        np.concatenate([k.token_ids for k in keys]),
    )
    return torch.cat(parts), joined
