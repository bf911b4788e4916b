"""The speed of a machine at what trials do is a few rates, from probes or those of a usual machine.

What a probe found is kept in the store, so that a run knows what `plan` learned.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sae_placebo.core.store import read_json, write_json

_FILE = "machine.json"
SEVERAL = 15
"""Audits make about this many edits of one token in a pass."""
_CREW = 0.9
"""What a further thread adds where jobs run side by side."""


@dataclass(frozen=True)
class Machine:
    """The speed of a machine, as a probe measured it or as a usual machine has it.

    Attributes:
        threads: Threads that a trial uses.
        products: Float32 multiplications and additions per second in large matrix products, all threads.
        numbers: Speed of NumPy and SciPy in one thread, as a multiple of the machine that constants were
            measured on.
        code: Speed of Python itself and of scikit-learn, likewise.
        disk: Bytes per second that are written and hashed.
        reading: Seconds per token of a forward up to the last hookpoint, all threads.
        row: Seconds per token of a whole forward of one row, one thread, as many rows at once as threads.
        edit: Seconds per position of edits of one token, likewise.
        start: Seconds of a pass of such edits before its first position, likewise.
        single: Seconds that a pass with one edit of a token adds to the whole, one pass after the other,
            each arm in a lane.
        several: The same with `SEVERAL` edits.
        behind: Seconds per position that a pass behind the first hookpoint adds, whole rows, likewise.
        slope: The same with a gradient.
        sae: Seconds per token of a training step of each SAE, all threads; by label.
        build: Seconds to copy and change a model.
        load: Seconds to load a model.
        key: Key of the work that the model's own rates are for; "" where none was probed.
    """

    threads: int = 1
    products: float = 1e11
    numbers: float = 1.0
    code: float = 1.0
    disk: float = 4e8
    reading: float = 0.0
    row: float = 0.0
    edit: float = 0.0
    start: float = 0.0
    single: float = 0.0
    several: float = 0.0
    behind: float = 0.0
    slope: float = 0.0
    sae: Mapping[str, float] = field(default_factory=dict)
    build: float = 0.0
    load: float = 0.0
    key: str = ""

    @property
    def is_probed(self) -> bool:
        """Return whether the model's own rates were measured."""
        return bool(self.key)


def save(machine: Machine, store: Path) -> None:
    """Keep what a probe found beside the artefacts."""
    write_json(store / _FILE, asdict(machine))


def load(store: Path, key: str) -> Machine | None:
    """Return what a probe for the same work and threads found in this store; None where none did."""
    try:
        found: Any = read_json(store / _FILE)
        machine = Machine(**found)
    except (OSError, ValueError, TypeError):
        return None
    return machine if machine.key == key else None


def side_by_side(threads: int) -> float:
    """Return how many times as fast as one thread so many are, on jobs side by side."""
    return 1 + _CREW * (threads - 1)


def usual_threads() -> int:
    """Return how many threads torch will use, without loading it."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
