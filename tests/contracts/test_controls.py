"""Every control on every kind of model: what it declares is what it does."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import architectures
from sae_placebo.controls import (
    CONTROLS,
    GROUPS,
    INVARIANTS,
    Control,
    Recipe,
    Redraw,
    Trained,
    build,
    parse_control,
    weight_hash,
)
from sae_placebo.controls.base import Tensor, tensors
from sae_placebo.controls.redraw import moments
from sae_placebo.errors import ModelError, SpecError

# tied and untied, rotary, learned and ALiBi positions, norms with and without bias, parallel blocks
ARCHITECTURES = ["llama", "llama_untied", "gpt2", "gpt_neox", "opt", "bloom", "gemma2", "phi"]
SETTINGS: list[dict[str, Any]] = [
    {"control": "trained"},
    {"control": "redraw"},
    {"control": "redraw", "keep": ["embeddings"]},
    {"control": "redraw", "keep": ["unembedding", "positions"]},
    {"control": "redraw", "keep": ["norms", "biases"]},
    {"control": "redraw", "keep": list(GROUPS)},
]


def _name(table: dict[str, Any]) -> str:
    return "-".join([table["control"], *table.get("keep", [])])


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with architectures.one_thread():
        yield


@pytest.fixture(scope="module", params=ARCHITECTURES)
def reference(request: pytest.FixtureRequest) -> Any:
    return architectures.build(request.param)


@pytest.fixture(params=SETTINGS, ids=_name)
def control(request: pytest.FixtureRequest) -> Control:
    return parse_control(request.param)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def by_group(model: Any) -> dict[str, list[Tensor]]:
    groups: dict[str, list[Tensor]] = {name: [] for name in [*GROUPS, "block_weights"]}
    for tensor in tensors(model):
        for group in tensor.groups:
            groups[group].append(tensor)
    return groups


def test_every_registered_control_is_under_contract() -> None:
    assert {table["control"] for table in SETTINGS} == set(CONTROLS)
    for cls in CONTROLS.entries.values():
        assert cls.preserves | cls.destroys <= set(INVARIANTS)
        assert not cls.preserves & cls.destroys


def test_shapes_dtypes_and_ties_are_as_before(reference: Any, control: Control) -> None:
    model, _ = build(reference, control, 0, 0)
    before, after = reference.state_dict(), model.state_dict()
    assert {n: (v.shape, v.dtype) for n, v in before.items()} == {
        n: (v.shape, v.dtype) for n, v in after.items()
    }
    assert [t.also for t in tensors(model)] == [t.also for t in tensors(reference)]
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_the_reference_is_untouched(reference: Any, control: Control) -> None:
    before, digest = state(reference), weight_hash(reference)
    model, _ = build(reference, control, 0, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    assert weight_hash(reference) == digest


def test_same_seeds_same_bits_other_seeds_other_bits(reference: Any, control: Control) -> None:
    model, recipe = build(reference, control, 3, 1)
    again, same = build(reference, control, 3, 1)
    assert recipe == same
    assert all(torch.equal(a, b) for a, b in zip(*_states(model, again), strict=True))
    for seeds in ((3, 2), (4, 1)):
        _, other = build(reference, control, *seeds)
        differs = other.weight_hash != recipe.weight_hash
        assert differs == bool(recipe.touched)


def _states(*models: Any) -> list[list[torch.Tensor]]:
    return [list(model.state_dict().values()) for model in models]


def test_outputs_are_finite(reference: Any, control: Control) -> None:
    model, _ = build(reference, control, 0, 0)
    assert torch.isfinite(model(architectures.token_ids()).logits).all()


def test_the_recipe_accounts_for_every_tensor(reference: Any, control: Control) -> None:
    model, recipe = build(reference, control, 0, 5)
    names = [tensor.name for tensor in tensors(reference)]
    assert sorted([*recipe.touched, *recipe.kept]) == sorted(names)
    before, after = reference.state_dict(), model.state_dict()
    for name in recipe.touched:
        assert not torch.equal(before[name], after[name]), name
    for name in recipe.kept:
        assert torch.equal(before[name], after[name]), name
    assert recipe.weight_hash == weight_hash(model)
    assert parse_control(recipe.control) == control
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_what_is_declared_preserved_is_and_what_is_declared_destroyed_is_not(
    reference: Any, control: Control
) -> None:
    model, recipe = build(reference, control, 0, 0)
    assert control.preserved() | control.destroyed() == set(INVARIANTS)
    assert not control.preserved() & control.destroyed()
    before, after = reference.state_dict(), model.state_dict()
    noted = " ".join(recipe.notes)
    for group, members in by_group(reference).items():
        for tensor in members:
            same = torch.equal(before[tensor.name], after[tensor.name])
            if group in control.preserved():
                assert same, (group, tensor.name)
            elif same:  # only for a reason that the recipe gives
                assert f"{tensor.name} " in noted, (group, tensor.name)
        changed = [t.name for t in members if t.name in recipe.touched]
        tied_away = all(set(t.groups) & control.preserved() for t in members)
        assert bool(changed) == (group in control.destroyed() and not tied_away)
    assert "tensor_mean_and_variance" in control.preserved()
    for name in before:
        n = before[name].numel()
        if n >= 1000:
            _assert_moments(before[name], after[name], n)


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


def test_arms_that_differ_in_keep_share_what_both_redraw(reference: Any) -> None:
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
        ({"keep": []}, "an arm names its control; known: redraw, trained"),
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
