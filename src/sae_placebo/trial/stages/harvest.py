"""An arm's activations: what reads them, the ones that are kept, and their calibration."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from sae_placebo.controls.data import ActivationControl
from sae_placebo.core.checkpoints import Work
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Advance
from sae_placebo.data.rows import Rows
from sae_placebo.data.usable import usable_positions
from sae_placebo.latents.columns.repeats import repeat_rows
from sae_placebo.models import loading as models
from sae_placebo.models.activation_files import (
    read_calibrations,
    write_drawn,
    write_harvest,
    write_repeats,
)
from sae_placebo.models.activations import Calibration, HarvestSpec, blocks
from sae_placebo.models.drawn import DrawnReader
from sae_placebo.models.harvest_precision import (
    HarvestPrecision,
    joined_reader,
    read_precision,
    write_precision,
)
from sae_placebo.models.reading import JoinedReader, Reader
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import ArmModel
from sae_placebo.trial.recipes import copy_recipe, read_hash
from sae_placebo.trial.stages.arm_models import MadeModels, named
from sae_placebo.trial.stages.stream import AnyReader, calibrated, in_its_place


def harvest_arms(artefacts: Artefacts, arms: Sequence[ArmModel], made: MadeModels) -> AnyReader:
    """Return what reads the activations of arms that share them.

    Those of the held-out text are kept, and those of the text that ladders are fitted on.

    Args:
        artefacts: Of the trial.
        arms: Arms that read the same activations.
        made: The models of the first of them, each of which is cut behind its last hookpoint.
    """
    first, spec = arms[0], artefacts.spec
    with named(first):
        for hookpoints, model in made.models:
            models.truncate(model, hookpoints)
            model.to(spec.device)
        reader, used = _reader(artefacts, arms, made)
        _harvest(artefacts, first, reader, used)
        _read_text_to_fit_on(artefacts, first, reader)
    return reader


def work_of(artefacts: Artefacts, arms: Sequence[ArmModel]) -> Work:
    """Return work with checkpoints, from which only a model with the same weights goes on.

    It is the arms' trainings that are left; where none is, the harvest.
    """
    plan, store = artefacts.plan, artefacts.store
    steps = [plan.train[one] for one in untrained(artefacts, arms)] or [plan.harvest[arms[0]]]
    return Work(store, steps, read_hash(store.path(plan.build[arms[0]])))


def untrained(artefacts: Artefacts, arms: Sequence[ArmModel]) -> list[ArmModel]:
    """Return the arms whose SAEs are not trained; of arms that share an artefact, the first."""
    plan, left = artefacts.plan, dict[str, ArmModel]()
    for one in arms:
        if artefacts.store.find(plan.train[one]) is None:
            left.setdefault(plan.train[one].key, one)
    return list(left.values())


def _reader(
    artefacts: Artefacts, arms: Sequence[ArmModel], made: MadeModels
) -> tuple[AnyReader, HarvestPrecision]:
    """Return what reads an arm's activations, its model or draws in its place; the precision."""
    one, spec = arms[0], artefacts.spec
    data, rows = spec.arms[one.arm].data, artefacts.materials.rows_of(one)["train"]
    known = artefacts.store.find(artefacts.plan.harvest[one])
    decided = read_precision(known) if known else None
    how = rows, spec.harvest, spec.seed, decided
    reader, used = joined_reader(made.models, spec.hookpoints, *how)
    if not isinstance(data, ActivationControl):
        return reader, used
    track = functools.partial(artefacts.progress.track, f"moments {one.label}")
    seed, work = one.model_seed or 0, work_of(artefacts, arms)
    return in_its_place(reader, data, spec, rows, seed, work, track), used


def _harvest(
    artefacts: Artefacts, one: ArmModel, reader: AnyReader, used: HarvestPrecision
) -> None:
    """Calibrate the arm on the head of the training stream; keep its held-out activations."""
    store, plan, spec = artefacts.store, artefacts.plan, artefacts.spec
    step, rows = plan.harvest[one], artefacts.materials.rows_of(one)
    if store.find(step) is not None:
        return
    label, total = f"harvest {one.label}", int(rows["heldout"].usable().sum())
    with artefacts.progress.track(label, total) as advance, store.write(step) as draft:
        found = harvest(reader, rows, spec.harvest, spec.seed, advance)
        write_harvest(draft, *found)
        write_precision(draft, used)
        copy_recipe(store.path(plan.build[one]), draft)
        _keep_diagnostics(artefacts, one, reader, draft)
        write_repeats(draft, _repeats(artefacts, reader, rows["heldout"]))


