from __future__ import annotations

import os
from pathlib import Path

import pytest

from sae_placebo.core.errors import StoreError
from sae_placebo.core.file_names import ROOM, name_fault, shown_name
from sae_placebo.core.refusals import check_writable


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 300, "has 300 bytes, and here 255 are allowed"),
        (Path("new") / ("é" * 200) / "store", "has 400 bytes, and here 255 are allowed"),
        ("d/" * 3_000, "fewer than 4,096 are allowed"),
        ("a\0b", "holds a NUL character"),
        ("bad\udcff", "is not UTF-8"),
        (None, "is of type NoneType"),
        (5, "is of type int"),
        (b"x", "is of type bytes"),
    ],
)
def test_what_no_file_is_called_is_said(name: object, said: str) -> None:
    assert said in (name_fault(name) or "")


def test_what_the_system_takes_is_no_fault(tmp_path: Path) -> None:
    for name in ("runs", ".", "", tmp_path, tmp_path / ("x" * 255), "é" * 127, "a b\n"):
        assert name_fault(name, ROOM) is None
    (tmp_path / ("x" * 255)).mkdir()


def test_a_folder_of_results_leaves_room_for_what_lies_below_it() -> None:
    name = "/" + "/".join(["d" * 99] * 38)  # 3,800 bytes
    assert name_fault(name) is None
    assert "with 500 for what lies below it" in (name_fault(name, ROOM) or "")


def test_a_name_that_is_shown_is_short_and_on_one_line() -> None:
    assert shown_name("a\0b\n") == "'a\\x00b\\n'"
    assert shown_name(Path("runs")) == "'runs'"
    assert len(shown_name("x" * 5_000)) < 100


def test_a_store_that_no_run_could_write_is_refused_and_nothing_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(StoreError, match="is not a folder; choose another --store"):
            check_writable(tmp_path / name)
    check_writable(tmp_path / "new" / "store")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StoreError, match="cannot be written"):
        check_writable(tmp_path / "new")
