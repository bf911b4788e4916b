from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sae_placebo.core.errors import StoreError
from sae_placebo.saes import PARAMETERS, SAE, SAES, TopKSpec, parse_sae
from sae_placebo.saes.formats import saelens

PROVENANCE = {
    "model_name": "tiny",
    "hook_name": "blocks.1.hook_resid_post",
    "control": {"kind": "redraw", "model_seed": 3},
    "weight_hash": "ab" * 32,
    "trial": "demo",
}


def folded(seed: int = 0) -> SAE:
    random = torch.Generator().manual_seed(seed)
    sae = TopKSpec(d_sae=40, k=5, aux_coefficient=0.25).create(12, seed)
    sae.params["b_enc"] += 0.1 * torch.randn(40, generator=random)
    sae.params["b_dec"] += torch.randn(12, generator=random)
    return sae.fold(torch.randn(12, generator=random), 0.4)


def test_write_then_read_keeps_every_bit_and_the_provenance(tmp_path: Path) -> None:
    sae = folded()
    saelens.write(sae, tmp_path, PROVENANCE, density=torch.full((40,), 0.01))
    again = saelens.read(tmp_path)
    assert again.spec == sae.spec
    assert all(torch.equal(again.params[name], sae.params[name]) for name in PARAMETERS)
    metadata = saelens.read_metadata(tmp_path)
    assert metadata.items() >= PROVENANCE.items()
    assert metadata["sae_lens_version"] >= "6.0.0"
    assert {path.name for path in tmp_path.iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    }


def test_config_says_what_saelens_needs(tmp_path: Path) -> None:
    saelens.write(folded(), tmp_path, {})
    config = json.loads((tmp_path / "cfg.json").read_text())
    del config["metadata"]
    assert config == {
        "architecture": "topk",
        "d_in": 12,
        "d_sae": 40,
        "k": 5,
        "rescale_acts_by_decoder_norm": False,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architecture", "jumprelu"),
        ("normalize_activations", "layer_norm"),
        ("apply_b_dec_to_input", False),
        ("rescale_acts_by_decoder_norm", True),
    ],
)
def test_settings_that_would_be_computed_wrongly_are_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    saelens.write(folded(), tmp_path, {})
    path = tmp_path / "cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(StoreError, match=key):
        saelens.read(tmp_path)


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(StoreError, match="cannot read"):
        saelens.read(tmp_path / "nothing")
    saelens.write(folded(), tmp_path, {})
    weights = tmp_path / "sae_weights.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"b_enc": torch.zeros(41)}, weights)
    with pytest.raises(StoreError, match=r"b_enc is \[41\]"):
        saelens.read(tmp_path)
    del tensors["b_dec"]
    save_file(tensors, weights)
    with pytest.raises(StoreError, match="lacks b_dec"):
        saelens.read(tmp_path)
    weights.write_bytes(b"not tensors")
    with pytest.raises(StoreError, match="cannot read"):
        saelens.read(tmp_path)


SETTINGS: dict[str, dict[str, object]] = {
    "topk": {"k": 5},
    "batchtopk": {"k": 4.5},
    "matryoshka": {"k": 5, "prefixes": [0.25, 0.5, 1.0]},
    "relu": {"l0": 5.0},
    "p_annealed": {"l0": 5.0},
    "jumprelu": {"l0": 5.0},
    "gated": {"l0": 5.0},
    "tied": {"l0": 5.0},
}
EVERY = pytest.mark.parametrize("kind", sorted(SAES))


def any_sae(kind: str, seed: int = 0) -> SAE:
    """An SAE of every tensor's own values, in model units."""
    spec = parse_sae({"kind": kind, "d_sae": 40, **SETTINGS[kind]})
    random = torch.Generator().manual_seed(seed)
    params = {
        name: tensor + 0.3 * torch.rand(tensor.shape, generator=random)
        for name, tensor in spec.create(12, seed).params.items()
    }
    return SAE(spec, params).fold(torch.randn(12, generator=random), 0.4)


def tokens() -> torch.Tensor:
    return 3 * torch.randn(200, 12, generator=torch.Generator().manual_seed(1))


@EVERY
def test_every_kind_keeps_every_bit(kind: str, tmp_path: Path) -> None:
    sae = any_sae(kind)
    saelens.write(sae, tmp_path, PROVENANCE)
    again = saelens.read(tmp_path)
    assert again.spec == sae.spec
    assert tuple(again.params) == tuple(sae.params)
    assert all(torch.equal(again.params[name], sae.params[name]) for name in sae.params)