def _keep_diagnostics(artefacts: Artefacts, one: ArmModel, reader: AnyReader, draft: Path) -> None:
    """Keep what the law of drawn activations is like; a number that should be small and is not is noted."""
    if not isinstance(reader, DrawnReader):
        return
    found = reader.diagnostics(artefacts.materials.rows_of(one)["heldout"])
    write_drawn(draft, found)
    for hookpoint, entries in found.items():
        for entry in entries.values():
            if entry["reason"] is not None:
                artefacts.progress.note(f"{one.label} at {hookpoint}: {entry['reason']}")


def _read_text_to_fit_on(artefacts: Artefacts, one: ArmModel, reader: AnyReader) -> None:
    """Keep the arm's activations on the part of the training text that ladders are fitted on."""
    store, plan, spec = artefacts.store, artefacts.plan, artefacts.spec
    step = plan.fit_text[one]
    if store.find(step) is not None:
        return
    rows = artefacts.rows_to_fit_on(one)
    label, total = f"read text to fit on {one.label}", int(rows.usable().sum())
    with artefacts.progress.track(label, total) as advance, store.write(step) as draft:
        kept = activations_of(reader, rows, spec.harvest.block_rows, advance)
        write_harvest(draft, kept, read_calibrations(store.path(plan.harvest[one])))


def _repeats(artefacts: Artefacts, reader: AnyReader, rows: Rows) -> dict[str, Any]:
    """Return the activations on random blocks, fresh and repeated; none where no model is read."""
    spec = artefacts.spec
    n, block = spec.structure.repeats
    # BOS and two blocks: rows are no longer than the text's, which the model is known to read
    block = min(block, (spec.text.context_tokens - 1) // 2)
    if isinstance(reader, DrawnReader):
        return {}
    fresh, repeated = (random_rows(rows, n, block, spec.seed, again) for again in (False, True))
    counted = usable_positions(spec.text.positions, spec.text.context_tokens)
    return harvest_repeats(reader, fresh, repeated, block, counted)


def harvest(
    reader: AnyReader,
    rows: Mapping[str, Rows],
    spec: HarvestSpec,
    seed: int,
    advance: Advance,
) -> tuple[dict[str, Float[torch.Tensor, "token d_in"]], dict[str, Calibration]]:
    """Return the held-out activations in model units, and each hookpoint's calibration.

    The calibration is of the head of the training stream.
    """
    calibrations = calibrated(reader, rows["train"], spec, seed)
    return activations_of(reader, rows["heldout"], spec.block_rows, advance), calibrations


def activations_of(
    reader: AnyReader, rows: Rows, block_rows: int, advance: Advance
) -> dict[str, Float[torch.Tensor, "token d_in"]]:
    """Return the activations of all tokens of some rows in reading order, in model units."""
    total = int(rows.usable().sum())
    kept = {name: torch.empty(total, width) for name, width in reader.widths.items()}
    done = 0
    for block in blocks(reader, rows, np.arange(len(rows.lengths)), block_rows):
        n = len(block.token_ids)
        for name, x in block.activations.items():
            kept[name][done : done + n] = x
        done += n
        advance(n)
    return kept


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
    reader: Reader | JoinedReader,
    fresh: Rows,
    repeated: Rows,
    block: int,
    counted: Bool[np.ndarray, " pos"] | None = None,
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
        counted: Which positions count; None for all. Where none of the repeated
            ones does, nothing is returned.
    """
    found: dict[str, torch.Tensor] = {}
    width = fresh.token_ids.shape[1]
    kept = np.ones(width, dtype=bool) if counted is None else counted[:width]
    columns = torch.from_numpy(np.flatnonzero(kept[width - block + 1 :]))
    if not len(columns):
        return found
    for kind, rows in (("fresh", fresh), ("repeated", repeated)):
        n = len(rows.lengths)
        for one in blocks(reader, rows, np.arange(n), n):
            for name, x in one.activations.items():
                by_row = x.reshape(n, -1, x.shape[1])[:, 1 - block :][:, columns.to(x.device)]
                found[f"{name}.{kind}"] = by_row.reshape(-1, x.shape[1]).clone()
    return found
