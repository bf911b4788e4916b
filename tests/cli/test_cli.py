from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from command_line import call
from conftest import trial_table, write_toml
from sae_placebo.trial.estimates import estimate
from sae_placebo.trial.plan import plan_steps
from sae_placebo.trial.results import Trial
from sae_placebo.trial.spec import load_trial


@pytest.fixture
def trial(tiny_model: Path, tiny_text: Path, tmp_path: Path) -> Path:
    table = trial_table(tiny_model, tiny_text, model_seeds=[0], sae_seeds=[0])
    del table["arms"]["redraw_keep_embeddings"]
    return write_toml(tmp_path / "trial.toml", table)


WITHIN = ("audit meta_sae", "audit hedging", "check what is there")
# how many groups and candidates there are, a plan cannot know; a small trial has none
PERHAPS = ("ablate, groups", "hold against null directions, groups", "ablate at uniform firings")


def assert_planned(trial: Path, said: str) -> None:
    """Every piece of work that a run has shown was in its plan, and every piece of the plan was shown."""
    plan = plan_steps(load_trial(trial))
    pieces = [piece.label for piece in estimate(plan, lambda step: True, None)]
    shown = re.findall(r"^(.+): [\d,]+ \S.* in [\d.]+ s", said, re.MULTILINE)
    unplanned = [label for label in shown if not label.startswith((*pieces, *WITHIN))]
    assert not unplanned
    sure = [label for label in pieces if not label.startswith(PERHAPS)]
    assert not [label for label in sure if not any(one.startswith(label) for one in shown)]
    # the rest of the trial is shown beside each
    assert said.count("; whole trial ") >= len(sure)


