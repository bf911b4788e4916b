from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sae_placebo import precision


@pytest.fixture(autouse=True)
def _setting_kept() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    assert torch.get_float32_matmul_precision() == before
    precision.measure.cache_clear()


def test_products_inside_are_exact_to_float32() -> None:
    random = torch.Generator().manual_seed(5)
    left, right = (torch.randn(300, 400, generator=random) for _ in range(2))
    with precision.fast_products() as fast:
        found = left @ right.t()
        assert (torch.get_float32_matmul_precision() == "medium") == fast
    exact = left.double() @ right.double().t()
    assert (found - exact).square().mean().sqrt() / exact.square().mean().sqrt() < precision.BOUND


def test_setting_returns_after_an_error() -> None:
    with pytest.raises(KeyError), precision.fast_products():
        raise KeyError


def test_bfloat16_products_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    true_matmul = torch.Tensor.__matmul__

    def rounded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if torch.get_float32_matmul_precision() == "medium" and left.dtype == torch.float32:
            return true_matmul(left.bfloat16(), right.bfloat16()).float()
        return true_matmul(left, right)

    precision.measure.cache_clear()
    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert precision.measure().fast_error > 1e-3
    with precision.fast_products() as fast:
        assert not fast
        assert torch.get_float32_matmul_precision() != "medium"
    assert precision.describe()["fast"] is False


def test_decision_is_made_once() -> None:
    assert precision.measure() is precision.measure()
    recorded = precision.describe()
    assert recorded["default_error"] < precision.BOUND
    assert recorded["bound"] == precision.BOUND
