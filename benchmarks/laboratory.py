"""Replicate published figures on known truth, and write the tables of the replication page.

python benchmarks/laboratory.py run [--only TEXT ...] [--seeds 5] [--workers 2]
python benchmarks/laboratory.py write

Rows are written as they come, and those that are there are kept: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import machine
import numpy as np
from published import PUBLISHED, Published
from remaining import Row, Rows, processes, rows_in, run_remaining
from table import into

from sae_placebo.stats.quantiles import student_quantile

PAGE = Path("docs/results/laboratory.md")


def work(name: str, seed: int) -> list[Row]:
    import torch
    from experiments import EXPERIMENTS

    torch.set_num_threads(1)
    make, settings = EXPERIMENTS[name]
    start = time.perf_counter()
    try:
        numbers = make(seed, *settings)
    except Exception as problem:  # one that fails must not take the others' results along
        return [{"name": name, "seed": seed, "reason": f"{type(problem).__name__}: {problem}"}]
    seconds = time.perf_counter() - start
    return [{"name": name, "seed": seed, "seconds": seconds, "numbers": numbers}]


def run(arguments: argparse.Namespace) -> None:
    from experiments import EXPERIMENTS

    path: Path = arguments.results / "laboratory.json"
    rows = Rows(
        path,
        {"seeds": arguments.seeds},
        key=lambda row: (row["name"], row["seed"]),
        order=lambda row: (list(EXPERIMENTS).index(row["name"]), row["seed"]),
        rows=[row for row in rows_in(path) if "numbers" in row],  # what failed is tried again
    )
    names = [n for n in EXPERIMENTS if not arguments.only or any(o in n for o in arguments.only)]
    jobs = {(n, s): (n, s) for s in range(arguments.seeds) for n in names}
    with processes(arguments.workers) as pool:
        run_remaining(rows, work, jobs, pool, tell)


def tell(row: Row) -> None:
    print(row["name"], row["seed"], row.get("reason") or f"{row['seconds']:.0f} s", flush=True)


def over_seeds(rows: list[Row], name: str, number: str) -> tuple[float, float, float, int]:
    """Return the mean over seeds with Student's 95% interval."""
    values = np.array([row["numbers"][number] for row in rows if row["name"] == name])
    n = len(values)
    mean = float(values.mean())
    if n < 2:
        return mean, math.nan, math.nan, n
    half = student_quantile(n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half, n


def shown(value: float, low: float, high: float, digits: int) -> str:
    if math.isnan(low):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def verdict(found: tuple[float, float, float, int], theirs: Published | None) -> str:
    """Return how the published number, known to some width, lies to ours.

    `agrees`: in our interval; `near`: outside it, by less than .05 or 5%; `differs`: else; `undecided`: our
    interval is longer than half the number, or than .5.
    """
    if theirs is None:
        return ""
    if not theirs.comparable:
        return "other scale"
    mean, low, high, _ = found
    value, width = theirs.value, theirs.width
    if math.isnan(low):
        return "one seed"
    if high - low > max(0.5, 0.5 * abs(value)):
        return "undecided"
    if low - width <= value <= high + width:
        return "agrees"
    return "near" if abs(mean - value) <= max(0.05, 0.05 * abs(value)) else "differs"


def table(rows: list[Row], group: str) -> str:
    lines = ["| experiment | number | published | here, mean over seeds | seeds | verdict | note |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    names = list(dict.fromkeys(row["name"] for row in rows if row["name"].startswith(group)))
    for name in names:
        numbers = next(row["numbers"] for row in rows if row["name"] == name)
        for number in numbers:
            found = over_seeds(rows, name, number)
            known = PUBLISHED.get((name, number))
            theirs = f"{known.value:g}" if known else "–"
            said = verdict(found, known)
            digits = 1 if abs(found[0]) >= 10 else 3
            note = known.note if known else ""
            here = shown(*found[:3], digits)
            lines.append(
                f"| {name} | {number} | {theirs} | {here} | {found[3]} | {said} | {note} |"
            )
    return "\n".join(lines)


def seconds(rows: list[Row], groups: list[str]) -> str:
    """Return how long one seed took, drawing, training and scoring, with one thread."""
    lines = ["| experiment | seeds run | seconds, median | longest |", "| --- | --- | --- | --- |"]
    for group in groups:
        taken = [row["seconds"] for row in rows if row["name"].startswith(group + ":")]
        lines.append(f"| {group} | {len(taken)} | {np.median(taken):.0f} | {max(taken):.0f} |")
    return "\n".join(lines)


def write(arguments: argparse.Namespace) -> None:
    rows = json.loads((arguments.results / "laboratory.json").read_text())["rows"]
    rows = [row for row in rows if "numbers" in row]
    groups = list(dict.fromkeys(row["name"].partition(":")[0] for row in rows))
    tables = {group: table(rows, group + ":") for group in groups}
    text = PAGE.read_text(encoding="utf-8")
    for group in groups:
        if f"<!-- {group} -->" not in text:
            print(f"{PAGE} has no place for {group!r}")
    into(PAGE, tables | {"seconds": seconds(rows, groups)})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("task", choices=("run", "write"))
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    arguments = parser.parse_args()
    (run if arguments.task == "run" else write)(arguments)


if __name__ == "__main__":
    main()
