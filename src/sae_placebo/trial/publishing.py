"""A trial's tables and its record, put in place of those before."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import StageFault, StoreError
from sae_placebo.core.store import Store, explained, file_hash, write_json
from sae_placebo.core.tables import SCHEMAS
from sae_placebo.core.trial_files import RECORD, foreign, with_tables
from sae_placebo.trial.table_files import write_table


def check_tables(tables: Mapping[str, Any]) -> None:
    """See to it that every table has the columns, and values of the kinds, that its schema declares.

    Raises:
        StageFault: one has not; the message names table and column.
    """
    for name, table in tables.items():
        if name not in SCHEMAS:
            raise StageFault(f"{name}.parquet is declared by no schema in sae_placebo.core.tables")
        try:
            SCHEMAS[name].check(table)
        except StoreError as error:
            raise StageFault(
                f"{error}: what writes the table and its schema in sae_placebo.core.tables disagree; no "
                "table was written, and all stages are kept"
            ) from None


def publish(
    store: Store, folder: Path, tables: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Write a trial's tables and its record, in place of those before; somebody's own are moved aside.

    All is written beside them first, so that a full disk costs no result. Then the record goes first
    and comes last: whatever stops us in between, tables of two runs never pass for one result.

    Raises:
        StageFault: a table is not what its schema says; nothing is written.
        StoreError: the folder cannot be written.
    """
    check_tables(tables)
    draft = folder / ".draft"
    with explained(store.root):
        store.clear_way(folder, folder=True)
        store.clear_way(folder / "report", folder=True)
        store.clear_way(folder / "report" / "index.html", folder=False)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            for name, table in tables.items():
                write_table(draft / f"{name}.parquet", table)
            write_json(draft / RECORD, with_tables(facts, draft))
            store.check_lock()
            for path, why in foreign(folder).items():
                made = draft / path.name
                same = path.is_file() and made.exists() and file_hash(path) == file_hash(made)
                if not same:
                    store.warn(
                        f"{store.shown(path)} {why}; it now lies in {store.shown(store.set_aside(path))}"
                    )
            for path in draft.iterdir():
                store.clear_way(folder / path.name, folder=False)
            (folder / RECORD).unlink(missing_ok=True)
            for name in tables:
                (draft / f"{name}.parquet").replace(folder / f"{name}.parquet")
            (draft / RECORD).replace(folder / RECORD)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
