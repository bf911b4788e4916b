"""Files that are no SAE that is read: each is refused in one sentence that names what is wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_placebo.core.errors import StoreError
from sae_placebo.saes.formats import read_sae

HERE = Path(__file__).parent / "given"
SAELENS, SPARSIFY = "saelens/topk", "sparsify/topk/layers.2"
DICTIONARY = "dictionary_learning/batchtopk"
GEMMA = "gemma_scope/params"
WEIGHTS = {SAELENS: "sae_weights.safetensors", SPARSIFY: "sae.safetensors"}
ENCODER = {SAELENS: "W_enc", SPARSIFY: "encoder.weight"}


def copied(name: str, to: Path) -> Path:
    folder = to / Path(name).name
    shutil.copytree(HERE / name, folder)
    return folder


def said(path: Path) -> str:
    """Return the refusal of what lies at `path`: one sentence or two, on one line."""
    with pytest.raises(StoreError) as refusal:
        read_sae(path)
    text = str(refusal.value)
    assert "\n" not in text
    return text


def settings(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    table = json.loads(path.read_text())
    for key, value in changes.items():
        if value is ...:
            table.pop(key, None)
        else:
            table[key] = value
    path.write_text(json.dumps(table))


def change(path: Path, how: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors in a file, of whatever form."""
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        how(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    elif path.suffix == ".npz":
        arrays = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
        how(arrays)
        np.savez(path, **{name: array.numpy() for name, array in arrays.items()})
    else:
        table = torch.load(path, weights_only=True)
        how(table)
        torch.save(table, path)


PLACES = [
    (SAELENS, "sae_weights.safetensors", "W_enc", "W_dec"),
    (SPARSIFY, "sae.safetensors", "encoder.weight", "W_dec"),
    (DICTIONARY, "ae.pt", "encoder.weight", "decoder.weight"),
    (GEMMA, "params.npz", "W_enc", "W_dec"),
]
EVERY = pytest.mark.parametrize(("name", "file", "encoder", "decoder"), PLACES)


@EVERY
def test_missing_tensors(name: str, file: str, encoder: str, decoder: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    change(folder / file, lambda tensors: tensors.pop("b_dec"))
    assert "lacks b_dec" in said(folder)
    change(folder / file, lambda tensors: tensors.pop(decoder))
    assert decoder in said(folder) or "no SAE" in said(folder)


@EVERY
def test_wrong_shapes(name: str, file: str, encoder: str, decoder: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    change(folder / file, lambda tensors: tensors.update(b_dec=torch.zeros(7)))
    assert "b_dec is [7]" in said(folder)
    folder = copied(name, tmp_path / "flat")
    change(folder / file, lambda tensors: tensors.update({encoder: torch.zeros(9)}))
    assert f"{encoder} is [9]" in said(folder)
    folder = copied(name, tmp_path / "turned")
    turned = torch.zeros(48, 32) if name != SPARSIFY else torch.zeros(256, 48)
    turned = turned.t().contiguous() if name in (GEMMA, SAELENS) else turned
    change(folder / file, lambda tensors: tensors.update({decoder: turned}))
    assert "but its other tensors" in said(folder)


@EVERY
def test_nan_and_infinity(name: str, file: str, encoder: str, decoder: str, tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        folder = copied(name, tmp_path / str(value))

        def spoil(tensors: dict[str, Any], value: float = value) -> None:
            tensors[encoder][1, 2] = value

        change(folder / file, spoil)
        assert f"{encoder} holds NaN or infinite" in said(folder)


@EVERY
def test_files_that_are_cut_short(
    name: str, file: str, encoder: str, decoder: str, tmp_path: Path
) -> None:
    folder = copied(name, tmp_path)
    whole = (folder / file).read_bytes()
    for share in (0.3, 0.9):
        (folder / file).write_bytes(whole[: int(share * len(whole))])
        assert "cut short" in said(folder) or "damaged" in said(folder)
    (folder / file).write_bytes(b"")
    assert "is empty" in said(folder)
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in said(folder)


def test_a_truncated_array_inside_a_whole_archive(tmp_path: Path) -> None:
    import io
    import zipfile

    path = tmp_path / "params.npz"
    with np.load(HERE / GEMMA / "params.npz") as arrays, zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array)
            content = file.getvalue()
            archive.writestr(f"{name}.npy", content[:-40] if name == "W_dec" else content)
    assert "W_dec.npy is cut short" in said(path)


@pytest.mark.parametrize("name", [SAELENS, SPARSIFY])
def test_shards_are_joined_and_a_missing_one_is_named(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    weights = folder / WEIGHTS[name]
    tensors, stem = load_file(weights), weights.name.removesuffix(".safetensors")
    weights.unlink()
    shards = [f"{stem}-0000{index}-of-00002.safetensors" for index in (1, 2)]
    places = {tensor: shards[tensor == ENCODER[name]] for tensor in tensors}
    for shard in shards:
        save_file({t: tensors[t] for t, place in places.items() if place == shard}, folder / shard)
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    joined, whole = read_sae(folder).sae, read_sae(HERE / name).sae
    assert all(torch.equal(joined.params[key], whole.params[key]) for key in whole.params)
    (folder / shards[1]).unlink()
    assert f"names the shard {shards[1]}, which is not there" in said(folder)
    index.write_text(json.dumps({"weight_map": {"W_enc": "../outside.safetensors"}}))
    assert "outside of its folder" in said(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "transcoder"}, "architecture 'transcoder' is not read"),
        ({"architecture": "abstopk"}, "signed"),
        ({"architecture": ["topk"]}, "topk']"),
        ({"architecture": "mystery"}, "architecture is 'mystery'"),
        ({"normalize_activations": "by_moonlight"}, "normalize_activations is 'by_moonlight'"),
        ({"reshape_activations": "hook_q"}, "reshape_activations is 'hook_q'"),
        ({"apply_b_dec_to_input": "often"}, "apply_b_dec_to_input is 'often'"),
        ({"sign_flip": True}, "setting 'sign_flip'"),
        ({"k": 400}, "k is 400 but d_sae is 48"),
        ({"k": ...}, "sae.k"),
        ({"d_in": 31}, "d_in is 31"),
        ({"d_sae": 64}, "d_sae is 64"),
        ({"normalize_activations": "covariance_whitening"}, "activation_whitening.safetensors"),
    ],
)
def test_settings_of_saelens(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = copied(SAELENS, tmp_path)
    settings(folder, "cfg.json", **changes)
    assert words in said(folder)


def test_activation_functions_of_old_saelens(tmp_path: Path) -> None:
    folder = copied("saelens/v5-topk", tmp_path)
    settings(folder, "cfg.json", activation_fn_str="tanh-relu")
    assert "'tanh-relu' is not read" in said(folder)
    settings(folder, "cfg.json", activation_fn_str="topk", activation_fn_kwargs={})
    assert "k is not given" in said(folder)


@pytest.mark.parametrize("tensor", ["scaling_factor", "finetuning_scaling_factor"])
def test_a_scaling_factor_that_nothing_says_is_used(tensor: str, tmp_path: Path) -> None:
    folder = copied("saelens/v3-standard", tmp_path)
    factors = torch.linspace(0.5, 2.0, 48)
    change(folder / "sae_weights.safetensors", lambda t: t.update({tensor: factors}))
    assert "setting finetuning_scaling_factor" in said(folder)
    settings(folder, "cfg.json", finetuning_scaling_factor=True)
    scaled, plain = read_sae(folder).sae, read_sae(HERE / "saelens/v3-standard").sae
    torch.testing.assert_close(scaled.params["W_dec"], plain.params["W_dec"] * factors[:, None])
    assert torch.equal(scaled.params["W_enc"], plain.params["W_enc"])


def test_tensors_that_no_such_sae_has(tmp_path: Path) -> None:
    folder = copied(SAELENS, tmp_path)
    change(folder / "sae_weights.safetensors", lambda t: t.update(W_skip=torch.zeros(32, 32)))
    assert "W_skip" in said(folder)
    folder = copied(SPARSIFY, tmp_path / "sparsify")
    change(folder / "sae.safetensors", lambda t: t.update(W_skip=torch.zeros(256, 256)))
    assert "W_skip" in said(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation": "groupmax"}, "'groupmax' is not read"),
        ({"activation": "mystery"}, "'mystery' is not read"),
        ({"transcode": True}, "transcode is True"),
        ({"skip_connection": True}, "skip_connection is True"),
        ({"signed": True}, "signed is True"),
        ({"sign_flip": True}, "setting 'sign_flip'"),
        ({"num_latents": 64}, "give 64 latents"),
        ({"num_latents": 0, "expansion_factor": 2}, "give 512 latents"),
        ({"d_in": 255}, "d_in is 255"),
        ({"k": 400}, "k is 400 but d_sae is 48"),
    ],
)
def test_settings_of_sparsify(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = copied(SPARSIFY, tmp_path)
    settings(folder, "cfg.json", **changes)
    assert words in said(folder)


def test_no_latents_mean_the_expansion_factor(tmp_path: Path) -> None:
    folder = copied(SPARSIFY, tmp_path)

    def wide(tensors: dict[str, Any]) -> None:
        for name in ("encoder.weight", "W_dec"):
            tensors[name] = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
        tensors["encoder.bias"] = torch.zeros(512)

    change(folder / "sae.safetensors", wide)
    settings(folder, "cfg.json", num_latents=0, expansion_factor=2)
    assert read_sae(folder).d_sae == 512


def test_an_unset_threshold_of_dictionary_learning(tmp_path: Path) -> None:
    folder = copied(DICTIONARY, tmp_path)
    change(folder / "ae.pt", lambda tensors: tensors.update(threshold=torch.tensor(-1.0)))
    assert "threshold is -1, that is, unset" in said(folder)
    # TopK has one too, which its codes do not depend on
    folder = copied("dictionary_learning/topk", tmp_path)
    change(folder / "ae.pt", lambda tensors: tensors.update(threshold=torch.tensor(-1.0)))
    assert read_sae(folder).sae.spec.kind == "topk"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dict_class": ["BatchTopKSAE"]}, "is not read"),
        ({"dict_class": "MysteryDict"}, "'MysteryDict' is not read"),
        ({"dict_class": "CrossCoder"}, "several layers"),
        ({"dict_class": "GatedAutoEncoder"}, "lacks decoder_bias"),
        ({"k": 9}, "gives k 9"),
        ({"dict_size": 64}, "dict_size 64"),
    ],
)
def test_settings_of_dictionary_learning(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = copied(DICTIONARY, tmp_path)
    path = folder / "config.json"
    table = json.loads(path.read_text())
    table["trainer"] |= changes
    path.write_text(json.dumps(table))
    assert words in said(folder)


def test_a_class_that_two_could_be_needs_its_settings(tmp_path: Path) -> None:
    folder = copied(DICTIONARY, tmp_path)
    (folder / "config.json").unlink()
    text = said(folder / "ae.pt")
    assert "AutoEncoderTopK and BatchTopKSAE have these tensors" in text
    folder = copied("dictionary_learning/jumprelu", tmp_path)
    (folder / "config.json").unlink()
    assert read_sae(folder / "ae.pt").sae.spec.kind == "jumprelu"


def test_pairs_of_inputs_and_outputs_are_a_transcoders(tmp_path: Path) -> None:
    folder = copied(DICTIONARY, tmp_path)
    settings(folder, "config.json", buffer={"io": "in_and_out"})
    assert "transcoder" in said(folder)


def test_a_folder_that_holds_two_formats(tmp_path: Path) -> None:
    folder = copied(SAELENS, tmp_path)
    shutil.copy(HERE / SPARSIFY / "sae.safetensors", folder)
    text = said(folder)
    assert "more than one SAE" in text
    assert "sae.safetensors (sparsify)" in text
    assert "sae_weights.safetensors (SAELens 3 to 6)" in text
    assert read_sae(folder / "sae_weights.safetensors").format == "saelens"


class Surprise:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.pkl").write_bytes(pickle.dumps(Surprise(trap)))
    assert "model.pkl is not opened unasked" in said(folder)
    assert "Pickles under other names are never opened" in said(folder / "model.pkl")
    torch.save({"W_enc": Surprise(trap)}, folder / "ae.pt")
    assert "name the file itself" in said(
        folder
    )  # no config.json: no folder of dictionary_learning
    assert "holds more than tensors" in said(folder / "ae.pt")
    (folder / "config.json").write_text("{}")
    assert "holds more than tensors" in said(folder)
    np.savez(folder / "params.npz", W_enc=np.array([Surprise(trap)], dtype=object))
    assert "is pickled" in said(folder / "params.npz")
    assert not trap.exists()


def test_a_pt_file_that_is_no_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save([torch.zeros(2)], path)
    assert "no table of tensors" in said(path)
    torch.save({"encoder.weight": "a text"}, path)
    assert "is no tensor" in said(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "torch.save" in said(path)


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "neither a file nor a folder" in said(tmp_path / "nothing")
    assert "no SAE of a format that is read" in said(tmp_path)
    (tmp_path / "other.safetensors").write_bytes(b"")
    assert "is empty" in said(tmp_path)
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert "no SAE of a format that is read" in said(tmp_path)
    assert "holds no SAE" in said(tmp_path / "other.safetensors")


def test_settings_that_are_missing_or_no_json(tmp_path: Path) -> None:
    folder = copied(SAELENS, tmp_path)
    (folder / "cfg.json").write_text("{")
    assert "is not valid JSON" in said(folder)
    (folder / "cfg.json").write_text("[]")
    assert "not an object" in said(folder)
    (folder / "cfg.json").unlink()
    assert "needs cfg.json beside it" in said(folder)


def test_a_name_on_the_hub_without_a_network() -> None:
    text = said(Path("nobody-here/no-such-sae/layer_1"))
    assert "the Hugging Face hub cannot be reached" in text
    assert "'nobody-here/no-such-sae/layer_1'" in text
