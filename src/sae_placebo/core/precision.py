"""A faster float32 product of this machine is used where it is found to be exact enough.

On some CPUs torch's default float32 product is half as fast as oneDNN's, which is reached by
`torch.set_float32_matmul_precision("medium")`. That setting permits bfloat16 inside, and a CPU
with matrix units may take it up on it. So its error is measured, once per process, and the setting
is used only where its products are as exact as float32 products are. No timing enters: the same
machine always decides alike, and gives the same bits.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from sae_placebo.core.lazy import torch
from sae_placebo.core.spec import generator

BOUND = 2e-6
"""No larger relative error is allowed. Float32 products of this length err by 4e-7 to 1e-6 and bfloat16
ones by 3e-3, so the bound has room on both sides."""

ROUNDING_ENERGY = 1e-12
"""Rounding alone leaves this share of the mean square as a variance: below it activations are all the
same. Float32 products err by up to 1e-6 of what they give, and a mean of equal numbers is seldom just
that one."""

_SHAPES = ((512, 512, 2048), (64, 576, 512), (7, 96, 33))
"""Tokens, terms of each sum, latents: the sizes of encoder products, small ones and odd ones."""


@dataclass(frozen=True)
class PrecisionDecision:
    """Whether the fast product is used, and the errors that decided it.

    Errors are relative to the root mean square of the result.
    """

    fast: bool
    default_error: float
    fast_error: float
    bound: float = BOUND


def _largest_error(setting: str) -> float:
    """Return the largest relative error, over fixed products, of root mean square type."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        errors = []
        for tokens, terms, latents in _SHAPES:
            random = generator(0, "precision", tokens, terms, latents)
            left = torch.randn(tokens, terms, generator=random)
            right = torch.randn(latents, terms, generator=random)
            exact = left.double() @ right.double().t()
            for found in (
                left @ right.t(),
                torch.addmm(torch.zeros(latents), left, right.t()),
                torch.nn.functional.linear(left, right, torch.zeros(latents)),
            ):
                wrong = (found.double() - exact).square().mean() / exact.square().mean()
                errors.append(float(wrong.sqrt()))
        return max(errors)
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def measure() -> PrecisionDecision:
    """Return whether the fast product is exact enough on this machine; it is measured once per process."""
    fast_error = _largest_error("medium")
    return PrecisionDecision(fast_error <= BOUND, _largest_error("highest"), fast_error)


@contextmanager
def fast_products() -> Iterator[bool]:
    """Use the fast float32 product inside the block, where it is as exact as float32.

    Yields whether it is used. The old setting returns at the end. CPU products only: on a GPU the
    same setting means TF32 or less, so the caller must not wrap GPU work in it.
    """
    fast = measure().fast
    before = torch.get_float32_matmul_precision()
    # where the fast one is refused, a caller's own reduced precision is refused as well
    torch.set_float32_matmul_precision("medium" if fast else "highest")
    try:
        yield fast
    finally:
        torch.set_float32_matmul_precision(before)


def describe() -> dict[str, bool | float | str]:
    """Return what was decided and the errors that were measured, for a trial's record."""
    return {**asdict(measure()), "torch": torch.__version__, "unit": "relative root mean square"}


# parameters of mallopt in glibc's malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_HEAP_SETTINGS = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
# glibc's own defaults, but for the thresholds: those it moves as a program frees large blocks, and
# once set they stand still; these are the largest values that it would have come to by itself
_RESTORED = {
    _MMAP_MAX: 65_536,
    _MMAP_THRESHOLD: 32 << 20,
    _TRIM_THRESHOLD: 64 << 20,
    _TOP_PAD: 128 << 10,
}
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 16 << 20}
_holders = 0


def _glibc() -> ctypes.CDLL | None:
    """Return the C library, if it is glibc and nobody else has set its heap."""
    if os.name != "posix" or any(name.startswith(_HEAP_SETTINGS) for name in os.environ):
        return None
    library = ctypes.CDLL(None)
    known = all(hasattr(library, name) for name in ("gnu_get_libc_version", "mallopt"))
    return library if known else None


@contextmanager
def kept_heap() -> Iterator[bool]:
    """Keep freed memory in the process inside the block, for the next tensor of that size.

    glibc maps every large tensor anew and hands it back when it is freed, so that each large
    operation first waits for fresh pages: up to a third of a forward on CPU. Inside, such memory is
    kept; peak memory is that of the largest moment, as before, but is held until the end, when free
    pages go back. Yields whether it is so: other C libraries are left alone, and so is a heap that
    the environment sets (MALLOC_*, GLIBC_TUNABLES, LD_PRELOAD). No result depends on it.
    """
    global _holders
    library = _glibc()
    if library is None:
        yield False
        return
    if _holders == 0:
        for parameter, value in _KEPT.items():
            library.mallopt(parameter, value)
    _holders += 1
    try:
        yield True
    finally:
        _holders -= 1
        if _holders == 0:
            for parameter, value in _RESTORED.items():
                library.mallopt(parameter, value)
            library.malloc_trim(0)
