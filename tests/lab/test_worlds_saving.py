"""Worlds come back from their folders with the same bits, of all three kinds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from command_line import call
from sae_placebo.core.errors import SpecError, StoreError
from sae_placebo.lab.worlds import PRESETS, World, factored, truth
from sae_placebo.lab.worlds.saving import load_world, save_world, write_worlds

QUICK = PRESETS["small"].model_copy(
    update={"steps": 3, "margin_nats": 99.0, "train_rows": 64, "duplicates": True}
)


def same(one: Any, other: Any) -> bool:
    """Whether two values of a world are equal to the bit, models aside."""
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and np.array_equal(one, other))
    if isinstance(one, torch.Tensor):
        return bool(one.dtype == other.dtype and torch.equal(one, other))
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return type(one) is type(other) and all(
            name == "model" or same(getattr(one, name), getattr(other, name)) for name in names
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(type(one) is type(other) and one == other)


def check_same(one: World, other: World) -> None:
    for field in dataclasses.fields(one):
        if field.name != "model":
            assert same(getattr(one, field.name), getattr(other, field.name)), field.name
    ids = torch.from_numpy(one.rows[:8])
    with torch.no_grad():
        assert torch.equal(one.model(input_ids=ids).logits, other.model(input_ids=ids).logits)
    assert not other.model.training
    assert not any(p.requires_grad for p in other.model.parameters())
    assert [n for n, _ in one.model.named_modules()] == [n for n, _ in other.model.named_modules()]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    world = factored(QUICK, seed=2)
    folder = tmp_path_factory.mktemp("worlds") / "factored"
    save_world(world, folder)
    return world, folder


def test_a_factored_world_comes_back(saved: tuple[World, Path]) -> None:
    world, folder = saved
    found = load_world(folder)
    check_same(world, found)
    assert found.variable("c").active is not None
    assert found.variable("a").active is None
    assert truth(found, "resid_pre.0", "a") == truth(world, "resid_pre.0", "a")


def test_its_model_is_an_ordinary_one(saved: tuple[World, Path]) -> None:
    from sae_placebo.models.loading import load_model

    world, folder = saved
    model = load_model(folder / "model")
    for a, b in zip(world.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not list(folder.rglob("*.bin"))


def test_a_compiled_world_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("tracr")
    pytest.importorskip("jax").config.update("jax_disable_most_optimizations", True)
    from sae_placebo.lab.worlds.compiled import CompiledWorld, compiled
    from sae_placebo.lab.worlds.resampling import variable_truth

    world = compiled("pattern", 3, n_rows=64)
    save_world(world, tmp_path / "world")
    before = torch.random.get_rng_state()
    found = load_world(tmp_path / "world")
    assert torch.equal(before, torch.random.get_rng_state())
    assert isinstance(found, CompiledWorld)
    check_same(world, found)
    at = ("resid_post.0", "is_a")
    assert variable_truth(found, *at, n=64) == variable_truth(world, *at, n=64)
    # an ordinary loader would give it norms, and must not find it
    assert not (tmp_path / "world" / "model" / "config.json").exists()


def test_twins_are_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS._entries, "quick", QUICK)
    folders = write_worlds("twins", tmp_path / "pair", 5, preset="quick")
    assert [f.name for f in folders] == ["uses", "passes"]
    uses, passes = (load_world(f) for f in folders)
    assert (uses.variable("b").role, passes.variable("b").role) == ("used", "passenger")
    assert np.array_equal(uses.rows, passes.rows)
    with pytest.raises(StoreError, match="twins are in uses and passes inside"):
        load_world(tmp_path / "pair")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("factor",), "no kind of world is called 'factor'. Did you mean 'factored'?"),
        (("compiled",), "needs --program: one of fraction, "),
        (("compiled", "--program", "repeats"), "Did you mean 'repeat'?"),
        (("compiled", "--program", "repeat", "--preset", "small"), "leave out --preset"),
        (("twins", "--program", "repeat"), "leave out --program"),
        (("factored", "--seed", "-1"), "the seed is -1: give a whole number from 0 to"),
        (("twins", "--seed", "9" * 23), f"the seed is {'9' * 23}: give a whole number"),
        (("factored", "--preset", ""), "no preset of factored worlds and twins is called ''"),
        (("twins", "--preset", ""), "no preset of factored worlds and twins is called ''"),
        (
            ("factored", "--preset", "tiny"),
            "no preset of factored worlds and twins is called 'tiny'",
        ),
    ],
)
def test_what_cannot_be_built_is_said_at_once(
    arguments: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "world", *arguments, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_the_command_builds_writes_and_never_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS._entries, "quick", QUICK)
    out = tmp_path / "world"
    arguments = ("world", "factored", "--seed", 2, "--preset", "quick", "--out", out)
    assert call(monkeypatch, *arguments) == 0
    said = capsys.readouterr()
    assert said.out == f"world: {out}\n"
    assert "build factored quick, seed 2: 3 steps in" in said.err
    check_same(factored(QUICK, seed=2), load_world(out))
    assert call(monkeypatch, *arguments) == 1
    assert "is not empty; give another folder or remove it" in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("")
    assert call(monkeypatch, *arguments[:-1], file) == 1
    assert "is a file" in capsys.readouterr().err
    # the same by its full name
    assert call(monkeypatch, "world", "build", *arguments[1:]) == 1
    assert "is not empty" in capsys.readouterr().err


def test_what_is_no_world_is_said(saved: tuple[World, Path], tmp_path: Path) -> None:
    import shutil

    with pytest.raises(StoreError, match=r"holds no world \(world.json is missing\)$"):
        load_world(tmp_path)
    _, folder = saved
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    facts = json.loads((copy / "world.json").read_text())
    (copy / "world.json").write_text(json.dumps(facts | {"format": 9}))
    with pytest.raises(StoreError, match="has format 9, and 1 is read"):
        load_world(copy)
    (copy / "world.json").write_text(json.dumps(facts))
    (copy / "world.safetensors").write_bytes(b"short")
    with pytest.raises(StoreError, match="is damaged"):
        load_world(copy)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "bad\udcff"])
def test_what_is_no_folder_is_said_before_a_world_is_built(
    name: str, saved: tuple[World, Path]
) -> None:
    for ask in (
        lambda: write_worlds("twins", Path(name), 0),
        lambda: save_world(saved[0], Path(name)),
        lambda: load_world(name),
    ):
        with pytest.raises(StoreError, match=r"is too long|NUL character|not UTF-8"):
            ask()


def test_unknown_kinds_are_refused_without_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no kind of world"):
        write_worlds("twin", tmp_path, 0)
