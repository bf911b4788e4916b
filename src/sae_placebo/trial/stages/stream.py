"""The stream that every SAE of an arm is trained on, and what is counted on the way.

The stream has no state but a place in it: the order of rows and every shuffle are drawn by name. So work
on it can stop anywhere, and what was counted is kept as tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from sae_placebo.controls.data import ActivationControl
from sae_placebo.core.checkpoints import Checkpoint, State, Work
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance
from sae_placebo.data.rows import Rows
from sae_placebo.models.activations import (
    ActivationBlock,
    Calibration,
    HarvestSpec,
    TokenMeans,
    batches,
    blocks,
    calibrate,
    row_order,
    within_limits,
)
from sae_placebo.models.drawn import Counting, DrawnReader
from sae_placebo.models.gaussian import SecondMoments
from sae_placebo.models.loading import Reader
from sae_placebo.models.reading import JoinedReader
from sae_placebo.trial.spec import TrialSpec

AnyReader: TypeAlias = Reader | JoinedReader | DrawnReader
"""Activations are read with one of these."""

C = TypeVar("C", bound=Counting)

Track: TypeAlias = Callable[..., AbstractContextManager[Advance]]
"""A function of this type is `Progress.track` with its label given."""


@dataclass(frozen=True)
class TrainingStream:
    """The training tokens' activations, in the order in which every arm reads them.

    Args:
        spec: The trial's protocol.
        reader: Of the arms' model.
        rows: The training rows.
        calibrations: How activations are masked, centered and scaled, by hookpoint.
    """

    spec: TrialSpec
    reader: AnyReader
    rows: Rows
    calibrations: Mapping[str, Calibration]

    @functools.cached_property
    def n_tokens(self) -> int:
        """Return how many tokens the stream has, outliers included."""
        return int(self.rows.usable().sum())

    def blocks(self, first: int = 0) -> Iterator[tuple[int, ActivationBlock]]:
        """Yield the stream's blocks from the one numbered `first`, each with its number."""
        size = self.spec.harvest.block_rows
        order = row_order(len(self.rows.lengths), self.spec.seed)[first * size :]
        read = blocks(self.reader, self.rows, order, size, device=self.spec.device)
        yield from enumerate(read, first)

    def kept(self, block: ActivationBlock) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Yield each hookpoint, ids and activations of a block's tokens, outliers left out, on the CPU."""
        for name, kept, x in within_limits(block, self.calibrations):
            whole = len(x) == len(kept)
            yield name, block.token_ids if whole else block.token_ids[kept], x

    def batches(
        self, index: int, block: ActivationBlock
    ) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Return the batches of one block, on the device of training; see `activations.batches`."""
        size, seed = self.spec.training.batch_tokens, self.spec.seed
        return batches(block, self.calibrations, size, seed, index)

    def moments(self) -> dict[str, SecondMoments]:
        """Return empty second moments, by hookpoint."""
        return {name: SecondMoments(one.mean) for name, one in self.calibrations.items()}


@dataclass
class CountingPass(Generic[C]):
    """One pass over a stream that only counts.

    Args:
        stream: The stream.
        begin: Returns what counts, with nothing counted.
        work: Where checkpoints are kept.
        phase: The pass's name among them.
    """

    stream: TrainingStream
    begin: Callable[[], C]
    work: Work
    phase: str

    def __post_init__(self) -> None:
        self._reset()
        saved = self.work.load(self.phase)
        if saved is not None and not self.work.fits(saved, self._restore):
            self._reset()

    def _reset(self) -> None:
        self.counting = self.begin()
        self.done, self._blocks = 0, 0

    def run(self, advance: Advance) -> None:
        """Count what is left of the stream."""
        with self.work.during(self.phase, self._state) as checkpoint:
            for index, block in self.stream.blocks(self._blocks):
                with self.work.step():
                    self.counting.add(block)
                    self._blocks = index + 1
                    self.done += len(block.token_ids)
                advance(len(block.token_ids))
                checkpoint()

    def _state(self) -> State:
        return State(self.done, {"blocks": self._blocks}, self.counting.state())

    def _restore(self, saved: Checkpoint) -> None:
        self.counting.restore(saved.part)
        self.done, self._blocks = saved.done, int(saved.record["blocks"])


def in_its_place(
    reader: Reader | JoinedReader,
    data: ActivationControl,
    spec: TrialSpec,
    rows: Rows,
    model_seed: int,
    work: Work,
    track: Track,
) -> DrawnReader:
    """Return a reader of draws that `data` puts in the place of what `reader` reads.

    Args:
        reader: Reads the model.
        data: The control of the activations, whose draws are fitted to what `reader` reads.
        spec: The trial's protocol.
        rows: Training rows, outliers of which are left out.
        model_seed: The arm's model seed.
        work: Where checkpoints are kept.
        track: Shows the progress.
    """
    calibrations = calibrated(reader, rows, spec.harvest, spec.seed)
    stream = TrainingStream(spec, reader, rows, calibrations)
    begin = functools.partial(data.counting, rows, calibrations, spec.seed)
    counted = CountingPass(stream, begin, work, "source")
    with track(stream.n_tokens, before=counted.done) as advance:
        counted.run(advance)
    return counted.counting.reader(spec.seed, model_seed)


def calibrated(
    reader: AnyReader, rows: Rows, spec: HarvestSpec, seed: int
) -> dict[str, Calibration]:
    """Return each hookpoint's calibration on the first rows of the training stream."""
    sample = row_order(len(rows.lengths), seed)[: spec.calibration_rows]
    return calibrate(next(blocks(reader, rows, sample, len(sample))), spec.outlier_ratio)


def means_state(means: TokenMeans) -> dict[str, torch.Tensor]:
    """Return what was counted of the tokens seen; the others' sums are zero."""
    seen = means.counts.nonzero().flatten()
    return {
        "ids": seen,
        "sums": means.sums[seen],
        "energy": means.energy[seen],
        "counts": means.counts[seen],
    }


def restore_means(means: TokenMeans, state: Mapping[str, torch.Tensor]) -> None:
    """Go on counting from `state`."""
    for name in ("sums", "energy", "counts"):
        getattr(means, name)[state["ids"]] = state[name]
