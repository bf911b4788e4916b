"""Attention that is ablated: nothing is left of it, all else is as it was, and some models are refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import architectures
from sae_placebo.controls import AblateAttention, Redraw, build, parse_control
from sae_placebo.controls.model.tensors import tensors
from sae_placebo.core.errors import ModelError, SpecError
from sae_placebo.models.loading import Reader, load_model


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with architectures.one_thread():
        yield


def last_logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits[:, -1]
    return found


@pytest.mark.parametrize(
    "name", [*architectures.CONFIGS, "opt_post_norm", "gpt_neox_japanese", "jetmoe"]
)
def test_no_position_knows_of_another(name: str) -> None:
    reference = architectures.build(name)
    model, recipe = build(reference, AblateAttention(), 0, 0)
    ids = architectures.token_ids(2, 9, seed=3)
    ids[1, -1] = ids[0, -1]
    a, b = last_logits(model, ids)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    before = last_logits(reference, ids)
    assert float((before[0] - before[1]).abs().max()) > 1e-2
    assert float((before[0] - a).abs().max()) > 1e-2
    state = model.state_dict()
    assert recipe.touched
    assert not any(bool(state[tensor].any()) for tensor in recipe.touched)


@pytest.mark.parametrize("name", ["llama_untied", "gpt2", "gemma2", "gemma3", "gpt_neox", "bloom"])
def test_attention_adds_zero_and_the_first_mlp_reads_the_stream_alone(name: str) -> None:
    reference = architectures.build(name)
    model, _ = build(reference, AblateAttention(), 0, 0)
    ids = architectures.token_ids(2, 9)
    site = Reader(reference, ["resid_pre.0"]).read(ids)["resid_pre.0"]
    found = Reader(model, ["resid_pre.0", "attn_out.0", "mlp_out.0", "resid_post.0"]).read(ids)
    assert torch.equal(found["resid_pre.0"], site)
    assert not bool(found["attn_out.0"].any())
    assert float(found["mlp_out.0"].abs().max()) > 0
    torch.testing.assert_close(found["resid_post.0"], site + found["mlp_out.0"])


def test_an_ablated_redraw_is_that_redraw_but_for_attentions_outputs() -> None:
    reference = architectures.build("llama_untied")
    plain, _ = build(reference, Redraw(), 5, 1)
    model, recipe = build(reference, AblateAttention(of=Redraw()), 5, 1)
    drawn, found = plain.state_dict(), model.state_dict()
    differ = {n for n in drawn if not torch.equal(drawn[n], found[n])}
    outputs = {n for n in drawn if ".o_proj." in n}
    assert differ == outputs
    assert outputs <= set(recipe.touched)
    (note,) = [note for note in recipe.notes if note.startswith("attention writes nothing")]
    assert all(name in note for name in outputs)


def test_what_was_zero_already_is_not_said_to_be_touched() -> None:
    reference = architectures.build("gpt2")
    with torch.no_grad():
        reference.transformer.h[1].attn.c_proj.bias.zero_()
    _, recipe = build(reference, AblateAttention(), 0, 0)
    assert recipe.kept["transformer.h.1.attn.c_proj.bias"] == "zero already"
    assert "transformer.h.0.attn.c_proj.bias" in recipe.touched


def test_the_bias_of_a_norm_behind_attention_counts_as_its_own() -> None:
    reference = architectures.build("gemma2")
    for layer in reference.model.layers:
        norm = torch.nn.LayerNorm(architectures.D_IN)
        torch.nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(0))
        layer.post_attention_layernorm = norm.requires_grad_(False)
    model, recipe = build(reference, AblateAttention(), 0, 0)
    name = "model.layers.{}.post_attention_layernorm.{}".format
    assert {name(i, "bias") for i in range(architectures.N_LAYERS)} <= set(recipe.touched)
    assert {name(i, "weight") for i in range(architectures.N_LAYERS)} <= set(recipe.kept)
    read = Reader(model, ["attn_out.1"]).read(architectures.token_ids())
    assert not bool(read["attn_out.1"].any())


def test_the_model_is_saved_and_read_as_any_other(tmp_path: Path) -> None:
    model, _ = build(architectures.build("gpt2"), AblateAttention(), 0, 0)
    model.save_pretrained(tmp_path)
    ids = architectures.token_ids()
    assert torch.equal(last_logits(load_model(tmp_path), ids), last_logits(model, ids))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mamba", r"no layer of MambaForCausalLM has attention"),
        ("lfm2", r"not every layer of Lfm2ForCausalLM has attention \(none in 0, 2\)"),
        ("rwkv", r"positions of RwkvForCausalLM depend on one another even without attention"),
        ("xlnet", r"attention of layer 0 of XLNetLMHeadModel has no module for its output"),
        ("bert_decoder", r"attention of layer 0 of BertLMHeadModel writes more than the output"),
    ],
)
def test_a_model_without_attention_to_ablate_is_refused(name: str, message: str) -> None:
    reference = architectures.build(name)
    before = {t.name: t.parameter.clone() for t in tensors(reference)}
    with pytest.raises(ModelError, match=message) as caught:
        build(reference, AblateAttention(), 0, 0)
    assert str(caught.value).endswith("leave out the arms that ablate attention.")
    assert all(torch.equal(t.parameter, before[t.name]) for t in tensors(reference))


def test_the_other_control_is_named_or_given_with_its_settings() -> None:
    named = parse_control({"control": "ablate_attention", "of": "redraw"})
    assert named == AblateAttention(of=Redraw())
    assert parse_control(named.model_dump(mode="json")) == named
    kept = parse_control(
        {"control": "ablate_attention", "of": {"control": "redraw", "keep": ["norms"]}}
    )
    assert kept.drawn == Redraw(keep=("norms",))
    assert kept.draws
    assert not AblateAttention().draws


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (
            "redaw",
            r"control 'ablate_attention', of: no control is called 'redaw'. Did you mean 'redraw'",
        ),
        (
            {"control": "redraw", "keeps": []},
            r"of: no setting of control 'redraw' is called 'keeps'",
        ),
        ({"control": "ablate_attention"}, r"of: attention is ablated twice"),
        (3, r"of: an arm is a table such as"),
        ({"control": "cascade"}, r"of: control 'cascade': neither was given"),
    ],
)
def test_a_wrong_other_control_is_named(of: object, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse_control({"control": "ablate_attention", "of": of})
    assert "Value error" not in str(caught.value)
