"""The pages on use and worlds say what the package does: their example runs, their defaults are those."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sae_placebo.causal.use.rule import REASONS
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.lab.worlds import PRESETS, PROGRAMS
from sae_placebo.lab.worlds.saving import KINDS

CONCEPTS = Path(__file__).parents[2] / "docs" / "concepts"


def page(name: str) -> str:
    return (CONCEPTS / name).read_text(encoding="utf-8")


def test_the_example_runs_and_shows_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", page("worlds.md"), flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "worlds.md", "exec"), names)
    uses, passes = names["uses"].name, names["passes"].name
    assert names["statistic"][uses] == names["statistic"][passes]
    assert names["statistic"][uses] > 0
    assert names["known"][uses].share_interval[0] > names["known"][passes].share_interval[1]
    assert capsys.readouterr().out.count("of a full swap") == 2


def test_defaults_are_those_of_the_settings() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| ([0-9.]+) \|", page("use.md"), flags=re.MULTILINE)
    assert len(rows) > 8
    for name, said in rows:
        value: Any = UseSpec()
        for part in name.split("."):
            value = getattr(value, part)
        assert value == float(said), name


def test_every_reason_is_explained() -> None:
    text = page("use.md")
    for reason in REASONS:
        assert f"| {reason.partition(': ')[0]} |" in text, reason


def test_kinds_presets_and_programs_are_named() -> None:
    text = page("worlds.md")
    for name in (*PRESETS, *PROGRAMS):
        assert f"`{name}`" in text, name
    for kind in KINDS:
        assert f"sae-placebo world build {kind} " in text, kind
