"""A model that cannot be loaded for its name, or for want of a file, is refused before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_placebo.controls.model.revision import Revision
from sae_placebo.core.errors import ModelError
from sae_placebo.models.loading import load_model, load_tokenizer
from sae_placebo.models.specs import ModelSpec, check_folder


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "model")


def as_parts(folder: Path, index: bool) -> None:
    """Part a model's weights in two files, with or without the index that joins them."""
    from safetensors.torch import load_file, save_file

    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    whole.unlink()
    if index:
        told = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(told))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 300, "is too long"),
        ("a\0b", "NUL character"),
        ("bad\udcff", "is not UTF-8"),
    ],
)
def test_what_is_no_name_of_a_model_is_said(
    load: Callable[[Any], Any], name: Any, said: str
) -> None:
    with pytest.raises(ModelError, match=said) as refusal:
        load(name)
    assert "\0" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_a_folder_that_is_not_utf8_is_at_fault_and_none_of_its_files(folder: Path) -> None:
    bad = folder.rename(folder.with_name("model\udcff"))
    for ask in (load_model, load_tokenizer, lambda name: check_folder(ModelSpec(id=str(name)))):
        with pytest.raises(ModelError, match=r"is not UTF-8.*: rename it") as refusal:
            ask(bad)
        assert "config.json" not in str(refusal.value)


@pytest.mark.parametrize("revision", ["x" * 300, "a\0b"])
def test_a_revision_that_no_folder_is_called_is_not_there(folder: Path, revision: Any) -> None:
    with pytest.raises(ModelError, match="has no revision"):
        load_model(folder, revision)


def test_parts_of_weights_are_loaded_with_their_index_and_missed_without(folder: Path) -> None:
    as_parts(folder, index=True)
    check_folder(ModelSpec(id=str(folder)))
    assert load_model(folder)
    (folder / "model.safetensors.index.json").unlink()
    spec = ModelSpec(id=str(folder))
    revision = Revision(source=str(folder))
    for ask in (
        lambda: check_folder(spec),
        lambda: load_model(folder),
        lambda: revision.check_source(spec),
    ):
        with pytest.raises(ModelError, match=r"2 parts .* no model\.safetensors\.index\.json"):
            ask()


def test_an_index_may_name_no_file_that_no_system_has(folder: Path) -> None:
    as_parts(folder, index=True)
    index = folder / "model.safetensors.index.json"
    for name in ("x" * 300, "a\0b"):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(ModelError, match="which is not there; fetch the model again"):
            check_folder(ModelSpec(id=str(folder)))


def test_weights_under_another_name_are_named_at_once(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(ModelError, match=r"holds weights\.safetensors.*; rename the file"):
        check_folder(ModelSpec(id=str(folder)))


def test_no_weights_and_no_tokenizer_are_said_at_once(folder: Path) -> None:
    spec = ModelSpec(id=str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="a model but no tokenizer"):
        check_folder(spec)
    (folder / "model.safetensors").rename(folder / "model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        check_folder(spec)
