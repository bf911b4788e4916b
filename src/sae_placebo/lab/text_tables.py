"""Results of the laboratory as text for a terminal, and as files in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_placebo.core.errors import StoreError, in_one_line
from sae_placebo.core.lazy import pandas
from sae_placebo.core.sealing import write_json

Cell = str | int | float | None


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of equally many texts as lines of aligned columns; the last column is not padded."""
    rows = [[in_one_line(text) for text in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = [
        [*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]]
        for row in rows
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many significant digits, and `none` where there is none."""
    return "none" if value is None else f"{value:.{digits}g}"


def bounds(low: float | None, high: float | None, digits: int = 4) -> str:
    """Return an interval as text, which is empty where there is none."""
    return "" if low is None or high is None else f"{low:.{digits}g} to {high:.{digits}g}"


def prepared(folder: Path) -> None:
    """Make a folder for results, so that a wrong name is refused before the work begins.

    Raises:
        StoreError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise _unwritable(folder, problem) from None


def write_results(
    folder: Path, name: str, rows: Sequence[Mapping[str, Cell]], facts: Mapping[str, Any]
) -> None:
    """Write rows to `<name>.parquet`, and facts with the same rows to `<name>.json`.

    Args:
        folder: Where they are written; files of these names are replaced.
        name: Name of both files, without an ending.
        rows: The table, one mapping from column to value per row.
        facts: What else is known, such as settings, in types that JSON has.

    Raises:
        StoreError: a file cannot be written.
    """
    prepared(folder)
    draft = folder / f".{name}.parquet.draft"
    try:
        pandas.DataFrame(list(rows)).to_parquet(draft, index=False)
        draft.replace(folder / f"{name}.parquet")
        write_json(folder / f"{name}.json", {**facts, "rows": list(rows)})
    except OSError as problem:
        raise _unwritable(folder, problem) from None


def _unwritable(folder: Path, problem: OSError) -> StoreError:
    reason = problem.strerror or problem
    return StoreError(
        f"cannot write results to {str(folder)!r} ({reason}): give a folder that can be written"
    )
