"""SAEs are trained on a generator, scored in all ways that are asked for, and the table is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_placebo.core.progress import Progress
from sae_placebo.core.time_left import Outlook, WorkPiece
from sae_placebo.lab import GeneratorSpec
from sae_placebo.lab.experiments import (  # registers their sets of scores
    generator_scores as generator_scores,
)
from sae_placebo.lab.experiments import objective_scores as objective_scores
from sae_placebo.lab.experiments import truth_scores as truth_scores
from sae_placebo.lab.experiments.base import LabTraining
from sae_placebo.lab.experiments.score_sets import SCORING, ScoreSet, SetLine, scored
from sae_placebo.lab.experiments.score_sets import sets_of as sets_of
from sae_placebo.lab.experiments.scoreboard import (
    BOARD,
    SCORES,
    TRAINING,
    ScoreLine,
    board_of,
    train_on,
)
from sae_placebo.lab.text_tables import prepared, write_results
from sae_placebo.saes import SAESpec

_PRODUCTS_PER_SECOND = 2e9
"""Roughly how many multiplications of a matrix product a core does; it only starts the foretold time."""
_OF_SET = 2e9
"""Roughly how many a set of scores takes for one SAE."""


def train_and_score(
    generator: GeneratorSpec,
    sae: SAESpec,
    lab: LabTraining,
    seeds: Sequence[int],
    sets: Sequence[ScoreSet] = (),
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[list[ScoreLine], list[SetLine]]:
    """Train SAEs of one kind with several seeds, and return their scoreboard and the sets of scores.

    Args:
        generator: Draws the tokens.
        sae: Settings of the SAE in the generator's units.
        lab: How the SAEs are trained.
        seeds: Seeds of the initial weights and of the tokens, one per SAE.
        sets: Sets of scores that are computed beside the scoreboard; `sets_of` finds them by name.
        folder: Where the table is written, as `scores.parquet` and `scores.json`, and where SAEs are kept, in
            `runs/`, so that a stopped run goes on. None writes nothing.
        progress: Shows the work, and how long all of it will take.

    Raises:
        StoreError: the folder cannot be written.
    """
    progress = progress or Progress()
    if folder is not None:
        prepared(folder)
    kept = None if folder is None else folder / "runs"
    with progress.whole(_outlook(generator, sae, lab, len(seeds), sets)):
        trained = train_on(generator, sae, lab, seeds, track=progress.track, kept=kept)
        board = board_of(trained, progress.track)
        more = scored(sets, trained, progress.track) if sets else []
    if folder is not None:
        settings = {"generator": generator, "sae": sae, "lab": lab}
        facts = {name: setting.model_dump(mode="json") for name, setting in settings.items()}
        rows = [_row(line) for line in board] + [line.row() for line in more]
        write_results(folder, "scores", rows, {**facts, "seeds": list(seeds)})
    return board, more


def _row(line: ScoreLine) -> dict[str, Any]:
    """Return a line of the scoreboard as a row of the table of all scores."""
    mean = line.trained
    return {
        "set": "scoreboard",
        "score": SCORES[line.name],
        "value": mean.mean,
        "low": mean.low,
        "high": mean.high,
        "seeds": mean.n,
        "null": line.null.mean,
        "best": line.ceiling,
        "first_low": None,
        "first_high": None,
        "n": None,
        "of": "",
        "note": line.reason or mean.reason or "",
    }


def _outlook(
    generator: GeneratorSpec,
    sae: SAESpec,
    lab: LabTraining,
    n_seeds: int,
    sets: Sequence[ScoreSet],
) -> Outlook:
    """Return a rough plan: training, the scoreboard, and the sets of scores."""
    size = generator.d_in * sae.d_sae
    training = lab.n_tokens * n_seeds * size * 9 / _PRODUCTS_PER_SECOND
    again = training if any(one.name == "from_truth" for one in sets) else 0.0
    each = (size * 1e4 + _OF_SET) / _PRODUCTS_PER_SECOND
    pieces = [WorkPiece(TRAINING, TRAINING, training), WorkPiece(BOARD, BOARD, n_seeds * each)]
    if sets:
        pieces.append(WorkPiece(SCORING, SCORING, again + n_seeds * len(sets) * each))
    return Outlook(pieces, rough=True, name="whole")
