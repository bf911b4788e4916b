"""The tables of a trial's folder, as the report reads them: one that is not there is empty."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from sae_placebo.core.errors import StoreError
from sae_placebo.core.lazy import pandas
from sae_placebo.core.trial_files import RECORD, check_table, is_recorded, read_result
from sae_placebo.report.spike_files import AllPlanted, read_planted
from sae_placebo.stats.designs import ArmParts

Place = tuple[str, str]
"""A hookpoint and the name of an SAE."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "effects": (
        *("metric", "hookpoint", "sae", "arm", "control", "effect", "low", "high", "se", "df"),
        *("null", "unit", "better", "arm_value", "arm_low", "arm_high"),
        *("control_value", "control_low", "control_high", "metric_null"),
        *("n_documents", "n_tokens", "n_sae_seeds", "n_arm_models", "n_control_models", "reason"),
        *("aa_effect", "aa_low", "aa_high", "aa_control", "aa_reason"),
    ),
    "latents": (
        *("arm", "control_kind", "model_seed", "sae_seed", "hookpoint", "sae", "latent", "class"),
        *("n_tokens", "n_active", "density", "token_entropy_bits", "n_effective"),
        *("token_entropy_null_bits", "effective_tokens", "top_token", "top_token_mass"),
        *("top_token_recall", "family_mass", "mean_activation", "max_activation", "origin"),
        *("evidence", "placebo_r", "placebo_null_r", "seed_r", "seed_null_r", "r2_token"),
        *("r2_window", "r2_placebo", "attribute", "attribute_r2"),
    ),
    "measurements": (
        *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "latent", "metric"),
        *("value", "unit", "null_value", "n", "reason"),
    ),
    "passages": (
        *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "latent", "rank", "document"),
        *("tokens", "activations", "peak"),
    ),
    "coverage": (
        *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "label", "group", "f1", "latent"),
        *("threshold", "fit_f1", "lookup_f1", "bigram_f1", "window_f1"),
        *("base_rate", "n_positive", "n_tokens", "reason"),
    ),
    "matching": (
        *("arm", "hookpoint", "sae", "l0", "l0_least", "l0_most", "n_saes", "n_tokens"),
        *("target", "relative_to_target", "relative_to_trained", "tolerance", "matched", "reason"),
    ),
    "ladder": (
        *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "subject", "rung", "value", "low"),
        *("high", "gain", "gain_low", "gain_high", "n", "reason"),
    ),
    "sensitivity": (
        *("arm", "control_kind", "model_seed", "sae_seed", "hookpoint", "sae", "threshold"),
        *("value", "change", "moved_to", "n_latents", "n_moved", "share_moved", "most_moved"),
        "reason",
    ),
    "baselines": (
        *("arm", "control_kind", "model_seed", "hookpoint", "baseline", "reading", "n_atoms"),
        *("sparsity", "explained_variance", "ev_low", "ev_high", "lookup_relative_ev"),
        *("native_ev", "native_sparsity", "pursuit_ev", "pursuit_nonnegative_ev"),
        *("pursuit_tokens", "distortion"),
        *("reached_distortion", "bits", "bits_low", "bits_high", "bits_indices", "bits_values"),
        *("bits_residual", "bits_dictionary", "bits_with_dictionary", "bits_atoms", "coder_ratio"),
        *("probe_auc", "probe_selectivity", "probe_accuracy", "probe_auc_1", "probe_selectivity_1"),
        *("probe_accuracy_1", "probe_labels", "probe_reason", "n_tokens", "n_documents", "reason"),
    ),
    "decoys": (
        *("hookpoint", "sae", "arm", "placebo", "score", "threshold", "rate", "achieved"),
        *("passing", "low", "high", "share", "decoys_passing", "n_targets", "n_decoys"),
        *("reason", "remark"),
    ),
    "partners": (
        *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "latent", "class", "comparison"),
        *("other", "correlation", "null_correlation", "has_partner", "null_has_partner", "shared"),
        "reason",
    ),
    "mechanism": (
        *("hookpoint", "sae", "name", "says", "outcome", "estimate", "low", "high", "n", "reason"),
    ),
    "use": (
        *("arm", "control_kind", "model_seed", "sae_seed", "hookpoint", "sae", "latent"),
        *("use", "use_reason", "use_weight", "effect", "effect_low", "effect_high"),
        *("effect_resampled", "effect_documents", "beside", "beside_low", "beside_high"),
        *("null_effect", "null_firings", "effect_at_nulls", "use_p", "use_p_decoders", "n_nulls"),
        *("beats_nulls", "survives_joint"),
        *("screen", "screen_ratio", "screen_p", "path_unembedding", "path_qk", "path_ov"),
        *("path_mlp", "tied", "class", "origin", "evidence", "n_active"),
    ),
    "readers": (
        *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "latent", "rank", "reader"),
        *("kind", "share", "signed", "percentile", "n"),
    ),
    "writers": (
        *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "latent", "rank", "part"),
        *("kind", "share", "low", "high", "null95", "pseudo_percentile", "above", "n"),
    ),
    "directions": (
        *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "kind", "index", "variance"),
        *("effect", "effect_low", "effect_high", "null_effect", "null_firings"),
        *("effect_at_nulls", "p", "documents"),
    ),
    "patched": (
        *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "latent", "reader", "kl"),
        *("null", "p", "n_nulls", "n_firings"),
    ),
    "use_passages": (
        *("arm", "model_seed", "sae_seed", "hookpoint", "sae", "latent", "rank", "document"),
        *("tokens", "activations", "peak"),
    ),
    "audits": (
        *("arm", "control_kind", "model_seed", "sae_seed", "hookpoint", "sae", "audit", "name"),
        *("value", "low", "high", "n", "null", "null_low", "null_high", "at", "of", "reason"),
    ),
    "interactions": (
        *("design", "metric", "hookpoint", "sae", "effect", "low", "high", "se", "df"),
        *("null", "unit", "cells", "n_documents", "n_tokens", "n_sae_seeds", "n_models", "reason"),
    ),
}
OPTIONAL = (
    *("coverage", "interactions", "matching", "ladder", "sensitivity", "baselines", "decoys"),
    *("partners", "mechanism"),
    *("use", "readers", "writers", "directions", "patched", "use_passages", "audits"),
)
"""Tables that only some trials have: those of labeled text, those with a factorial, and those that
were run since there are such tables."""


