"""What a result was measured on, and how it is saved. Standard library only."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """Return the processor's name: no host name, no path."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = {}
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
        name = found.get("model name", platform.machine())
        family = found.get("cpu family")
        return f"{name}, family {family} model {found.get('model')}" if family else name
    return platform.processor() or platform.machine()


def memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def describe() -> dict[str, Any]:
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_gib": memory_gib(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that this process's environment has."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def save(path: Path, benchmark: str, settings: dict[str, Any], results: dict[str, Any]) -> None:
    """Write a result with what it was measured on; numbers to six digits."""
    whole = {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe(),
        "settings": settings,
        **results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rounded(whole), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def rounded(value: Any) -> Any:
    """Return the value with floats at six significant digits; what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    return value
