"""SAEs that other libraries trained and saved, read here: their own codes of the same tokens are beside them.

`benchmarks/interop.py --fixtures` makes the files, each library in an environment of its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.saes.formats import FORMATS, Given, expected_average_factor, read_sae

HERE = Path(__file__).parent / "given"
EXPECTED = sorted(HERE.glob("*/*.expected.safetensors"))
TOLERANCE = 1e-5


def place(expected: Path) -> Path:
    """Return what is named to read a case: the file of a checkpoint, else the folder of the weights."""
    folder = expected.with_name(expected.name.removesuffix(".expected.safetensors"))
    ends = (".pt", ".npz", ".safetensors")
    file = next(path for path in sorted(folder.rglob("*")) if path.suffix in ends)
    return file if file.parent.name == "checkpoints" else file.parent


def case(name: str) -> tuple[Given, torch.Tensor, dict[str, torch.Tensor]]:
    """Return an SAE, the activations that it is read at, and what its library computes there."""
    expected = HERE / f"{name}.expected.safetensors"
    given = read_sae(place(expected))
    batch = load_file(HERE / "batch.safetensors")
    x = batch["mlp_activations" if "mlp" in name else "activations"][:, : given.d_in]
    return given, x.float(), load_file(expected)


@pytest.mark.parametrize(
    "expected", EXPECTED, ids=lambda p: f"{p.parent.name}/{p.name.split('.')[0]}"
)
def test_codes_and_reconstruction_are_the_librarys_own(expected: Path) -> None:
    name = f"{expected.parent.name}/{expected.name.removesuffix('.expected.safetensors')}"
    given, x, theirs = case(name)
    if given.normalization == "missing_factor":
        given = given.with_factor(float(theirs["factor"]))
    codes = given.encode(x)
    dense = codes.dense()
    assert given.format == expected.parent.name
    assert 0 < len(codes.values) < dense.numel()
    assert torch.equal(dense > 0, theirs["codes"] > 0)
    largest = theirs["codes"].amax(dim=1, keepdim=True)
    assert float((dense - theirs["codes"]).abs().div(largest).max()) <= TOLERANCE
    decoded = given.decode(codes, x)[: len(theirs["reconstruction"])]
    scale = theirs["reconstruction"].abs().amax(dim=1, keepdim=True)
    assert float((decoded - theirs["reconstruction"]).abs().div(scale).max()) <= TOLERANCE


def test_every_format_has_fixtures() -> None:
    assert {path.parent.name for path in EXPECTED} == set(FORMATS)
    size = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file())
    assert size <= 2_000_000


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("saelens/standard", "relu"),
        ("saelens/topk-rescaled", "topk"),
        ("saelens/jumprelu", "jumprelu"),
        ("saelens/gated", "gated"),
        ("saelens/batchtopk", "batchtopk"),
        ("saelens/matryoshka", "matryoshka"),
        ("saelens/v5-topk", "topk"),
        ("sparsify/topk", "topk"),
        ("dictionary_learning/new", "relu"),
        ("dictionary_learning/gated", "gated"),
        ("dictionary_learning/jumprelu", "jumprelu"),
        ("dictionary_learning/topk", "topk"),
        ("dictionary_learning/batchtopk", "batchtopk"),
        ("dictionary_learning/matryoshka", "matryoshka"),
        ("gemma_scope/params", "jumprelu"),
    ],
)
def test_a_placebo_of_its_own_kind_can_be_made(name: str, kind: str) -> None:
    given, _, _ = case(name)
    assert given.sae.spec.kind == kind
    assert set(given.sae.params) == set(given.sae.spec.parameters)
    assert all(tensor.dtype == torch.float32 for tensor in given.sae.params.values())


def test_settings_that_encoding_depends_on_are_kept() -> None:
    assert case("saelens/batchtopk")[0].sae.spec.l0_target() == 6.5
    assert case("dictionary_learning/topk")[0].sae.spec.l0_target() == 8
    for name in ("saelens/matryoshka", "dictionary_learning/matryoshka"):
        assert case(name)[0].sae.spec.sizes == (12, 24, 48)  # type: ignore[attr-defined]


def test_sites_are_what_the_files_say() -> None:
    site = case("saelens/topk-rescaled")[0].site
    assert (site.model, site.hook) == ("pylm", "blocks.2.hook_resid_post")
    assert (site.hookpoint, site.layer) == ("resid_post.2", 2)
    assert (site.prepend_bos, site.context_tokens) == (True, 128)
    assert site.l0 == pytest.approx(8.0, abs=0.5)
    assert case("saelens/v3-standard")[0].site.hookpoint == "resid_post.2"
    assert case("saelens/topk-hook-z")[0].site.hookpoint == "z.2"
    assert case("sparsify/topk-mlp")[0].site.hookpoint == "mlp_out.1"
    assert case("dictionary_learning/topk")[0].site.hookpoint == "resid_post.2"


def test_activations_of_heads_are_flattened() -> None:
    given, x, theirs = case("saelens/topk-hook-z")
    assert given.heads
    by_heads = x.unflatten(1, (4, -1))
    codes = given.encode(by_heads)
    assert torch.equal(codes.dense(), given.encode(x).dense())
    decoded = given.decode(codes, by_heads)
    assert decoded.shape == by_heads.shape
    kept = decoded.flatten(1)[: len(theirs["reconstruction"])]
    torch.testing.assert_close(kept, theirs["reconstruction"], rtol=1e-5, atol=1e-4)
    with pytest.raises(SpecError, match=r"\[token, 32\]"):
        case("saelens/topk")[0].encode(by_heads)


def test_a_missing_factor_is_asked_for_or_estimated() -> None:
    given, x, theirs = case("saelens/v3-standard-average")
    assert given.normalization == "missing_factor"
    with pytest.raises(NotEstimable, match="with_factor"):
        given.encode(x)
    own = expected_average_factor(x)
    assert own == pytest.approx(float(theirs["factor"]), rel=1e-5)
    filled = given.estimated(x)
    assert filled.normalization == "none"
    torch.testing.assert_close(
        filled.encode(x).dense(), given.with_factor(own).encode(x).dense(), rtol=0, atol=0
    )
    assert given.normalization == "missing_factor"  # it is another one that has the factor
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(SpecError, match="above zero"):
            given.with_factor(wrong)
    with pytest.raises(SpecError, match="lacks no factor"):
        filled.with_factor(2.0)
    with pytest.raises(NotEstimable, match="there are none"):
        given.estimated(x[:0])


def test_the_factor_of_a_checkpoint_lies_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(HERE / "saelens" / "topk-apart-average-checkpoint", folder)
    assert read_sae(folder).normalization == "none"
    (folder / "activation_scaler.json").unlink()
    assert read_sae(folder).normalization == "missing_factor"


@pytest.mark.parametrize("kind", ["layer-norm", "constant-norm"])
def test_what_is_done_token_by_token_needs_the_activations_to_be_undone(kind: str) -> None:
    given, x, _ = case(f"saelens/standard-{kind}")
    codes = given.encode(x)
    with pytest.raises(SpecError, match="needs the activations"):
        given.decode(codes)
    # it is another SAE that takes raw activations
    assert not torch.equal(given.sae.encode(x).dense(), codes.dense())


def test_sixteen_bits_are_cast_and_a_threshold_in_them_is_warned_of(tmp_path: Path) -> None:
    given, _, _ = case("saelens/jumprelu-bfloat16")  # SAELens keeps the threshold in 32 bits
    assert any("W_enc" in note and "bfloat16" in note for note in given.notes)
    assert not given.warnings
    folder = tmp_path / "half"
    shutil.copytree(HERE / "saelens" / "jumprelu-bfloat16", folder)
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"threshold": tensors["threshold"].bfloat16()}, path)
    half = read_sae(folder)
    assert half.warnings[0].startswith("threshold is stored in 16 bits")
    assert half.sae.params["threshold"].dtype == torch.float32


def test_old_exports_of_rescaled_batchtopk_are_warned_of(tmp_path: Path) -> None:
    assert not case("saelens/batchtopk-rescaled-average")[0].warnings
    for name, warned in (("batchtopk-rescaled-average", True), ("batchtopk", False)):
        folder = tmp_path / name
        shutil.copytree(HERE / "saelens" / name, folder)
        path = folder / "cfg.json"
        path.write_text(path.read_text().replace("6.54.12", "6.20.1"))
        found = read_sae(folder).warnings
        assert any("mended in 6.54.9" in sentence for sentence in found) == warned


def test_logarithms_of_thresholds_are_undone(tmp_path: Path) -> None:
    folder = tmp_path / "logarithms"
    shutil.copytree(HERE / "saelens" / "jumprelu", folder)
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    wanted = tensors.pop("threshold")
    save_file(tensors | {"log_threshold": wanted.log()}, path)
    torch.testing.assert_close(read_sae(folder).sae.params["threshold"], wanted)


def test_thresholds_that_differ_are_jumprelu_whatever_it_was_trained_as(tmp_path: Path) -> None:
    folder = tmp_path / "uneven"
    shutil.copytree(HERE / "saelens" / "batchtopk", folder)
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"threshold": torch.linspace(1, 2, len(tensors["threshold"]))}, path)
    assert read_sae(folder).sae.spec.kind == "jumprelu"


def test_a_file_can_be_named_itself() -> None:
    folder = HERE / "saelens" / "topk"
    for file in (folder / "sae_weights.safetensors", folder):
        assert read_sae(file).sae.spec.kind == "topk"
    assert read_sae(str(HERE / "dictionary_learning" / "topk" / "ae.pt")).format == (
        "dictionary_learning"
    )
