"""Write the tables of docs/reference/tables.md from the schemas in sae_placebo.core.tables.

python docs/tables.py
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from sae_placebo.core.tables import KEYS, SCHEMAS, Column, Table
from sae_placebo.core.tables.keys import LATENT

PAGE = Path(__file__).parent / "reference" / "tables.md"
_HEAD = "| column | type | null | unit | meaning |\n|---|---|---|---|---|"
_KEYS = (*KEYS, LATENT)


def text(page: str) -> str:
    """Return the page with its tables as the package is."""
    keys = "\n".join(["## What a row is about", "", _HEAD, *(_line([key]) for key in _KEYS)])
    sections = "\n\n".join([keys, *(_section(table) for table in SCHEMAS.values())])
    filled = f"<!-- tables -->\n\n{sections}\n\n<!-- /tables -->"
    return re.sub(r"<!-- tables -->.*?<!-- /tables -->", lambda _: filled, page, flags=re.DOTALL)


def _section(table: Table) -> str:
    """Return one table: what a row is about, its columns, and what else is to be known."""
    parts = [f"## `{table.file}`: one row per {table.row}"]
    if table.only:
        parts.append(f"Only {table.only} have rows.")
    groups = itertools.groupby(table.columns, _group)
    parts.append("\n".join([_HEAD, *(_line(list(group)) for _, group in groups)]))
    return "\n\n".join([*parts, *([table.note] if table.note else [])])


def _group(column: Column) -> tuple[object, ...]:
    """Return what columns that stand side by side must agree in to share a line."""
    if column in _KEYS:
        return ("key",)
    return (column.kind, column.nullable, column.unit, column.meaning)


def _line(columns: list[Column]) -> str:
    one = columns[0]
    names = ", ".join(f"`{column.name}`" for column in columns)
    if len(columns) > 1 and one in _KEYS:
        return f"| {names} | | | | [what a row is about](#what-a-row-is-about) |"
    kind = f"list of {one.kind}" if one.kind.endswith("s") else one.kind
    cells = (names, kind, "yes" if one.nullable else "no", one.unit, one.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') or '–' for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(text(PAGE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
