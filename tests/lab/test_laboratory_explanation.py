"""The command that explains why SAEs miss the truth: what it says, writes, keeps and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from command_line import call
from sae_placebo.core.progress import LineProgress
from sae_placebo.lab.experiments.base import LabTraining
from sae_placebo.lab.experiments.explanation import explain, in_lines
from sae_placebo.lab.experiments.objectives import SplitSpec
from sae_placebo.lab.experiments.sweeps import generator_of
from sae_placebo.saes import TopKSpec

MADE = generator_of("composed_sets", {"items": 2, "correlation": 1.0})
SPEC, LAB, SPLIT = TopKSpec(d_sae=4, k=2), LabTraining(steps=6, bias="none"), SplitSpec(tokens=256)


def explained(folder: Path | None, **others: Any) -> Any:
    return explain(MADE, SPEC, LAB, (0, 1), SPLIT, folder=folder, **others)


class StopAfter(LineProgress):
    """Stops the work at a number of tokens, as Ctrl-C does."""

    def __init__(self, most: int) -> None:
        super().__init__(watched=False)
        self.left, self.totals = most, [0]

    def track(self, label: str, total: int, unit: str = "tokens", before: int = 0) -> Any:
        import contextlib

        self.totals.append(total)

        def advance(n: int) -> None:
            self.left -= n
            if self.left <= 0:
                raise KeyboardInterrupt

        return contextlib.nullcontext(advance)


def test_a_stopped_explanation_goes_on_and_says_the_same(tmp_path: Path) -> None:
    whole = explained(None)
    with pytest.raises(KeyboardInterrupt):
        explained(tmp_path, progress=StopAfter(int(2.5 * LAB.n_tokens)))
    assert len(list((tmp_path / "runs").glob("*.safetensors"))) == 2
    again = StopAfter(10**9)
    resumed = explained(tmp_path, progress=again)
    # four runs, of which two are kept
    assert again.totals[1] == 2 * LAB.n_tokens
    assert resumed.table() == whole.table()
    table = pd.read_parquet(tmp_path / "explanation.parquet")
    assert list(table.columns) == ["what", "value", "low", "high", "n", "note"]
    assert len(table) == len(whole.table())
    written = json.loads((tmp_path / "explanation.json").read_text())
    assert (written["cause"], written["reason"]) == (whole.cause, whole.reason)
    assert written["generator"]["correlation"] == 1.0
    assert written["seeds"] == [0, 1]


def test_a_kept_file_that_is_damaged_is_trained_again(tmp_path: Path) -> None:
    whole = explained(tmp_path)
    broken = next((tmp_path / "runs").glob("true-*"))
    content = broken.read_bytes()
    broken.write_bytes(content[:50])
    assert explained(tmp_path).table() == whole.table()
    assert broken.read_bytes() == content


def test_the_text_has_objectives_gaps_and_the_cause() -> None:
    found = explained(None)
    text = in_lines(found)
    assert text.endswith(f"cause: {found.cause} ({found.reason})")
    for name in (*found.objectives, *found.gaps, *found.alternatives):
        assert name in text
    assert re.search(r"gap: amortization +\S+ +\S+ to \S+ +256", text)
    assert "J: random, seed 1" in text


def test_the_command_prints_writes_and_shows_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    small = ("--seeds", 1, "--steps", 3, "--tokens", 64, "--out", out)
    assert call(monkeypatch, "toy", "explain", "parent_child", *small) == 0
    said = capsys.readouterr()
    assert "\ncause: " in said.out
    assert f"table: {out / 'explanation.parquet'}" in said.out
    assert re.search(r"^train SAEs: .* in .*; whole \d+%, .*left$", said.err, re.MULTILINE)
    assert "best codes: " in said.err
    assert call(monkeypatch, "toy", "explain", "parent_child", "--sae", "relu") == 1
    assert "give `coefficient`" in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("")
    assert call(monkeypatch, "toy", "explain", "parent_child", "--steps", 1, "--out", file) == 1
    said_of_file = capsys.readouterr().err
    assert said_of_file.startswith(f"error: cannot write results to '{file}'")
    assert said_of_file.count("\n") == 1
