"""`z` and `mlp_in` against hooks on modules that are named here, architecture by architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import architectures
from sae_placebo.controls import AblateAttention
from sae_placebo.controls import build as controlled
from sae_placebo.core.errors import ModelError
from sae_placebo.data.rows import Rows
from sae_placebo.models.activations import blocks
from sae_placebo.models.diagnostics import card
from sae_placebo.models.loading import Reader, decoder_layers, replaced
from sae_placebo.models.reading import JoinedReader
from sae_placebo.models.specs import ModelSpec, width_at

OUTPUT = {
    "phi": "self_attn.dense",
    "gpt2": "attn.c_proj",
    "gptj": "attn.out_proj",
    "gpt_neo": "attn.attention.out_proj",
    "gpt_neox": "attention.dense",
    "gpt_neox_sequential": "attention.dense",
    "opt": "self_attn.out_proj",
    "bloom": "self_attention.dense",
    "mpt": "attn.out_proj",
    "falcon": "self_attention.dense",
    "falcon_new": "self_attention.dense",
    "falcon_alibi": "self_attention.dense",
    "gpt_bigcode": "attn.c_proj",
    "codegen": "attn.out_proj",
    "xglm": "self_attn.out_proj",
    "zamba2": "shared_transformer.self_attn.o_proj",
}
"""The output projection of attention in a layer; `self_attn.o_proj` where nothing is said."""
MLP = {
    "opt": "fc1",
    "mpt": "ffn",
    "xglm": "fc1",
    "granitemoe": "block_sparse_moe",
    "llama4": "feed_forward",
    "jamba": "feed_forward",
}
"""The MLP of a layer, or its first matrix where it has no module; `mlp` where nothing is said."""
FURTHER = (
    *(
        "llama_wide_heads",
        "mixtral",
        "deepseek_v2",
        "deepseek_v3",
        "gpt_oss",
        "granitemoe",
        "llama4",
    ),
    *("qwen3_next", "gpt_bigcode", "codegen", "xglm", "jamba"),
)
LAYER = 1


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with architectures.one_thread():
        yield


@pytest.fixture(scope="module", params=[*architectures.CONFIGS, *FURTHER])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def module_at(model: Any, name: str, site: str) -> Any:
    path = OUTPUT.get(name, "self_attn.o_proj") if site == "z" else MLP.get(name, "mlp")
    return decoder_layers(model)[LAYER].get_submodule(path)


def hooked(model: Any, module: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the logits of a whole forward in which a module is given `change` of its input."""

    def before(_: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        logits: torch.Tensor = model(architectures.token_ids(), use_cache=False).logits
        return logits
    finally:
        handle.remove()


def test_what_is_read_is_what_the_module_is_given(name: str) -> None:
    model, ids = architectures.build(name), architectures.token_ids()
    for site in ("z", "mlp_in"):
        seen: list[torch.Tensor] = []

        def keep(x: torch.Tensor, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(x.clone())
            return x

        hooked(model, module_at(model, name, site), keep)
        place = f"{site}.{LAYER}"
        reader = Reader(model, [place])
        found = reader.read(ids)[place]
        assert found.shape == (*ids.shape, reader.widths[place])
        assert torch.equal(found, seen[0].reshape(found.shape))
        assert float(found.std()) > 0


def test_an_edit_is_one_of_what_the_module_is_given(name: str) -> None:
    model = architectures.build(name)
    plain = model(architectures.token_ids(), use_cache=False).logits

    def change(x: torch.Tensor) -> torch.Tensor:
        return -2 * x

    for site in ("z", "mlp_in"):
        expected = hooked(model, module_at(model, name, site), change)
        with replaced(model, f"{site}.{LAYER}", change):
            found = model(architectures.token_ids(), use_cache=False).logits
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert float((found - plain).abs().max()) > 1e-4


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "falcon", "mixtral", "gptj"])
def test_attention_adds_the_projection_of_z(name: str) -> None:
    model = architectures.build(name)
    found = Reader(model, ["z.1", "attn_out.1"]).read(architectures.token_ids())
    projected = module_at(model, name, "z").forward(found["z.1"])
    torch.testing.assert_close(projected, found["attn_out.1"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "phi", "mixtral", "deepseek_v3"])
def test_the_mlp_adds_what_it_makes_of_its_input(name: str) -> None:
    model = architectures.build(name)
    found = Reader(model, ["mlp_in.1", "mlp_out.1"]).read(architectures.token_ids())
    made = module_at(model, name, "mlp_in").forward(found["mlp_in.1"])
    made = made[0] if isinstance(made, tuple) else made
    torch.testing.assert_close(made, found["mlp_out.1"], rtol=1e-4, atol=1e-5)


def test_the_input_of_the_mlp_is_behind_the_norm_and_its_gain() -> None:
    model = architectures.build("llama")
    found = Reader(model, ["resid_pre.1", "attn_out.1", "mlp_in.1"]).read(architectures.token_ids())
    norm = model.model.layers[1].post_attention_layernorm
    expected = norm(found["resid_pre.1"] + found["attn_out.1"])
    torch.testing.assert_close(found["mlp_in.1"], expected, rtol=1e-5, atol=1e-5)


# --- wrong places ------------------------------------------------------------------------------------


