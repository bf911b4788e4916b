"""Times on a machine that is not alone, and peak memory. Standard library only.

A sample counts only if other processes took at most a tenth of the machine meanwhile (Linux; where
that cannot be told, every sample counts).
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

QUIET = 0.1
"""Foreign share of the machine up to which a sample counts."""
_STAT, _STATUS, _CLEAR = (
    Path("/proc/stat"),
    Path("/proc/self/status"),
    Path("/proc/self/clear_refs"),
)


def busy_seconds() -> float:
    """Return the processor seconds that all processes have used, NaN where that is unknown."""
    if not _STAT.exists():
        return math.nan
    ticks = [int(part) for part in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def wait_until_quiet(limit_seconds: float) -> None:
    """Wait until other processes leave the machine alone, or the limit has passed."""
    end = time.monotonic() + limit_seconds
    while time.monotonic() < end:
        busy = busy_seconds()
        time.sleep(0.1)
        if not busy_seconds() - busy > QUIET * 0.1 * (os.cpu_count() or 1):
            return


def timed(call: Callable[[], object], whole_tree: bool = False) -> tuple[float, float]:
    """Return the wall seconds of a call, and the share of the machine that others took meanwhile.

    Args:
        call: What is timed.
        whole_tree: Count children that have ended as the process's own.
    """
    own = _tree_seconds if whole_tree else time.process_time
    busy, used, start = busy_seconds(), own(), time.perf_counter()
    call()
    taken = time.perf_counter() - start
    others = busy_seconds() - busy - (own() - used)
    return taken, max(0.0, others / taken / (os.cpu_count() or 1))


def _tree_seconds() -> float:
    found = os.times()
    return found.user + found.system + found.children_user + found.children_system


def spread(values: list[float]) -> dict[str, float | int | None]:
    """Return median, lowest, highest and number of the values that are numbers."""
    ordered = sorted(value for value in values if not math.isnan(value))
    if not ordered:
        return {"median": None, "low": None, "high": None, "kept": 0}
    return {
        "median": statistics.median(ordered),
        "low": ordered[0],
        "high": ordered[-1],
        "kept": len(ordered),
    }


def resident_bytes() -> float:
    """Return what the process holds now, NaN where that is unknown."""
    return _status("VmRSS")


def peak_bytes() -> float:
    """Return the most that the process held since `reset_peak`, NaN where that is unknown."""
    return _status("VmHWM")


def reset_peak() -> bool:
    """Begin to count the peak anew; return whether this system can."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _status(field: str) -> float:
    if not _STATUS.exists():
        return math.nan
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1]) * 1024
    return math.nan
