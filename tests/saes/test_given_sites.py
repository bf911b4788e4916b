from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sae_placebo.core.errors import StoreError
from sae_placebo.models.hookpoints import parse_hookpoint
from sae_placebo.saes import SAE, parse_sae
from sae_placebo.saes.formats import folding, hookpoint_of, read_sae, saelens
from sae_placebo.saes.formats.hub import is_hub_id
from sae_placebo.saes.formats.tensor_files import open_tensors

HERE = Path(__file__).parent / "given"
NAMES = {
    "blocks.5.hook_resid_post": "resid_post.5",
    "blocks.0.hook_resid_pre": "resid_pre.0",
    "blocks.11.hook_mlp_out": "mlp_out.11",
    "blocks.3.hook_attn_out": "attn_out.3",
    "model.layers.7": "resid_post.7",
    "transformer.h.2": "resid_post.2",
    "layers.4": "resid_post.4",
    "gpt_neox.layers.1.mlp": "mlp_out.1",
    "h.6.attn": "attn_out.6",
    "resid_post.9": "resid_post.9",
}


@pytest.mark.parametrize(("name", "hookpoint"), NAMES.items())
def test_names_of_sites_mean_what_they_mean_to_a_trial(name: str, hookpoint: str) -> None:
    assert hookpoint_of(name) == hookpoint
    assert parse_hookpoint(name).name == hookpoint


def test_sites_that_a_trial_has_no_name_for() -> None:
    assert hookpoint_of("blocks.3.attn.hook_z") == "z.3"
    assert hookpoint_of("blocks.3.hook_mlp_in") == "mlp_in.3"
    assert hookpoint_of("blocks.3.ln2.hook_normalized") == "mlp_in.3"
    assert hookpoint_of("resid_post_layer_8") == "resid_post.8"
    for unknown in (None, "hook_embed", "blocks.3.attn.hook_q", "somewhere"):
        assert hookpoint_of(unknown) is None


def test_folders_of_gemma_scope_say_where_it_was_trained(tmp_path: Path) -> None:
    base = tmp_path / "models--google--gemma-scope-2b-pt-att" / "layer_7" / "width_16k"
    folder = base / "average_l0_71"
    shutil.copytree(HERE / "gemma_scope" / "params", folder)
    given = read_sae(folder)
    assert given.site.model == "google/gemma-2-2b"
    assert (given.site.hookpoint, given.site.layer, given.site.l0) == ("z.7", 7, 71.0)
    assert given.heads
    plain = read_sae(HERE / "gemma_scope" / "params")
    assert plain.site.model is None
    assert any("are not known" in note for note in plain.notes)


def test_the_settings_of_a_run_of_sparsify_say_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "layers.2" / "seed0"
    shutil.copytree(HERE / "sparsify" / "topk" / "layers.2", folder)
    run = {"sae": {}, "model": "owner/name", "ctx_len": 2048, "exclude_tokens": [0]}
    (tmp_path / "run" / "config.json").write_text(json.dumps(run))
    site = read_sae(folder).site
    assert (site.model, site.context_tokens, site.excluded_tokens) == ("owner/name", 2048, (0,))
    assert site.hookpoint == "resid_post.2"


def test_our_own_folders_are_read_to_the_bit(tmp_path: Path) -> None:
    sae = parse_sae({"kind": "topk", "d_sae": 40, "k": 5}).create(12, 0)
    saelens.write(sae, tmp_path, {"hook_name": "blocks.1.hook_resid_post"})
    given = read_sae(tmp_path)
    assert given.sae.spec == sae.spec
    assert all(torch.equal(given.sae.params[name], sae.params[name]) for name in sae.params)
    assert given.site.hookpoint == "resid_post.1"


def random_sae(kind: str) -> SAE:
    table = {"kind": kind, "d_sae": 24, **({"k": 4} if kind == "topk" else {"coefficient": 0.0})}
    spec = parse_sae(table)
    random = torch.Generator().manual_seed(1)
    return SAE(
        spec,
        {
            name: tensor + 0.3 * torch.rand(tensor.shape, generator=random)
            for name, tensor in spec.create(8, 0).params.items()
        },
    )


def copies(sae: SAE) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in sae.params.items()}


