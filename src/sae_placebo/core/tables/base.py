"""What a table of a trial holds: its columns, what a row is about, and the check that a frame is one.

A schema is a plain declaration. The stages that write a table, the trial that publishes it, the report and
`Trial` that read it, and the page `docs/reference/tables.md` all take a table's columns from here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from sae_placebo.core.errors import StoreError, in_one_line
from sae_placebo.core.lazy import pandas

Kind = Literal["string", "int", "float", "bool", "strings", "floats", "ints"]
"""The kind of a column's values; those in the plural are lists."""
_DTYPES: dict[Kind, str] = {
    **{"string": "str", "int": "Int64", "float": "float64", "bool": "boolean"},
    **dict.fromkeys(("strings", "floats", "ints"), "object"),
}
_ITEMS: dict[Kind, Kind] = {"strings": "string", "floats": "float", "ints": "int"}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its name.
        kind: What kind of values it holds. Whole numbers are floats too; how they are stored is free.
        meaning: What the values mean.
        unit: Their unit; empty where they have none.
        nullable: Whether a value may be null.
        optional: Whether the column may be absent; the table's `note` says when.
    """

    name: str
    kind: Kind
    meaning: str
    unit: str = ""
    nullable: bool = True
    optional: bool = False


def alike(
    names: str, kind: Kind, meaning: str, unit: str = "", *, nullable: bool = True
) -> tuple[Column, ...]:
    """Return columns that share kind, meaning and unit; `names` has spaces between their names."""
    return tuple(Column(name, kind, meaning, unit, nullable) for name in names.split())


@dataclass(frozen=True)
class Table:
    """One table of a trial's folder.

    Attributes:
        name: Name of the file, without `.parquet`.
        row: What a row is about.
        columns: Every column that it may have.
        only: Which trials have rows, where not all do; empty where all do.
        note: What else a reader must know, as Markdown.
    """

    name: str
    row: str
    columns: tuple[Column, ...]
    only: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{self.name} declares {', '.join(sorted(twice))} more than once")

    @property
    def file(self) -> str:
        """The name of the file."""
        return f"{self.name}.parquet"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all columns that the table always has."""
        return tuple(column.name for column in self.columns if not column.optional)

    def without(self, keys: Iterable[Column]) -> tuple[str, ...]:
        """Return the names that are left when a trial has not yet written what a row is about."""
        given = {column.name for column in keys}
        return tuple(name for name in self.names if name not in given)

    def empty(self) -> pandas.DataFrame:
        """Return the table without a row; its columns have the declared types."""
        kinds = {column.name: _DTYPES[column.kind] for column in self.columns}
        return pandas.DataFrame({name: pandas.Series([], dtype=kinds[name]) for name in self.names})

    def check(self, frame: pandas.DataFrame) -> None:
        """See to it that a frame is such a table.

        Raises:
            StoreError: it lacks a column, has an unknown one, or a column holds values of another kind or a
                null where none may be; the message is a sentence that names table and column.
        """
        found = list(map(str, frame.columns))
        self.check_columns(found)
        twice = sorted({name for name in found if found.count(name) > 1})
        if twice:
            raise self._refusal(twice[:1], "is there more than once")
        for column in self.columns:
            if column.name in frame and len(frame):
                self._check_values(column, frame[column.name])

    def check_columns(self, names: Iterable[str]) -> None:
        """See to it that these are the names of the table's columns.

        Raises:
            StoreError: one is missing or unknown.
        """
        names = list(names)
        missing = [name for name in self.names if name not in names]
        if missing:
            raise self._refusal(missing, "is missing", "are missing")
        known = {column.name for column in self.columns}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise self._refusal(unknown, "is unknown", "are unknown")

    def _check_values(self, column: Column, values: pandas.Series) -> None:
        known = values[values.notna()]
        if not column.nullable and len(known) < len(values):
            raise self._refusal([column.name], "has a null, which it never has")
        if not _is_of(column.kind, known):
            said = f"must hold values of the kind {column.kind!r}, and holds {_described(known)}"
            raise self._refusal([column.name], said)

    def _refusal(self, columns: list[str], said: str, of_many: str = "") -> StoreError:
        # the names may come from a file that anybody wrote
        shown = ", ".join(repr(in_one_line(name))[:80] for name in columns[:5])
        more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
        one = len(columns) == 1
        return StoreError(
            f"{self.file}: the column{'' if one else 's'} {shown}{more} {said if one else of_many}"
        )


def _is_of(kind: Kind, known: pandas.Series) -> bool:
    """Return whether all values, none of which is null, are of a kind."""
    types = pandas.api.types
    if not len(known):
        return True
    if kind in _ITEMS:
        return all(_is_list(value, _ITEMS[kind]) for value in known)
    if types.is_object_dtype(known.dtype):
        return all(_is_one(value, kind) for value in known)
    if kind == "string":
        return bool(types.is_string_dtype(known.dtype))
    is_bool = bool(types.is_bool_dtype(known.dtype))
    if kind == "bool":
        return is_bool
    if not types.is_numeric_dtype(known.dtype) or is_bool:
        return False
    # parquet may give whole numbers and nulls back as floats
    return kind == "float" or bool((known % 1 == 0).all())


def _is_list(value: Any, kind: Kind) -> bool:
    """Return whether a value is a list, or an array, of values of a kind or nulls."""
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return False
    of_numbers = {"float": "iuf", "int": "iu", "string": ""}[kind]
    if hasattr(value, "dtype") and value.dtype.kind in of_numbers:
        return True
    return all(part is None or part != part or _is_one(part, kind) for part in value)


def _is_one(value: Any, kind: Kind) -> bool:
    if kind == "string":
        return isinstance(value, str)
    is_bool = type(value).__name__ in ("bool", "bool_")  # numpy's is called either
    if kind == "bool":
        return is_bool
    if not isinstance(value, Real) or is_bool:
        return False
    return kind == "float" or float(value).is_integer()


def _described(known: pandas.Series) -> str:
    """Return the types of some values, in words."""
    if pandas.api.types.is_object_dtype(known.dtype):
        names = sorted({type(value).__name__ for value in known})
        return f"values of type {', '.join(names[:3])}"
    return f"values of type {known.dtype}"
