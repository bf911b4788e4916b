"""The tables of a trial's folder, as the report reads them: one that is not there is empty."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from sae_placebo.core.errors import StoreError
from sae_placebo.core.lazy import pandas
from sae_placebo.core.tables import SCHEMAS
from sae_placebo.core.trial_files import RECORD, is_recorded, load_table, read_result
from sae_placebo.report.spike_files import AllPlanted, read_planted
from sae_placebo.stats.designs import ArmParts

Place = tuple[str, str]
"""A hookpoint and the name of an SAE."""


def _empty(name: str) -> pandas.DataFrame:
    return SCHEMAS[name].empty()


@dataclass(frozen=True)
class Tables:
    """What one trial left behind: its record, and the tables that the report reads, as in `core.tables`.

    Attributes:
        trial: The content of `trial.json`; empty where there is none.
        missing: Names of files that every trial writes and that this folder does not hold.
        planted: What `sae-placebo spikes` left beside it.
    """

    trial: dict[str, Any]
    effects: pandas.DataFrame
    latents: pandas.DataFrame
    measurements: pandas.DataFrame
    passages: pandas.DataFrame
    missing: tuple[str, ...] = ()
    claims: pandas.DataFrame = field(default_factory=lambda: _empty("claims"))
    coverage: pandas.DataFrame = field(default_factory=lambda: _empty("coverage"))
    interactions: pandas.DataFrame = field(default_factory=lambda: _empty("interactions"))
    matching: pandas.DataFrame = field(default_factory=lambda: _empty("matching"))
    ladder: pandas.DataFrame = field(default_factory=lambda: _empty("ladder"))
    fit_curve: pandas.DataFrame = field(default_factory=lambda: _empty("fit_curve"))
    sensitivity: pandas.DataFrame = field(default_factory=lambda: _empty("sensitivity"))
    baselines: pandas.DataFrame = field(default_factory=lambda: _empty("baselines"))
    marginal: pandas.DataFrame = field(default_factory=lambda: _empty("marginal"))
    decoys: pandas.DataFrame = field(default_factory=lambda: _empty("decoys"))
    partners: pandas.DataFrame = field(default_factory=lambda: _empty("partners"))
    mechanism: pandas.DataFrame = field(default_factory=lambda: _empty("mechanism"))
    use: pandas.DataFrame = field(default_factory=lambda: _empty("use"))
    readers: pandas.DataFrame = field(default_factory=lambda: _empty("readers"))
    writers: pandas.DataFrame = field(default_factory=lambda: _empty("writers"))
    directions: pandas.DataFrame = field(default_factory=lambda: _empty("directions"))
    patched: pandas.DataFrame = field(default_factory=lambda: _empty("patched"))
    use_passages: pandas.DataFrame = field(default_factory=lambda: _empty("use_passages"))
    ties: pandas.DataFrame = field(default_factory=lambda: _empty("ties"))
    audits: pandas.DataFrame = field(default_factory=lambda: _empty("audits"))
    planted: AllPlanted = field(default_factory=AllPlanted)

    @property
    def name(self) -> str:
        """The trial's name; "unnamed trial" where none is recorded."""
        return str(self.trial.get("name") or "unnamed trial")

    @property
    def arms(self) -> list[str]:
        """Every arm, the trained one first, the others by the trial's order and then by the tables'."""
        named = list(mapping(self.trial.get("arms")))
        for table in (self.latents, self.passages, self.measurements, self.effects, self.coverage):
            named += [str(arm) for arm in table["arm"].dropna().unique()]
        named += [str(arm) for arm in self.effects["control"].dropna().unique()]
        arms = list(dict.fromkeys(named))
        return sorted(arms, key=lambda arm: arm != self.trained(arms))

    def trained(self, arms: list[str] | None = None) -> str | None:
        """Return the arm to which no control is applied; None where there is none.

        Args:
            arms: Arms to choose from; every arm where None.
        """
        arms = self.arms if arms is None else arms
        parts = self.parts
        for arm in arms:
            if arm in parts and parts[arm].is_trained:
                return arm
        return "trained" if "trained" in arms and "trained" not in parts else None

    @property
    def parts(self) -> dict[str, ArmParts]:
        """What each arm changes of the model, the data and the dictionary, if the trial describes it."""
        parts = {}
        for arm, described in mapping(self.trial.get("arms")).items():
            facts = mapping(described)
            control = facts.get("control")
            if control is None:
                continue
            if control == "none" or (isinstance(control, Mapping) and not control.get("kind")):
                control = None  # no control: the trained arm
            parts[str(arm)] = ArmParts.of(control, facts.get("data"), facts.get("dictionary"))
        return parts

    @property
    def places(self) -> list[Place]:
        """Every hookpoint with each of its SAEs, in the order in which the tables name them."""
        tables = (self.effects, self.latents, self.measurements, self.passages)
        return list(dict.fromkeys(place for table in tables for place in places(table)))


