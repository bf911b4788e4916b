"""What a trial takes beside other busy programs: processor and wall seconds, against the idle machine.

    python benchmarks/under_load.py examples/demo.toml --out benchmarks/results/under_load.json

Runs the trial once idle and once beside each number of busy processes (`--busy 1 2`), each time into a new
store. Beside busy processes a program is granted what a program with as many threads as the trial, all of
which never wait, gets of the processors: that is measured just before. The machine must do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_YARDSTICK_SECONDS = 20.0


@contextmanager
def busy(n: int) -> Iterator[None]:
    """Keep `n` processes busy inside, each in a session of its own, as other users' are."""
    code = "while True: pass"
    others = [
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True) for _ in range(n)
    ]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def granted(threads: int) -> float:
    """Return how many processors a program with so many threads gets that never wait."""
    code = f"import time\nend = time.time() + {_YARDSTICK_SECONDS}\nwhile time.time() < end: pass"
    script = (
        "import subprocess, sys, resource\n"
        f"all = [subprocess.Popen([sys.executable, '-c', {code!r}]) for _ in range({threads})]\n"
        "[one.wait() for one in all]\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)\n"
    )
    start = time.perf_counter()
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        start_new_session=True,
        check=True,
    )
    return float(found.stdout) / (time.perf_counter() - start)


def timed(command: list[str]) -> tuple[float, float]:
    """Return wall and processor seconds of a command, in a session of its own."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, start_new_session=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, used


def run(trial: Path, n: int, ready: Path | None) -> dict[str, float]:
    """Return what the trial takes beside `n` busy processes, and what it was granted."""
    threads = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        if ready is not None:
            shutil.copytree(ready, store)
        command = [
            sys.executable,
            "-m",
            "sae_placebo.cli.main",
            "run",
            str(trial),
            "--store",
            str(store),
        ]
        with busy(n):
            cores = granted(threads) if n else float(threads)
            wall, used = timed(command)
    return {"busy": n, "wall_seconds": wall, "processor_seconds": used, "granted": cores}


def main() -> None:
    """Run the trial idle and beside busy processes; print and keep what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trial", type=Path)
    parser.add_argument("--busy", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--ready", type=Path, help="a store to begin from, copied each time")
    parser.add_argument("--out", type=Path, help="a JSON file for the same numbers")
    given = parser.parse_args()
    found: list[dict[str, float]] = []
    print(
        f"{'busy':>4} {'wall s':>8} {'processor s':>12} {'to idle':>8} {'granted':>8} {'wall to due':>12}"
    )
    for n in (0, *given.busy):
        one = run(given.trial, n, given.ready)
        found.append(one)
        used = one["processor_seconds"]
        one["to_idle"] = used / found[0]["processor_seconds"]
        one["wall_to_due"] = one["wall_seconds"] / (used / one["granted"])
        print(
            f"{n:>4} {one['wall_seconds']:>8.1f} {used:>12.1f} {one['to_idle']:>8.2f} "
            f"{one['granted']:>8.2f} {one['wall_to_due']:>12.2f}",
            flush=True,
        )
    if given.out:
        given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