def _empty(name: str) -> pandas.DataFrame:
    return pandas.DataFrame(columns=list(COLUMNS[name]))


@dataclass(frozen=True)
class Tables:
    """What one trial left behind: its record, and one table per name in `COLUMNS`.

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
    coverage: pandas.DataFrame = field(default_factory=lambda: _empty("coverage"))
    interactions: pandas.DataFrame = field(default_factory=lambda: _empty("interactions"))
    matching: pandas.DataFrame = field(default_factory=lambda: _empty("matching"))
    ladder: pandas.DataFrame = field(default_factory=lambda: _empty("ladder"))
    sensitivity: pandas.DataFrame = field(default_factory=lambda: _empty("sensitivity"))
    baselines: pandas.DataFrame = field(default_factory=lambda: _empty("baselines"))
    decoys: pandas.DataFrame = field(default_factory=lambda: _empty("decoys"))
    partners: pandas.DataFrame = field(default_factory=lambda: _empty("partners"))
    mechanism: pandas.DataFrame = field(default_factory=lambda: _empty("mechanism"))
    use: pandas.DataFrame = field(default_factory=lambda: _empty("use"))
    readers: pandas.DataFrame = field(default_factory=lambda: _empty("readers"))
    writers: pandas.DataFrame = field(default_factory=lambda: _empty("writers"))
    directions: pandas.DataFrame = field(default_factory=lambda: _empty("directions"))
    patched: pandas.DataFrame = field(default_factory=lambda: _empty("patched"))
    use_passages: pandas.DataFrame = field(default_factory=lambda: _empty("use_passages"))
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


def mapping(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def read_tables(trial_folder: Path) -> Tables:
    """Return the tables of a trial's folder; those that are missing are empty and named in `missing`.

    Raises:
        StoreError: the folder does not exist, or a file in it cannot be read, is not what the trial
            wrote, or lacks a column without which its rows belong to no arm, hookpoint or SAE.
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
    columns = list(COLUMNS[name])
    recorded = is_recorded(name, trial)
    if recorded is False or (recorded is None and not path.exists()):
        missing += [] if name in OPTIONAL else [path.name]
        return _empty(name)
    try:
        table = pandas.read_parquet(check_table(folder, name, trial))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read as parquet: {error}") from None
    placing = [column for column in ("arm", "hookpoint", "sae") if column in columns]
    lacking = [column for column in placing if column not in table.columns]
    if lacking and len(table):
        raise StoreError(f"{path} has no column {lacking[0]!r}. Run the trial again.")
    return table.reindex(columns=columns)


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