COLUMNS: Mapping[str, tuple[str, ...]] = {
    one.name: SCHEMAS[one.name].names for one in fields(Tables) if one.name in SCHEMAS
}
"""The columns of every table that the report reads."""
OPTIONAL = tuple(name for name in COLUMNS if SCHEMAS[name].only)
"""Tables of which only some trials have rows."""


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def read_tables(trial_folder: Path) -> Tables:
    """Return the tables of a trial's folder; those that are missing are empty and named in `missing`.

    Raises:
        StoreError: the folder does not exist, or a file in it cannot be read, is not what the trial
            wrote, or has not the columns of its schema.
    """
    if not trial_folder.is_dir():
        raise StoreError(f"{trial_folder} is not a folder. Give the folder that holds trial.json.")
    missing: list[str] = []
    trial: dict[str, Any] = {}
    if os.path.lexists(trial_folder / RECORD):
        trial = read_result(trial_folder)
    else:
        missing.append(RECORD)
    frames = {name: _read_table(trial_folder, name, trial, missing) for name in COLUMNS}
    planted = read_planted(trial_folder, trial)
    return Tables(trial=trial, missing=tuple(missing), planted=planted, **frames)


def _read_table(
    folder: Path, name: str, trial: Mapping[str, Any], missing: list[str]
) -> pandas.DataFrame:
    """Return one table; adds its file to `missing` where every trial has it and this one does not."""
    path = folder / f"{name}.parquet"
    recorded = is_recorded(name, trial)
    if recorded is False or (recorded is None and not path.exists()):
        missing += [] if name in OPTIONAL else [path.name]
        return _empty(name)
    return load_table(folder, name, trial)


def records(table: pandas.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as dicts of plain Python values; every missing value is None."""
    columns = [_plain(table[name]) for name in table.columns]
    return [dict(zip(table.columns, row, strict=True)) for row in zip(*columns, strict=True)]


def _plain(column: pandas.Series) -> list[Any]:
    present = column.notna().tolist()
    return [value if ok else None for value, ok in zip(column.tolist(), present, strict=True)]


def values(column: pandas.Series) -> Float64[np.ndarray, " row"]:
    """Return a column as floats; what is missing or is no number is NaN."""
    numbers = pandas.to_numeric(column, errors="coerce")
    return np.asarray(numbers.to_numpy(dtype=np.float64, na_value=np.nan))


def known_values(column: pandas.Series) -> Float64[np.ndarray, " known"]:
    """Return the finite numbers of a column, in its order."""
    numbers = values(column)
    return np.asarray(numbers[np.isfinite(numbers)])


def places(table: pandas.DataFrame) -> list[Place]:
    """Return every hookpoint and SAE that a table has rows of, in the table's order."""
    pairs = table[["hookpoint", "sae"]].dropna().drop_duplicates()
    return [(str(hookpoint), str(sae)) for hookpoint, sae in pairs.itertuples(index=False)]


def at(table: pandas.DataFrame, place: Place) -> pandas.DataFrame:
    """Return the rows of one hookpoint and SAE."""
    return table[(table["hookpoint"] == place[0]) & (table["sae"] == place[1])]


def here(table: pandas.DataFrame, place: Place, arm: str) -> pandas.DataFrame:
    """Return the rows of one arm at one hookpoint and SAE."""
    rows = at(table, place)
    return rows[rows["arm"] == arm]
