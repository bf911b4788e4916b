"""An arm's held-out activations, its calibration, and the moments of its activations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from sae_placebo.activations import Calibration, HarvestSpec, blocks, calibrate, row_order
from sae_placebo.gaussian import GaussianReader, SecondMoments
from sae_placebo.lazy import torch
from sae_placebo.models import Reader
from sae_placebo.progress import Advance
from sae_placebo.text import Rows


def harvest(
    reader: Reader | GaussianReader,
    rows: Mapping[str, Rows],
    spec: HarvestSpec,
    seed: int,
    advance: Advance,
) -> tuple[dict[str, Float[torch.Tensor, "token d_in"]], dict[str, Calibration]]:
    """Return the held-out activations in model units, and each hookpoint's calibration.

    The calibration is of the head of the training stream.
    """
    calibrations = calibrated(reader, rows["train"], spec, seed)
    heldout = rows["heldout"]
    total = int(heldout.usable().sum())
    kept = {name: torch.empty(total, reader.d_in) for name in reader.names}
    done = 0
    for block in blocks(reader, heldout, np.arange(len(heldout.lengths)), spec.block_rows):
        n = len(block.token_ids)
        for name, x in block.activations.items():
            kept[name][done : done + n] = x
        done += n
        advance(n)
    return kept, calibrations


def calibrated(
    reader: Reader | GaussianReader, rows: Rows, spec: HarvestSpec, seed: int
) -> dict[str, Calibration]:
    """Return each hookpoint's calibration on the first rows of the training stream."""
    sample = row_order(len(rows.lengths), seed)[: spec.calibration_rows]
    return calibrate(next(blocks(reader, rows, sample, len(sample))), spec.outlier_ratio)


def second_moments(
    reader: Reader, rows: Rows, spec: HarvestSpec, seed: int
) -> dict[str, SecondMoments]:
    """Return mean and covariance at each hookpoint over the training stream, outliers left out."""
    calibrations = calibrated(reader, rows, spec, seed)
    found = {name: SecondMoments(one.mean) for name, one in calibrations.items()}
    for block in blocks(reader, rows, row_order(len(rows.lengths), seed), spec.block_rows):
        for name, x in block.activations.items():
            found[name].add(x[calibrations[name].keeps(x)])
    return found
