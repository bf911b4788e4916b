"""Where SAEs learn combinations and where they learn features: a diagram over settings.

Every cell of a grid is a generator and an SAE with some of their settings swept. Each is trained with
several seeds and scored on held-out tokens. A cell is a file of its own, written when it is done, so that
a run that was stopped goes on where it was; cells run in processes of one thread each.

Scores are means over seeds with a Student interval; n is the number of seeds. Beside each stands what
the same SAE scores before training.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError, model_validator

from sae_placebo.core.errors import NotEstimable, SpecError, StoreError, unknown_name
from sae_placebo.core.interrupts import listening
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Progress
from sae_placebo.core.spec import Spec, digest
from sae_placebo.lab import GeneratorSpec, Sample, recovery
from sae_placebo.lab.experiments.base import LabTraining, fit_on, scale_of
from sae_placebo.lab.experiments.sweeps import OF_SAE, Axis, Value, generator_of, sweepable
from sae_placebo.lab.scores.composition import composition
from sae_placebo.saes import SAE, SAES, PenalizedSpec, SAESpec, parse_sae
from sae_placebo.saes.fast import SWITCH
from sae_placebo.stats.effects import Component, interval

MEASURES = ("conjunction", "atomic", "contrast", "mmcs", "ev", "l0")
"""Share of live latents that fire for pairs; share whose row is a feature's; the first less the second;
mean largest cosine of a feature to a row; explained variance; active latents per token."""

_FORMAT = 1
_WARMUP = 0.2


class PhaseSpec(Spec):
    """Settings of a phase diagram; equal settings have equal cells.

    The SAE's penalty is `lambda` times the sum of codes beside the squared error summed over dimensions, in
    the generator's units; it rises over the first fifth of the training. `b_dec` is held at zero: with one
    item of each set on every token a trained one shifts the rows, and the cosines with them.
    """

    axes: tuple[Axis, ...] = Field(min_length=1, max_length=3)
    """Up to three: drawn as rows, columns and panels."""
    generator: str = "composed_sets"
    settings: dict[str, Value] = Field(default_factory=dict)
    """The generator's settings that are not swept."""
    sae: str = "relu"
    """A kind with a penalty, `relu` or `tied` among them."""
    penalty: float = Field(0.1, gt=0)
    """`lambda`, where it is not swept."""
    width: int | None = Field(None, ge=1)
    """Latents, where they are not swept; None: one for every feature and every pair of items."""
    steps: int = Field(3_000, ge=1)
    """Training steps of 512 tokens."""
    seeds: int = Field(5, ge=2)
    """SAEs of each cell."""
    heldout_tokens: int = Field(8_192, ge=64)
    """Tokens that are scored."""
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
        if len(set(self.names)) < len(self.names):
            raise SpecError(f"a setting is swept twice: {', '.join(self.names)}")
        if not issubclass(SAES[self.sae], PenalizedSpec):
            usable = [k for k, v in SAES.entries.items() if issubclass(v, PenalizedSpec)]
            raise SpecError(
                f"an SAE of kind {self.sae!r} has no penalty whose weight could be lambda; those that "
                f"have are {', '.join(sorted(usable))}"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """What is swept: rows, columns, panels."""
        return tuple(axis.name for axis in self.axes)

    @cached_property
    def cells(self) -> tuple[PhaseCell, ...]:
        """All cells, the last axis turning fastest.

        Raises:
            SpecError: a combination of settings is refused by the generator or the SAE.
        """
        grid = itertools.product(*(axis.values for axis in self.axes))
        return tuple(self._cell(dict(zip(self.names, values, strict=True))) for values in grid)

    def _cell(self, at: dict[str, int | float]) -> PhaseCell:
        swept = {name: value for name, value in at.items() if name not in OF_SAE}
        made = generator_of(self.generator, {**self.settings, **swept})
        items = getattr(made, "items", None)
        free = made.truth.n_features * 2 if items is None else 2 * items + items**2
        width = at.get("width", self.width or free)
        if width != int(width):
            raise SpecError(f"width is {width:g}: a number of latents is whole")
        table = {"kind": self.sae, "d_sae": int(width), "warmup_share": _WARMUP}
        sae = parse_sae({**table, "coefficient": float(at.get("lambda", self.penalty))})
        lab = LabTraining(steps=self.steps, bias="none")
        scored = self.heldout_tokens, self.firing_threshold
        return PhaseCell(at, made, sae, lab, self.seeds, *scored)


@dataclass(frozen=True)
class PhaseCell:
    """One point of the grid: all that its result depends on."""

    at: Mapping[str, int | float]
    generator: GeneratorSpec
    sae: SAESpec
    lab: LabTraining
    seeds: int
    heldout_tokens: int
    firing_threshold: float

    @property
    def settings(self) -> dict[str, Any]:
        """All that the result depends on, as JSON holds it."""
        specs = {"generator": self.generator, "sae": self.sae, "lab": self.lab}
        return {
            **{name: spec.model_dump(mode="json") for name, spec in specs.items()},
            "seeds": self.seeds,
            "heldout_tokens": self.heldout_tokens,
            "firing_threshold": self.firing_threshold,
            "format": _FORMAT,
        }

    @property
    def key(self) -> str:
        """A name that changes with the settings."""
        return digest(self.settings)[:20]


class SeedMean(NamedTuple):
    """A mean over seeds; `low` and `high` are None where `reason` says why."""

    mean: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None

    @property
    def spread(self) -> float | None:
        """Length of the interval; None: there is none."""
        return None if self.low is None or self.high is None else self.high - self.low


@dataclass(frozen=True)
class PhaseDiagram:
    """A diagram's cells with their scores, as many as are done.

    Attributes:
        spec: The settings.
        found: What each cell's file holds, by the cell's key.
    """

    spec: PhaseSpec
    found: Mapping[str, Mapping[str, Any]]

    @property
    def done(self) -> tuple[PhaseCell, ...]:
        """The cells that have results, in the order of the grid."""
        return tuple(cell for cell in self.spec.cells if cell.key in self.found)

    def score(self, cell: PhaseCell, measure: str) -> SeedMean:
        """Return a measure of `MEASURES` after training."""
        return mean_of(self.found[cell.key]["trained"], measure)

    def null(self, cell: PhaseCell, measure: str) -> SeedMean:
        """Return the same before training."""
        return mean_of(self.found[cell.key]["untrained"], measure)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per finished cell: where it is, and each measure beside its null."""
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
        axes: What is swept. One value fixes a setting and is no axis, if others are left.
        settings: Of the generator, those that are not swept.
        others: As in `PhaseSpec`.

    Raises:
        SpecError: a setting is unknown, or a value is not allowed.
    """
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
    """Return the diagram, from the cells in `folder` and those that were still to do.

    Cells are kept by their settings: a folder may serve several diagrams, and a grid that grows computes
    only what is new. `phase.json` has the table.

    Args:
        spec: The settings.
        folder: Made where it does not exist; cells are in `cells/`.
        workers: Processes, of one thread each; 1: this process does it.
        progress: Shows what is done.

    Raises:
        SpecError: a cell's settings are refused; nothing was run.
        StoreError: the folder cannot be written.
    """
    cells, kept = spec.cells, folder / "cells"
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise StoreError(f"cannot write cells to {kept}: {problem}") from problem
    left = {cell.key: cell for cell in cells if _read(kept, cell) is None}
    n = len({cell.key for cell in cells})
    with (progress or Progress()).track("phase", n, "cells", n - len(left)) as advance:
        for _ in _computed(list(left.values()), kept, workers):
            advance(1)
    phase = read_phase(spec, folder)
    table = {"spec": spec.model_dump(mode="json"), "cells": phase.rows()}
    _write(folder / "phase.json", table)
    return phase


def read_phase(spec: PhaseSpec, folder: Path) -> PhaseDiagram:
    """Return what is done of a diagram; cells that cannot be read count as not done."""
    found = {cell.key: _read(folder / "cells", cell) for cell in spec.cells}
    return PhaseDiagram(spec, {key: record for key, record in found.items() if record is not None})


def measured(cell: PhaseCell) -> dict[str, Any]:
    """Return a cell's record: every measure of every seed, trained and untrained, and the seconds."""
    began = time.perf_counter()
    draw = cell.generator.held_out(cell.heldout_tokens)
    scaling = scale_of(cell.generator, cell.lab)
    trained = fit_on(cell.generator, {"sae": cell.sae}, cell.lab, range(cell.seeds))
    fitted = [trained["sae", seed].sae for seed in range(cell.seeds)]
    starts = [cell.sae.create(cell.generator.d_in, seed) for seed in range(cell.seeds)]
    folded = [start.fold(scaling.mean, scaling.factor) for start in starts]
    return {
        "settings": cell.settings,
        "at": dict(cell.at),
        "seconds": round(time.perf_counter() - began, 3),
        "trained": [_scores(cell, sae, draw, seed) for seed, sae in enumerate(fitted)],
        "untrained": [_scores(cell, sae, draw, seed) for seed, sae in enumerate(folded)],
    }


def mean_of(seeds: Sequence[Mapping[str, Any]], measure: str) -> SeedMean:
    """Return the mean of a measure over seeds with its 95% Student interval."""
    known = [float(one[measure]) for one in seeds if one[measure] is not None]
    n = len(known)
    if n == 0:
        return SeedMean(None, None, None, 0, str(seeds[0]["reason"]))
    mean = math.fsum(known) / n
    if n == 1:
        return SeedMean(mean, None, None, n, "one seed has no spread")
    variance = math.fsum((value - mean) ** 2 for value in known) / (n - 1) / n
    if min(known) == max(known):
        return SeedMean(mean, None, None, n, f"all {n} seeds gave this very value")
    found = interval(mean, [Component("seeds", variance, n - 1)])
    return SeedMean(mean, found.low, found.high, n, None)


def _scores(cell: PhaseCell, sae: SAE, draw: Sample, seed: int) -> dict[str, Any]:
    codes = sae.encode(draw.x)
    error = (draw.x - sae.decode(codes)).double().square().sum()
    spread = (draw.x - draw.x.mean(dim=0)).double().square().sum()
    scores: dict[str, Any] = {
        "mmcs": recovery(sae.params["W_dec"], draw.truth.dictionary).mmcs,
        "ev": 1 - float(error / spread),
        "l0": len(codes.values) / codes.n_tokens,
        "reason": None,
    }
    try:
        found = composition(sae, draw, seed, cell.firing_threshold)
    except NotEstimable as reason:
        nothing = dict.fromkeys(("conjunction", "atomic", "contrast", "live"))
        return {**scores, **nothing, "reason": str(reason)}
    composed, atomic = found.conjunction_share, found.decoder_atomic
    shares = {"conjunction": composed, "atomic": atomic, "contrast": composed - atomic}
    return {**scores, **shares, "live": found.n_live}


def _computed(cells: list[PhaseCell], folder: Path, workers: int) -> Iterator[None]:
    """Yield whenever a cell is done and written; a stop waits for the cells that are running."""
    if workers <= 1 or len(cells) <= 1:
        for cell in cells:
            _compute(cell, folder)
            yield
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before the children load their libraries
    context = get_context("spawn")
    with listening(), ProcessPoolExecutor(workers, context, initializer=_start) as pool:
        try:
            for future in as_completed([pool.submit(_compute, cell, folder) for cell in cells]):
                future.result()
                yield
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start() -> None:
    """Prepare a child: only the parent hears a stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _small_steps() -> Iterator[None]:
    """Train on one thread by plain steps: of SAEs this small, they take 0.6 times as long as compiled ones.

    Also with one process, so that how many there are changes no bit.
    """
    threads, switch = torch.get_num_threads(), os.environ.get(SWITCH)
    torch.set_num_threads(1)
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.environ.pop(SWITCH) if switch is None else os.environ.update({SWITCH: switch})


def _compute(cell: PhaseCell, folder: Path) -> None:
    with _small_steps():
        _write(folder / f"{cell.key}.json", measured(cell))


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
        found = json.loads((folder / f"{cell.key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("settings") == cell.settings else None
