"""An artefact is what its manifest's key says, on every read; what is not is named and never lost."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_placebo.core.errors import StoreError
from sae_placebo.core.sealing import file_hash, read_json, sealed, write_json
from sae_placebo.core.store import Step, Store

A = Step("train", "trained", 1, {"arm": "trained"}, ("harvested",))
B = Step("train", "redraw-0", 1, {"arm": "redraw"}, ("harvested",))
C = Step("train", "redraw-1", 1, {"arm": "redraw", "seed": 1}, ("harvested",))


class Opened(Store):
    """A store that keeps what it says."""

    def __init__(self, root: Path) -> None:
        self.said: list[str] = []
        super().__init__(root, self.said.append)


def fill(store: Store, step: Step) -> Path:
    with store.write(step) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "data.txt").write_text(step.name)
        (folder / "more.txt").write_text("more")
    return store.path(step)


def text(folder: Path | None) -> str:
    assert folder is not None
    return (folder / "sub" / "data.txt").read_text()


def exchange(one: Path, other: Path) -> None:
    kept = one.with_name("kept")
    one.rename(kept)
    other.rename(one)
    kept.rename(other)


def edit(change: Callable[[dict[str, Any]], Any], *, again: bool = False) -> Callable[[Path], None]:
    """Return what changes the manifest in a folder, and seals it again if asked to."""

    def edited(folder: Path) -> None:
        manifest = read_json(folder / "manifest.json")
        change(manifest)
        write_json(folder / "manifest.json", sealed(manifest) if again else manifest)

    return edited


# --- folders that are another step's


def test_swapped_arms_are_put_back_and_nothing_is_built_again(tmp_path: Path) -> None:
    store = Opened(tmp_path)
    exchange(fill(store, A), fill(store, B))
    store = Opened(tmp_path)
    assert text(store.find(A)) == "trained"
    assert text(store.find(B)) == "redraw-0"
    assert len(store.said) == 1
    assert A.folder_name in store.said[0]
    assert f"it is that of train/{B.folder_name}" in store.said[0]
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == sorted(
        [A.folder_name, B.folder_name]
    )


def test_three_in_a_circle_are_put_back(tmp_path: Path) -> None:
    store = Opened(tmp_path)
    a, b, c = (fill(store, step) for step in (A, B, C))
    exchange(a, b)
    exchange(b, c)
    store = Opened(tmp_path)
    assert [text(store.find(step)) for step in (A, B, C)] == ["trained", "redraw-0", "redraw-1"]
    assert len(store.said) == 2


def test_arms_that_are_swapped_while_a_process_reads_are_noticed(tmp_path: Path) -> None:
    store = Opened(tmp_path)
    a, b = fill(store, A), fill(store, B)
    assert store.find(A) == a
    exchange(a, b)
    with pytest.raises(StoreError, match=f"{A.folder_name} is damaged .it is that of train/redraw"):
        store.path(A)
    assert text(store.find(A)) == "trained"
    assert text(store.path(B)) == "redraw-0"


def test_an_overwritten_file_of_the_same_size_is_noticed_while_a_process_reads(
    tmp_path: Path,
) -> None:
    store = Opened(tmp_path)
    data = fill(store, A) / "sub" / "data.txt"
    assert store.find(A)
    data.write_text("TRAINED")
    with pytest.raises(StoreError, match=r"sub/data.txt has other bytes than were written"):
        store.path(A)
    assert store.find(A) is None


@pytest.mark.parametrize("where", ["another arm's", "another trial's", "another stage's"])
def test_a_copied_folder_is_named_and_kept(tmp_path: Path, where: str) -> None:
    store = Opened(tmp_path / "store")
    place = fill(store, A)
    if where == "another arm's":
        source = fill(store, B)
    elif where == "another trial's":
        source = fill(Store(tmp_path / "other"), C)
    else:
        source = fill(store, Step("build", "trained", 1, A.settings, A.inputs))
    shutil.rmtree(place)
    shutil.copytree(source, place)
    store = Opened(tmp_path / "store")
    assert not store.has(A)
    assert store.find(A) is None
    assert "does not count" in store.said[0]
    assert f"{A.folder_name}.aside-1" in store.said[1]
    assert text(place.with_name(f"{place.name}.aside-1")) == text(source)
    assert text(fill(store, A)) == "trained"


def test_a_folder_may_have_another_label_but_no_other_key(tmp_path: Path) -> None:
    fill(Store(tmp_path), A)
    shared = Step(A.stage, "same", A.version, A.settings, A.inputs)
    (tmp_path / "train" / A.folder_name).rename(tmp_path / "train" / shared.folder_name)
    store = Opened(tmp_path)
    assert text(store.find(shared)) == "trained"
    assert store.find(A) is None  # a folder that was renamed is not looked for
    assert not store.said


# --- what a manifest may say


def of_key(manifest: dict[str, Any]) -> None:
    manifest["key"] = B.key


def of_settings(manifest: dict[str, Any]) -> None:
    manifest["settings"] = B.settings


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "key": of_key,
    "settings": of_settings,
    "version": lambda m: m.update(version=2),
    "stage": lambda m: m.update(stage="harvest"),
    "inputs": lambda m: m.update(inputs=["others"]),
    "no inputs": lambda m: m.update(inputs=[]),
}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("part", CHANGES)
def test_what_the_key_hashes_must_give_the_key(tmp_path: Path, part: str, again: bool) -> None:
    edit(CHANGES[part], again=again)(fill(Store(tmp_path), A))
    store = Opened(tmp_path)
    assert not store.has(A)
    assert store.find(A) is None
    assert "manifest.json has changed since it was written" in store.said[-1]


@pytest.mark.parametrize("part", ["seconds", "environment", "files"])
def test_what_is_in_no_key_is_sealed(tmp_path: Path, part: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        if part == "files":
            del manifest["files"]["more.txt"]
        else:
            manifest[part] = {"seconds": 1e6, "environment": {"torch": "0"}}[part]

    edit(change)(fill(Store(tmp_path), A))
    store = Opened(tmp_path)
    assert store.find(A) is None
    assert "manifest.json has changed since it was written" in store.said[0]


def test_manifests_of_older_versions_have_no_seal_and_count(tmp_path: Path) -> None:
    edit(lambda m: [m.pop(name) for name in ("seal", "environment", "seconds")])(
        fill(Store(tmp_path), A)
    )
    store = Opened(tmp_path)
    assert text(store.find(A)) == "trained"
    assert store.seconds(A) == 0
    assert store.environments([A]) == [{}]


TYPES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no files": lambda m: m.update(files={}),
    "files in a list": lambda m: m.update(files=["more.txt"]),
    "size in words": lambda m: m["files"]["more.txt"].update(bytes="4"),
    "size true": lambda m: m["files"]["more.txt"].update(bytes=True),
    "hash a number": lambda m: m["files"]["more.txt"].update(sha256=7),
    "file elsewhere": lambda m: m["files"].update({"../../x": m["files"]["more.txt"]}),
    "file at the root": lambda m: m["files"].update({"/etc/passwd": m["files"]["more.txt"]}),
    "file of escapes": lambda m: m["files"].update({"\x1b[2J": m["files"]["more.txt"]}),
    "file that no name can be": lambda m: m["files"].update({"\ud800": m["files"]["more.txt"]}),
    "version in words": lambda m: m.update(version="1"),
    "inputs of numbers": lambda m: m.update(inputs=[1]),
    "seconds in words": lambda m: m.update(seconds="long"),
    "environment in a list": lambda m: m.update(environment=[1]),
    "no settings": lambda m: m.pop("settings"),
    "no stage": lambda m: m.pop("stage"),
}


@pytest.mark.parametrize("part", TYPES)
def test_a_manifest_with_wrong_types_is_one_sentence(tmp_path: Path, part: str) -> None:
    edit(TYPES[part], again=True)(fill(Store(tmp_path), A))
    store = Opened(tmp_path)
    assert not store.has(A)
    assert store.seconds(A) == 0
    assert store.environments([A]) == [{}]
    assert store.find(A) is None
    assert len(store.said) == 2
    assert all("\n" not in line and line.isprintable() for line in store.said)
    assert text(fill(store, A)) == "trained"


def as_bytes(data: bytes) -> Callable[[Path], None]:
    return lambda folder: folder.joinpath("manifest.json").write_bytes(data) and None


def manifest_folder(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()


def manifest_link(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to("manifest.json")


def manifest_pipe(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


UNREADABLE = {
    "pipe": manifest_pipe,
    "empty": as_bytes(b""),
    "a list": as_bytes(b"[]"),
    "no text": as_bytes(b"\xff\xfe\x00"),
    "deep": as_bytes(b"[" * 100_000),
    "folder": manifest_folder,
    "link to itself": manifest_link,
}


@pytest.mark.parametrize("damage", UNREADABLE)
def test_a_manifest_that_cannot_be_read_is_one_sentence(tmp_path: Path, damage: str) -> None:
    UNREADABLE[damage](fill(Store(tmp_path), A))
    store = Opened(tmp_path)
    assert not store.has(A)
    assert store.find(A) is None
    assert len(store.said) == 2
    assert "manifest.json" in store.said[1]
    assert text(fill(store, A)) == "trained"


# --- what the folder may hold


def replaced(kind: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        path = folder / "sub" / "data.txt"
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "empty":
            path.touch()
        elif kind == "dangling link":
            path.symlink_to("nowhere")
        elif kind == "link to itself":
            path.symlink_to(path.name)
        elif kind == "link to another file":
            path.symlink_to("../more.txt")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "parent is a file":
            path.parent.rmdir()
            path.parent.touch()

    return replace


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "is missing"),
        ("folder", "is no longer a file"),
        ("empty", "has 0 bytes where 7 were written"),
        ("dangling link", "is no longer a file"),
        ("link to itself", "is no longer a file"),
        ("link to another file", "has 4 bytes"),
        ("pipe", "is no longer a file"),
        ("parent is a file", "is missing"),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path: Path, kind: str, said: str) -> None:
    replaced(kind)(fill(Store(tmp_path), A))
    store = Opened(tmp_path)
    assert not store.has(A)
    assert store.find(A) is None
    assert f"sub/data.txt {said}" in store.said[1]
    assert text(fill(store, A)) == "trained"


def test_files_and_folders_may_lie_on_another_disk(tmp_path: Path) -> None:
    folder = fill(Store(tmp_path / "store"), A)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder / "sub", elsewhere / "sub")
    shutil.move(folder / "more.txt", elsewhere / "more.txt")
    (folder / "sub").symlink_to(elsewhere / "sub")
    (folder / "more.txt").symlink_to(elsewhere / "more.txt")
    store = Opened(tmp_path / "store")
    assert store.find(A) == folder
    shutil.move(folder, elsewhere / "whole")
    folder.symlink_to(elsewhere / "whole")
    assert Opened(tmp_path / "store").find(A) == folder
    (elsewhere / "more.txt").write_text("less")
    assert Opened(tmp_path / "store").find(A) is None
    assert text(elsewhere / "whole") == "trained"


def test_what_was_added_is_moved_out_and_the_artefact_counts(tmp_path: Path) -> None:
    folder = fill(Store(tmp_path), A)
    (folder / "refused.json").write_text("{}")
    (folder / "sub" / "labels.json").write_text("[]")
    (folder / ".DS_Store").touch()  # a desktop's, which nothing reads
    store = Opened(tmp_path)
    assert store.find(A) == folder
    assert len(store.said) == 1
    assert "held 2 more than was written ('refused.json', 'sub/labels.json')" in store.said[0]
    aside = folder.with_name(f"{folder.name}.aside-1")
    assert (aside / "sub" / "labels.json").read_text() == "[]"
    assert not (folder / "refused.json").exists()
    assert store.find(A) == folder
    assert len(store.said) == 1


@pytest.mark.parametrize("kind", ["file", "dangling link", "empty folder", "link to itself"])
def test_what_lies_where_an_artefact_belongs_is_moved_aside(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "train" / A.folder_name
    place.parent.mkdir()
    if kind == "file":
        place.write_text("mine")
    elif kind == "empty folder":
        place.mkdir()
    else:
        place.symlink_to("nowhere" if kind == "dangling link" else place.name)
    store = Opened(tmp_path)
    assert not store.has(A)
    assert store.find(A) is None
    assert os.path.lexists(place.with_name(f"{place.name}.aside-1"))
    assert text(fill(store, A)) == "trained"


def test_damage_twice_is_kept_twice(tmp_path: Path) -> None:
    store = Opened(tmp_path)
    for _ in range(2):
        (fill(store, A) / "more.txt").write_text("less")
        assert store.find(A) is None
    assert sorted(p.name[-7:] for p in (tmp_path / "train").iterdir()) == ["aside-1", "aside-2"]


# --- what the system refuses


def test_what_may_not_be_read_is_one_sentence_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = fill(Store(tmp_path), A), Path.open

    def refused(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.name == "more.txt":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(StoreError, match=r"cannot be read \(Permission denied, '.*more.txt'\)"):
        Store(tmp_path).find(A)
    assert folder.exists()


def test_what_a_failing_disk_does_not_give_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(Store(tmp_path), A)

    def failing(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr("sae_placebo.core.sealing.file_hash", failing)
    store = Opened(tmp_path)
    assert store.find(A) is None
    assert "cannot be read (Input/output error)" in store.said[0]


def test_a_users_file_that_may_not_be_read_is_not_the_stores_fault(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), Store(tmp_path / "store").write(A):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "text.txt"))


def test_a_stage_that_writes_nothing_is_a_mistake_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrote no files"), Store(tmp_path).write(A):
        pass


def test_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    folder = fill(Store(tmp_path), A)
    files = read_json(folder / "manifest.json")["files"]
    assert files["more.txt"] == {"bytes": 4, "sha256": file_hash(folder / "more.txt")}
