"""The two ends of every tiny architecture, against what its model makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import architectures
from sae_placebo.models.embeddings import embedding, unembedding
from sae_placebo.models.sites import decoder_layers


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with architectures.one_thread():
        yield


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma", "opt"])
def test_embedding_rows_are_the_models_own(name: str) -> None:
    model = architectures.build(name)
    found = embedding(model)
    assert found.dtype == torch.float16
    expected = model.get_input_embeddings().weight
    torch.testing.assert_close(found.float(), expected, atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    assert found.abs().max() > 0


def test_matrices_between_the_residual_stream_and_the_ends_are_multiplied_in() -> None:
    model = architectures.build("opt_projected")
    assert model.get_input_embeddings().weight.shape == (architectures.VOCABULARY, 16)
    ids, decoder = architectures.token_ids(), model.model.decoder
    entered: list[torch.Tensor] = []
    decoder.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    model(input_ids=ids, use_cache=False)
    # positions are added to both rows alike
    rows = embedding(model)[ids].float()
    expected = entered[0][0] - entered[0][1]
    torch.testing.assert_close(rows[0] - rows[1], expected, atol=5e-3, rtol=1e-2)
    x = torch.randn(4, architectures.D_IN, generator=torch.Generator().manual_seed(0))
    found = unembedding(model)
    assert found is not None
    gain = decoder.final_layer_norm.weight
    logits = model.lm_head(decoder.project_out(x * gain))
    torch.testing.assert_close(x @ found.float().T, logits, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("name", list(architectures.CONFIGS))
def test_a_direction_times_the_unembedding_is_what_it_adds_to_the_logits(name: str) -> None:
    model = architectures.build(name)
    found = unembedding(model)
    assert found is not None
    assert found.shape == (architectures.VOCABULARY, architectures.D_IN)
    seen: dict[str, torch.Tensor] = {}

    def before_the_head(_: Any, given: tuple[torch.Tensor, ...]) -> None:
        seen["normed"] = given[0].reshape(-1, architectures.D_IN)

    def behind_the_layers(_: Any, __: Any, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        seen["residual"] = out.reshape(-1, architectures.D_IN)

    head = model.get_output_embeddings()
    head.register_forward_pre_hook(before_the_head)
    decoder_layers(model)[-1].register_forward_hook(behind_the_layers)
    model(architectures.token_ids())
    logits = seen["normed"] @ head.weight.T
    best = 0.0
    for centered in (False, True):  # norms that center, and such as do not
        x = seen["residual"]
        x = x - x.mean(1, keepdim=True) if centered else x
        x = x / x.square().mean(1, keepdim=True).sqrt()
        made = x @ found.float().T
        # a norm's bias adds the same to every token's logits
        one, other = made - made.mean(0), logits - logits.mean(0)
        best = max(best, float((one * other).sum() / one.norm() / other.norm()))
    assert best > 0.9999


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_model_without_an_output_head_has_no_unembedding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = architectures.build(name)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    assert unembedding(model) is None
