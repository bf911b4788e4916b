"""A bed keeps one arm's activations in memory, so that spikes are planted and SAEs trained many times.

A trial streams its training tokens because there are many; a detection limit needs many trainings on few
tokens. A bed takes (training tokens + held-out tokens) * d_in * 4 bytes.
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
from sae_placebo.lab.spikes.planting import Planting, Spike
from sae_placebo.models.activations import ActivationBlock, HarvestSpec, blocks, row_order
from sae_placebo.saes import SAE, SAESpec
from sae_placebo.saes.kernels import Workspace
from sae_placebo.saes.training import Fit
from sae_placebo.saes.training_spec import TrainingSpec

_CHUNK_BATCHES = 16

Read = Callable[[Rows, np.ndarray], Iterator[tuple[ActivationBlock, TokenKeys]]]
"""A function that reads rows of a text in an order, and yields blocks of activations with token keys."""


@dataclass(frozen=True, eq=False)
class KeptActivations:
    """Activations of one arm at one hookpoint, without norm outliers.

    Attributes:
        x: Activations of the training tokens, in the order of training.
        keys: Keys of the training tokens.
        heldout: Activations of tokens of other documents, in the order of reading.
        heldout_keys: Keys of the held-out tokens.
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
    ) -> KeptActivations:
        """Return the bed of the activations that `read` yields.

        Left out are tokens whose norm is above `harvest.outlier_ratio` times the median norm of the training
        tokens. The training tokens are permuted as a whole, where a trial permutes them block by block.

        Args:
            read: Reads activations: `reading_of(reader, harvest)`, or an `Upstream` that plants spikes.
            rows: The text, by the splits `train` and `heldout`.
            hookpoint: Name of the hookpoint whose activations are kept.
            harvest: Settings of reading, of which `outlier_ratio` counts.
            seed: Seed of the order of rows and of training tokens.
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
        covariance: np.ndarray = (centered.t() @ centered).double().numpy() / len(self.x)
        return covariance

    def plan(self, spikes: list[Spike], seed: int, orthogonal: bool = True) -> Planting:
        """Return a plan of spikes whose magnitudes are in units of `scale`; see `Planting.of`."""
        needed = any(spike.direction == "covariance" for spike in spikes)
        covariance = self.covariance() if needed else None
        return Planting.of(spikes, seed, self.d_in, self.scale(), covariance, orthogonal)

    def planted(self, plan: Planting | None) -> Float32[torch.Tensor, "other d_in"]:
        """Return the held-out activations with the plan's spikes added; None adds nothing."""
        return self.heldout if plan is None else plan.plant(self.heldout, self.heldout_keys)[0]

    def train(
        self,
        plan: Planting | None,
        sae: SAESpec,
        training: TrainingSpec,
        seed: int,
        advance: Callable[[int], None] = lambda _: None,
    ) -> SAE:
        """Train an SAE in one pass over the tokens with spikes planted, and return it in the bed's units.

        Everything else is as in a trial: a seed gives the same start, and activations are centered and scaled
        by the head of the stream, with the spikes in it.

        Args:
            plan: The spikes that are planted; None plants nothing.
            sae: Settings of the SAE.
            training: How the SAE is trained.
            seed: Seed of the initial weights.
            advance: Called after each step with the number of tokens it read.

        Raises:
            SpecError: there are fewer tokens than a batch holds, or training diverged.
        """
        size = training.batch_tokens
        chunk = size * _CHUNK_BATCHES
        if len(self.x) < size:
            raise SpecError(f"{len(self.x)} tokens are less than a batch of {size}: read more")
        scaling, workspace = None, Workspace()
        fit = Fit(sae.create(self.d_in, seed), training, len(self.x))
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
    """Return a function that reads activations with `reader` and plants nothing.

    Args:
        reader: Reads a model's activations.
        harvest: Settings of reading, of which `block_rows` counts.
    """

    def read(rows: Rows, order: np.ndarray) -> Iterator[tuple[ActivationBlock, TokenKeys]]:
        for block in blocks(reader, rows, order, harvest.block_rows):
            yield block, TokenKeys.of_rows(rows, block.places.numpy())

    return read


def _gathered(
    read: Iterator[tuple[ActivationBlock, TokenKeys]], hookpoint: str
) -> tuple[torch.Tensor, TokenKeys]:
    """Return all activations at a hookpoint, and the tokens' keys."""
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
