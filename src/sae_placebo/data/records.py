"""Records of .jsonl and .parquet files and of datasets: each holds a text, or the ids of its tokens.

Which of the two it is says the value: text, or a list of whole numbers. `docs/reference/text.md` holds the
rules.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from sae_placebo.core.errors import TextError
from sae_placebo.data.contents import bytes_of, check_magic, decoded, reason, sound

TEXT = "text"
"""The default of `text.field`; where no record has it, one of `IDS` is read in its place."""
IDS = ("ids", "input_ids")
_KINDS = {
    **{str: "text", type(None): "null", bool: "true or false", int: "a number"},
    **{float: "a number", list: "a list", dict: "an object"},
}
_MOST_IDS = 2**31
"""No id is larger where it is not known how many the model has: rows hold 32-bit numbers."""
_LONGEST = 18
"""Digits of a whole number that is read as one; a longer one is no token id."""

Value: TypeAlias = "str | array[int] | None"
"""What a record holds: text, token ids, or nothing."""


def held_by(names: Collection[str], field: str) -> str:
    """Return the column that is read of those that a record has: `field`, or ids in the place of no text."""
    if field == TEXT and field not in names:
        return next((name for name in IDS if name in names), field)
    return field


def value_of(value: Any, field: str, where: str, n_ids: int | None) -> Value:
    """Return the text or the token ids that a record holds.

    Args:
        value: What stands under `field`.
        field: The name of the column.
        where: The record, in words.
        n_ids: How many token ids the model has; None where that is not known.

    Raises:
        TextError: it is neither, or an id is none of the model's.
    """
    if value is None:
        return None
    if isinstance(value, list):
        return _ids_of(value, f"{where}: {field!r}", n_ids)
    if not isinstance(value, str):
        kind = _KINDS.get(type(value), type(value).__name__)
        raise TextError(f"{where}: {field!r} is {kind}, not text; set text.field")
    return sound(value, where)


def _ids_of(values: list[Any], where: str, n_ids: int | None) -> array[int]:
    most = _MOST_IDS if n_ids is None else n_ids
    if set(map(type, values)) <= {int} and (not values or 0 <= min(values) <= max(values) < most):
        return array("i", values)
    at = next(i for i, v in enumerate(values) if type(v) is not int or not 0 <= v < most)
    wrong = values[at]
    if isinstance(wrong, str) and at == 0:
        raise TextError(
            f"{where} is a list, not text, and holds no token ids but text; set text.field"
        )
    if type(wrong) in (list, dict, str, type(None)):
        what = f"{_KINDS[type(wrong)]} as item {at + 1} of its list"
    else:
        what = f"{json.dumps(wrong, default=str)} as item {at + 1} of its list"
    allowed = "whole numbers from 0 on"
    if n_ids is not None:
        allowed += f", and the model has {n_ids:,} of them: 0 to {n_ids - 1:,}"
    elif type(wrong) is int and wrong >= most:
        allowed += " below 2**31"
    raise TextError(
        f"{where} has {what:.80}, which is no token id: ids are {allowed}; mend the record or leave it out"
    )


def lines(path: Path, field: str, n_ids: int | None = None) -> Iterator[tuple[int, Value]]:
    """Yield line number and content of each record; only a line feed ends a line."""
    for number, line in enumerate(decoded(path, bytes_of(path)).split("\n"), start=1):
        record = line.removeprefix("\ufeff")  # where files with marks were joined
        if record.strip():
            yield number, _of_line(record, field, repr(f"{path}:{number}"), n_ids)


def _of_line(line: str, field: str, where: str, n_ids: int | None) -> Value:
    """Return the content of one record; None where it is null.

    Control characters within strings are read as they are. A long number would be refused as an integer,
    and is no token id.
    """
    outermost: list[tuple[str, Any]] = []

    def kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        outermost[:] = pairs  # objects are ended from within, so the line's own comes last
        return dict(pairs)

    def number(digits: str) -> int | float:
        return int(digits) if len(digits) <= _LONGEST else float(digits)

    try:
        record = json.loads(line, strict=False, parse_int=number, object_pairs_hook=kept)
    except RecursionError:
        raise TextError(
            f"{where} is nested too deeply to be read; flatten the record or leave it out"
        ) from None
    except json.JSONDecodeError as error:
        raise TextError(
            f"{where} is not a JSON object ({error.msg}, column {error.colno}); mend the line or leave it "
            "out"
        ) from None
    if not isinstance(record, dict):
        kind = "text or null" if isinstance(record, str | None) else _KINDS[type(record)]
        raise TextError(
            f"{where} is not a JSON object but {kind}; write an object with a {field!r} key per line"
        )
    field = held_by(record, field)
    if field not in record:
        keys = ", ".join(map(repr, list(record)[:10])) or "none"
        raise TextError(f"{where} has no {field!r} key (its keys: {keys}); set text.field")
    if [name for name, _ in outermost].count(field) > 1:  # of two values a dict has the last
        raise TextError(f"{where} has the key {field!r} twice; leave one of them out")
    return value_of(record[field], field, where, n_ids)


def column(path: Path, field: str, n_ids: int | None = None) -> Iterator[tuple[int, Value]]:
    """Yield number and content of each record of a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    before = 0
    try:
        with path.open("rb") as stream:
            check_magic(path, stream.read(8))
            with pq.ParquetFile(stream) as table:
                field = held_by(table.schema_arrow.names, field)
                _check_column(path, table.schema_arrow, field)
                for batch in table.iter_batches(columns=[field]):
                    for number, value in enumerate(batch.column(0).to_pylist(), start=before + 1):
                        yield number, value_of(value, field, f"{str(path)!r} row {number:,}", n_ids)
                    before += len(batch)
    except UnicodeDecodeError:
        raise TextError(
            f"{str(path)!r}: {field!r} holds bytes that are not UTF-8 behind record {before:,}; write the "
            "file anew or leave it out of text.source"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise TextError(
            f"{str(path)!r} cannot be read as parquet ({reason(error)}); replace it or leave it out of "
            "text.source"
        ) from None


def _check_column(path: Path, schema: Any, field: str) -> None:
    """Refuse a column that is missing, there twice, or neither text nor lists of whole numbers.

    One of nulls alone may be text.
    """
    import pyarrow as pa

    if schema.names.count(field) != 1:
        found = "two columns" if field in schema.names else "no column"
        raise TextError(
            f"{str(path)!r} has {found} {field!r}; it has {', '.join(schema.names)}: set text.field"
        )
    kind, types = schema.field(field).type, pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        if types.is_integer(kind.value_type) or types.is_null(kind.value_type):
            return
        raise TextError(
            f"{str(path)!r}: {field!r} is {kind}, which is not text, and no lists of token ids, which are "
            "whole numbers; set text.field"
        )
    plain = kind.value_type if types.is_dictionary(kind) else kind
    is_text = (types.is_string, types.is_large_string, types.is_null)
    if not any(each(plain) for each in is_text) and str(plain) != "string_view":
        raise TextError(f"{str(path)!r}: {field!r} is {kind}, not text; set text.field")
