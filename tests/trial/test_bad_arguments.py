"""Arguments of the public functions that cannot be meant are refused before any work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sae_placebo as sp
from conftest import trial_table, write_toml
from sae_placebo.core.errors import ModelError, SpecError, StoreError

NAMES = [
    ("x" * 300, "is too long"),
    ("a\0b", "NUL character"),
    ("bad\udcff", "is not UTF-8"),
]


@pytest.fixture
def table(tiny_model: Path, tiny_text: Path) -> dict[str, Any]:
    return trial_table(tiny_model, tiny_text)


@pytest.mark.parametrize(("name", "said"), NAMES)
def test_what_is_no_folder_is_said_by_all_that_take_one(
    table: dict[str, Any], name: Any, said: str
) -> None:
    for ask in (
        lambda: sp.run(table, name),
        lambda: sp.Trial(name).effects,
        lambda: sp.Trial(name).report,
        lambda: sp.build_report(name),
    ):
        with pytest.raises(StoreError, match=said) as refusal:
            ask()
        assert "\0" not in str(refusal.value)
        assert len(str(refusal.value)) < 300


def test_a_trial_files_name_is_shown_without_its_nul() -> None:
    with pytest.raises(SpecError, match=r"'a\\x00b' is no trial file"):
        sp.load_trial("a\0b")


WRONG_TYPES = """
import json, sys
import sae_placebo as sp

trial, store, model = sys.argv[1:]
asked = {
    "overrides": [lambda x=x: sp.load_trial(trial, overrides=x) for x in (None, 5, {"seed": 1}, b"seed=1")],
    "overrides of run": [lambda x=x: sp.run(trial, store, overrides=x) for x in (None, 5)],
    "store": [lambda x=x: sp.run(trial, x) for x in (None, 5, b"x", [])],
    "wait": [lambda x=x: sp.run(trial, store, wait_seconds=x) for x in ("1", None, True, -1, float("nan"))],
    "replace": [lambda: sp.run(trial, store, replace="no")],
    "progress": [lambda: sp.run(trial, store, progress=5)],
    "Trial": [lambda x=x: sp.Trial(x) for x in (None, 5, b"x")],
    "report": [lambda x=x: sp.build_report(x) for x in (None, 5, b"x")],
    "model": [lambda x=x: sp.load_model(x) for x in (None, 5, b"x")],
    "tokenizer": [lambda x=x: sp.load_tokenizer(x) for x in (None, 5, b"x")],
    "revision": [lambda: sp.load_model(model, 5)],
    "prompt": [lambda x=x: sp.Trial(store).graph(x) for x in (None, 5, b"x")],
    "settings of graph": [lambda: sp.Trial(store).graph("x", settings=5)],
    "arm of spikes": [lambda x=x: sp.spikes(trial, store, arm=x) for x in (5, [])],
    "sae of spikes": [lambda x=x: sp.spikes(trial, store, sae=x) for x in (5, [])],
    "hookpoint of spikes": [lambda x=x: sp.spikes(trial, store, hookpoint=x) for x in (5, [])],
}
said = {}
for name, calls in asked.items():
    for call in calls:
        try:
            call()
        except sp.PlaceboError as error:
            said.setdefault(name, []).append(str(error))
print(json.dumps(said))
"""


def test_values_of_a_wrong_type_are_refused_in_a_sentence(
    table: dict[str, Any], tmp_path: Path, tiny_model: Path
) -> None:
    """They are given in another process: in this one, the tests' own check of types would come first."""
    trial, store = write_toml(tmp_path / "trial.toml", table), tmp_path / "store"
    line = [sys.executable, "-c", WRONG_TYPES, str(trial), str(store), str(tiny_model)]
    found = subprocess.run(line, capture_output=True, text=True, check=False)
    assert not found.stderr
    said = json.loads(found.stdout)
    words = {
        "overrides": ("overrides is a list of settings", 4),
        "overrides of run": ("overrides is a list of settings", 2),
        "store": ("a path is a str or a pathlib.Path", 4),
        "wait": ("give 0 or more, as a number", 5),
        "replace": ("replace is True or False", 1),
        "progress": ("progress is a Progress or None", 1),
        "Trial": ("a path is a str or a pathlib.Path", 3),
        "report": ("a path is a str or a pathlib.Path", 3),
        "model": ("a path is a str or a pathlib.Path", 3),
        "tokenizer": ("a path is a str or a pathlib.Path", 3),
        "revision": ("has no revision 5", 1),
        "prompt": ("the prompt is text; found ", 3),
        "settings of graph": ("settings is a GraphSpec or None; found 5", 1),
        "arm of spikes": ("no arm of this trial is called", 2),
        "sae of spikes": ("no SAE of this trial is called", 2),
        "hookpoint of spikes": ("a hookpoint is named by text, such as 'resid_post.0'", 2),
    }
    assert list(said) == list(words)
    for name, (sentence, n) in words.items():
        assert len(said[name]) == n
        assert all(sentence in line and "\n" not in line for line in said[name])
    assert not store.exists()


def test_no_trial_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a folder; give that of a finished trial"):
        _ = sp.Trial(tmp_path / "nope").report
    with pytest.raises(StoreError, match=r"holds no trial\.json"):
        _ = sp.Trial(tmp_path).report


def test_a_model_in_parts_without_an_index_stops_a_run_before_it_reads_text(
    table: dict[str, Any], tmp_path: Path, tiny_model: Path
) -> None:
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    table["model"] = {"id": str(folder)}
    with pytest.raises(ModelError, match=r"no model\.safetensors\.index\.json"):
        sp.run(table, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("place", ["hookpoints", "use.hookpoints", "audit.hookpoints"])
def test_a_hookpoint_of_thousands_of_letters_is_cut(table: dict[str, Any], place: str) -> None:
    for value in (f'"{"h" * 5_000}"', f'["{"h" * 5_000}"]', f'["resid_post.{"9" * 5_000}"]'):
        with pytest.raises(SpecError, match="hookpoint") as refusal:
            sp.load_trial(table, overrides=[f"{place}={value}"])
        assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    "override",
    [
        "h" * 5_000,
        f"{'h' * 5_000}=1",
        f"a..{'h' * 5_000}=1",
        f"seed=[{'h' * 5_000}",
        f'arms.redraw.keep="{"h" * 5_000}"',
    ],
)
def test_an_override_of_thousands_of_letters_is_cut(table: dict[str, Any], override: str) -> None:
    with pytest.raises(SpecError, match="hhhh") as refusal:
        sp.load_trial(table, overrides=[override])
    assert len(str(refusal.value)) < 600
