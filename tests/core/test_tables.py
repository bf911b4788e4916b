"""The schemas of a trial's tables: what they refuse, and that the page of tables is made from them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sae_placebo.core.errors import StoreError
from sae_placebo.core.tables import SCHEMAS
from sae_placebo.core.tables.base import Column, Table

DOCS = Path(__file__).parents[2] / "docs"
TABLE = Table(
    "made",
    "thing",
    (
        Column("name", "string", "its name", nullable=False),
        Column("count", "int", "how many"),
        Column("size", "float", "how large", "m"),
        Column("holds", "bool", "whether it holds"),
        Column("words", "strings", "its words"),
        Column("sizes", "floats", "its sizes"),
        Column("counts", "ints", "its counts"),
        Column("extra", "float", "of some", optional=True),
    ),
)


def whole() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "name": ["a", "b"],
            "count": pd.array([1, None], "Int64"),
            "size": [0.5, np.nan],
            "holds": pd.array([True, None], "boolean"),
            "words": [["x", "y"], None],
            "sizes": [[0.5, None], np.array([1.5, np.nan])],
            "counts": [[1, 2], np.array([3])],
        }
    )


def test_a_frame_of_the_form_passes_before_and_after_parquet(tmp_path: Path) -> None:
    others = {
        "as it is": whole(),
        "with what may be there": whole().assign(extra=0.5),
        "nothing known": whole().assign(count=None, size=None, holds=None, words=None),
        "whole numbers where any may be": whole().assign(size=[1, 2]),
        "objects": whole().astype(object),
        "empty": TABLE.empty(),
    }
    for name, frame in others.items():
        TABLE.check(frame)
        frame.to_parquet(tmp_path / f"{name}.parquet", index=False)
        TABLE.check(pd.read_parquet(tmp_path / f"{name}.parquet"))


REFUSED: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "missing": (lambda t: t.drop(columns="size"), "the column 'size' is missing"),
    "missing, no row": (lambda t: t.iloc[:0].drop(columns="size"), "the column 'size' is missing"),
    "two missing": (
        lambda t: t.drop(columns=["size", "name"]),
        "the columns 'name', 'size' are missing",
    ),
    "unknown": (lambda t: t.assign(other=1), "the column 'other' is unknown"),
    "twice": (
        lambda t: pd.concat([t, t[["size"]]], axis=1),
        "the column 'size' is there more than",
    ),
    "null": (lambda t: t.assign(name=["a", None]), "the column 'name' has a null"),
    "text for numbers": (lambda t: t.assign(size=["1", "2"]), "the column 'size' must hold values"),
    "numbers for text": (lambda t: t.assign(name=[1, 2]), "the column 'name' must hold values"),
    "fractions": (lambda t: t.assign(count=[0.5, 1]), "the column 'count' must hold values"),
    "truth for numbers": (lambda t: t.assign(size=[True, False]), "the column 'size' must hold"),
    "numbers for truth": (lambda t: t.assign(holds=[1.0, 0.0]), "the column 'holds' must hold"),
    "mixed": (lambda t: t.assign(size=[1.0, "x"]), "holds values of type float, str"),
    "text for a list": (lambda t: t.assign(words=["xy", None]), "the column 'words' must hold"),
    "a list of numbers": (lambda t: t.assign(words=[[1], None]), "the column 'words' must hold"),
    "a list of fractions": (lambda t: t.assign(counts=[[0.5], [1]]), "the column 'counts' must"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_frame_of_another_form_is_refused_by_table_and_column(change: str) -> None:
    make, said = REFUSED[change]
    with pytest.raises(StoreError, match=rf"made\.parquet: .*{said}") as caught:
        TABLE.check(make(whole()))
    assert "\n" not in str(caught.value)


def test_a_column_is_declared_once() -> None:
    with pytest.raises(ValueError, match="declares name more than once"):
        Table("made", "thing", (TABLE.columns[0], TABLE.columns[0]))


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_table_is_declared_in_full(name: str) -> None:
    table = SCHEMAS[name]
    table.check(table.empty())
    assert all(column.meaning and not column.meaning.endswith(".") for column in table.columns)
    for column in table.names:
        with pytest.raises(StoreError, match=rf"{name}\.parquet: the column '{column}' is missing"):
            table.check(table.empty().drop(columns=column))


def test_numbers_of_latents_are_those_that_audits_declare() -> None:
    table = SCHEMAS["audit_latents"]
    table.check(table.empty().assign(shrinkage_scale=1.0, hedging_hedging_excess=0.5))
    for name in ("shrinkage_unheard_of", "unheard_of_scale", "scale"):
        with pytest.raises(StoreError, match=f"audit_latents.parquet: the column '{name}' is unkn"):
            table.check(table.empty().assign(**{name: 1.0}))


def test_the_page_of_tables_is_made_from_the_schemas() -> None:
    spec = importlib.util.spec_from_file_location("tables_page", DOCS / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    page: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    written = page.PAGE.read_text(encoding="utf-8")
    assert written == page.text(written), "run: python docs/tables.py"
    for table in SCHEMAS.values():
        assert f"## `{table.file}`: one row per {table.row}\n" in written
        assert all(f"`{column.name}`" in written for column in table.columns)


def test_schemas_load_nothing_heavy() -> None:
    code = (
        "import sys, sae_placebo.core.tables; "
        "print({'pandas', 'numpy', 'torch', 'pyarrow'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"