class Doubled(torch.nn.Module):
    """A projection whose output is doubled before attention returns it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(x)


def test_a_matrix_whose_output_attention_does_not_return_is_no_projection() -> None:
    model = architectures.build("llama")
    attention = model.model.layers[1].self_attn
    attention.o_proj = Doubled(attention.o_proj)
    assert Reader(model, ["z.0"]).widths == {"z.0": architectures.D_IN}
    with pytest.raises(ModelError, match=r"z\.1 cannot be read from Llama.*LlamaAttention returns"):
        Reader(model, ["z.1"])


def test_an_mlp_that_reads_more_than_its_input_is_refused() -> None:
    model = architectures.build("llama")
    layer, seen = model.model.layers[1], list[torch.Tensor]()
    own = layer.mlp.forward
    layer.input_layernorm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    layer.mlp.forward = lambda x: own(x + 0.1 * seen[-1])
    assert Reader(model, ["mlp_out.1"])
    with pytest.raises(ModelError, match=r"mlp_in\.1.*depends on more than the input of LlamaMLP"):
        Reader(model, ["mlp_in.1"])


def test_a_module_that_layers_share_is_refused() -> None:
    model = architectures.build("llama")
    model.model.layers[2].self_attn = model.model.layers[1].self_attn
    assert Reader(model, ["z.0"])
    with pytest.raises(ModelError, match=r"its Linear is shared by layers 1, 2\. Use resid_pre\.1"):
        Reader(model, ["z.1"])


def test_the_heads_are_found_inside_of_a_block_that_is_called_attention() -> None:
    # Zamba 2's block holds an MLP whose last matrix is what the block returns
    model = architectures.build("zamba2")
    reader = Reader(model, ["z.1"])
    expected: list[torch.Tensor] = []
    hooked(model, module_at(model, "zamba2", "z"), lambda x: expected.append(x.clone()) or x)  # type: ignore[func-returns-value]
    assert torch.equal(reader.read(architectures.token_ids())["z.1"], expected[0])


@pytest.mark.parametrize(
    ("name", "place", "why"),
    [
        ("jetmoe", "z.1", "JetMoeAttention returns is not the output of a matrix"),
        ("bert_decoder", "z.1", "BertSelfAttention returns is not the output of a matrix"),
        ("mamba", "z.1", "its layer has no attention module. Use resid_pre"),
        ("mamba", "mlp_in.1", "mlp_in.1, attn_out.1 and mlp_out.1 cannot be read"),
        ("opt_post_norm", "mlp_in.1", "its layer does more than add attention and MLP"),
    ],
)
def test_what_has_no_such_place_is_refused_by_name(name: str, place: str, why: str) -> None:
    with pytest.raises(ModelError) as refusal:
        Reader(architectures.build(name), [place])
    assert why in str(refusal.value)


# --- widths ------------------------------------------------------------------------------------------


def rows() -> Rows:
    ids = architectures.token_ids(6, 12).numpy().astype(np.int32)
    return Rows(ids, np.full(6, 12, np.int32), np.zeros(6, np.int32), ("d",))


def test_one_reader_reads_hookpoints_of_several_widths() -> None:
    model = architectures.build("llama_wide_heads")
    places = ("resid_post.2", "z.1", "mlp_in.0")
    reader = Reader(model, places, fast=True)
    widths = {"resid_post.2": 32, "z.1": 64, "mlp_in.0": 32}
    assert reader.is_fast
    assert reader.widths == widths
    alone = [Reader(model, [place]) for place in places]
    joined = JoinedReader(alone, places)
    assert joined.widths == widths
    for one in (reader, joined):
        block = next(blocks(one, rows(), np.arange(6), 6))
        assert {name: x.shape[1] for name, x in block.activations.items()} == widths
        for name, x in block.activations.items():
            torch.testing.assert_close(x, read_alone(model, name), rtol=1e-4, atol=1e-5)


def read_alone(model: Any, place: str) -> torch.Tensor:
    return next(blocks(Reader(model, [place]), rows(), np.arange(6), 6)).activations[place]


def test_the_width_is_known_without_the_model(tmp_path: Path) -> None:
    for name in ("llama_wide_heads", "gpt2", "gemma2", "deepseek_v3"):
        architectures.build(name).save_pretrained(tmp_path / name)
        spec = ModelSpec(id=str(tmp_path / name))
        model = architectures.build(name)
        for place in ("resid_post.0", "z.1", "mlp_in.1"):
            assert width_at(spec, place) == Reader(model, [place]).widths[place], (name, place)


# --- others that read there --------------------------------------------------------------------------


def test_z_is_not_zero_where_attention_is_ablated() -> None:
    model, _ = controlled(architectures.build("gpt2"), AblateAttention(), 0, 0)
    found = Reader(model, ["z.1", "attn_out.1", "mlp_in.1"]).read(architectures.token_ids())
    assert not bool(found["attn_out.1"].any())
    assert float(found["z.1"].std()) > 0
    assert float(found["mlp_in.1"].std()) > 0


def test_the_card_has_no_ratio_of_what_blocks_add() -> None:
    ids = architectures.token_ids(12, 20)
    found = card(architectures.build("llama_wide_heads"), ["z.1", "mlp_in.1"], ids, ids >= 0)
    for place, values in found.items():
        ratio = values["block_to_embedding_ratio"]
        assert ratio["value"] is None
        assert ratio["reason"].startswith(f"{place} is the input of a module")
        assert values["participation_ratio"]["value"] > 1
        assert values["residual_norm"]["value"] > 0
