"""What the README shows is run: its Python, its quick commands; the options of long commands are known."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from conftest import trial_table, write_toml
from sae_placebo.cli.main import app

README = Path(__file__).parents[2] / "README.md"
QUICK = ("init", "check", "plan", "status", "power")


def blocks(language: str) -> list[str]:
    """Return the README's blocks of code in one language."""
    parts = README.read_text(encoding="utf-8").split("```")[1::2]
    return [part.partition("\n")[2] for part in parts if part.partition("\n")[0] == language]


def commands() -> list[list[str]]:
    """Return the arguments of every `sae-placebo` line, without its comment."""
    lines = "\n".join(blocks("")).splitlines()
    ours = [line for line in lines if line.startswith("sae-placebo ")]
    return [shlex.split(line, comments=True)[1:] for line in ours]


@pytest.fixture
def folder(
    tiny_model: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder as the README's reader stands in, but that its demo is small."""
    table: dict[str, Any] = trial_table(tiny_model, tiny_text, name="demo", model_seeds=[0])
    table |= {"use": {"arms": []}, "audit": {"arms": []}}
    (tmp_path / "examples").mkdir()
    write_toml(tmp_path / "examples" / "demo.toml", table)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_runs_and_names_what_is_there(folder: Path) -> None:
    (code,) = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(code, str(README), "exec"), names)
    trial = names["trial"]
    assert {"effect", "low", "high", "null", "unit", "aa_effect"} <= set(trial.effects)
    assert {"class", "origin", "evidence", "has_placebo_partner", "r2_window"} <= set(trial.latents)
    assert trial.report.is_file()


def test_quick_commands_run(folder: Path) -> None:
    runner = CliRunner()
    ran = []
    for arguments in commands():
        if arguments[0] in QUICK:
            done = runner.invoke(app, arguments)
            assert done.exit_code == 0, (arguments, done.output)
            ran.append(arguments[0])
            if arguments[0] == "init":  # a template of the demo's size: go on with a small one
                (folder / arguments[1]).write_text((folder / "examples" / "demo.toml").read_text())
    assert set(ran) == set(QUICK)


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_and_option_is_known(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, [*arguments, "--help"])
    assert done.exit_code == 0, done.output
    unknown = CliRunner().invoke(app, [*arguments, "--no-such-option", "--help"])
    assert unknown.exit_code != 0
