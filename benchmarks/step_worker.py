"""A process that takes training steps on request; `sae_step.py` starts it in each environment.

Reads one JSON line of settings, answers with one, then answers every further line with the times of
some steps. Standard output holds lines of JSON and whatever peers print.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import time
from dataclasses import replace
from typing import Any

import machine
import timing
import torch
from sides import SIDES, Setting, Side, Unsupported

from data import load

_PACKAGES = (
    "torch",
    "numpy",
    "numba",
    "sae-placebo",
    "sae-lens",
    "dictionary-learning",
    "eai-sparsify",
)


_HELD = contextlib.ExitStack()


def set_products(name: str) -> str:
    """Choose the float32 product: `default`, `medium`, or `trial`, what this package's trials run under."""
    if name == "trial":
        from sae_placebo.core.devices import settings

        _HELD.enter_context(settings("cpu"))  # until the process ends
    elif name != "default":
        torch.set_float32_matmul_precision(name)
    return torch.get_float32_matmul_precision()


def answer(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def wake_threads(seconds: float = 0.03) -> None:
    """Multiply until the thread pool is awake: one that slept costs the first sample milliseconds."""
    small = torch.ones(384, 384)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        torch.mm(small, small)


def give_back_heap() -> None:
    """Return what the heap keeps to the system, so that workers fit beside each other while they wait."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def begin(settings: dict[str, Any]) -> tuple[Side, list[torch.Tensor], float]:
    """Return the side, its batches, and what the process held before the side was made."""
    name, setting = settings["side"], Setting(**settings["setting"])
    size = setting.batch_tokens
    x = load(settings["data"])
    batches = [part.contiguous() for part in x[: 3 * size].split(size)]
    # a small one first: libraries and compiled loops are loaded before memory is counted
    tiny = replace(setting, d_in=64, d_sae=512, batch_tokens=128)
    small = SIDES[name](tiny)
    for _ in range(2):
        small.step(torch.randn(128, 64))
    del small
    before = timing.resident_bytes()
    return SIDES[name](setting), batches, before


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    torch.set_num_threads(settings["threads"])
    products = set_products(settings["products"])
    try:
        side, batches, before = begin(settings)
    except Unsupported as reason:
        answer({"unsupported": str(reason)})
        return
    counted = timing.reset_peak()
    side.step(batches[0])
    answer(
        {
            "products": products,
            "versions": machine.versions(*_PACKAGES),
            "n_parameters": side.n_parameters,
            "notes": side.notes,
        }
    )
    turn, keeps_heap = 0, "MALLOC_TRIM_THRESHOLD_" in os.environ
    give_back_heap()
    for _ in sys.stdin:
        timing.wait_until_quiet(settings["wait"])
        wake_threads()
        if keeps_heap:  # its pages were given back between turns
            side.step(batches[turn % len(batches)])
        taken, foreign = [], []
        end = time.monotonic() + settings["turn_seconds"]
        while len(taken) < settings["steps"] and (not taken or time.monotonic() < end):
            turn += 1
            x = batches[turn % len(batches)]
            seconds, others = timing.timed(lambda x=x: side.step(x))  # type: ignore[misc]
            taken.append(seconds)
            foreign.append(others)
        held = timing.peak_bytes() - before if counted else None
        give_back_heap()
        answer({"seconds": taken, "foreign": foreign, "held_bytes": held})


if __name__ == "__main__":
    main()
