"""A trial's folder: what its record says of its tables, checked whenever one is read.

`trial.json` is sealed and holds the SHA-256 of every table. A table that is not what the trial wrote is
never read as its result: it is named, with what to do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import StoreError
from sae_placebo.core.lazy import pandas
from sae_placebo.core.sealing import are_facts, change_of, fact, read_json, seal_is_broken, sealed
from sae_placebo.core.tables import SCHEMAS

RECORD = "trial.json"
_TABLES = "tables"
_SEAL = "seal"
_FORMAT = "format"
FORMAT = 3
"""Of the record and the tables; it is raised whenever a column or a value of one is called something else."""


def with_tables(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a trial's record, sealed, with size and hash of every table in a folder."""
    paths = sorted(folder.glob("*.parquet"))
    return sealed({**record, _FORMAT: FORMAT, _TABLES: {path.name: fact(path) for path in paths}})


def read_record(folder: Path) -> dict[str, Any]:
    """Return what `trial.json` says.

    Raises:
        StoreError: there is none, it cannot be read, or it is not what the trial wrote.
    """
    path = folder / RECORD
    if not folder.is_dir():
        raise StoreError(
            f"{str(folder)!r} is not a folder; give that of a finished trial, <store>/trials/<name>"
        )
    try:
        record = read_json(path)
    except FileNotFoundError:
        raise StoreError(
            f"{str(folder)!r} holds no {RECORD}, so it is no finished trial; run the trial to its end"
        ) from None
    except PermissionError as error:
        raise StoreError(
            f"{str(path)!r} cannot be read ({error.strerror}); change its permissions"
        ) from None
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from None
    except ValueError as error:
        why = "" if isinstance(error, UnicodeDecodeError) else f": {error}"
        raise _damaged(path, f"it is not JSON{why}") from None
    if not isinstance(record, dict):
        raise _damaged(path, "it holds no JSON object")
    if seal_is_broken(record) or not are_facts(record.get(_TABLES, {})):
        raise _damaged(path, "it has changed since the trial wrote it")
    if _SEAL not in record and not isinstance(record.get("spec"), dict):  # no version wrote that
        raise _damaged(path, "it lacks the trial's settings")
    return record


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(
        f"{str(path)!r} is damaged ({why}); run the trial again: record and tables are made anew from its "
        "finished stages"
    )


def require_parts(folder: Path, record: Mapping[str, Any]) -> None:
    """See to it that a record says which trial it is of; one without a seal may say anything.

    Raises:
        StoreError: it does not.
    """
    spec = record.get("spec")
    parts = spec if isinstance(spec, dict) else {}
    kinds = (record.get("name"), str), (parts.get("hookpoints"), list), (parts.get("saes"), dict)
    if not all(isinstance(part, kind) and part for part, kind in kinds):
        raise _damaged(folder / RECORD, "it lacks the trial's name, hookpoints or SAEs")


def read_result(folder: Path) -> dict[str, Any]:
    """Return what `trial.json` says, where its tables have the columns that this version reads.

    Raises:
        StoreError: as in `read_record`; or another version wrote the result, with other words for columns.
    """
    record = read_record(folder)
    if record.get(_FORMAT) != FORMAT:
        raise StoreError(
            f"{str(folder)!r} was written by another version of sae-placebo, whose columns have other names; "
            "run the trial again, which makes its tables anew from its stages, or read it with that version"
        )
    return record


def is_recorded(name: str, record: Mapping[str, Any]) -> bool | None:
    """Return whether a trial wrote a table; None where its record does not say."""
    return f"{name}.parquet" in record[_TABLES] if _TABLES in record else None


def check_table(folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    """Return the path of one table, unless it is known not to be what the trial wrote.

    Args:
        folder: The trial's folder.
        name: The table.
        record: From `read_record`.

    Raises:
        StoreError: it is missing, or not what the trial wrote.
    """
    path, files = folder / f"{name}.parquet", record.get(_TABLES)
    known = None if files is None else files.get(path.name)
    if files is not None and known is None:
        raise StoreError(
            f"the trial in {str(folder)!r} wrote no {path.name} (it is of another version); run it again"
        )
    if known is None:
        if path.is_file():
            return path
        raise StoreError(f"{str(folder)!r} holds no {path.name}; run the trial to its end")
    try:
        changed = change_of(path, known)
    except PermissionError as error:
        changed = f"cannot be read ({error.strerror})"
    if changed == "is missing":
        raise StoreError(f"{str(path)!r} is missing; run the trial again, which makes it anew")
    if changed is not None:
        raise StoreError(
            f"{str(path)!r} is not what the trial wrote (it {changed}{_wrong_columns(path, name)}); run the "
            "trial again, which makes it anew and keeps this one beside it, or work on a copy elsewhere"
        )
    return path


def _wrong_columns(path: Path, name: str) -> str:
    """Return which columns a changed table lacks or has too many, as the end of a sentence; else nothing."""
    try:
        SCHEMAS[name].check(pandas.read_parquet(path))
    except StoreError as error:
        return f": {error}"
    except (OSError, ValueError):
        return ""
    return ""


def load_table(folder: Path, name: str, record: Mapping[str, Any]) -> pandas.DataFrame:
    """Return one table, with the columns that its schema declares.

    Args:
        folder: The trial's folder.
        name: The table.
        record: From `read_record`.

    Raises:
        StoreError: it is missing, not what the trial wrote, no parquet, or lacks a column, has an unknown one
            or values of another kind.
    """
    path = check_table(folder, name, record)
    try:
        table = pandas.read_parquet(path)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{str(path)!r} cannot be read as parquet ({error}); run the trial again"
        ) from None
    try:
        SCHEMAS[name].check(table)
    except StoreError as error:
        raise StoreError(
            f"{str(folder)!r} holds a table that this version of sae-placebo does not read ({error}); run "
            "the trial again, which makes its tables anew from its stages"
        ) from None
    return table


def foreign(folder: Path) -> dict[Path, str]:
    """Return what lies at the place of a trial's record and tables and may be somebody's own, and why.

    These are tables that changed since the trial wrote them; all of them, where the record that could
    tell is damaged. What a run that was killed left without a record is nobody's.
    """
    record, found = folder / RECORD, {}
    if not os.path.lexists(record):
        return {}
    try:
        files = read_record(folder).get(_TABLES, {})
    except StoreError:
        found[record] = "was damaged"
        tables = folder.glob("*.parquet")
        return found | dict.fromkeys(tables, f"may have changed, as {RECORD} was damaged")
    for name, known in files.items():
        path = folder / name
        changed = change_of(path, known) if os.path.lexists(path) else None
        if changed is not None:
            found[path] = "has changed since the trial wrote it"
    return found
