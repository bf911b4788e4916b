"""What is refused of a model's folder, each in one sentence, and what enters its identity."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import architectures
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.errors import ModelError
from sae_placebo.models.diagnostics import card
from sae_placebo.models.loading import (
    ModelSpec,
    Reader,
    identify,
    layer_count,
    load_model,
    load_tokenizer,
)

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    architectures.build("llama_untied").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def settings(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    held = load_file(path)
    change(held)
    save_file(held, path, metadata={"format": "pt"})


def index(folder: Path, name: str, place: Path | None = None) -> None:
    """Move the weights and have an index name them as `name`."""
    held = list(load_file(folder / "model.safetensors"))
    target = place or folder / name
    target.parent.mkdir(exist_ok=True)
    (folder / "model.safetensors").rename(target)
    content = {"metadata": {}, "weight_map": dict.fromkeys(held, name)}
    (folder / INDEX).write_text(json.dumps(content))


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


# --- files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../stray.safetensors", "{}/stray.safetensors", "a/../../s"])
def test_an_index_that_points_outside_its_folder_is_refused(folder: Path, name: str) -> None:
    name = name.format(folder.parent)
    index(folder, name, folder.parent / "stray.safetensors")
    for ask in (lambda: identify(ModelSpec(id=str(folder))), lambda: load_model(folder)):
        with pytest.raises(ModelError, match="names weights outside of its folder"):
            ask()


def test_weights_in_a_folder_below_enter_the_identity(folder: Path) -> None:
    expected = dict(load_model(folder).named_parameters())
    index(folder, "shards/one.safetensors")
    spec = ModelSpec(id=str(folder))
    before = identify(spec)
    assert {"shards/one.safetensors", INDEX} <= set(before["files"])
    found = dict(load_model(folder).named_parameters())
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    architectures.build("llama_untied", seed=1).save_pretrained(folder.parent / "other")
    (folder.parent / "other" / "model.safetensors").replace(folder / "shards" / "one.safetensors")
    assert identify(spec) != before


def test_linked_weights_are_those_that_they_lead_to(folder: Path) -> None:
    spec, blob = ModelSpec(id=str(folder)), folder.parent / "blob"
    before = identify(spec)
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    assert identify(spec) == before
    architectures.build("llama_untied", seed=1).save_pretrained(folder.parent / "other")
    (folder.parent / "other" / "model.safetensors").replace(blob)
    assert identify(spec) != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"is not valid JSON: .*; mend it or fetch it again"),
        ('{"weight_map": [1]}', "holds no table 'weight_map'"),
        ('{"weight_map": {"x": 3}}', "holds no table 'weight_map'"),
        (
            '{"weight_map": {"x": "lost.safetensors"}}',
            r"names 'lost\.safetensors', which is not there",
        ),
    ],
)
def test_damaged_indexes_are_refused(folder: Path, content: str, message: str) -> None:
    (folder / INDEX).write_text(content)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held[:-1], r"is cut short or no safetensors file.*; fetch it again"),
        (lambda held: held[:40], "is cut short or no safetensors file"),
        (lambda held: b"", "is empty; fetch it again"),
        (
            lambda held: b"<!doctype html>" * 999,
            "is a web page, not the file itself; fetch it again",
        ),
        (lambda held: _POINTER, "is a git-lfs pointer, .*; run `git lfs pull`"),
    ],
)
def test_damaged_weights_are_named_with_their_file(
    folder: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelError, match=rf"^{path}.*{words}"):
        load_model(folder)


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_settings_that_git_lfs_has_not_fetched_are_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(_POINTER)
    with pytest.raises(ModelError, match=rf"{name} is a git-lfs pointer, .*; run `git lfs pull`"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.json", b"{", r"tokenizer\.json is not valid JSON .*; fetch it again"),
        ("tokenizer.json", b"{}", r"\(tokenizer\.json, tokenizer_config\.json\) cannot be loaded"),
        ("tokenizer.json", _POINTER, r"tokenizer\.json is a git-lfs pointer"),
        ("tokenizer_config.json", b"[", r"tokenizer_config\.json is not valid JSON"),
        (
            "config.json",
            b'{"model_type": "llama", "dtype": "foo"}',
            r"config\.json \(Attr.*'foo'\); mend",
        ),
    ],
)
def test_a_damaged_tokenizer_is_named_with_its_file(
    tiny_model: Path, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(content)
    with pytest.raises(ModelError, match=words):
        load_tokenizer(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"hidden_act": "foo"},
            r"config\.json describes it \(KeyError: 'foo'\); mend config\.json",
        ),
        (
            {"rope_parameters": {"rope_type": "foo"}},
            r"describes it \(KeyError: 'foo'\); mend config",
        ),
        ({"quantization_config": 5}, r"config\.json describes it \(\w+: .*\); mend config\.json"),
        (
            {"num_attention_heads": 0},
            r"config\.json describes it \(ZeroDivisionError: .*; mend config",
        ),
        (
            {"vocab_size": 96},
            r": \S+ is \[101, 32\] in the weights and \[96, 32\] by config\.json; mend",
        ),
    ],
)
def test_a_config_that_cannot_be_followed_is_named(
    folder: Path, change: dict[str, Any], words: str
) -> None:
    settings(folder, **change)
    with pytest.raises(ModelError, match=words):
        load_model(folder)


@pytest.mark.parametrize("n", [0, -1])
def test_a_model_without_layers_is_refused_as_that(folder: Path, n: int) -> None:
    settings(folder, num_hidden_layers=n)
    with pytest.raises(ModelError, match=rf"config\.json says that the model has {n} layers.*mend"):
        layer_count(ModelSpec(id=str(folder)))


def test_weights_that_the_config_names_are_in_the_identity(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "model.safetensors").rename(folder / "deep" / "own.safetensors")
    settings(folder, transformers_weights="deep/own.safetensors")
    assert "deep/own.safetensors" in identify(ModelSpec(id=str(folder)))["files"]
    settings(folder, transformers_weights="../own.safetensors")
    with pytest.raises(ModelError, match=r"config\.json names weights outside of its folder"):
        load_model(folder)


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "own.tiktoken", "source.spm"])
def test_every_kind_of_vocabulary_enters_the_identity(folder: Path, name: str) -> None:
    before = identify(ModelSpec(id=str(folder)))
    (folder / name).write_text("x")
    assert identify(ModelSpec(id=str(folder))) != before


def test_an_adapter_is_not_left_out_in_silence(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(ModelError, match="holds an adapter"):
        load_model(folder)


# --- tensors -----------------------------------------------------------------------------------------


def test_a_config_with_fewer_layers_than_the_weights_is_refused(folder: Path) -> None:
    settings(folder, num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"hold 3 decoder layers, and its config\.json names 2"):
        load_model(folder)


def test_a_config_with_more_layers_than_the_weights_is_refused(folder: Path) -> None:
    settings(folder, num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"lack 13 of the tensors.*would be random"):
        load_model(folder)


@pytest.mark.parametrize(
    "extra", ["model.layers.1.mlp.up_proj.bias", "model.norm.bias", "lm_head.bias"]
)
def test_tensors_without_a_place_are_refused(folder: Path, extra: str) -> None:
    tensors(folder, lambda held: held.update({extra: torch.ones(64)}))
    with pytest.raises(ModelError, match=rf"hold 1 tensors that LlamaForCausalLM has no.*{extra}"):
        load_model(folder)


@pytest.mark.parametrize("extra", ["model.layers.0.self_attn.rotary_emb.inv_freq", "vision.w"])
def test_tensors_of_other_parts_are_let_be(folder: Path, extra: str) -> None:
    tensors(folder, lambda held: held.update({extra: torch.ones(4)}))
    assert load_model(folder)


@pytest.mark.parametrize(
    ("value", "dtype"), [("nan", "float32"), ("inf", "float32"), ("1e39", "float64")]
)
def test_weights_that_are_not_finite_in_float32_are_named(
    folder: Path, value: str, dtype: str
) -> None:
    def spoil(held: dict[str, torch.Tensor]) -> None:
        name = "model.layers.1.mlp.up_proj.weight"
        held[name] = held[name].to(getattr(torch, dtype))
        held[name][0, :2] = float(value)

    tensors(folder, spoil)
    with pytest.raises(
        ModelError, match=r"not finite in float32: 2 of the 2,048 entries of .*up_proj"
    ):
        load_model(folder)


def test_activations_whose_squares_overflow_name_the_hookpoint(folder: Path) -> None:
    tensors(folder, lambda held: held["model.embed_tokens.weight"].mul_(1e24))
    model = load_model(folder)
    with pytest.raises(
        ModelError, match=r"resid_post\.1 holds values up to .*squares are not finite"
    ):
        Reader(model, ["resid_post.1"]).read(architectures.token_ids())


def test_logits_that_overflow_are_refused_where_they_are_needed(folder: Path) -> None:
    tensors(folder, lambda held: held["lm_head.weight"].fill_(3e38))
    model = load_model(folder)
    assert Reader(model, ["resid_post.1"]).read(architectures.token_ids())
    with pytest.raises(ModelError, match="gives logits that are not finite"):
        Downstream(model, "resid_post.1")


# --- what kind of model ------------------------------------------------------------------------------


def test_an_encoder_is_refused_however_little_its_tokens_say(tmp_path: Path) -> None:
    config = transformers.BertConfig(**architectures.OTHERS["bert"][1], initializer_range=1e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is not causal.*unless its config.json says is_decoder"):
        load_model(tmp_path)
    config.is_decoder = True
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    assert load_model(tmp_path)


def test_an_encoder_decoder_is_refused_as_one(tmp_path: Path) -> None:
    config = transformers.BartConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, vocab_size=20,
    )  # fmt: skip
    transformers.BartForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is an encoder-decoder \(bart\)"):
        load_model(tmp_path)


def test_weights_of_a_classifier_are_refused_although_they_are_all_there(tmp_path: Path) -> None:
    config = architectures.config("gpt2")
    config.pad_token_id = 0
    transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="GPT2ForSequenceClassification, which was not trained"):
        load_model(tmp_path)


def test_a_residual_stream_of_one_number_is_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=1, n_head=1, n_layer=2, vocab_size=20, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="residual stream of 1 number; an SAE needs 2 or more"):
        load_model(tmp_path)


def test_layers_without_rows_first_are_refused() -> None:
    from sae_placebo.models.checks import check_forward

    model = architectures.build("llama")

    def swapped(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output.transpose(0, 1)

    model.model.layers[0].register_forward_hook(swapped)
    model.model.layers[1].register_forward_pre_hook(lambda _, args: (args[0].transpose(0, 1),))
    with pytest.raises(ModelError, match=r"its layer 0 gives \(6, 2, 32\) where \(2, 6, 32\)"):
        check_forward(model, "it")


def test_a_model_that_puts_positions_first_is_refused_as_that(tmp_path: Path) -> None:
    config = architectures.config("xlnet")
    config.attn_type = "uni"
    transformers.XLNetLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"its layer 0 gives \(6, 2, 32\) where \(2, 6, 32\)"):
        load_model(tmp_path)


# --- the model's own code -----------------------------------------------------------------------------


def _raise(error: Exception) -> Callable[..., Any]:
    def forward(*_: Any, **__: Any) -> Any:
        raise error

    return forward


def test_code_of_the_model_that_fails_is_one_sentence_with_its_cause(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, own = load_model(folder), KeyError("lost")
    mlp = type(model.model.layers[1].mlp)
    monkeypatch.setattr(mlp, "forward", _raise(own))
    said = r"cannot be run as its config\.json describes it \(KeyError: 'lost'\); mend config\.json or load"
    with pytest.raises(ModelError, match=rf"^{folder} {said}") as refusal:
        load_model(folder)
    assert refusal.value.__cause__ is own
    for place, fast in (("resid_post.1", False), ("resid_post.1", True), ("mlp_out.1", False)):
        with pytest.raises(ModelError, match=rf"^LlamaForCausalLM {said}"):
            Reader(model, [place], fast).read(architectures.token_ids())


def test_attention_that_runs_only_without_its_weights_is_refused_as_that() -> None:
    # its heads share nothing, and the two groups that its config names are used by one form alone
    settings = transformers.DeepseekV3Config(
        **{"vocab_size": 101, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "first_k_dense_replace": 2},
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
        **{"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
        **{"v_head_dim": 8, "moe_intermediate_size": 16, "max_position_embeddings": 64},
    )
    with torch.random.fork_rng():
        model = transformers.AutoModelForCausalLM.from_config(settings).eval()
    ids = architectures.token_ids()
    with pytest.raises(
        ModelError, match=r"^DeepseekV3ForCausalLM cannot be run as .*size of tensor"
    ):
        card(model, ["resid_post.1"], ids, torch.ones_like(ids, dtype=torch.bool))


@pytest.mark.parametrize(
    "error", [MemoryError("all used"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_memory_that_is_used_up_is_no_fault_of_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    model = load_model(folder)
    monkeypatch.setattr(type(model.model.layers[1].mlp), "forward", _raise(error))
    with pytest.raises(type(error), match=r"memory|used"):
        Reader(model, ["resid_post.1"]).read(architectures.token_ids())


def test_what_this_package_raises_inside_of_a_forward_stays_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(load_model(folder), ["resid_post.1"])
    ids = architectures.token_ids()
    places = torch.arange(ids.numel())
    with pytest.raises(KeyError, match="resid_post"):  # by the hook: there is nowhere to write to
        reader.read_into(ids, places, {})
