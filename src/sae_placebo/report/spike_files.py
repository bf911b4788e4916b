"""What `sae-placebo spikes` leaves beside a trial, as it is written and as the report reads it.

Each set of settings has a folder of its own, `<store>/spikes/<trial>/<name>/`, with `spikes.parquet` (one row
per planted feature) or `pairs.parquet` (one row per planted pair), `summary.parquet` (shares and limits with
their intervals) and `record.json`, which is sealed, holds the tables' hashes and is written last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_placebo.core.lazy import pandas
from sae_placebo.core.sealing import are_facts, change_of, read_json, seal_is_broken
from sae_placebo.core.spec import digest

RECORD = "record.json"
FEATURES, PAIRS = "spikes", "pairs"
"""The kinds of result, and the names of their tables."""

FEATURE_COLUMNS = (
    *("arm", "model_seed", "hookpoint", "sae", "training", "seed", "sae_seed", "name"),
    *("frequency", "magnitude", "outcome", "n_tokens", "cosine", "f1", "firing_f1", "best_f1"),
    *("n_latents", "null_cosine", "null_f1", "null_best_f1", "null_detected", "null_judged"),
    *("without_outcome", "without_cosine", "without_f1", "energy_share", "largest_cosine"),
)
PAIR_COLUMNS = (
    *("arm", "model_seed", "hookpoint", "sae", "kind", "training", "seed", "sae_seed", "pair"),
    *("relation", "frequency", "magnitude", "outcome", "n_first", "n_second", "n_both"),
    *("first_latent", "first_cosine", "first_f1", "second_latent", "second_cosine", "second_f1"),
    *("shared_latent", "shared_f1", "l0", "energy_share", "largest_cosine"),
)
SUMMARY_COLUMNS = (
    *("kind", "relation", "frequency", "magnitude", "name", "value", "low", "high", "n"),
    *("unit", "extrapolated", "reason"),
)
"""`name` is an outcome, a null (`decoys`, `without`), a limit (`limit_50`, `limit_95`) or `l0`."""


@dataclass(frozen=True)
class Planted:
    """One set of spike-ins: what was planted where, and what came back.

    Attributes:
        record: The content of its record.
        summary: Shares and limits, with `SUMMARY_COLUMNS`.
    """

    record: Mapping[str, Any]
    summary: pandas.DataFrame

    @property
    def is_pairs(self) -> bool:
        """Whether pairs were planted, and not single features."""
        return bool(self.record["task"] == PAIRS)


@dataclass(frozen=True)
class AllPlanted:
    """All spike-ins of one trial.

    Attributes:
        sets: Those that are whole and of the trial's settings.
        problems: A sentence for each that is not.
    """

    sets: tuple[Planted, ...] = ()
    problems: tuple[str, ...] = ()


def read_planted(trial_folder: Path, trial: Mapping[str, Any]) -> AllPlanted:
    """Return the spike-ins of the trial in a store's folder `trials/<name>`; none where it lies elsewhere.

    A set without a record is not finished, and is left out without a word.

    Args:
        trial_folder: The trial's folder.
        trial: The content of its `trial.json`.
    """
    home = trial_folder.absolute().parent.parent / "spikes" / trial_folder.name
    if trial_folder.absolute().parent.name != "trials" or not home.is_dir() or "spec" not in trial:
        return AllPlanted()
    sets, problems = [], []
    for folder in sorted(path for path in home.iterdir() if (path / RECORD).is_file()):
        try:
            found = _read(folder)
        except (OSError, ValueError) as error:
            problems.append(
                f"spikes/{home.name}/{folder.name} is not what was written ({error}); run "
                "`sae-placebo spikes` again with its settings."
            )
            continue
        if found.record["protocol"] == digest(trial["spec"]):
            sets.append(found)
        else:
            problems.append(
                f"spikes/{home.name}/{folder.name} is of a trial of this name with other settings; run "
                "`sae-placebo spikes` again for these."
            )
    return AllPlanted(tuple(sets), tuple(problems))


def _read(folder: Path) -> Planted:
    record = read_json(folder / RECORD)
    files = record.get("files") if isinstance(record, dict) else None
    if not files or not are_facts(files) or "seal" not in record or seal_is_broken(record):
        raise ValueError(f"{RECORD} has changed")
    for name, facts in files.items():
        if (changed := change_of(folder / name, facts)) is not None:
            raise ValueError(f"{name} {changed}")
    table = pandas.read_parquet(folder / "summary.parquet")
    return Planted(record, table.reindex(columns=list(SUMMARY_COLUMNS)))
