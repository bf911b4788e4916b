"""The precision that an arm's model is read in: float32, or bfloat16 where it is within a bound."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sae_placebo.core.errors import ModelError
from sae_placebo.core.lazy import torch
from sae_placebo.core.store import read_json, write_json
from sae_placebo.data.rows import Rows
from sae_placebo.models.activations import HarvestSpec, blocks, row_order
from sae_placebo.models.reading import JoinedReader, Reader


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


def joined_reader(
    models: Sequence[tuple[Sequence[str], torch.nn.Module]],
    names: Sequence[str],
    rows: Rows,
    spec: HarvestSpec,
    seed: int,
    decided: HarvestPrecision | None = None,
) -> tuple[Reader | JoinedReader, HarvestPrecision]:
    """Return what reads an arm whose hookpoints may have several models, and the one precision of all.

    Where `arm_reader` would decide on float32 for one of them, all run in it.

    Args:
        models: The hookpoints of each model, and the model.
        names: Every hookpoint, in the order in which results carry them.
        rows: As for `arm_reader`.
        spec: As for `arm_reader`.
        seed: As for `arm_reader`.
        decided: As for `arm_reader`.

    Raises:
        ModelError: as `arm_reader`.
    """
    if len(models) == 1:
        return arm_reader(models[0][1], names, rows, spec, seed, decided)
    found = [arm_reader(model, of, rows, spec, seed, decided) for of, model in models]
    decisions = [decision for _, decision in found]
    joined = next((one for one in decisions if one.used == "fp32"), decisions[0])
    errors: dict[str, float] = {}
    for one in decisions:
        errors |= one.errors or {}
    joined = replace(joined, errors=errors or None)
    readers = [
        reader
        if decision.used == joined.used
        else arm_reader(model, of, rows, spec, seed, joined)[0]
        for (reader, decision), (of, model) in zip(found, models, strict=True)
    ]
    return JoinedReader(readers, names), joined


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


def write_precision(folder: Path, decision: HarvestPrecision) -> None:
    """Write the precision that an arm's model ran in, and why."""
    write_json(folder / "precision.json", decision.record())


def read_precision(folder: Path) -> HarvestPrecision:
    """Return what `write_precision` wrote."""
    return HarvestPrecision.from_record(read_json(folder / "precision.json"))
