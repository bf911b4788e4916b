"""An arm's reader, its held-out activations and its calibration."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance
from sae_placebo.data.text import Rows
from sae_placebo.latents.columns.repeats import repeat_rows
from sae_placebo.models.activations import Calibration, HarvestSpec, blocks, calibrate, row_order
from sae_placebo.models.gaussian import GaussianReader
from sae_placebo.models.loading import Reader


@dataclass(frozen=True)
class HarvestPrecision:
    """The precision that an arm's model runs in, and why.

    Attributes:
        asked: `HarvestSpec.precision`.
        used: What the model runs in; activations are float32 in either case.
        bound: `HarvestSpec.bf16_error_bound`.
        errors: By hookpoint, mean squared difference of bfloat16 from float32 over the activations'
            variance, outliers left out; None where bfloat16 was not run.
        reason: Why, in a few words.
    """

    asked: Literal["fp32", "bf16", "auto"]
    used: Literal["fp32", "bf16"]
    bound: float
    errors: dict[str, float] | None
    reason: str

    def record(self) -> dict[str, Any]:
        """Return everything as JSON."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> HarvestPrecision:
        """Return the decision that `record` was made of."""
        return cls(**record)


def arm_reader(
    model: torch.nn.Module,
    hookpoints: Sequence[str],
    rows: Rows,
    spec: HarvestSpec,
    seed: int,
    decided: HarvestPrecision | None = None,
) -> tuple[Reader, HarvestPrecision]:
    """Return the fastest reader of an arm's model that `spec` allows, and the precision it runs in.

    Only what is before the last hookpoint is needed of `model`; see `truncate`. In bfloat16 a copy of
    the weights is read; buffers (rotary frequencies) stay as they are.

    Args:
        model: The arm's model, in float32.
        hookpoints: Where it is read.
        rows: Training rows; their head, the calibration sample, is what errors are measured on.
        spec: How activations are read.
        seed: The trial's seed.
        decided: The decision behind artefacts that exist already. It is followed, not made again.

    Raises:
        ModelError: bfloat16 was asked for and the model does not run in it.
    """
    reader = Reader(model, hookpoints, fast=True)
    decision = decided or _decide(reader, rows, spec, seed)
    if decision.used == "fp32":
        return reader, decision
    return Reader(_rounded(model), hookpoints, fast=True), decision


def _decide(reader: Reader, rows: Rows, spec: HarvestSpec, seed: int) -> HarvestPrecision:
    asked, bound = spec.precision, spec.bf16_error_bound
    decide = functools.partial(HarvestPrecision, asked, bound=bound)
    if asked == "fp32":
        return decide("fp32", errors=None, reason="asked for")
    if asked == "auto" and reader.device.type == "cpu" and not _has_bf16_products():
        return decide("fp32", errors=None, reason="this CPU has no bfloat16 products")
    try:
        errors = bf16_errors(reader, rows, spec, seed)
    except (ModelError, RuntimeError) as error:  # not finite, or operations without a bfloat16 form
        if asked == "bf16":
            raise ModelError(
                f"the model does not run in bfloat16 ({error}); set harvest.precision to 'fp32'"
            ) from error
        return decide("fp32", errors=None, reason=f"the model does not run in bfloat16: {error}")
    if asked == "bf16":
        return decide("bf16", errors=errors, reason="asked for")
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] <= bound:
        return decide("bf16", errors=errors, reason="within the bound at every hookpoint")
    return decide("fp32", errors=errors, reason=f"above the bound at {worst}")


def bf16_errors(reader: Reader, rows: Rows, spec: HarvestSpec, seed: int) -> dict[str, float]:
    """Return by hookpoint how far bfloat16 is from float32 on the calibration rows.

    It is the mean squared difference over the activations' total variance. Tokens that are outliers
    in float32 are left out, as they are of training.

    Raises:
        ModelError: a value is not finite in one of the two.
    """
    sample = row_order(len(rows.lengths), seed)[: spec.calibration_rows]
    exact = next(blocks(reader, rows, sample, len(sample))).activations
    rounded = Reader(_rounded(reader.model), reader.hookpoints, fast=reader.is_fast)
    found = next(blocks(rounded, rows, sample, len(sample))).activations
    errors = {}
    for name, x in exact.items():
        norms = x.norm(dim=1)
        kept = norms <= spec.outlier_ratio * norms.median()
        x, wrong = x[kept].double(), (found[name] - x)[kept].double()
        variance = float((x - x.mean(0)).square().sum())
        # constant activations are told by `calibrate`, which knows what to say
        errors[name] = float(wrong.square().sum()) / variance if variance > 0 else math.inf
    return errors


def _rounded(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy whose float32 parameters are bfloat16."""
    # parameters are converted one by one into the copy: two float32 copies are never held
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if parameter.dtype == torch.float32 and id(parameter) not in memo:
            memo[id(parameter)] = torch.nn.Parameter(
                parameter.detach().bfloat16(), requires_grad=False
            )
    return copy.deepcopy(model, memo)


def _has_bf16_products() -> bool:
    """Return whether the CPU multiplies bfloat16 itself; where it does not, float32 is faster."""
    known: Mapping[str, Any] = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


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


def random_rows(rows: Rows, n: int, block: int, seed: int, repeated: bool) -> Rows:
    """Return rows of two random blocks, the second the first once more or not; see `repeat_rows`.

    Args:
        rows: Of the text: the ids that occur are drawn from, and BOS is in front where it is there.
        n: How many rows.
        block: Tokens of a block.
        seed: The trial's.
        repeated: Whether the second block is the first.
    """
    heads = np.unique(rows.token_ids[:, 0])
    bos = int(heads[0]) if len(heads) == 1 and len(rows.lengths) > 1 else None
    ids = np.unique(rows.token_ids[rows.usable()])
    made = repeat_rows(int(ids.max()) + 1 + (bos or 0), ids, n, block, seed, bos, repeated)
    each = np.arange(n, dtype=np.int32)
    lengths = np.full(n, made.shape[1], dtype=np.int32)
    return Rows(made, lengths, each, tuple(f"block {i}" for i in range(n)))


def harvest_repeats(
    reader: Reader, fresh: Rows, repeated: Rows, block: int
) -> dict[str, Float[torch.Tensor, "token d_in"]]:
    """Return the activations on the last `block` - 1 tokens of each row, by hookpoint and kind.

    What comes before a block's first token is new when the block is repeated, so it is left out. The
    names are `<hookpoint>.fresh` and `<hookpoint>.repeated`: the same tokens at the same positions,
    behind another block and behind themselves.

    Args:
        reader: Of the model.
        fresh: Rows that end in a block which has not been there before.
        repeated: Rows that end in the same blocks, each for the second time.
        block: Tokens of a block.
    """
    found: dict[str, torch.Tensor] = {}
    for kind, rows in (("fresh", fresh), ("repeated", repeated)):
        n = len(rows.lengths)
        for one in blocks(reader, rows, np.arange(n), n):
            for name, x in one.activations.items():
                by_row = x.reshape(n, -1, x.shape[1])[:, 1 - block :]
                found[f"{name}.{kind}"] = by_row.reshape(-1, x.shape[1]).clone()
    return found


def calibrated(
    reader: Reader | GaussianReader, rows: Rows, spec: HarvestSpec, seed: int
) -> dict[str, Calibration]:
    """Return each hookpoint's calibration on the first rows of the training stream."""
    sample = row_order(len(rows.lengths), seed)[: spec.calibration_rows]
    return calibrate(next(blocks(reader, rows, sample, len(sample))), spec.outlier_ratio)