@EVERY
def test_a_folder_without_our_spec_has_the_same_codes(kind: str, tmp_path: Path) -> None:
    sae = any_sae(kind)
    saelens.write(sae, tmp_path, {})
    path = tmp_path / "cfg.json"
    config = json.loads(path.read_text())
    del config["metadata"]["sae_placebo_spec"]
    path.write_text(json.dumps(config))
    again = saelens.read(tmp_path)
    x = tokens()
    assert torch.equal(again.encode(x).dense(), sae.encode(x).dense())


def test_a_threshold_that_differs_between_latents_is_no_batchtopk(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saelens.write(any_sae("batchtopk"), tmp_path, {})
    weights = tmp_path / "sae_weights.safetensors"
    tensors = load_file(weights)
    assert tensors["threshold"].shape == (40,)
    save_file(tensors | {"threshold": torch.linspace(0, 1, 40)}, weights)
    with pytest.raises(StoreError, match="has one for all"):
        saelens.read(tmp_path)


def check_against_saelens(folder: Path, kind: str) -> None:
    """Load one of our folders with SAELens and compare what both compute."""
    import sae_lens

    ours = any_sae(kind)
    saelens.write(ours, folder, PROVENANCE)
    theirs = sae_lens.SAE.load_from_disk(folder)
    x = tokens()
    with torch.no_grad():
        codes = theirs.encode(x)
        decoded = theirs.decode(codes)
    found = ours.encode(x)
    assert len(found.values) > 0
    torch.testing.assert_close(codes, found.dense(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decoded, ours.decode(found), rtol=1e-5, atol=1e-5)
    assert theirs.cfg.metadata["control"] == PROVENANCE["control"]
    assert theirs.cfg.metadata["weight_hash"] == PROVENANCE["weight_hash"]
    assert theirs.cfg.metadata["trial"] == "demo"
    # and back: what SAELens saves, we read
    theirs.save_model(folder / "theirs")
    back = saelens.read(folder / "theirs")
    assert all(torch.equal(back.params[name], ours.params[name]) for name in ours.params)


def check_their_training(folder: Path, kind: str) -> None:
    """Save an SAE made by SAELens' own training classes for inference, and read it."""
    import sae_lens

    made = {
        "topk": lambda: (sae_lens.TopKTrainingSAE, sae_lens.TopKTrainingSAEConfig, {"k": 5}),
        "relu": lambda: (sae_lens.StandardTrainingSAE, sae_lens.StandardTrainingSAEConfig, {}),
        "gated": lambda: (sae_lens.GatedTrainingSAE, sae_lens.GatedTrainingSAEConfig, {}),
        "jumprelu": lambda: (sae_lens.JumpReLUTrainingSAE, sae_lens.JumpReLUTrainingSAEConfig, {}),
        "batchtopk": lambda: (
            sae_lens.BatchTopKTrainingSAE,
            sae_lens.BatchTopKTrainingSAEConfig,
            {"k": 4.5},
        ),
    }
    model, config, settings = made[kind]()
    if kind in ("topk", "batchtopk"):
        settings = settings | {"rescale_acts_by_decoder_norm": False}
    training = model(config(d_in=12, d_sae=40, **settings))
    with torch.no_grad():
        for tensor in training.parameters():
            tensor.add_(0.1 * torch.rand(tensor.shape))
    training.save_inference_model(folder)
    ours, x = saelens.read(folder), tokens()
    theirs = sae_lens.SAE.load_from_disk(folder)
    with torch.no_grad():
        codes = theirs.encode(x)
        decoded = theirs.decode(codes)
    found = ours.encode(x)
    assert ours.spec.kind == ("jumprelu" if kind == "batchtopk" else kind)
    torch.testing.assert_close(codes, found.dense(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decoded, ours.decode(found), rtol=1e-5, atol=1e-5)


@pytest.mark.compat
@EVERY
def test_saelens_reads_what_we_write(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("sae_lens")
    check_against_saelens(tmp_path, kind)


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["topk", "relu", "gated", "jumprelu", "batchtopk"])
def test_we_read_what_saelens_trains(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("sae_lens")
    check_their_training(tmp_path, kind)