def test_from_init_to_report(
    trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    assert call(monkeypatch, "status", trial, "--store", store) == 0
    assert "0/2" in capsys.readouterr().out
    assert call(monkeypatch, "report", trial, "--store", store) == 1
    assert "has no results of these settings yet" in capsys.readouterr().err
    assert call(monkeypatch, "plan", trial, "--store", store) == 0
    planned = capsys.readouterr().out
    assert "minutes are left" in planned
    assert "12,000" in planned  # two models x 6,000 training tokens
    assert call(monkeypatch, "run", trial, "--store", store) == 0
    done = capsys.readouterr()
    assert done.out.rstrip().endswith("index.html")
    assert "train redraw-0: 6,000 tokens in" in done.err
    assert_planned(trial, done.err)
    assert call(monkeypatch, "status", trial, "--store", store) == 0
    said = capsys.readouterr().out
    assert "every stage is done" in said
    assert f"results: in '{store / 'trials' / 'tiny'}'." in said
    assert call(monkeypatch, "report", trial, "--store", store, "--set", "saes.topk.k=8") == 1
    assert "no results of these settings" in capsys.readouterr().err
    other = ("--store", store, "--set", 'contrasts=[["redraw", "trained"]]')
    assert call(monkeypatch, "run", trial, *other) == 1
    refused = capsys.readouterr().err
    assert 'contrasts was [], now [["redraw","trained"]]' in refused
    assert "another name, or --replace" in refused
    assert call(monkeypatch, "plan", trial, *other) == 0
    assert "`run` will refuse this" in capsys.readouterr().out
    assert call(monkeypatch, "run", trial, *other, "--replace") == 0
    assert "are in" in capsys.readouterr().err
    assert call(monkeypatch, "report", trial, *other) == 0
    assert call(monkeypatch, "run", trial, "--store", store, "--replace") == 0
    kept = [Trial(store / "trials" / f"tiny.old-{n}") for n in (1, 2)]
    assert [one.record["spec"]["contrasts"] for one in kept] == [[], [["redraw", "trained"]]]
    assert all(one.report.is_file() and len(one.effects) for one in kept)
    page = store / "trials" / "tiny" / "report" / "index.html"
    before = page.read_bytes()
    page.unlink()
    assert call(monkeypatch, "report", trial, "--store", store) == 0
    assert page.read_bytes() == before
    capsys.readouterr()
    folder = page.parents[1]
    for name, said in (
        ("effects.parquet", "effects.parquet' is not what the trial wrote"),
        ("trial.json", "trial.json' is damaged (it is not JSON"),
    ):
        (folder / name).write_bytes(b"{")
        assert call(monkeypatch, "status", trial, "--store", store) == 0
        assert said in capsys.readouterr().out.splitlines()[-1]
        assert call(monkeypatch, "report", trial, "--store", store) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert page.read_bytes() == before


def test_init_writes_a_file_that_check_accepts_and_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new.toml"
    assert call(monkeypatch, "init", path) == 0
    assert call(monkeypatch, "check", path, "--set", "saes.topk.k=16") == 0
    assert '"k": 16' in capsys.readouterr().out
    assert call(monkeypatch, "init", path) == 1
    assert "exists already" in capsys.readouterr().err


def test_mistakes_are_one_sentence_and_a_traceback_only_on_request(
    trial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ("check", trial, "--set", 'arms.redraw.control="redaw"')
    assert call(monkeypatch, *wrong) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    with pytest.raises(ValueError, match="redaw"):
        call(monkeypatch, "--debug", *wrong)


def test_no_name_breaks_the_line_or_steers_the_terminal(
    trial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = r'model.id="a\n\u001b[31m\u202eb/c"'
    assert call(monkeypatch, "check", trial, "--set", name) == 1
    said = capsys.readouterr().err
    assert said.endswith("\n")
    assert said[:-1].isprintable()


@pytest.mark.parametrize("verb", ["check", "plan", "status", "run"])
def test_what_no_memory_holds_is_refused_by_every_verb(
    verb: str,
    trial: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = tmp_path / "store"
    settings = ("--store", store, "--set", "saes.topk.d_sae=1_000_000_000_000")
    assert call(monkeypatch, verb, trial, *settings) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: saes.topk.d_sae is 1,000,000,000,000: the 1 SAE")
    assert said.count("\n") == 1
    assert not store.exists()


@pytest.mark.parametrize("verb", ["check", "plan", "status", "run", "report"])
@pytest.mark.parametrize("name", ["", " "])
def test_a_store_without_a_name_is_refused(
    verb: str,
    name: str,
    trial: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, verb, trial, "--store", name) == 1
    assert "the name of the folder is empty" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check", "plan", "status", "run", "report"])
@pytest.mark.parametrize(
    ("name", "said"),
    [("x" * 300, "is too long"), ("bad\udcff", "is not UTF-8"), ("a\0b", "NUL character")],
)
def test_a_store_that_cannot_be_called_so_is_refused(
    verb: str,
    name: str,
    said: str,
    trial: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, verb, trial, "--store", name) == 1
    assert said in capsys.readouterr().err


def test_check_refuses_a_store_and_a_model_that_run_refuses(
    trial: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "check", trial, "--store", tmp_path / "new") == 0
    assert not (tmp_path / "new").exists()
    for verb in ("check", "run"):
        assert call(monkeypatch, verb, trial, "--store", trial) == 1
        assert "is not a folder; choose another --store" in capsys.readouterr().err
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    for verb in ("check", "run"):
        line = (trial, "--store", tmp_path / "new", "--set", f"model.id={folder}")
        assert call(monkeypatch, verb, *line) == 1
        assert "no model.safetensors.index.json" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "line",
    [
        ("world", "twins", "--out", ""),
        ("world", "build", "twins", "--out", ""),
        ("world", "score", "mine:energy", "--kind", "factored", "--out", ""),
        ("toy", "compose", "--out", ""),
        ("toy", "explain", "tree", "--out", ""),
        ("toy", "train", "tree", "--out", ""),
    ],
)
def test_no_folder_to_write_is_the_current_one_by_mistake(
    line: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *line) == 1
    assert "the name of the folder is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        ("toy", "train", "tree", "--steps", "0"),
        ("toy", "train", "tree", "--seeds", "0"),
        ("toy", "compose", "--out", "phase", "--workers", "-2"),
        ("run", "trial.toml", "--wait", "-1"),
        ("run", "trial.toml", "--wait", "nan"),
    ],
)
def test_a_number_that_an_option_cannot_mean_is_a_wrong_command_line(
    line: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *line) == 2
    said = capsys.readouterr().err
    assert f"Invalid value for '{line[-2]}'" in said
    assert "Traceback" not in said


def test_a_read_only_store_is_one_sentence(
    trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # a test may run as root, whom no mode stops
    assert call(monkeypatch, "run", trial, "--store", tmp_path / "store") == 1
    said = capsys.readouterr().err
    assert "cannot be written (Permission denied)" in said
    assert "Traceback" not in said


def test_an_interrupt_says_how_to_go_on(
    trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sae_placebo.trial.run.run", interrupt)
    assert call(monkeypatch, "run", trial, "--store", tmp_path / "store") == 130
    assert "run the same command again to go on" in capsys.readouterr().err


def test_check_says_what_is_not_looked_for_at_the_input_of_a_module(
    trial: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "check", trial, "--set", 'hookpoints=["resid_post.1"]') == 0
    assert "input of a module" not in capsys.readouterr().err
    assert call(monkeypatch, "check", trial, "--set", 'hookpoints=["z.1", "resid_post.1"]') == 0
    assert "note: z.1 is the input of a module" in capsys.readouterr().err
