"""The section on the validity of headlines: what was measured is read from files, all else is said in red."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from sae_placebo.report import Tables, read_tables
from sae_placebo.report.build import render_section
from sae_placebo.report.sections import SECTIONS, View, calibrated, validity
from synthetic_trial import Settings, write_trial

MEASURED = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 41, "of": "plants", "command": "measure"}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = write_trial(tmp_path_factory.mktemp("validity") / "trial", Settings(latents=40))
    return read_tables(folder)


def shown(tables: Tables, kept: dict[str, Any], folder: Path, monkeypatch: Any) -> dict[str, Any]:
    path = folder / "validity.json"
    path.write_text(json.dumps(kept), encoding="utf-8")
    monkeypatch.setattr(validity, "FILE", path)
    monkeypatch.setattr(calibrated, "FILE", folder / "none.json")
    values = SECTIONS["validity"].build(View.of(tables)).values
    return dict(values) | {"row": {row["title"]: row for row in values["rows"]}}


def test_what_is_in_the_file_is_shown_and_what_is_not_is_said_in_red(
    tables: Tables, tmp_path: Path, monkeypatch: Any
) -> None:
    found = shown(tables, {"tied": {"power": MEASURED}}, tmp_path, monkeypatch)
    aa, coverage, power = found["row"]["Tied to circuitry"]["cells"]
    assert (aa["estimate"], coverage["estimate"]) == (None, None)
    assert power["estimate"].value == "50.0%"
    assert power["estimate"].interval == "[25.0%, 75.0%]"
    assert power["estimate"].n == "41"
    assert found["partly"] == ["Tied to circuitry"]
    assert "Used" in found["untested"]
    text = render_section(SECTIONS["validity"], View.of(tables))
    assert '<p class="alarm">Validity not measured: ' in text
    assert text.count('<span class="alarm">not measured</span>') == 3 * len(found["rows"]) - 1


def test_a_test_that_was_measured_to_fail_is_an_alarm(
    tables: Tables, tmp_path: Path, monkeypatch: Any
) -> None:
    kept = {"tied": {"aa": MEASURED, "coverage": MEASURED, "power": MEASURED}}
    found = shown(tables, kept, tmp_path, monkeypatch)
    row = found["row"]["Tied to circuitry"]
    assert [cell["alarm"] for cell in row["cells"]] == [True, True, False]
    assert not row["lacks"]
    fine = {"aa": MEASURED | {"low": 0.02}, "coverage": MEASURED | {"high": 0.96}}
    found = shown(tables, {"tied": fine}, tmp_path, monkeypatch)
    cells = found["row"]["Tied to circuitry"]["cells"]
    assert [cell["alarm"] for cell in cells] == [False, False, True]


def test_the_trials_own_a_a_is_counted_and_headlines_it_lacks_are_left_out(
    tables: Tables, tmp_path: Path, monkeypatch: Any
) -> None:
    found = shown(tables, {}, tmp_path, monkeypatch)
    aa = tables.ties[(tables.ties["comparison"] == "aa") & (tables.ties["measure"] == "tied")]
    assert found["row"]["Tied to circuitry"]["own"] == f"0 of {len(aa)}"
    none = {name: getattr(tables, name).iloc[:0] for name in ("ties", "use")}
    fewer = shown(dataclasses.replace(tables, **none), {}, tmp_path, monkeypatch)
    assert not {"Used", "Not used", "Tied to circuitry"} & set(fewer["row"])


def test_every_shipped_measurement_is_of_a_headline_and_has_its_n() -> None:
    kept = json.loads(validity.FILE.read_text(encoding="utf-8"))
    assert set(kept) <= set(validity.HEADLINES)
    for kinds in kept.values():
        assert set(kinds) <= set(validity.KINDS)
        for one in kinds.values():
            assert one["n"] > 0
            assert one["low"] <= one["value"] <= one["high"]
            assert one["command"].startswith("python benchmarks/")
