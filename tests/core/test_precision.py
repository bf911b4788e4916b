from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from sae_placebo.core import precision


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


# --- the heap --------------------------------------------------------------------------------------


def test_the_heap_is_kept_and_given_back() -> None:
    """Run in a process of its own, whose heap no other test has used."""
    program = """
import resource, numpy
from sae_placebo.core import precision

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def touch():
    before = faults()
    for _ in range(5):
        numpy.ones(9_000_000 // 8)
    return faults() - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

touch()
with precision.kept_heap() as kept:
    with precision.kept_heap():
        numpy.ones(40_000_000 // 8)
    numpy.ones(40_000_000 // 8)
    inside, held = touch(), resident()
print(kept, inside, held - resident())
"""
    kept, inside, returned = _run(program)
    assert kept == str(_is_glibc())
    if _is_glibc():
        assert int(inside) < 500  # five times 2,200 pages otherwise
        assert int(returned) > 5_000  # 40 MB are 9,800 pages


def test_a_heap_that_the_environment_sets_is_left_alone() -> None:
    program = "from sae_placebo.core import precision\nwith precision.kept_heap() as k: print(k)"
    assert _run(program, MALLOC_ARENA_MAX="3") == ["False"]


def _is_glibc() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def _run(program: str, **settings: str) -> list[str]:
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("MALLOC_", "LD_PRE"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()
