"""Heads, norms and MLPs found by structure, against what the modules themselves compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from architectures import CONFIGS, D_IN, build, token_ids
from sae_placebo.causal.circuits.components import LayerParts, final_norm, layer_parts, mlp_matrices
from sae_placebo.causal.circuits.norms import read_norm
from sae_placebo.core.errors import ModelError
from sae_placebo.models.hookpoints import Hookpoint
from sae_placebo.models.sites import resolve

LAYER = 1


def _noted(model: Any, wanted: dict[str, tuple[torch.nn.Module, str]]) -> dict[str, torch.Tensor]:
    """Return inputs or outputs of modules in one forward."""
    seen: dict[str, torch.Tensor] = {}

    def note(name: str, side: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, output: Any) -> None:
            value = args[0] if side == "in" else output
            seen[name] = (value[0] if isinstance(value, tuple) else value).detach().clone()

        return hook

    handles = [m.register_forward_hook(note(name, side)) for name, (m, side) in wanted.items()]
    with torch.no_grad():
        model(input_ids=token_ids())
    for handle in handles:
        handle.remove()
    return seen


def _attention_term(model: Any, layer: int) -> torch.Tensor:
    found: list[torch.Tensor] = []
    place = Hookpoint("attn_out", layer)
    with (
        torch.no_grad(),
        resolve(model, [place]).hooked({place: lambda x: found.append(x.clone())}),
    ):
        model(input_ids=token_ids())
    return found[0]


def _without_norms(model: Any) -> Any:
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = torch.nn.Identity(), torch.nn.Identity()
    model.transformer.ln_f = torch.nn.Identity()
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_heads_sum_to_what_attention_adds(name: str) -> None:
    model = build(name)
    part = layer_parts(model)[LAYER]
    seen = _noted(model, {"mixed": (part.attention.output, "in")})
    heads, bias = part.attention.head_outputs(seen["mixed"])
    term = _attention_term(model, LAYER)
    assert heads.shape == (*term.shape[:-1], 4, D_IN)
    assert torch.allclose(heads.sum(-2) + bias, term, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "gpt2", "gpt_neox", "phi3", "falcon_new", "opt"]
)
def test_values_are_what_a_lone_token_mixes(name: str) -> None:
    model = build(name)
    part = layer_parts(model)[LAYER]
    attention = part.attention
    norm = part.attention_norm.module
    assert norm is not None
    seen = _noted(model, {"mixed": (attention.output, "in"), "read": (norm, "out")})
    value = torch.einsum("hed,bd->bhe", attention.value.weight(), seen["read"][:, 0])
    value = (value + attention.value.bias())[:, torch.from_numpy(attention.group)]
    mixed = seen["mixed"].reshape(*seen["read"].shape[:2], -1)[:, 0]
    assert torch.allclose(value.flatten(1), mixed, atol=1e-4)


def test_layouts_of_known_models() -> None:
    neox = layer_parts(build("gpt_neox"))[0].attention
    assert list(neox.query.columns[1]) == list(range(24, 32))
    assert list(neox.key.columns[1]) == list(range(32, 40))
    assert neox.query.module is neox.value.module
    llama = layer_parts(build("llama"), first=1)[0]
    assert llama.index == 1
    assert llama.attention.key.n_heads == 2
    assert list(llama.attention.group) == [0, 0, 1, 1]
    assert llama.attention.query.module is llama.attention.module.q_proj
    assert llama.attention.key.module is llama.attention.module.k_proj


def test_parallel_layers_are_told() -> None:
    parallel = {"gpt_neox", "gptj", "phi", "cohere", "falcon"}
    others = {"llama", "gpt2", "gpt_neox_sequential", "bloom", "olmo2", "gemma2"}
    for name in parallel | others:
        assert layer_parts(build(name), first=2)[0].parallel == (name in parallel), name


def test_silent_heads_and_missing_norms_are_no_obstacle() -> None:
    model = _without_norms(build("gpt2"))
    for block in model.transformer.h:
        block.attn.c_attn.weight.zero_()
        block.attn.c_attn.bias.zero_()
    part = layer_parts(model)[LAYER]
    assert np.array_equal(part.attention.query.columns.ravel(), np.arange(D_IN))
    assert np.array_equal(part.attention.value.columns.ravel(), np.arange(2 * D_IN, 3 * D_IN))
    assert not part.attention_norm.scales
    assert not part.mlp_norm.scales
    assert not final_norm(model).scales


def test_finding_leaves_the_model_as_it_was() -> None:
    model = build("qwen3")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    layer_parts(model)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", ["mamba", "bert", "opt_post_norm"])
def test_what_is_not_understood_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        layer_parts(build(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_go_back_through_norms_as_autograd_says(name: str) -> None:
    model = build(name)
    part: LayerParts = layer_parts(model)[LAYER]
    for norm in (part.attention_norm, part.mlp_norm, final_norm(model)):
        x = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
        pull = torch.randn(5, D_IN, generator=torch.Generator().manual_seed(1))
        out = x * 1 if norm.module is None else norm.module(x)
        (expected,) = torch.autograd.grad(out, x, pull)
        assert torch.allclose(norm.pulled(pull, x.detach()), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.nn.LayerNorm, torch.nn.RMSNorm])
@pytest.mark.parametrize("width", [3, 32, 33])
def test_norms_of_any_width_are_read(kind: Any, width: int) -> None:
    module = kind(width, eps=1e-6).requires_grad_(False)
    for parameter in module.parameters():
        parameter.add_(torch.linspace(-0.5, 0.7, width))
    norm = read_norm(module, width)
    assert norm.centered == (kind is torch.nn.LayerNorm)
    assert torch.allclose(norm.weight, module.weight, rtol=1e-3, atol=1e-3)
    assert torch.allclose(norm.bias, getattr(module, "bias", torch.zeros(width)), atol=1e-3)


def test_other_norms_are_refused() -> None:
    class CubeNorm(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x**3

    with pytest.raises(ModelError, match="CubeNorm"):
        read_norm(CubeNorm(), D_IN)


def test_matrices_that_an_mlp_reads_with() -> None:
    model = build("llama")
    parts = layer_parts(model)
    mlp: Any = parts[LAYER].mlp
    assert set(mlp_matrices(model, parts)[LAYER]) == {mlp.gate_proj, mlp.up_proj}
    opt = build("opt")
    parts = layer_parts(opt)
    assert mlp_matrices(opt, parts)[LAYER] == [parts[LAYER].mlp]
