"""Re-drawing, the settings of controls, groups of tensors, and the hashes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import architectures
from sae_placebo.controls import GROUPS, Redraw, Trained, build, parse_control, weight_hash
from sae_placebo.controls.model.redraw import moments
from sae_placebo.controls.model.tensors import Tensor, hashes, tensors
from sae_placebo.core.errors import ModelError, SpecError


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with architectures.one_thread():
        yield


def by_group(model: Any) -> dict[str, list[Tensor]]:
    groups: dict[str, list[Tensor]] = {name: [] for name in [*GROUPS, "block_weights"]}
    for tensor in tensors(model):
        for group in tensor.groups:
            groups[group].append(tensor)
    return groups


def _assert_moments(before: torch.Tensor, after: torch.Tensor, n: int) -> None:
    (mean, std), (new_mean, new_std) = moments(before), moments(after)
    # five standard errors: of a mean, and of a Gaussian's standard deviation
    assert abs(new_mean - mean) < 5 * std / n**0.5
    assert abs(new_std / std - 1) < 5 / (2 * n) ** 0.5


def test_an_embedding_shared_with_the_head_goes_with_it() -> None:
    reference = architectures.build("llama")
    embedding = "model.embed_tokens.weight"
    for group in ("embeddings", "unembedding"):
        model, recipe = build(reference, Redraw(keep=(group,)), 0, 0)
        assert recipe.kept == {embedding: group}
        assert any("keeping one kept both" in note for note in recipe.notes)
        assert any("lm_head.weight is tied to" in note for note in recipe.notes)
    model, recipe = build(reference, Redraw(), 0, 0)
    assert recipe.touched.count(embedding) == 1
    assert "lm_head.weight" not in recipe.touched
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_tie_by_memory_alone_is_recognized() -> None:
    reference = architectures.build("llama_untied")
    reference.lm_head.weight = torch.nn.Parameter(
        reference.model.embed_tokens.weight.data, requires_grad=False
    )
    assert reference.lm_head.weight is not reference.model.embed_tokens.weight
    model, recipe = build(reference, Redraw(), 0, 0)
    assert "lm_head.weight" not in recipe.touched
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


# --- redraw ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi"])
def test_arms_that_differ_in_keep_share_what_both_redraw(name: str) -> None:
    reference = architectures.build(name)
    everything, _ = build(reference, Redraw(), 0, 0)
    for keep in ([g] for g in GROUPS):
        model, recipe = build(reference, Redraw(keep=keep), 0, 0)
        a, b = everything.state_dict(), model.state_dict()
        assert recipe.touched
        assert all(torch.equal(a[name], b[name]) for name in recipe.touched)


def test_groups_are_found_by_structure() -> None:
    def names(architecture: str) -> dict[str, list[str]]:
        found = by_group(architectures.build(architecture))
        return {group: [t.name for t in members] for group, members in found.items()}

    gpt2 = names("gpt2")
    assert gpt2["embeddings"] == gpt2["unembedding"] == ["transformer.wte.weight"]
    assert gpt2["positions"] == ["transformer.wpe.weight"]
    assert len(gpt2["norms"]) == 2 * (2 * architectures.N_LAYERS + 1)
    assert len(gpt2["biases"]) == len(gpt2["block_weights"]) == 4 * architectures.N_LAYERS
    phi = names("phi")
    assert phi["unembedding"] == ["lm_head.weight", "lm_head.bias"]
    assert phi["positions"] == []
    qwen3 = names("qwen3")
    assert any("q_norm" in name for name in qwen3["norms"])
    assert names("opt")["positions"] == ["model.decoder.embed_positions.weight"]
    assert "transformer.word_embeddings_layernorm.weight" in names("bloom")["norms"]


def test_a_redraw_is_gaussian_with_the_tensors_own_moments() -> None:
    reference = architectures.build("gpt2")
    weight = reference.transformer.h[0].mlp.c_fc.weight
    with torch.no_grad():  # far from Gaussian, with a mean
        weight.copy_(3.0 + torch.randn(weight.shape).exp())
    model, _ = build(reference, Redraw(), 0, 0)
    drawn = model.transformer.h[0].mlp.c_fc.weight
    _assert_moments(weight, drawn, weight.numel())
    z = (drawn - drawn.mean()) / drawn.std()
    n = z.numel()
    assert abs(float(z.pow(3).mean())) < 5 * (6 / n) ** 0.5
    assert abs(float(z.pow(4).mean()) - 3) < 5 * (24 / n) ** 0.5
    correlation = torch.corrcoef(torch.stack([weight.flatten(), drawn.flatten()]))[0, 1]
    assert abs(float(correlation)) < 5 / n**0.5


def test_tensors_without_variance_keep_their_value_and_are_noted() -> None:
    reference = architectures.build("llama")
    with torch.no_grad():
        reference.model.norm.weight.fill_(0.7)
    reference.model.layers[0].extra = torch.nn.Parameter(torch.tensor([2.0]), requires_grad=False)
    model, recipe = build(reference, Redraw(), 0, 0)
    assert recipe.kept == {"model.norm.weight": "no variance", "model.layers.0.extra": "one entry"}
    assert torch.equal(model.model.norm.weight, reference.model.norm.weight)
    assert float(model.model.layers[0].extra) == 2.0
    assert sum("it keeps its value" in note for note in recipe.notes) == 2


def test_moments_are_exact_where_float32_sums_are_not() -> None:
    x = torch.full((300_000,), 1000.0)
    x[::2] += 0.5
    mean, std = moments(x)
    assert (mean, std) == (1000.25, 0.25)
    assert moments(torch.full((1000,), 0.1))[1] == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_named(value: float) -> None:
    reference = architectures.build("llama")
    reference.model.layers[1].mlp.down_proj.weight[0, 3] = value
    name = r"model\.layers\.1\.mlp\.down_proj\.weight holds values that are not finite;"
    with pytest.raises(ModelError, match=name):
        build(reference, Redraw(), 0, 0)


def test_half_precision_models_are_redrawn_in_their_dtype() -> None:
    reference = architectures.build("llama")
    full, _ = build(reference, Redraw(), 0, 0)
    half, recipe = build(copy.deepcopy(reference).bfloat16(), Redraw(), 0, 0)
    assert recipe.touched
    for a, b in zip(full.parameters(), half.parameters(), strict=True):
        assert b.dtype == torch.bfloat16
        torch.testing.assert_close(a, b.float(), rtol=2e-2, atol=2e-2)


# --- the settings, and the hash --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"control": "redaw"}, "no control is called 'redaw'. Did you mean 'redraw'"),
        ({"control": "redraw", "keeps": []}, "is called 'keeps'. Did you mean 'keep'"),
        ({"control": "trained", "keep": []}, "no setting of control 'trained' is called 'keep'"),
        (
            {"control": "redraw", "keep": ["embedding"]},
            "no tensor group to keep is called 'embedding'. Did you mean 'embeddings'",
        ),
        ({"control": "redraw", "keep": "norms"}, "control 'redraw', keep: "),
        ({"keep": []}, "an arm names its control; known: ablate_attention, cascade, init, "),
    ],
)
def test_wrong_tables_say_what_is_allowed(table: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_control(table)
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [3, None, "redraw", ["redraw"]])
def test_an_arm_that_is_no_table_is_told_what_one_is(value: Any) -> None:
    with pytest.raises(SpecError) as caught:
        parse_control(value)
    expected = f'an arm is a table such as {{control = "redraw"}}; found {value!r}'
    assert str(caught.value) == expected


def test_the_order_of_keep_does_not_matter() -> None:
    a = parse_control({"control": "redraw", "keep": ["norms", "embeddings", "norms"]})
    assert a == parse_control({"control": "redraw", "keep": ["embeddings", "norms"]})
    assert a != Redraw()
    assert parse_control({"control": "trained"}) == Trained()


def test_the_hash_sees_every_bit_name_and_tie() -> None:
    model = architectures.build("llama")
    digest = weight_hash(model)
    assert weight_hash(copy.deepcopy(model)) == digest
    other = copy.deepcopy(model)
    with torch.no_grad():
        value = other.model.norm.weight
        value[3] = torch.nextafter(value[3], torch.tensor(9.0))
    assert weight_hash(other) != digest
    untied = copy.deepcopy(model)
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.clone())
    assert weight_hash(untied) != digest


def test_the_read_hash_leaves_out_what_only_the_head_holds() -> None:
    for name, tied in (("llama", True), ("llama_untied", False), ("phi", False)):
        model = architectures.build(name)
        before = hashes(model)
        with torch.no_grad():
            model.get_output_embeddings().weight[0, 0] += 1.0
        assert hashes(model).weight != before.weight
        assert (hashes(model).read != before.read) == tied
        between = hashes(model)
        with torch.no_grad():
            model.get_input_embeddings().weight[1, 1] += 1.0
        assert hashes(model).weight != between.weight
        assert hashes(model).read != between.read
    before = hashes(model)
    with torch.no_grad():
        model.lm_head.bias[0] += 1.0
    assert hashes(model).read == before.read
    assert hashes(model).weight != before.weight


def test_the_recipe_has_both_hashes() -> None:
    reference = architectures.build("llama_untied")
    kept, without = (
        build(reference, Redraw(keep=keep), 0, 0)[1]
        for keep in (("embeddings", "unembedding"), ("embeddings",))
    )
    assert kept.read_hash == without.read_hash
    assert kept.weight_hash != without.weight_hash
    assert kept.read_hash != build(reference, Redraw(), 0, 0)[1].read_hash