X = torch.randn(50, 8, generator=torch.Generator().manual_seed(2))
KINDS = pytest.mark.parametrize("kind", ["relu", "topk", "gated", "jumprelu"])


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@KINDS
def test_a_factor_and_a_whitening_are_folded_exactly(kind: str) -> None:
    sae = random_sae(kind)
    params = copies(sae)
    folding.fold_factor(params, 3.0)
    folded = SAE(sae.spec, params)
    codes = folded.encode(X)
    close(codes.dense(), sae.encode(3.0 * X).dense())
    close(folded.decode(codes), sae.decode(sae.encode(3.0 * X)) / 3.0)
    random = torch.Generator().manual_seed(3)
    mean, matrix = torch.randn(8, generator=random), torch.randn(8, 8, generator=random)
    inverse = torch.linalg.inv(matrix.double())
    params = copies(sae)
    folding.fold_whitening(params, mean, matrix, inverse)
    folded = SAE(sae.spec, params)
    white = (X - mean) @ matrix
    codes = folded.encode(X)
    torch.testing.assert_close(codes.dense(), sae.encode(white).dense(), rtol=1e-4, atol=1e-4)
    back = (sae.decode(sae.encode(white)).double() @ inverse + mean).float()
    torch.testing.assert_close(folded.decode(codes), back, rtol=1e-4, atol=1e-4)


@KINDS
def test_an_encoder_of_x_itself_is_one_of_x_less_b_dec(kind: str) -> None:
    sae = random_sae(kind)
    params = copies(sae)
    folding.subtract_b_dec(params)
    wanted = sae.encode(X + sae.params["b_dec"])  # it takes b_dec away again
    close(SAE(sae.spec, params).encode(X).dense(), wanted.dense())


def test_a_tensor_is_read_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    from sae_placebo.saes.formats import tensor_files

    monkeypatch.setattr(tensor_files, "_BLOCK_BYTES", 4 * 5 * 3)  # three rows of five
    wide = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    tensors = {"wide": wide, "half": wide.bfloat16(), "one": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt")
    half = wide.bfloat16().float()
    by_column = np.asfortranarray(wide.numpy())
    np.savez(tmp_path / "x.npz", wide=by_column, half=half.numpy(), one=np.float64(2.5))
    for ending in ("safetensors", "pt", "npz"):
        file = open_tensors(tmp_path / f"x.{ending}")
        assert torch.equal(file.read("wide"), wide)
        turned = file.read("wide", transposed=True)
        assert turned.is_contiguous()
        assert torch.equal(turned, wide.t())
        assert torch.equal(file.read("half"), half)
        assert file.number("one") == 2.5


def test_a_backup_of_a_compiled_sae_with_its_factor_as_a_tensor(tmp_path: Path) -> None:
    source = HERE / "dictionary_learning" / "jumprelu-backup"
    shutil.copytree(source, tmp_path / "backup")
    path = tmp_path / "backup" / "ae.pt"
    table = torch.load(path, weights_only=True)
    table["norm_factor"] = torch.tensor(table["norm_factor"])
    table["ae"] = {f"_orig_mod.{name}": tensor for name, tensor in table["ae"].items()}
    torch.save(table, path)
    found, wanted = read_sae(path).sae, read_sae(source).sae
    for name in wanted.params:
        close(found.params[name], wanted.params[name])
    del table["norm_factor"]  # then its activations were not normalized, and biases stay
    torch.save(table, path)
    assert any("without norm_factor" in note for note in read_sae(path).notes)
    torch.testing.assert_close(
        read_sae(path).sae.params["b_dec"], table["ae"]["_orig_mod.b_dec"], rtol=0, atol=0
    )


def test_activations_of_another_type_are_cast() -> None:
    given = read_sae(HERE / "saelens" / "topk")
    x = torch.randn(5, given.d_in, generator=torch.Generator().manual_seed(0))
    codes = given.encode(x.double())
    assert torch.equal(codes.dense(), given.encode(x).dense())
    assert given.decode(codes, x.double()).dtype == torch.float32


def test_norms_of_the_decoder_are_noted_where_they_are_not_one() -> None:
    assert any("norms from" in note for note in read_sae(HERE / "saelens" / "topk").notes)
    rescaled = read_sae(HERE / "saelens" / "topk-rescaled")
    assert not any("norms from" in note for note in rescaled.notes)


def test_a_folder_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[dict[str, object]] = []

    def snapshot(repository: str, **options: object) -> str:
        asked.append({"repository": repository, **options})
        return str(HERE)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    given = read_sae("nobody-here/saes/saelens/topk", revision="abc")
    assert given.sae.spec.kind == "topk"
    assert asked[0]["repository"] == "nobody-here/saes"
    assert asked[0]["revision"] == "abc"
    patterns = asked[0]["allow_patterns"]
    assert "saelens/topk/*.safetensors" in patterns  # type: ignore[operator]
    assert not any(p.endswith((".bin", "*.pt", ".pkl")) for p in patterns)  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="holds no folder 'saelens/nothing'"):
        read_sae("nobody-here/saes/saelens/nothing")


def test_names_of_repositories() -> None:
    assert is_hub_id("google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71")
    assert is_hub_id("owner/name")
    for other in ("name", "/tmp/x", "../a/b", "a/../b", "C:\\x", "owner/"):
        assert not is_hub_id(other)
