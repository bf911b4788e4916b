"""A phase diagram shows at which settings SAEs learn combinations and at which they learn features.

Every cell of a grid is a generator and an SAE at one combination of the swept settings. Its SAE is trained
with several seeds and scored on held-out tokens. Each cell has its own file, written when it is done, so
that a run that was stopped goes on where it was; cells run in processes of one thread each.

A score is a mean over seeds with a Student interval, and n is the number of seeds. Its null is the score of
the same SAEs before training.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError, model_validator

from sae_placebo.core.errors import NotEstimable, SpecError, StoreError, unknown_name
from sae_placebo.core.file_names import ROOM, name_fault, shown_name
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance, Progress, unheard
from sae_placebo.core.spec import Spec, digest
from sae_placebo.lab import GeneratorSpec, Sample, recovery
from sae_placebo.lab.experiments.base import LabTraining, explained_variance, fit_on, scale_of
from sae_placebo.lab.experiments.processes import compute_all
from sae_placebo.lab.experiments.sweeps import OF_SAE, Axis, Value, generator_of, once, sweepable
from sae_placebo.lab.scores.composition import composition
from sae_placebo.lab.sizes import check_generator, check_training
from sae_placebo.saes import SAE, SAES, PenalizedSpec, SAESpec, parse_sae
from sae_placebo.saes.fast import SWITCH
from sae_placebo.stats.components import Component, interval

MEASURES = ("conjunction", "atomic", "contrast", "mmcs", "ev", "l0")
"""What is measured of an SAE, in this order: the share of live latents that fire for pairs; the share whose
decoder row is a feature's; the first share less the second; the mean over features of the largest cosine to a
decoder row; explained variance; active latents per token."""

_FORMAT = 1
_WARMUP = 0.2


class PhaseSpec(Spec):
    """Settings of a phase diagram; equal settings have equal cells.

    The SAE minimizes the squared error, summed over dimensions, plus `lambda` times the sum of codes, in the
    generator's units; the penalty rises over the first fifth of the training. `b_dec` is held at zero: where
    one item of each set is on at every token, a trained `b_dec` shifts the rows, and the cosines with them.
    """

    axes: tuple[Axis, ...] = Field(min_length=1, max_length=3)
    """What is swept: up to three settings, drawn as rows, columns and panels."""
    generator: str = "composed_sets"
    """Kind of the generator."""
    settings: dict[str, Value] = Field(default_factory=dict)
    """The generator's settings that are not swept."""
    sae: str = "relu"
    """Kind of the SAE; it must have a penalty, as `relu` and `tied` do."""
    penalty: float = Field(0.1, gt=0)
    """The value of `lambda` where it is not swept."""
    width: int | None = Field(None, ge=1)
    """Number of latents where it is not swept. None gives one to every feature and every pair of items, or
    two to every feature of a generator that has no items."""
    steps: int = Field(3_000, ge=1)
    """Number of training steps, each on 512 tokens."""
    seeds: int = Field(5, ge=2)
    """Number of SAEs that are trained in each cell."""
    heldout_tokens: int = Field(8_192, ge=64)
    """Number of held-out tokens on which SAEs are scored."""
    firing_threshold: float = Field(0.05, ge=0)
    """A latent counts as firing above this; amplitudes are 1 at most. Published tables have 0.05."""

    @model_validator(mode="after")
    def _names_are_known(self) -> PhaseSpec:
        known = sweepable(self.generator)
        for name in self.names:
            if name not in known:
                raise SpecError(unknown_name("setting to sweep", name, known))
            if name in self.settings:
                raise SpecError(
                    f"{name} is swept and fixed at {self.settings[name]}: leave one out"
                )
        once(self.names)
        if not issubclass(SAES[self.sae], PenalizedSpec):
            usable = [k for k, v in SAES.entries.items() if issubclass(v, PenalizedSpec)]
            raise SpecError(
                f"an SAE of kind {self.sae!r} has no penalty whose weight could be lambda; those that "
                f"have are {', '.join(sorted(usable))}"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the swept settings, in the order of rows, columns and panels."""
        return tuple(axis.name for axis in self.axes)

    @cached_property
    def cells(self) -> tuple[PhaseCell, ...]:
        """All cells of the grid; the last axis varies fastest.

        Raises:
            SpecError: a combination of settings is refused by the generator or the SAE.
        """
        grid = itertools.product(*(axis.values for axis in self.axes))
        return tuple(self._cell(dict(zip(self.names, values, strict=True))) for values in grid)

    def _cell(self, at: dict[str, int | float]) -> PhaseCell:
        swept = {name: value for name, value in at.items() if name not in OF_SAE}
        generator = generator_of(self.generator, {**self.settings, **swept})
        check_generator(generator)
        items = getattr(generator, "items", None)
        free = generator.truth.n_features * 2 if items is None else 2 * items + items**2
        width = at.get("width", self.width or free)
        if width != int(width):
            raise SpecError(f"width is {width:g}: a number of latents is whole")
        table = {"kind": self.sae, "d_sae": int(width), "warmup_share": _WARMUP}
        sae = parse_sae({**table, "coefficient": float(at.get("lambda", self.penalty))})
        lab = LabTraining(steps=self.steps, bias="none")
        scored = self.heldout_tokens, self.firing_threshold
        return PhaseCell(at, generator, sae, lab, self.seeds, *scored)


@dataclass(frozen=True)
class PhaseCell:
    """One point of the grid, with all that its result depends on.

    Attributes:
        at: Values of the swept settings, by name.
        generator: Draws the tokens.
        sae: Settings of the SAE in the generator's units.
        lab: How the SAE is trained.
        seeds: Number of SAEs, whose seeds count from 0.
        heldout_tokens: Number of tokens that are scored.
        firing_threshold: The code above which a latent counts as firing.
    """

    at: Mapping[str, int | float]
    generator: GeneratorSpec
    sae: SAESpec
    lab: LabTraining
    seeds: int
    heldout_tokens: int
    firing_threshold: float

    @property
    def settings(self) -> dict[str, Any]:
        """All that the result depends on, in types that JSON has."""
        specs = {"generator": self.generator, "sae": self.sae, "lab": self.lab}
        return {
            **{name: spec.model_dump(mode="json") for name, spec in specs.items()},
            "seeds": self.seeds,
            "heldout_tokens": self.heldout_tokens,
            "firing_threshold": self.firing_threshold,
            "format": _FORMAT,
        }

    @property
    def n_tokens(self) -> int:
        """Number of tokens that are read: by each SAE in training, and twice for its scores."""
        return self.seeds * (self.lab.n_tokens + 2 * self.heldout_tokens)

    @property
    def key(self) -> str:
        """A name that changes with the settings."""
        return digest(self.settings)[:20]


class SeedMean(NamedTuple):
    """A mean over n seeds with its 95% interval; what does not exist is None, and `reason` says why."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None

    @property
    def spread(self) -> float | None:
        """Length of the interval; None where there is no interval."""
        return None if self.low is None or self.high is None else self.high - self.low


@dataclass(frozen=True)
class PhaseDiagram:
    """A diagram's cells with the scores of those that are done.

    Attributes:
        spec: Settings of the diagram.
        found: The record in each finished cell's file, by the cell's key; `measured` makes it.
    """

    spec: PhaseSpec
    found: Mapping[str, Mapping[str, Any]]

    @property
    def done(self) -> tuple[PhaseCell, ...]:
        """The finished cells, in the order of the grid."""
        return tuple(cell for cell in self.spec.cells if cell.key in self.found)

    def score(self, cell: PhaseCell, measure: str) -> SeedMean:
        """Return the mean over seeds of one of `MEASURES` after training."""
        return mean_of(self.found[cell.key]["trained"], measure)

    def null(self, cell: PhaseCell, measure: str) -> SeedMean:
        """Return the mean over seeds of one of `MEASURES` before training."""
        return mean_of(self.found[cell.key]["untrained"], measure)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per finished cell: its place in the grid, each measure, and the nulls."""
        return [
            {
                **cell.at,
                "identifiable": cell.generator.truth.is_identifiable,
                **{name: self.score(cell, name)._asdict() for name in MEASURES},
                "untrained": {name: self.null(cell, name)._asdict() for name in MEASURES},
            }
            for cell in self.done
        ]

    def seconds(self) -> list[float]:
        """Return how long each finished cell took, in the order of the grid."""
        return [float(self.found[cell.key]["seconds"]) for cell in self.done]


def phase_spec(
    axes: Sequence[Axis], settings: Mapping[str, Value] | None = None, **others: Any
) -> PhaseSpec:
    """Return the settings of a diagram.

    Args:
        axes: What is swept. An axis of one value fixes the setting, unless all axes have one value; then the
            first one stays an axis.
        settings: The generator's settings that are not swept.
        others: Other fields of `PhaseSpec`, by name.

    Raises:
        SpecError: a setting is unknown, or a value is not allowed.
    """
    once([axis.name for axis in axes])
    swept = [axis for axis in axes if len(axis.values) > 1] or list(axes[:1])
    single = {axis.name: axis.values[0] for axis in axes if axis not in swept}
    of_sae = {"lambda": "penalty", "width": "width"}
    fixed = {of_sae[name]: single.pop(name) for name in OF_SAE if name in single}
    if twice := sorted(set(single) & set(settings or {})):
        raise SpecError(f"{twice[0]} is fixed twice: leave one out")
    together = {**(settings or {}), **single}
    try:
        return PhaseSpec.model_validate({"axes": swept, "settings": together, **fixed, **others})
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        place = ".".join(str(part) for part in first["loc"])
        raise SpecError(str(cause or f"{place} = {first['input']!r:.80}: {first['msg']}")) from None


def run_phase(
    spec: PhaseSpec, folder: Path, workers: int = 1, progress: Progress | None = None
) -> PhaseDiagram:
    """Compute the cells that `folder` does not hold yet, write them there, and return the whole diagram.

    Cells are found by their settings: a folder may serve several diagrams, and a grid that grows computes
    only its new cells. The table of all cells is written to `phase.json`.

    Args:
        spec: Settings of the diagram.
        folder: Where results are kept, the cells in `cells/`; it is made where it does not exist.
        workers: Number of processes, of one thread each; with 1 this process computes the cells itself.
        progress: Shows how many tokens are read, in training and for scores, of those of all cells.

    Raises:
        SpecError: a cell's settings are refused, or this machine's memory cannot hold it; nothing was run.
        StoreError: the folder's name is none, or the folder cannot be written.
    """
    if (fault := name_fault(folder, ROOM)) is not None:
        raise StoreError(f"the folder {shown_name(folder)} {fault}")
    cells, kept = spec.cells, folder / "cells"
    for cell in cells:
        check_training(cell.generator, cell.sae, cell.seeds, cell.heldout_tokens)
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise StoreError(f"cannot write cells to {kept}: {problem}") from problem
    left = {cell.key: cell for cell in cells if _read(kept, cell) is None}
    n = len({cell.key for cell in cells})
    every = {cell.key: cell.n_tokens for cell in cells}
    before = sum(every.values()) - sum(cell.n_tokens for cell in left.values())
    work = (progress or Progress()).track(f"{n} cells", sum(every.values()), "tokens", before)
    with work as advance:
        # the tokens of a cell's scores count once it is written
        jobs = {
            key: (cell, cell.n_tokens - cell.seeds * cell.lab.n_tokens)
            for key, cell in left.items()
        }
        compute_all(partial(_compute, kept), jobs, workers, advance)
    phase = read_phase(spec, folder)
    table = {"spec": spec.model_dump(mode="json"), "cells": phase.rows()}
    _write(folder / "phase.json", table)
    return phase


def read_phase(spec: PhaseSpec, folder: Path) -> PhaseDiagram:
    """Return a diagram with the cells in `folder`; cells that cannot be read count as not done."""
    records = {cell.key: _read(folder / "cells", cell) for cell in spec.cells}
    return PhaseDiagram(spec, {key: cell for key, cell in records.items() if cell is not None})


def measured(cell: PhaseCell, advance: Advance = unheard) -> dict[str, Any]:
    """Train a cell's SAEs and return its record, in types that JSON has.

    It has the cell's settings and place in the grid, the seconds that training took, and a table of measures
    for each seed, after training (`trained`) and before (`untrained`).

    Args:
        cell: What is trained and scored.
        advance: Called after each training step with the number of tokens it read.
    """
    began = time.perf_counter()
    draw = cell.generator.held_out(cell.heldout_tokens)
    scaling = scale_of(cell.generator, cell.lab)
    seeds = range(cell.seeds)
    trained = fit_on(cell.generator, {"sae": cell.sae}, cell.lab, seeds, advance=advance)
    starts = [
        cell.sae.create(cell.generator.d_in, seed).fold(scaling.mean, scaling.factor)
        for seed in seeds
    ]
    return {
        "settings": cell.settings,
        "at": dict(cell.at),
        "seconds": round(time.perf_counter() - began, 3),
        "trained": [_scores(cell, fit.sae, draw, fit.seed) for fit in trained.values()],
        "untrained": [_scores(cell, start, draw, seed) for seed, start in enumerate(starts)],
    }


def mean_of(seeds: Sequence[Mapping[str, Any]], measure: str) -> SeedMean:
    """Return the mean of a measure over seeds with its 95% Student interval.

    Args:
        seeds: The measures of each seed, by name; seeds in which `measure` is None are left out.
        measure: Name of the measure.
    """
    known = [float(measures[measure]) for measures in seeds if measures[measure] is not None]
    n = len(known)
    if n == 0:
        return SeedMean(None, None, None, 0, str(seeds[0]["reason"]))
    mean = math.fsum(known) / n
    if n == 1:
        return SeedMean(mean, None, None, n, "one seed has no spread")
    variance = math.fsum((value - mean) ** 2 for value in known) / (n - 1) / n
    if min(known) == max(known):
        return SeedMean(mean, None, None, n, f"all {n} seeds gave this very value")
    low, high, _, _ = interval(mean, [Component("seeds", variance, n - 1)])
    return SeedMean(mean, low, high, n, None)


def _scores(cell: PhaseCell, sae: SAE, draw: Sample, seed: int) -> dict[str, Any]:
    codes = sae.encode(draw.x)
    scores: dict[str, Any] = {
        "mmcs": recovery(sae.params["W_dec"], draw.truth.dictionary).mmcs,
        "ev": explained_variance(draw.x, sae.decode(codes)),
        "l0": len(codes.values) / codes.n_tokens,
        "reason": None,
    }
    try:
        parts = composition(sae, draw, seed, cell.firing_threshold)
    except NotEstimable as reason:
        nothing = dict.fromkeys(("conjunction", "atomic", "contrast", "live"))
        return {**scores, **nothing, "reason": str(reason)}
    composed, atomic = parts.conjunction_share, parts.decoder_atomic
    shares = {"conjunction": composed, "atomic": atomic, "contrast": composed - atomic}
    return {**scores, **shares, "live": parts.n_live}


@contextlib.contextmanager
def _small_steps() -> Iterator[None]:
    """Train on one thread by plain steps, which take 0.6 times as long as compiled ones for SAEs this small.

    This holds with one process as well, so that the number of processes changes no bit.
    """
    threads, switch = torch.get_num_threads(), os.environ.get(SWITCH)
    torch.set_num_threads(1)
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.environ.pop(SWITCH) if switch is None else os.environ.update({SWITCH: switch})


def _compute(folder: Path, cell: PhaseCell, advance: Advance) -> None:
    with _small_steps():
        _write(folder / f"{cell.key}.json", measured(cell, advance))


def _write(path: Path, content: object) -> None:
    """Write JSON so that the file is whole or absent."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as problem:
        raise StoreError(f"cannot write {path}: {problem}") from problem


def _read(folder: Path, cell: PhaseCell) -> dict[str, Any] | None:
    try:
        record = json.loads((folder / f"{cell.key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("settings") == cell.settings else None
