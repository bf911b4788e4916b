"""The findings of audits are written as one SAE's tables and joined to the trial's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_placebo.audits.base import AUDITS, Audited, Finding
from sae_placebo.core.lazy import pandas
from sae_placebo.core.store import Store
from sae_placebo.trial.plan import Plan
from sae_placebo.trial.tables.use import joined, keys_of, labelled

TABLES = ("audits", "audit_latents")


def write_audited(draft: Path, found: Mapping[str, Audited]) -> None:
    """Write one SAE's findings, and what was found of each latent and token."""
    rows = [dataclasses.asdict(one) for audited in found.values() for one in audited.findings]
    columns = [field.name for field in dataclasses.fields(Finding)]
    pandas.DataFrame(rows, columns=columns).to_parquet(draft / "audits.parquet", index=False)
    for part, name in (("latents", "latent"), ("tokens", "token")):
        values = {
            f"{audit}_{key}": column
            for audit, audited in found.items()
            for key, column in getattr(audited, part).items()
        }
        table = pandas.DataFrame(values)
        table.insert(0, name, range(len(table)))
        table.to_parquet(draft / f"audit_{part}.parquet", index=False)


def audit_tables(plan: Plan, store: Store) -> dict[str, Any]:
    """Return the tables `audits` and `audit_latents` of all SAEs that were audited."""
    parts: dict[str, list[Any]] = {name: [] for name in TABLES}
    for place, step in plan.audit.items():
        folder = store.path(step)
        for name in TABLES:
            table = pandas.read_parquet(folder / f"{name}.parquet")
            parts[name].append(labelled(table, keys_of(plan, *place)))
    return {name: joined(name, found) for name, found in parts.items()}


def described_audits() -> dict[str, Any]:
    """Return what every audit and its numbers are, for a trial's record."""
    return {
        name: {
            "title": AUDITS[name].title,
            "question": AUDITS[name].question,
            "source": AUDITS[name].source,
            "quantities": [dataclasses.asdict(quantity) for quantity in AUDITS[name].quantities],
        }
        for name in AUDITS
    }
