"""Faster forms of a forward's parts: the same values but for rounding, and only while reading."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import architectures
from sae_placebo.core.spec import generator
from sae_placebo.models import forward_kernels
from sae_placebo.models.forward_kernels import blocked_attention, causal_attention, fast_forms
from sae_placebo.models.loading import Reader

NAMES = list(architectures.CONFIGS)
EVERYWHERE = [f"resid_post.{layer}" for layer in range(architectures.N_LAYERS)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with architectures.one_thread():
        yield


def heads(n_rows: int, n_heads: int, n: int, width: int, seed: int) -> torch.Tensor:
    random = generator(seed, "heads")
    flat = torch.randn(n_rows, n, n_heads * width, generator=random)
    return flat.view(n_rows, n, n_heads, width).transpose(1, 2)


@pytest.mark.parametrize("n", [1, 5, 63, 64, 65, 130])
@pytest.mark.parametrize("n_rows", [1, 7])
def test_attention_is_torchs_own(n: int, n_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_kernels, "_SCORES", 3 * 64 * 65 * 2)  # rows in several blocks
    query, key, value = (heads(n_rows, 3, n, 8, seed) for seed in range(3))
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    found = causal_attention(query, key, value, 0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-4, atol=2e-6)


def test_no_token_sees_a_later_one() -> None:
    query, key, value = (heads(2, 2, 70, 4, seed) for seed in range(3))
    before = causal_attention(query, key, value, 0.5)
    key[:, :, 40:], value[:, :, 40:] = 1e4, -1e4
    assert torch.equal(causal_attention(query, key, value, 0.5)[:, :40], before[:, :40])


@pytest.mark.parametrize("case", ["mask", "not causal", "lengths", "long"])
def test_what_is_not_plain_goes_to_transformers(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (heads(2, 2, 20, 4, seed) for seed in range(3))
    module, mask, settings = SimpleNamespace(is_causal=True), None, {"scaling": 0.5}
    allowed = torch.ones(20, 20).tril().bool()
    if case == "mask":
        allowed = allowed & (torch.rand(20, 20, generator=generator(0, "mask")) > 0.5)
        allowed |= torch.eye(20).bool()
        mask = allowed[None, None]
    elif case == "not causal":
        module.is_causal, allowed = False, torch.ones(20, 20).bool()
    elif case == "lengths":
        query, allowed, module.is_causal = query[:, :, 15:], torch.ones(5, 20).bool(), False
    else:
        monkeypatch.setattr(forward_kernels, "_LONGEST", 10)
    found, _ = blocked_attention(module, query, key, value, mask, **settings)
    expected = F.scaled_dot_product_attention(query, key, value, allowed, scale=0.5)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_fast_readings_are_the_models_but_for_rounding(name: str) -> None:
    model = architectures.build(name)
    ids = architectures.token_ids(3, 30)
    plain, fast = Reader(model, EVERYWHERE), Reader(model, EVERYWHERE, fast=True)
    expected, found = plain.read(ids), fast.read(ids)
    for place, x in expected.items():
        error = (found[place] - x).square().mean() / x.var()
        assert float(error) < 1e-9, place
    again = plain.read(ids)  # and the model is as it was
    assert all(torch.equal(again[place], x) for place, x in expected.items())
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize(("name", "n_forwards"), [("gpt2", 3), ("llama", 7)])
def test_forms_are_found(name: str, n_forwards: int) -> None:
    model = architectures.build(name)
    forms = fast_forms(model)
    assert len(forms.forwards) == n_forwards
    assert Reader(model, EVERYWHERE, fast=True).is_fast
    with forms.applied():
        assert model.config._attn_implementation == forward_kernels.ATTENTION
    assert model.config._attn_implementation == "sdpa"


def test_a_norm_that_computes_something_else_keeps_its_forward() -> None:
    class OddRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(16)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)

    assert fast_forms(OddRMSNorm()).forwards == ()


def test_forms_that_change_a_forward_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(module: Any, query: torch.Tensor, *rest: Any, **_: Any) -> tuple[Any, None]:
        return query.transpose(1, 2).contiguous(), None

    monkeypatch.setattr(forward_kernels, "blocked_attention", wrong)
    model = architectures.build("llama")
    reader = Reader(model, EVERYWHERE, fast=True)
    monkeypatch.undo()
    forward_kernels._register()
    assert not reader.is_fast
    ids = architectures.token_ids()
    expected = Reader(model, EVERYWHERE).read(ids)
    assert all(torch.equal(x, expected[name]) for name, x in reader.read(ids).items())
