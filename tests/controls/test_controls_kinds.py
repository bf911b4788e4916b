"""What is particular to each control: its law, its bits, its refusals."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import architectures
from sae_placebo.controls import (
    Cascade,
    Init,
    NoiseEmbeddings,
    Permute,
    Redraw,
    RedrawEmbeddings,
    Revision,
    Spectrum,
    build,
    parse_control,
    weight_hash,
)
from sae_placebo.controls.model.permute import shuffled
from sae_placebo.controls.model.spectrum import frame, turn
from sae_placebo.controls.model.tensors import tensors
from sae_placebo.core.errors import ModelError, SpecError
from sae_placebo.models.loading import Reader, truncate
from sae_placebo.models.specs import ModelSpec, identify


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with architectures.one_thread():
        yield


# --- init ------------------------------------------------------------------------------------------


def test_init_has_the_architectures_own_law_and_nothing_of_the_reference() -> None:
    reference = architectures.build("llama")
    model, recipe = build(reference, Init(), 0, 0)
    assert recipe.kept == {}
    assert torch.equal(model.model.norm.weight, torch.ones(architectures.D_IN))
    weight, n = model.model.embed_tokens.weight[3:], 98 * architectures.D_IN
    assert abs(float(weight.std()) / model.config.initializer_range - 1) < 5 / (2 * n) ** 0.5
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.fill_(7.0)
    assert build(reference, Init(), 0, 0)[1].weight_hash == recipe.weight_hash


def test_init_lists_what_training_never_moved() -> None:
    reference = architectures.build("llama")
    with torch.no_grad():
        reference.model.norm.weight.fill_(1.0)
    _, recipe = build(reference, Init(), 0, 0)
    assert recipe.kept == {"model.norm.weight": "its initial value"}


# --- revision --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model with a revision `step10`, and beside it one of other shapes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    architectures.build("llama", 0).save_pretrained(folder / "model")
    architectures.build("llama", 1).save_pretrained(folder / "model" / "revisions" / "step10")
    architectures.build("llama_untied", 1).save_pretrained(folder / "untied")
    architectures.build("gpt2", 1).save_pretrained(folder / "gpt2")
    return folder


def test_a_revision_is_the_other_checkpoint(checkpoints: Path) -> None:
    reference = architectures.build("llama")
    source = ModelSpec(id=str(checkpoints / "model"))
    model, recipe = build(reference, Revision(revision="step10"), 0, 0, source)
    assert recipe.weight_hash == weight_hash(architectures.build("llama", 1))
    assert recipe.kept == {}
    other = Revision(source=str(checkpoints / "model"), revision="step10")
    assert build(reference, other, 5, 5)[1].weight_hash == recipe.weight_hash
    assert model.model.embed_tokens.weight is model.lm_head.weight


def test_a_revision_is_identified_by_its_content(checkpoints: Path) -> None:
    source = ModelSpec(id=str(checkpoints / "model"))
    found = Revision(revision="step10").identity(source)
    assert found == identify(ModelSpec(id=str(checkpoints / "model"), revision="step10"))
    assert found != identify(source)
    assert Revision(source=str(checkpoints / "gpt2")).identity(source) != found
    assert Redraw().identity(source) is None


@pytest.mark.parametrize(
    ("settings", "source", "message"),
    [
        ({"revision": "step9"}, "model", "has no revision 'step9'; it has step10"),
        ({"source": "gpt2"}, None, "no checkpoint of the same model: it lacks"),
        ({"source": "untied"}, None, "no checkpoint of the same model: it has"),
        ({"source": "model"}, None, "has the reference's weights"),
        ({"revision": "step10"}, None, "where that came from was not said"),
        ({"revision": "step10"}, "smollm2-135m", "comes as one checkpoint"),
    ],
)
def test_what_is_no_revision_is_refused(
    checkpoints: Path, settings: dict[str, Any], source: str | None, message: str
) -> None:
    if "source" in settings:
        settings = settings | {"source": str(checkpoints / settings["source"])}
    name = source if source != "model" else str(checkpoints / "model")
    spec = None if name is None else ModelSpec(id=name)
    with pytest.raises(ModelError) as caught:
        build(architectures.build("llama"), Revision(**settings), 0, 0, spec)
    assert message in str(caught.value)


def test_other_shapes_and_another_config_are_told(tmp_path: Path) -> None:
    reference = architectures.build("llama")
    wide = copy.deepcopy(reference)
    wide.config.rms_norm_eps = 1e-3
    with torch.no_grad():
        wide.model.norm.weight.add_(1.0)
    wide.save_pretrained(tmp_path / "eps")
    _, recipe = build(reference, Revision(source=str(tmp_path / "eps")), 0, 0)
    assert recipe.touched == ("model.norm.weight",)
    assert set(recipe.kept.values()) == {"the same in both"}
    assert any("differs in rms_norm_eps" in note for note in recipe.notes)
    wide.resize_token_embeddings(50)
    wide.save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match=r"is \(50, 32\), the reference's \(101, 32\)"):
        build(reference, Revision(source=str(tmp_path / "small")), 0, 0)


# --- redraw_embeddings -----------------------------------------------------------------------------


def test_redrawn_embeddings_share_directions_with_redraw() -> None:
    reference = architectures.build("llama_untied")
    weight = reference.model.embed_tokens.weight
    with torch.no_grad():
        weight.mul_(torch.linspace(0.1, 3.0, len(weight))[:, None])
        weight.sub_(weight.mean())  # then redraw draws directions about zero as well
        weight[0] = 0.0
    mine, recipe = build(reference, RedrawEmbeddings(), 0, 0)
    theirs, _ = build(reference, Redraw(), 0, 0)
    a, b = (m.model.embed_tokens.weight[1:] for m in (mine, theirs))
    assert float(torch.cosine_similarity(a, b).min()) > 0.999
    assert float(torch.cosine_similarity(a, weight[1:]).mean().abs()) < 0.1
    torch.testing.assert_close(a.norm(dim=1), weight[1:].norm(dim=1), rtol=1e-6, atol=0.0)
    assert not mine.model.embed_tokens.weight[0].any()
    assert recipe.touched == ("model.embed_tokens.weight",)
    assert recipe.kept["lm_head.weight"] == "not tied to the embeddings"
    _, tied = build(architectures.build("llama"), RedrawEmbeddings(), 0, 0)
    assert any("is W_U as well: it goes with W_E" in note for note in tied.notes)


# --- permute ---------------------------------------------------------------------------------------


def test_every_order_is_equally_likely() -> None:
    source, values = np.random.default_rng(0), np.arange(4, dtype=np.float32)
    n = 9_600
    orders = [tuple(shuffled(values, source).astype(int)) for _ in range(n)]
    counts = np.unique(np.array(orders), axis=0, return_counts=True)[1]
    assert len(counts) == 24
    chi_squared = float(((counts - n / 24) ** 2 / (n / 24)).sum())
    assert chi_squared < 49.7  # 99.9 % of 23 degrees of freedom


class FewBits(np.random.Generator):
    """A generator whose sorting keys have only two values in their upper half: nearly all tie."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(1))
        self.calls = 0

    def integers(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        drawn = super().integers(*args, **kwargs)
        return drawn & np.uint64(1 << 32) if self.calls == 1 else drawn


def test_tied_keys_do_not_sort_the_values() -> None:
    values = np.arange(1000, dtype=np.float32)
    source = FewBits()
    new = shuffled(values, source)
    assert source.calls == 2
    assert np.array_equal(np.sort(new), values)
    halves = np.flatnonzero(np.diff(new) > 0).size  # sorted runs would have nearly all of them
    assert 400 < halves < 600


def test_a_large_tensor_is_permuted_without_trace_of_its_order() -> None:
    values = np.arange(200_000, dtype=np.float32) - 1e5
    new = shuffled(values, np.random.default_rng(2))
    assert np.array_equal(np.sort(new), values)
    for a, b in ((values, new), (new[1:], new[:-1])):
        assert abs(float(np.corrcoef(a, b)[0, 1])) < 5 / len(values) ** 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_permuting_keeps_every_value_in_other_dtypes(dtype: torch.dtype) -> None:
    reference = architectures.build("llama").to(dtype)
    model, recipe = build(reference, Permute(), 0, 0)
    assert not recipe.kept
    for a, b in zip(reference.parameters(), model.parameters(), strict=True):
        assert torch.equal(a.flatten().sort()[0], b.flatten().sort()[0])


# --- spectrum --------------------------------------------------------------------------------------


def test_frames_are_orthonormal_and_uniform() -> None:
    source = torch.Generator().manual_seed(0)
    many = torch.stack([frame(3, 2, source) for _ in range(2000)])
    gram = many.transpose(1, 2) @ many
    torch.testing.assert_close(gram, torch.eye(2).expand_as(gram), rtol=0.0, atol=1e-5)
    # a coordinate of a uniform unit vector in 3 dimensions is uniform on [-1, 1]
    for row in range(3):
        x = many[:, row, 1].sort()[0]
        uniform = torch.linspace(-1, 1, len(x))
        assert float((x - uniform).abs().max()) / 2 < 1.95 / len(x) ** 0.5  # Kolmogorov, 99.9 %


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (16, 16), (1, 7), (7, 1)])
def test_turning_keeps_singular_values_and_no_vector(shape: tuple[int, int]) -> None:
    source = torch.Generator().manual_seed(1)
    matrix = torch.randn(shape, generator=source)
    matrix[:, 0] *= 30.0
    new = turn(matrix, source)
    assert new.shape == shape
    values = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(torch.linalg.svdvals(new), values, rtol=1e-5, atol=1e-5)
    if min(shape) > 1:
        u, v = torch.linalg.svd(matrix)[0], torch.linalg.svd(new)[0]
        assert abs(float(u[:, 0] @ v[:, 0])) < 0.9


