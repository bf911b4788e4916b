"""Whatever lies where the store wants a file or a folder is named and kept, and work goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sae_placebo.core import checkpoints
from sae_placebo.core.checkpoints import State, Work
from sae_placebo.core.errors import StoreError
from sae_placebo.core.sealing import read_json, sealed, write_json
from sae_placebo.core.store import Step, Store

STEP = Step("train", "trained", 1, {"a": 1})


def as_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")


def as_folder(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "mine").touch()


def as_dangling_link(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("nowhere")


def write(store: Store, step: Step = STEP) -> None:
    with store.write(step) as folder:
        (folder / "data").write_text("made")


@pytest.mark.parametrize(
    ("name", "put"),
    [
        ("train", as_file),
        ("train", as_dangling_link),
        ("trials", as_file),
        ("trials", as_dangling_link),
        ("checkpoints", as_file),
        ("checkpoints", as_dangling_link),
        ("checkpoints/0123456789abcdef", as_file),
        ("checkpoints/0123456789abcdef/train-000001", as_file),
        ("checkpoints/0123456789abcdef/.draft", as_file),
        (".lock", as_folder),
        (".lock", as_dangling_link),
        (".holder", as_folder),
        (".holder", as_dangling_link),
    ],
)
def test_what_is_in_the_way_is_moved_aside_and_named_once(
    tmp_path: Path, name: str, put: Callable[[Path], None]
) -> None:
    path, said = tmp_path / name, list[str]()
    put(path)
    for _ in range(2):
        store = Store(tmp_path, said.append)
        with store.lock():
            checkpoints.clear(store)
            assert store.find(STEP) is None or said
            write(store)
    assert len([line for line in said if "aside" in line and STEP.folder_name not in line]) == 1
    aside = path.with_name(f"{path.name.lstrip('.')}.aside-1")
    assert os.path.lexists(aside)
    assert store.find(STEP)
    assert (tmp_path / ".lock").is_file()


@pytest.mark.parametrize("put", [as_file, as_dangling_link])
def test_a_root_that_is_no_folder_is_one_sentence_for_readers_too(
    tmp_path: Path, put: Callable[[Path], None]
) -> None:
    put(tmp_path / "store")
    with pytest.raises(StoreError, match="is not a folder; choose another --store"):
        Store(tmp_path / "store").has(STEP)


def test_a_root_below_a_file_is_one_sentence(tmp_path: Path) -> None:
    as_file(tmp_path / "file")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match="is not a folder; choose another --store"), store.lock():
        pass


def test_a_store_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "store").symlink_to("big")
    store = Store(tmp_path / "store")
    with store.lock():
        write(store)
    assert Store(tmp_path / "big").find(STEP)


# --- checkpoints


def stop(work: Work, phase: str = "train") -> Path:
    with pytest.raises(KeyboardInterrupt), work.during(phase, lambda: State(7, {}, ())):
        raise KeyboardInterrupt
    (folder,) = work.home.iterdir()
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"steps": {"key": 3}},
        {"steps": {"key": None}},
        {"files": {"part": {"file": 3, "sha256": "0"}}},
        {"files": {"part": {"file": "../../x", "sha256": "0"}}},
        {"files": {"part": {"file": "x", "sha256": 0}}},
        {"files": {"part": "x"}},
        {"done": "7"},
        {"seconds": None},
    ],
)
def test_a_checkpoints_record_with_wrong_types_is_moved_aside(
    tmp_path: Path, change: dict[str, object]
) -> None:
    said: list[str] = []
    store = Store(tmp_path, said.append)
    folder = stop(Work(store, [STEP], "weights"))
    write_json(folder / "checkpoint.json", sealed(read_json(folder / "checkpoint.json") | change))
    checkpoints.clear(store)
    assert "its record cannot be read" in said[0]
    assert Work(store, [STEP], "weights").load("train") is None
    assert folder.with_name(f"{folder.name}.aside-1").is_dir()


@pytest.mark.parametrize("change", [{"done": 8}, {"seconds": 1e9}, {"record": {"step": 3}}])
def test_a_checkpoints_record_is_sealed(tmp_path: Path, change: dict[str, object]) -> None:
    said: list[str] = []
    store = Store(tmp_path, said.append)
    work = Work(store, [STEP], "weights")
    folder = stop(work)
    assert work.load("train")
    write_json(folder / "checkpoint.json", read_json(folder / "checkpoint.json") | change)
    assert work.load("train") is None
    assert "its record has changed since it was written" in said[0]


def test_a_checkpoint_of_another_phase_is_not_gone_on_from(tmp_path: Path) -> None:
    said: list[str] = []
    work = Work(Store(tmp_path, said.append), [STEP], "weights")
    folder = stop(work, "moments")
    folder.rename(folder.with_name("train-000001"))
    assert work.load("train") is None
    assert "of other steps than its folder" in said[0]


def test_a_checkpoint_stays_until_its_own_artefact_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = stop(Work(store, [STEP], "weights"))
    place = store.path(STEP)
    place.mkdir(parents=True)  # a folder of that name alone is no artefact
    checkpoints.clear(store)
    assert folder.is_dir()
    assert store.find(STEP) is None
    write(store)
    checkpoints.clear(store)
    assert not (tmp_path / "checkpoints").exists()
