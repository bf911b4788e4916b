"""The answers about use of every SAE are joined in one table, beside class and origin of each latent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_placebo.core.lazy import pandas
from sae_placebo.core.store import Store
from sae_placebo.core.tables import SCHEMAS
from sae_placebo.trial.failures import refusal
from sae_placebo.trial.plan import ArmModel, Plan
from sae_placebo.trial.table_files import read_table
from sae_placebo.trial.tables.use_files import NAMES, read_use


def use_tables(plan: Plan, store: Store) -> dict[str, Any]:
    """Return the tables `use`, `readers`, `writers` and `directions` of all SAEs that were asked about."""
    parts: dict[str, list[Any]] = {name: [] for name in NAMES}
    for place, step in plan.use.items():
        folder = store.path(step)
        if refusal(folder):
            continue
        tables, _ = read_use(folder)
        latents = read_table(store.path(plan.profile[place]) / "latents.parquet")
        known = latents[["latent", "class", "origin", "evidence", "n_active"]]
        tables["use"] = tables["use"].merge(known, on="latent", how="left", validate="1:1")
        for name, table in tables.items():
            parts[name].append(labelled(table, keys_of(plan, *place)))
    return {name: joined(name, found) for name, found in parts.items()}


def use_record(plan: Plan, store: Store) -> list[dict[str, Any]]:
    """Return, per SAE that was asked about, the numbers about it as a whole, or why there are none."""
    found = []
    for place, step in plan.use.items():
        folder = store.path(step)
        one, hookpoint, sae, sae_seed = place
        keys = {"arm": one.arm, "model_seed": one.model_seed, "hookpoint": hookpoint}
        keys |= {"sae": sae, "sae_seed": sae_seed}
        refused = refusal(folder)
        said = {"refused": refused} if refused else read_use(folder)[1]
        found.append(keys | said)
    return found


def keys_of(
    plan: Plan, one: ArmModel, hookpoint: str, sae: str | None = None, sae_seed: int | None = None
) -> dict[str, Any]:
    """Return the columns that say what a row is about; those of an SAE where it is about one."""
    keys: dict[str, Any] = {"arm": one.arm, "control_kind": plan.spec.arms[one.arm].kind}
    keys["model_seed"] = one.model_seed
    if sae is None:
        return keys | {"hookpoint": hookpoint}
    return keys | {"sae_seed": sae_seed, "hookpoint": hookpoint, "sae": sae}


def labelled(table: Any, keys: Mapping[str, Any]) -> Any:
    """Put what its rows are about in front of a table's columns."""
    for position, (name, value) in enumerate(keys.items()):
        if name.endswith("seed"):
            column = pandas.array([value] * len(table), "Int64")
        else:
            column = [value] * len(table)
        table.insert(position, name, column)
    return table


def joined(name: str, parts: Sequence[Any]) -> Any:
    """Return a trial's table of all its parts; without a row it has the columns of its schema."""
    # a table without rows has no types, and would take theirs from the others
    filled = [part for part in parts if len(part)]
    return pandas.concat(filled, ignore_index=True) if filled else SCHEMAS[name].empty()