def test_each_expert_keeps_its_own_spectrum() -> None:
    reference = architectures.build("qwen3_moe")
    with torch.no_grad():
        reference.model.layers[0].mlp.experts.down_proj[1] *= 5.0
    model, _ = build(reference, Spectrum(), 0, 0)
    before, after = (
        torch.linalg.svdvals(m.model.layers[0].mlp.experts.down_proj) for m in (reference, model)
    )
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)


# --- cascade ---------------------------------------------------------------------------------------


def test_a_cascade_has_redraws_bits() -> None:
    reference = architectures.build("gpt2")
    keep = ("embeddings", "unembedding", "positions")
    everything = build(reference, Redraw(keep=keep), 0, 0)[0].state_dict()
    before = reference.state_dict()
    for control, layers in (
        (Cascade(last=3), {0, 1, 2}),
        (Cascade(last=2), {1, 2}),
        (Cascade(only=0), {0}),
    ):
        model, _ = build(reference, control, 0, 0)
        for tensor_name, value in model.state_dict().items():
            parts = tensor_name.split(".")
            inside = parts[1] == "h" and int(parts[2]) in layers
            expected = everything if inside else before
            assert torch.equal(value, expected[tensor_name]), tensor_name


def test_a_cascade_leaves_what_comes_before_it() -> None:
    reference = architectures.build("phi")
    names = ["resid_pre.2", "resid_post.2"]
    model, _ = build(reference, Cascade(last=1), 0, 0)
    a, b = (Reader(m, names).read(architectures.token_ids()) for m in (reference, model))
    assert torch.equal(a["resid_pre.2"], b["resid_pre.2"])
    assert not torch.equal(a["resid_post.2"], b["resid_post.2"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither was given: name last = 2 (the last two layers) or only = 1 (layer 1)"),
        ({"last": 1, "only": 1}, "both were given"),
        ({"last": 0}, "control 'cascade', last: "),
        ({"only": -1}, "control 'cascade', only: "),
    ],
)
def test_a_cascade_takes_one_of_two_settings(settings: dict[str, int], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_control({"control": "cascade", **settings})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("control", "message"),
    [
        (Cascade(last=4), r"last = 4, and the model has 3 layers; give 1 to 3"),
        (Cascade(only=3), r"only = 3, and the model has 3 layers; give 0 to 2"),
    ],
)
def test_layers_that_the_model_lacks_are_refused(control: Cascade, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build(architectures.build("llama"), control, 0, 0)
    with pytest.raises(SpecError, match=message):
        control.check_layers(3)
    control.check_layers(4)


# --- noise_embeddings ------------------------------------------------------------------------------


def entering(model: Any, ids: torch.Tensor) -> torch.Tensor:
    vectors = model.get_input_embeddings()(ids)
    assert isinstance(vectors, torch.Tensor)
    return vectors


@pytest.mark.parametrize("per", ["occurrence", "type"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_noise_has_the_scale_of_what_the_embedding_puts_out(name: str, per: Any) -> None:
    reference = architectures.build(name)
    with torch.no_grad():
        reference.get_input_embeddings().weight[:, 3].mul_(20.0).add_(5.0)
    every = torch.arange(architectures.VOCABULARY)
    rows = entering(reference, every)
    model, recipe = build(reference, NoiseEmbeddings(per=per), 0, 0)
    ids = every[None] if per == "type" else torch.stack([every.roll(i) for i in range(100)])
    noise = entering(model, ids)
    n = ids.numel()
    flat, std = noise.reshape(-1, architectures.D_IN), rows.std(0, correction=0)
    assert float(((flat.mean(0) - rows.mean(0)) / std).abs().max()) < 5 / n**0.5
    assert float((flat.std(0) / std - 1).abs().max()) < 5 / (2 * n) ** 0.5
    assert recipe.touched == ()
    assert any("takes the place of the embedding's output" in note for note in recipe.notes)


def test_a_row_gets_the_same_noise_in_any_batch_and_after_any_copy() -> None:
    ids = architectures.token_ids(n_rows=4)
    model, recipe = build(architectures.build("llama"), NoiseEmbeddings(), 0, 0)
    names = ["resid_pre.0", "resid_post.1"]
    together = Reader(model, names).read(ids)
    again = copy.deepcopy(model)
    truncate(again, names)
    assert weight_hash(copy.deepcopy(model)) == recipe.weight_hash
    for row in range(4):
        alone = Reader(again, names).read(ids[row : row + 1])
        assert torch.equal(alone["resid_pre.0"][0], together["resid_pre.0"][row])
        torch.testing.assert_close(alone["resid_post.1"][0], together["resid_post.1"][row])
    # every place is fresh: between rows and within one
    vectors = together["resid_pre.0"].reshape(-1, architectures.D_IN)
    assert len(torch.unique(vectors, dim=0)) == ids.numel()


def test_nothing_of_the_token_is_left_per_occurrence() -> None:
    model, _ = build(architectures.build("llama_untied"), NoiseEmbeddings(), 0, 0)
    ids = torch.full((2, 400), 7)
    ids[1, -1] = 8
    first, second = entering(model, ids)
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(float(correlation)) < 5 / first.numel() ** 0.5 + 0.02  # the common mean is small


def test_tied_heads_stay_real_under_noise() -> None:
    reference = architectures.build("llama")
    for per in ("occurrence", "type"):
        model, _ = build(
            reference, parse_control({"control": "noise_embeddings", "per": per}), 0, 0
        )
        hidden = torch.randn(2, 5, architectures.D_IN, generator=torch.Generator().manual_seed(0))
        assert torch.equal(model.lm_head(hidden), reference.lm_head(hidden))
        assert model.lm_head.weight is model.model.embed_tokens.weight


def test_hashes_tell_noise_apart() -> None:
    reference = architectures.build("llama")
    found = [weight_hash(reference)]
    for control in (NoiseEmbeddings(), NoiseEmbeddings(per="type")):
        for seeds in ((0, 0), (0, 1), (1, 0)):
            recipe = build(reference, control, *seeds)[1]
            found += [recipe.weight_hash, recipe.read_hash]
    assert len(set(found)) == len(found)


def test_the_table_per_type_shares_redraws_bits() -> None:
    reference = architectures.build("llama_untied")
    table = build(reference, NoiseEmbeddings(per="type"), 0, 0)[0]
    drawn = build(reference, Redraw(), 0, 0)[0].model.embed_tokens.weight
    vectors = entering(table, torch.arange(architectures.VOCABULARY))
    a, b = ((v - v.mean(0)) / v.std(0) for v in (vectors, drawn))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_every_kind_names_its_draws_by_tensor() -> None:
    for control in (Permute(), Spectrum()):
        reference = architectures.build("llama")
        kept = type(control)(keep=("norms",))
        a, b = (build(reference, c, 0, 0) for c in (control, kept))
        both = [name for name in b[1].touched if name in a[1].touched]
        assert len(both) == len(tensors(reference)) - 7
        states = [m.state_dict() for m in (a[0], b[0])]
        assert all(torch.equal(states[0][name], states[1][name]) for name in both)
