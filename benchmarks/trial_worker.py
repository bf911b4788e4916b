"""Runs `sae-placebo run` with clocks on its forwards and its training steps; ends with a line of JSON.

    python trial_worker.py TRIAL.toml STORE

The clocks are two calls per batch. A step or forward inside another thread is counted there, so sums may
exceed the wall time.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

CLOCKED = {
    "forward": ("sae_placebo.models.reading", "Reader", "read"),
    "step": ("sae_placebo.saes.training", "Fit", "step"),
    "encode": ("sae_placebo.saes", "SAE", "encode"),
}
seconds: Counter[str] = Counter()


def clock(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def clocked(*positional: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*positional, **named)
        finally:
            seconds[name] += time.perf_counter() - start

    return clocked


def main() -> None:
    begin = time.perf_counter()
    for name, (module, owner, method) in CLOCKED.items():
        place = getattr(importlib.import_module(module), owner)
        if hasattr(place, method):
            setattr(place, method, clock(name, getattr(place, method)))
    from sae_placebo.core import precision
    from sae_placebo.core.lazy import torch
    from sae_placebo.trial import results
    from sae_placebo.trial import run as trial

    # `write_results` is the comparison and the report
    trial.write_results = clock("compare and report", results.write_results)
    done = trial.run(sys.argv[1], sys.argv[2])
    record = done.record if hasattr(done, "record") else {}
    found = {
        "clocks": dict(seconds),
        "stages": record.get("seconds", {}),
        "seconds": time.perf_counter() - begin,
        "products": precision.describe()["fast"],
        "torch": torch.__version__,
    }
    print("\n" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
