"""A trial's tables are those that it wrote: a changed one is named, made anew and kept."""

from __future__ import annotations

import errno
import json
import os
import pydoc
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sae_placebo.cli import main as cli
from sae_placebo.core.errors import StageFault, StoreError
from sae_placebo.core.sealing import read_json, sealed, write_json
from sae_placebo.core.store import Store
from sae_placebo.core.tables import SCHEMAS
from sae_placebo.core.trial_files import check_table, foreign, read_record
from sae_placebo.report import build_report, read_tables
from sae_placebo.trial.power import answer, measured
from sae_placebo.trial.publishing import publish
from sae_placebo.trial.results import Trial, described, is_result_of
from sae_placebo.trial.spec import TrialSpec
from synthetic_trial import Settings, effects_table, framed, seal_trial, write_trial


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trial as one that ran leaves it."""
    return seal_trial(
        write_trial(tmp_path_factory.mktemp("store") / "trials" / "synthetic", Settings())
    )


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "store" / "trials" / "synthetic")
    return tmp_path / "store" / "trials" / "synthetic"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def other_columns(path: Path) -> None:
    pd.read_parquet(path).rename(columns={"arm": "weapon"}).to_parquet(path)


def other_values(path: Path) -> None:
    table = pd.read_parquet(path)
    numbers = table.select_dtypes("number").columns
    table.assign(**{name: table[name] * 2 for name in numbers}).to_parquet(path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "one bit": (flip, "has other bytes than were written"),
    "other columns": (
        other_columns,
        r"is not what the trial wrote .*: the column .arm. is missing",
    ),
    "other values": (other_values, "is not what the trial wrote"),
    "truncated": (truncated, "bytes where"),
    "empty": (lambda path: path.write_bytes(b""), "has 0 bytes where"),
    "missing": (Path.unlink, "is missing; run the trial again"),
    "folder": (as_folder, "is no longer a file"),
    "dangling link": (as_link, "is no longer a file"),
}


@pytest.mark.parametrize("name", ["effects", "measurements"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_reader_names_a_table_that_is_not_the_trials(
    folder: Path, damage: str, name: str
) -> None:
    change, said = DAMAGES[damage]
    change(folder / f"{name}.parquet")
    for read in (
        lambda: getattr(Trial(folder), name),
        lambda: Trial(folder).check(),
        lambda: read_tables(folder),
        lambda: build_report(folder),
        lambda: answer(0.05, folder),
    ):
        with pytest.raises(StoreError, match=said) as caught:
            read()
        assert f"{name}.parquet" in str(caught.value)
        assert "run the trial again" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_whole_result_is_read_by_all(folder: Path) -> None:
    Trial(folder).check()
    assert len(Trial(folder).effects)
    assert measured(Trial(folder), "share_token_family")[0].said.startswith("share_token_family")
    assert len(read_tables(folder).effects)


def test_a_report_that_was_removed_is_missed(folder: Path) -> None:
    page = build_report(folder)
    assert Trial(folder).report == page == folder / "report" / "index.html"
    page.unlink()
    with pytest.raises(StoreError, match="is missing; `sae-placebo report` or"):
        _ = Trial(folder).report
    build_report(folder)
    assert Trial(folder).report == page


def test_tables_of_another_trial_are_named(folder: Path, tmp_path: Path) -> None:
    other = write_trial(tmp_path / "other", Settings(latents=50))
    shutil.copy(other / "effects.parquet", folder / "measurements.parquet")
    with pytest.raises(StoreError, match=r"measurements.parquet' is not what the trial wrote"):
        _ = Trial(folder).measurements


def test_a_table_that_the_trial_did_not_write_is_not_read(folder: Path) -> None:
    record = read_json(folder / "trial.json")
    del record["seal"], record["tables"]
    (folder / "matching.parquet").rename(folder / "kept")
    write_json(folder / "trial.json", record)
    seal_trial(folder)
    (folder / "kept").rename(folder / "matching.parquet")  # left by a run of another version
    with pytest.raises(StoreError, match=r"wrote no matching.parquet \(it is of another version\)"):
        _ = Trial(folder).matching
    assert not len(read_tables(folder).matching)


def without_reason(path: Path) -> None:
    pd.read_parquet(path).drop(columns="reason").to_parquet(path, index=False)


def with_another(path: Path) -> None:
    pd.read_parquet(path).assign(**{"<b>\n": 1.0}).to_parquet(path, index=False)


def with_words(path: Path) -> None:
    pd.read_parquet(path).assign(sae_seed="first").to_parquet(path, index=False)


OTHER_FORMS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a column less": (without_reason, "measurements.parquet: the column 'reason' is missing"),
    "a column more": (with_another, r"measurements.parquet: the column '<b>\\n' is unknown"),
    "other values": (
        with_words,
        "measurements.parquet: the column 'sae_seed' must hold values of the kind 'int', and holds "
        "values of type",
    ),
}


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize("form", OTHER_FORMS)
def test_a_table_of_another_form_is_named_and_never_read_as_blanks(
    folder: Path, form: str, is_sealed: bool
) -> None:
    change, said = OTHER_FORMS[form]
    change(folder / "measurements.parquet")
    record = read_json(folder / "trial.json")
    del record["seal"], record["tables"]
    write_json(folder / "trial.json", record)
    if is_sealed:
        seal_trial(folder)
    for read in (
        lambda: Trial(folder).measurements,
        lambda: read_tables(folder),
        lambda: build_report(folder),
    ):
        with pytest.raises(StoreError) as caught:
            read()
        assert said in str(caught.value)
        assert "run the trial again" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert len(Trial(folder).effects)


def test_a_trial_reads_each_of_its_tables_and_says_what_they_hold(folder: Path) -> None:
    said = pydoc.plain(pydoc.render_doc(Trial))
    for name, schema in SCHEMAS.items():
        assert list(getattr(Trial(folder), name).columns) == list(schema.names)
        assert f"with one row per {schema.row}." in said
        for column in schema.columns:
            assert f"{column.name}: {column.meaning}" in getattr(Trial, name).__doc__


# --- the record


RECORDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "it is not JSON"),
    "empty": (lambda path: path.write_bytes(b""), "it is not JSON"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "it is not JSON"),
    "deep": (lambda path: path.write_bytes(b"[" * 100_000), "it is not JSON"),
    "a list": (lambda path: path.write_text("[]"), "it holds no JSON object"),
    "null": (lambda path: path.write_text("null"), "it holds no JSON object"),
    "folder": (as_folder, "it cannot be read: Is a directory"),
    "another name": (
        lambda path: write_json(path, read_json(path) | {"name": "x"}),
        "it has changed since the trial wrote it",
    ),
    "other hashes": (
        lambda path: write_json(path, read_json(path) | {"tables": {}}),
        "it has changed since the trial wrote it",
    ),
    "tables in a list": (
        lambda path: path.write_text(json.dumps({"tables": ["effects.parquet"]})),
        "it has changed since the trial wrote it",
    ),
    "hashes of other types": (
        lambda path: path.write_text(json.dumps({"tables": {"effects.parquet": {"bytes": "1"}}})),
        "it has changed since the trial wrote it",
    ),
}


@pytest.mark.parametrize("damage", RECORDS)
def test_every_reader_names_a_damaged_record(folder: Path, damage: str) -> None:
    change, said = RECORDS[damage]
    change(folder / "trial.json")
    spec = TrialSpec.model_construct()
    for read in (
        lambda: Trial(folder).record,
        lambda: Trial(folder).effects,
        lambda: read_tables(folder),
        lambda: answer(0.05, folder),
        lambda: is_result_of(folder, spec),
    ):
        with pytest.raises(StoreError, match=said) as caught:
            read()
        assert "trial.json' is damaged" in str(caught.value)
        assert "run the trial again" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert said in described(folder, spec)


def test_a_folder_that_is_no_trial_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"holds no trial\.json, so it is no finished trial"):
        _ = Trial(tmp_path).record
    with pytest.raises(StoreError, match="is not a folder; give that of a finished trial"):
        answer(0.05, tmp_path / "nowhere")


@pytest.mark.parametrize("of_another", [{"format": 1}, {"format": 99}, {"format": None}])
def test_a_result_of_another_version_is_said_to_be_one_and_not_read(
    folder: Path, of_another: dict[str, Any]
) -> None:
    write_json(folder / "trial.json", sealed(read_json(folder / "trial.json") | of_another))
    readers = (
        lambda: Trial(folder).effects,
        lambda: answer(0.05, folder),
        lambda: build_report(folder),
    )
    for read in readers:
        with pytest.raises(StoreError, match="was written by another version of sae-placebo"):
            read()
    assert "was written by another version" in described(folder, TrialSpec.model_construct())


@pytest.mark.parametrize("text", ["{}", '{"spec": null}', '{"name": "x", "spec": "x"}'])
def test_a_record_without_settings_is_damaged_and_not_older(folder: Path, text: str) -> None:
    (folder / "trial.json").write_text(text)
    readers = (
        lambda: read_record(folder),  # as `status` and `run` do
        lambda: Trial(folder).effects,
        lambda: Trial(folder).check(),
        lambda: answer(0.05, folder),
        lambda: build_report(folder),
    )
    for read in readers:
        with pytest.raises(StoreError, match=r"trial\.json' is damaged \(it lacks"):
            read()
    assert folder / "trial.json" in foreign(folder)


def test_the_command_line_says_it_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sae-placebo", "power", "--from", str(folder)])
    monkeypatch.setattr("sae_placebo.trial.power.power_table", lambda *_: "a table")

    def lines() -> list[str]:
        with pytest.raises(SystemExit):
            cli.main()
        return capsys.readouterr().err.splitlines()

    record = read_json(folder / "trial.json")
    write_json(folder / "trial.json", sealed(record | {"format": 1}))
    (said,) = lines()
    assert said.startswith("error: ")
    assert "was written by another version" in said
    write_json(folder / "trial.json", record)
    flip(folder / "effects.parquet")
    (said,) = lines()
    assert said.startswith("error: ")
    assert "effects.parquet' is not what the trial wrote" in said


# --- a run writes them again


def again(folder: Path, said: list[str]) -> None:
    """Publish what a run would: the tables that there were, made anew."""
    store = Store(folder.parents[1], said.append)
    publish(store, folder, {"effects": made_anew()}, {"name": "synthetic"})


def made_anew() -> pd.DataFrame:
    table = effects_table(Settings(arms=("trained", "redraw")))
    return framed("effects", table.iloc[:1].assign(reason="made anew"))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (made_anew().drop(columns="reason"), r"effects\.parquet: the column 'reason' is missing"),
        (made_anew().assign(more=1), r"effects\.parquet: the column 'more' is unknown"),
        (made_anew().assign(low="1"), r"effects\.parquet: the column 'low' must hold"),
        (made_anew().assign(arm=None), r"effects\.parquet: the column 'arm' has a null"),
    ],
)
def test_what_a_schema_does_not_declare_is_not_published(
    folder: Path, table: pd.DataFrame, said: str
) -> None:
    store = Store(folder.parents[1])
    with pytest.raises(StageFault, match=said):
        publish(store, folder, {"effects": table}, {"name": "synthetic"})
    with pytest.raises(StageFault, match=r"mine\.parquet is declared by no schema"):
        publish(store, folder, {"mine": made_anew()}, {"name": "synthetic"})
    Trial(folder).check()


def test_a_table_that_a_user_changed_is_kept_beside_the_new_one(folder: Path) -> None:
    said: list[str] = []
    other_values(folder / "effects.parquet")
    mine = (folder / "effects.parquet").read_bytes()
    again(folder, said)
    assert said == [
        "trials/synthetic/effects.parquet has changed since the trial wrote it; it now lies in "
        "trials/synthetic/effects.parquet.aside-1"
    ]
    assert (folder / "effects.parquet.aside-1").read_bytes() == mine
    assert list(Trial(folder).effects["reason"]) == ["made anew"]
    again(folder, said)
    assert len(said) == 1


def test_what_a_damaged_record_cannot_vouch_for_is_kept(folder: Path) -> None:
    said: list[str] = []
    mine = (folder / "effects.parquet").read_bytes()
    (folder / "trial.json").write_text("{")
    again(folder, said)
    assert "trials/synthetic/trial.json was damaged; it now lies in" in said[0]
    assert (folder / "effects.parquet.aside-1").read_bytes() == mine
    assert list(Trial(folder).effects["reason"]) == ["made anew"]


@pytest.mark.parametrize("name", ["effects.parquet", "trial.json", "report/index.html"])
def test_a_folder_where_a_file_belongs_is_moved_aside(folder: Path, name: str) -> None:
    said: list[str] = []
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "mine").touch()
    again(folder, said)
    assert path.with_name(f"{path.name}.aside-1").joinpath("mine").exists()
    assert list(Trial(folder).effects["reason"]) == ["made anew"]
    assert any(name in line and "aside-1" in line for line in said)


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_what_lies_where_the_trials_folder_belongs_is_moved_aside(
    tmp_path: Path, kind: str
) -> None:
    folder, said = tmp_path / "trials" / "synthetic", list[str]()
    folder.parent.mkdir()
    if kind == "file":
        folder.write_text("mine")
    else:
        folder.symlink_to("nowhere")
    again(folder, said)
    assert os.path.lexists(folder.with_name("synthetic.aside-1"))
    assert list(Trial(folder).effects["reason"]) == ["made anew"]


def test_a_full_disk_costs_no_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sae_placebo.trial.publishing.write_json", full)
    with pytest.raises(StoreError, match="is full; finished stages are kept"):
        again(folder, [])
    Trial(folder).check()
    assert not (folder / ".draft").exists()


def test_what_a_killed_run_left_is_written_over(folder: Path) -> None:
    said: list[str] = []
    (folder / "trial.json").unlink()
    (folder / ".draft").mkdir()
    (folder / ".draft" / "effects.parquet").touch()
    again(folder, said)
    assert not said
    assert not (folder / ".draft").exists()
    assert list(Trial(folder).effects["reason"]) == ["made anew"]


def test_a_trial_that_is_open_reads_the_tables_of_a_later_run(folder: Path) -> None:
    trial = Trial(folder)
    assert trial.record["name"] == "synthetic"
    again(folder, [])
    assert list(trial.effects["reason"]) == ["made anew"]


KILLED = """
import os, signal, sys
from pathlib import Path
from sae_placebo.core.store import Store
from sae_placebo.core.tables import SCHEMAS
from sae_placebo.trial import publishing
from sae_placebo.trial.publishing import publish

publishing.write_table = lambda path, table: path.write_text(table.attrs["run"])
left = -1

def tables(run):
    made = {name: SCHEMAS[name].empty() for name in ("effects", "latents")}
    for table in made.values():
        table.attrs["run"] = run
    return made

def count(event, _):
    global left
    if left >= 0 and event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
for n in range(200):
    store = Store(Path(sys.argv[1]) / str(n))
    folder = store.root / "trials" / "synthetic"
    publish(store, folder, tables("old"), {"name": "old"})
    child = os.fork()
    if child == 0:
        left = n
        publish(store, folder, tables("new"), {"name": "new"})
        left = -1
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
print(n)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_at_every_step_tables_of_two_runs_never_pass_for_one_result(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    n_killed, met = int(done.stdout), set()
    for n in range(n_killed + 1):
        folder = tmp_path / str(n) / "trials" / "synthetic"
        if (folder / "trial.json").exists():
            record = read_record(folder)
            names = ("effects", "latents")
            texts = {check_table(folder, name, record).read_text() for name in names}
            assert texts == {record["name"]}
            met.add(record["name"])
        else:
            met.add("none")
    assert met == {"old", "none", "new"}
