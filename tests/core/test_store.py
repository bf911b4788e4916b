from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sae_placebo.core.errors import StoreError
from sae_placebo.core.store import Step, Store, read_json

STEP = Step("stage", "name", 1, {"a": 1})


def fill(store: Store, step: Step = STEP, text: str = "hello") -> Path:
    with store.write(step) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "data.txt").write_text(text)
    return store.path(step)


def test_key_follows_everything_that_decides_the_result() -> None:
    keys = {
        STEP.key,
        Step("other", "name", 1, {"a": 1}).key,
        Step("stage", "name", 2, {"a": 1}).key,
        Step("stage", "name", 1, {"a": 2}).key,
        Step("stage", "name", 1, {"a": 1}, ("x",)).key,
    }
    assert len(keys) == 5
    assert Step("stage", "renamed", 1, {"a": 1}).key == STEP.key


def test_a_written_artefact_is_found_with_its_manifest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find(STEP) is None
    assert not store.has(STEP)
    folder = fill(store)
    assert Store(tmp_path).find(STEP) == folder
    assert store.has(STEP)
    assert list(read_json(folder / "manifest.json")["files"]) == ["sub/data.txt"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def interrupted() -> None:
        with store.write(STEP) as folder:
            (folder / "data.txt").write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        interrupted()
    assert store.find(STEP) is None
    assert list((tmp_path / "stage").iterdir()) == []


@pytest.mark.parametrize(
    "damage", ["truncate", "flip", "remove", "manifest", "no manifest", "no hash", "no files"]
)
def test_damage_is_noticed_named_and_removed(tmp_path: Path, damage: str) -> None:
    folder = fill(Store(tmp_path))
    data = folder / "sub" / "data.txt"
    if damage == "truncate":
        data.write_text("hel")
    elif damage == "flip":
        data.write_text("hellO")
    elif damage == "remove":
        data.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text('{"files": ')
    elif damage == "no hash":
        path = folder / "manifest.json"
        path.write_text(path.read_text().replace("sha256", "sha257"))
    elif damage == "no files":
        (folder / "manifest.json").write_text('{"files": 3}')
    else:
        (folder / "manifest.json").unlink()
    said: list[str] = []
    store = Store(tmp_path, warn=said.append)
    assert store.find(STEP) is None
    assert len(said) == 1
    assert STEP.folder_name in said[0]
    assert not folder.exists()
    fill(store)
    assert store.find(STEP) is not None


def hold(root: Path, release: Any) -> None:
    with Store(root).lock():
        (root / "held").touch()
        release.wait(600)


def test_a_second_process_is_refused_or_waits(tmp_path: Path) -> None:
    tmp_path.joinpath("held").unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    release = context.Event()
    process = context.Process(target=hold, args=(tmp_path, release))
    process.start()
    while not (tmp_path / "held").exists():
        assert process.is_alive()
        time.sleep(0.02)
    with pytest.raises(StoreError, match=rf"in use by another process \(pid {process.pid}\)"):
        Store(tmp_path).lock().__enter__()
    later = threading.Timer(0.5, release.set)
    later.start()
    with Store(tmp_path).lock(wait_seconds=600.0):
        assert release.is_set()
    later.join()
    process.join()


def test_drafts_of_a_killed_process_are_cleared_under_the_lock(tmp_path: Path) -> None:
    draft = tmp_path / "stage" / ".name-0123456789abcdef-0123abcd"
    draft.mkdir(parents=True)
    with Store(tmp_path).lock():
        assert not draft.exists()


def test_a_store_that_is_a_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(StoreError, match="is not a folder"), Store(path).lock():
        pass


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "is full; finished stages are kept"), (errno.EROFS, "cannot be written")],
)
def test_what_the_system_refuses_is_explained(tmp_path: Path, number: int, words: str) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match=words), store.write(STEP):
        raise OSError(number, os.strerror(number))
    assert store.find(STEP) is None


def test_a_full_disk_behind_another_library_is_explained(tmp_path: Path) -> None:
    class SafetensorError(Exception):
        pass

    with pytest.raises(StoreError, match="is full"), Store(tmp_path).write(STEP):
        raise SafetensorError("Error while serializing: No space left on device (os error 28)")


def test_a_mistake_of_ours_keeps_its_type(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Store(tmp_path).write(STEP):
        _ = 1 / 0


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc, where nothing can be made")
def test_a_store_where_no_folder_can_be_made_is_one_sentence() -> None:
    with (
        pytest.raises(StoreError, match="cannot be written here"),
        Store(Path("/proc/none")).lock(),
    ):
        pass


def test_a_file_missing_elsewhere_is_not_the_stores_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Store(tmp_path / "store").write(STEP):
        (tmp_path / "of the user").read_text()


def test_manifest_is_json_with_hashes(tmp_path: Path) -> None:
    folder = fill(Store(tmp_path))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["key"] == STEP.key
    assert len(manifest["files"]["sub/data.txt"]["sha256"]) == 64


def test_environments_tell_of_a_mixture(tmp_path: Path) -> None:
    other = Step("stage", "other", 1, {"a": 2})
    fill(Store(tmp_path, environment={"torch": "1"}))
    fill(Store(tmp_path, environment={"torch": "2"}), other)
    assert Store(tmp_path).environments([STEP]) == [{"torch": "1"}]
    assert Store(tmp_path).environments([STEP, other]) == [{"torch": "1"}, {"torch": "2"}]
