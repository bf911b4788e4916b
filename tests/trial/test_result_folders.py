from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sae_placebo as sp
from conftest import trial_table, write_toml
from sae_placebo.cli.main import main
from sae_placebo.core.errors import StoreError
from sae_placebo.trial.result_folders import in_the_way, not_yet, store_folder, written_beside
from sae_placebo.trial.spec import TrialSpec, load_trial


@pytest.fixture
def table(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    return trial_table(tiny_model, tiny_text)


def left_by(spec: TrialSpec, store: Path) -> Path:
    """Write results as a finished trial leaves them; return their folder."""
    folder = store / "trials" / spec.name
    folder.mkdir(parents=True)
    (folder / "trial.json").write_text(json.dumps({"spec": spec.model_dump(mode="json")}))
    (folder / "effects.parquet").write_text(str(spec.use.latents))
    return folder


def test_results_of_other_settings_stop_a_trial_before_any_work(
    table: dict[str, Any], tmp_path: Path
) -> None:
    left_by(load_trial(table), tmp_path)
    changes = [
        "saes.topk.k=8",
        "seed=3",
        "use.latents=9",
        'arms.more.data="markov"',
        "sae_seeds=[5]",
    ]
    with pytest.raises(StoreError) as refusal:
        sp.run(table, tmp_path, overrides=changes)
    said = str(refusal.value)
    assert "seed was 0, now 3; arms.more is new; saes.topk.k was 4, now 8; and 2 more" in said
    assert "give this trial another name, or --replace (replace=True)" in said
    assert [path.name for path in tmp_path.iterdir()] == ["trials"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('arms.redraw.control="permute"', 'arms.redraw.control.kind was "redraw", now "permute"'),
        ('arms.redraw.data="markov"', 'arms.redraw.data was not given, now {"kind":"markov"}'),
        ('use.arms=["trained"]', 'use.arms was not given, now ["trained"]'),
        ('saes={other={kind="topk", d_sae=64, k=4}}', "saes.topk is gone; saes.other is new"),
    ],
)
def test_what_differs_is_named(
    table: dict[str, Any], tmp_path: Path, change: str, words: str
) -> None:
    left_by(load_trial(table), tmp_path)
    taken = in_the_way(tmp_path / "trials" / "tiny", load_trial(table, overrides=[change]))
    assert taken is not None
    assert words in taken


def test_a_report_without_results_says_what_is_there_and_the_whole_command(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    trial_path = write_toml(tmp_path / "trial.toml", table)
    store, change = tmp_path / "a store", "saes.topk.k=8"
    rest = f"'{store}' --set {change}`"

    def said() -> str:
        arguments = ["report", str(trial_path), "--store", str(store), "--set", change]
        monkeypatch.setattr("sys.argv", ["sae-placebo", *arguments])
        with pytest.raises(SystemExit):
            main()
        return str(capsys.readouterr().err)

    none = said()
    assert " of its stages are left; `sae-placebo run" in none
    assert f"{rest} finishes them" in none
    folder = left_by(load_trial(trial_path), store)
    others = said()
    assert f"{rest} will refuse to make them" in others
    assert "with other settings (saes.topk.k was 4, now 8)" in others
    (folder / "trial.json").unlink()
    spec = load_trial(trial_path)
    assert not_yet(folder, spec, 0, "it") == (
        f"trial 'tiny' has no results of these settings yet: all of its stages are done, but "
        f"'{folder / 'trial.json'}' is missing; `it` makes tables and report anew from them"
    )


def test_the_same_settings_another_name_or_another_version_are_not_in_the_way(
    table: dict[str, Any], tmp_path: Path
) -> None:
    folder = left_by(load_trial(table), tmp_path)
    assert in_the_way(folder, load_trial(table)) is None
    other = load_trial(table, overrides=["seed=3", 'name="two"'])
    assert in_the_way(tmp_path / "trials" / "two", other) is None
    record = json.loads((folder / "trial.json").read_text())
    del record["spec"]["audit"]["draws"]  # a setting that an earlier version did not have
    record["spec"]["text"]["gone_since"] = 3
    (folder / "trial.json").write_text(json.dumps(record))
    assert in_the_way(folder, load_trial(table)) is None
    other = load_trial(table, overrides=["seed=3"])
    assert "seed was 0" in str(in_the_way(folder, other))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"spec": 3}'])
def test_a_record_that_cannot_be_read_is_not_in_the_way(
    table: dict[str, Any], tmp_path: Path, content: str
) -> None:
    (left_by(load_trial(table), tmp_path) / "trial.json").write_text(content)
    assert in_the_way(tmp_path / "trials" / "tiny", load_trial(table, overrides=["seed=3"])) is None


def test_old_results_are_moved_aside_when_the_new_ones_are_complete(
    table: dict[str, Any], tmp_path: Path
) -> None:
    folder, told = left_by(load_trial(table), tmp_path), []

    def replace(n: int, fail: bool = False) -> None:
        spec = load_trial(table, overrides=[f"use.latents={n}"])
        with written_beside(folder, spec, told.append) as place:
            (place / "effects.parquet").write_text(str(n))
            (place / "trial.json").write_text(json.dumps({"spec": spec.model_dump(mode="json")}))
            if fail:
                raise StoreError("the disk is full")

    def shown(name: str) -> str:
        return (tmp_path / "trials" / name / "effects.parquet").read_text()

    with pytest.raises(StoreError, match="full"):
        replace(20, fail=True)
    assert shown("tiny") == "8"
    assert not told
    replace(21)
    replace(22)
    replace(22)  # the same settings: written where they were
    assert [shown(name) for name in ("tiny", "tiny.old-1", "tiny.old-2")] == ["22", "8", "21"]
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        "tiny",
        "tiny.old-1",
        "tiny.old-2",
    ]
    assert len(told) == 2
    assert "tiny.old-2" in told[1]


@pytest.mark.parametrize("name", ["", "  "])
def test_a_store_without_a_name_is_refused(table: dict[str, Any], name: str) -> None:
    with pytest.raises(StoreError, match="is empty"):
        sp.run(table, name)
    assert store_folder(".") == Path()


@pytest.mark.parametrize("replace", [False, True])
def test_a_name_that_differs_in_case_only_is_refused(
    table: dict[str, Any], tmp_path: Path, replace: bool
) -> None:
    left_by(load_trial(table, overrides=["name=Tiny"]), tmp_path)
    with pytest.raises(StoreError, match=r"called 'Tiny', .* 'tiny' in case only.*another name"):
        sp.run(table, tmp_path, replace=replace)
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["Tiny"]
    other = load_trial(table, overrides=["name=tiny-2"])
    assert in_the_way(tmp_path / "trials" / "tiny-2", other) is None
