from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sae_placebo.errors import StoreError
from sae_placebo.interop import saelens
from sae_placebo.saes import PARAMETERS, SAE, TopKSpec

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


def check_against_saelens(folder: Path) -> None:
    """Load one of our folders with SAELens and compare what both compute."""
    import sae_lens

    ours = folded()
    saelens.write(ours, folder, PROVENANCE)
    theirs = sae_lens.SAE.load_from_disk(folder)
    x = 3 * torch.randn(200, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        codes = theirs.encode(x)
        decoded = theirs.decode(codes)
    found = ours.encode(x)
    torch.testing.assert_close(codes, found.dense(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decoded, ours.decode(found), rtol=1e-5, atol=1e-5)
    assert theirs.cfg.metadata["control"] == PROVENANCE["control"]
    assert theirs.cfg.metadata["weight_hash"] == PROVENANCE["weight_hash"]
    assert theirs.cfg.metadata["trial"] == "demo"
    # and back: what SAELens saves, we read
    theirs.save_model(folder / "theirs")
    back = saelens.read(folder / "theirs")
    assert all(torch.equal(back.params[name], ours.params[name]) for name in PARAMETERS)


@pytest.mark.compat
def test_saelens_reads_what_we_write(tmp_path: Path) -> None:
    pytest.importorskip("sae_lens")
    check_against_saelens(tmp_path)
