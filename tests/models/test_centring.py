"""Reading without each token's mean is what TransformerLens's centred writing weights give."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import architectures
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.errors import ModelError, SpecError
from sae_placebo.models.centring import centre, is_centred, moved_by_mean, without_mean
from sae_placebo.models.embeddings import embedding
from sae_placebo.models.reading import Reader, replaced
from sae_placebo.models.specs import ModelSpec, check_centred

STREAM = ["resid_pre.0", "attn_out.1", "mlp_out.1", "resid_post.1", "resid_post.2"]
INPUTS = ["z.1", "mlp_in.1"]


def by_hand(reference: Any) -> Any:
    """Return a copy whose writing weights are centred as TransformerLens centres them."""
    model = copy.deepcopy(reference)
    # the unembedding is tied to the embedding, and is no weight that writes
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    body = model.transformer
    for table in (body.wte, body.wpe):
        table.weight.data -= table.weight.data.mean(1, keepdim=True)
    for block in body.h:
        for matrix in (block.attn.c_proj, block.mlp.c_proj):  # [d_in, d_model]
            matrix.weight.data -= matrix.weight.data.mean(1, keepdim=True)
            matrix.bias.data -= matrix.bias.data.mean()
    return model


@pytest.fixture(scope="module")
def reference() -> Any:
    model = architectures.build("gpt2")
    drawn = torch.Generator().manual_seed(3)
    for parameter in model.parameters():  # means and biases that are not zero
        parameter.data += 0.1 + 0.05 * torch.randn(parameter.shape, generator=drawn)
    return model


@pytest.fixture(scope="module")
def centred(reference: Any) -> Any:
    model = copy.deepcopy(reference)
    centre(model)
    return model


def test_it_is_what_a_model_with_centred_writing_weights_gives(
    reference: Any, centred: Any
) -> None:
    ids, hand = architectures.token_ids(), by_hand(reference)
    expected = Reader(hand, STREAM + INPUTS).read(ids)
    found = Reader(centred, STREAM + INPUTS).read(ids)
    plain = Reader(reference, STREAM + INPUTS).read(ids)
    for name in STREAM + INPUTS:
        # 32-bit sums in another order: what centring changes is 500 times larger
        assert torch.allclose(found[name], expected[name], rtol=0, atol=2e-4), name
    for name in STREAM:
        assert float(found[name].mean(-1).abs().max()) < 1e-4
        assert float((plain[name] - found[name]).abs().max()) > 0.05, name
    for name in INPUTS:
        assert torch.equal(plain[name], found[name])
    with torch.no_grad():
        logits = [model(input_ids=ids).logits for model in (hand, centred, reference)]
    assert torch.allclose(logits[0], logits[2], atol=1e-5)
    assert torch.equal(logits[1], logits[2])


def test_copies_are_centred_and_the_model_it_came_from_is_not(reference: Any, centred: Any) -> None:
    assert is_centred(copy.deepcopy(centred))
    assert not is_centred(reference)


def test_the_embedding_is_without_its_means(reference: Any, centred: Any) -> None:
    whole = reference.get_input_embeddings().weight
    expected = (whole - whole.mean(1, keepdim=True)).to(torch.float16)
    assert torch.equal(embedding(centred), expected)
    assert torch.equal(embedding(reference), whole.to(torch.float16))


@pytest.mark.parametrize("place", ["resid_pre.1", "attn_out.1", "mlp_out.1", "resid_post.2"])
def test_what_is_put_back_gets_the_mean_that_was_there(
    reference: Any, centred: Any, place: str
) -> None:
    ids = architectures.token_ids()
    seen = []

    def turned(x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1)

    def turned_about_mean(x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        seen.append(mean)
        return (x - mean).flip(-1) + mean

    with torch.no_grad():
        with replaced(centred, place, lambda x: x):
            same = centred(input_ids=ids).logits
        with replaced(centred, place, turned):
            found = centred(input_ids=ids).logits
        with replaced(reference, place, turned_about_mean):
            expected = reference(input_ids=ids).logits
        plain = reference(input_ids=ids).logits
    assert float(seen[0].abs().max()) > 0.05
    assert torch.allclose(same, plain, atol=1e-4)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-3)


@pytest.mark.parametrize("place", ["resid_pre.1", "attn_out.1", "resid_post.1", "resid_post.2"])
def test_edits_cost_what_they_cost_in_the_model_centred_by_hand(
    reference: Any, centred: Any, place: str
) -> None:
    ids = architectures.token_ids()[0]
    deltas = torch.randn(3, architectures.D_IN, generator=torch.Generator().manual_seed(0))
    found, costs = [], []
    for model in (centred, by_hand(reference)):
        behind = Downstream(model, place)
        row = behind.read(ids)
        found.append(row.site)
        costs.append(behind.kl_of_edits(row, 2, deltas, 3))
        on_top = behind.on_top(row, torch.ones_like(row.site))  # a mean, which nothing reads
        assert torch.allclose(behind.kl_of_edits(on_top, 2, deltas, 3), costs[-1], rtol=1e-3)
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert torch.allclose(costs[0], costs[1], rtol=1e-3, atol=1e-6)


def test_heads_and_bias_sum_to_what_is_read(centred: Any) -> None:
    from sae_placebo.causal.circuits.components import layer_parts

    ids = architectures.token_ids()
    read = Reader(centred, ["z.1", "attn_out.1"]).read(ids)
    heads, bias = layer_parts(centred, 1, 2)[0].attention.head_outputs(read["z.1"])
    assert torch.allclose(heads.sum(-2) + bias, read["attn_out.1"], atol=1e-5)


def test_graphs_are_those_of_the_model_centred_by_hand(reference: Any, centred: Any) -> None:
    from sae_placebo.causal.circuits.graph import GraphSpec, attribution_graph
    from sae_placebo.saes import SAE
    from sae_placebo.saes.topk import TopKSpec

    saes = []
    for layer in (0, 1):
        made = TopKSpec(d_sae=40, k=4).create(architectures.D_IN, layer)
        # a direction with a mean would be carried on by the other model, and read again
        rows = {"W_enc": without_mean(made.params["W_enc"].t()).t()}
        rows["W_dec"] = without_mean(made.params["W_dec"])
        saes.append((f"resid_post.{layer}", SAE(made.spec, dict(made.params) | rows)))
    words, ids = [f"w{i}" for i in range(architectures.VOCABULARY)], architectures.token_ids()[0]
    settings = GraphSpec(expand=10, least=1e-4, least_edge=1e-6, edges=5000)
    found, expected = (
        {
            (str(graph.nodes[edge.source]), str(graph.nodes[edge.target])): edge.weight
            for edge in graph.edges
        }
        for graph in (
            attribution_graph(model, ids, saes, words, settings)
            for model in (copy.deepcopy(centred).double(), by_hand(reference).double())
        )
    )
    assert len(found) == len(expected) > 100
    weights = zip(sorted(found.values()), sorted(expected.values()), strict=True)
    assert all(one == pytest.approx(other, rel=1e-3, abs=1e-5) for one, other in weights)


def test_calibration_aims_at_what_the_model_centred_by_hand_has(
    reference: Any, centred: Any
) -> None:
    from sae_placebo.controls import SampleText
    from sae_placebo.controls.model.calibrating import stream_profile

    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 33, (24, 24), generator=drawn)
    text = SampleText(
        ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(24) // 2, ("resid_post.1",), 3.0
    )
    found, expected, plain = (
        torch.tensor([one.value for one in stream_profile(model, text, 2)])
        for model in (centred, by_hand(reference), reference)
    )
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "gpt_neox", "phi", "opt", "gptj"])
def test_models_with_layer_norms_do_not_read_the_mean(name: str) -> None:
    assert moved_by_mean(architectures.build(name)) < 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "qwen3"])
def test_rms_norms_are_refused(name: str) -> None:
    with pytest.raises(
        ModelError, match=r"reads the mean .*RMSNorm.* set \[model\] centred = false"
    ):
        centre(architectures.build(name))


def test_a_model_without_a_final_norm_is_refused() -> None:
    model = architectures.build("gpt2")
    model.transformer.ln_f = torch.nn.Identity()
    with pytest.raises(ModelError, match="reads the mean"):
        centre(model)


def test_a_config_that_tells_of_rms_norms_is_refused_before_anything_is_loaded(
    tiny_model: Path,
) -> None:
    check_centred(ModelSpec(id=str(tiny_model)))
    for source in (str(tiny_model), "pylm", "smollm2-135m"):
        with pytest.raises(SpecError, match=r"RMSNorms.* set \[model\] centred = false"):
            check_centred(ModelSpec(id=source, centred=True))
