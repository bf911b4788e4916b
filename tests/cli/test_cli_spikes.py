"""The command `spikes` before a trial has run: what is wrong is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import trial_table, write_toml
from sae_placebo.cli import main as cli


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "is not finished in"),
        (("--arm", "redrw"), "no arm of this trial is called 'redrw'. Did you mean 'redraw'?"),
        (("--sae", "x"), "no SAE of this trial is called 'x'"),
        (("--hookpoint", "resid_post.0"), "no hookpoint of this trial is called 'resid_post.0'"),
        (("--kinds", "topk"), "kinds is of pairs: give composed (--composed)"),
    ],
)
def test_what_is_wrong_is_one_line(
    tiny_model: Path,
    tiny_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    says: str,
) -> None:
    trial = write_toml(tmp_path / "trial.toml", trial_table(tiny_model, tiny_text))
    arguments = ["sae-placebo", "spikes", str(trial), "--store", str(tmp_path / "runs"), *options]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert not (tmp_path / "runs").exists()
