"""One training step of this package beside the peers', in alternating rounds of one run.

    python benchmarks/sae_step.py [--quick] [--kind topk ...] [--size 512x4096 ...] [--out FILE]

A step is all that a side does with a batch that is in memory: forward, backward, its own
normalization and bookkeeping, and Adam. No latent is dead within so few steps, so AuxK is on but idle
everywhere.

Peers run *installed*, as they come, and *tuned*, with two changes that any user can make: float32
products by oneDNN, and a heap that keeps its pages. Ours runs as in a *trial*, under what
trials run under; *tuned*, with the kept heap besides; *installed*, at torch's default
product; *plain*, with its compiled loops off; and with its searches in reduced precision where it has
them. `floor` is the encoder's product alone, in the precision that ours uses.

Workers live through the run and take turns; ratios are taken within a round. A step counts only if
other processes took at most a tenth of the machine meanwhile; `kept` says in how many rounds both did.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import environments
import machine
import timing
from sides import Setting
from workers import INSTALLED, PLAIN, TRIAL, TRIAL_TUNED, TUNED, Condition, Worker

import data

SIZES = ("512x4096", "768x12288", "256x2048")
KINDS = ("topk", "batchtopk")
SEARCHES = ("int8",)
PEERS = ("sae-lens", "dictionary-learning", "sparsify", "textbook")
REAL = "256x2048"


def cast(
    setting: Setting, pythons: dict[str, str], quick: bool
) -> list[tuple[str, str, Condition, Setting]]:
    """Return who takes part: side, its Python, the condition and the setting."""
    own = sys.executable
    if quick:
        found = [("ours", own, one, setting) for one in (TRIAL, PLAIN)]
        found += [(name, pythons[name], TUNED, setting) for name in PEERS if name in pythons]
        return [
            *found,
            ("floor", own, Condition("in", "trial"), replace(setting, search="chunks")),
        ]
    found = [("ours", own, one, setting) for one in (TRIAL, TRIAL_TUNED, INSTALLED, PLAIN)]
    found += [("ours", own, TRIAL, replace(setting, search=search)) for search in SEARCHES]
    for name in PEERS:
        if name in pythons:
            found += [(name, pythons[name], one, setting) for one in (INSTALLED, TUNED)]
    for name, search in (("whole", ""), ("in", "chunks"), ("in", "threads")):
        one = replace(setting, search=search)
        found.append(("floor", own, Condition(name, "trial"), one))
    return found


def compare(
    setting: Setting, source: str, pythons: dict[str, str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return one cell: speeds of all, ratios and share of the floor, and memory."""
    path = data.prepare(arguments.cache, source, 3 * setting.batch_tokens, setting.d_in)
    rest = {name: getattr(arguments, name) for name in ("threads", "steps", "wait", "turn_seconds")}
    workers, skipped = [], [{"side": n, "why": "not installed"} for n in PEERS if n not in pythons]
    rest["data"] = str(path)
    started = [
        Worker(python, side, condition, one, rest)
        for side, python, condition, one in cast(setting, pythons, arguments.quick)
    ]
    for worker in started:
        worker.ready()
        if worker.problem is None:
            workers.append(worker)
        else:
            skipped.append({"side": worker.name, "why": worker.problem})
    rounds: list[dict[str, float]] = []
    for turn in range(arguments.rounds):
        order = workers if turn % 2 else workers[::-1]
        rounds.append({w.name: w.run(arguments.most_foreign) for w in order})
    for worker in workers:
        worker.end()
    return {
        "kind": setting.kind,
        "d_in": setting.d_in,
        "d_sae": setting.d_sae,
        "k": setting.k,
        "batch_tokens": setting.batch_tokens,
        "activations": source if source == "synthetic" else f"{source} {data.HOOKPOINT}",
        **summary(workers, rounds, setting.batch_tokens),
        "skipped": skipped,
    }


def summary(workers: list[Worker], rounds: list[dict[str, float]], tokens: int) -> dict[str, Any]:
    ours = [w.name for w in workers if w.side == "ours"]
    peers = [w.name for w in workers if w.side not in ("ours", "floor")]
    floors = [w.name for w in workers if w.side == "floor"]
    for found in rounds:
        found["floor"] = min((found[name] for name in floors), default=math.nan)
    return {
        "tokens_per_second": {
            name: timing.spread([tokens / found[name] for found in rounds])
            for name in [*ours, *peers, *floors, "floor"]
        },
        "times_faster": {
            mine: {
                peer: timing.spread([found[peer] / found[mine] for found in rounds])
                for peer in peers
            }
            for mine in ours
        },
        "share_of_floor": {
            name: timing.spread([found["floor"] / found[name] for found in rounds])
            for name in [*ours, *peers]
        },
        "memory": {w.name: w.memory() for w in workers if w.side != "floor"},
        "products": {w.name: w.about["products"] for w in workers},
        "versions": {w.side: w.about["versions"] for w in workers if w.side != "floor"},
    }


def show(cell: dict[str, Any]) -> None:
    print(
        f"\n{cell['kind']} {cell['d_in']}x{cell['d_sae']} k={cell['k']}, {cell['activations']}, "
        f"batch {cell['batch_tokens']}"
    )
    for name, found in cell["tokens_per_second"].items():
        if found["median"] is None:
            print(f"  {name:32s} no quiet sample")
            continue
        share = cell["share_of_floor"].get(name, {}).get("median")
        memory = (cell["memory"].get(name) or {}).get("share")
        line = f"  {name:32s} {found['median']:>10,.0f} tokens/s  "
        line += f"({found['low']:,.0f} to {found['high']:,.0f}, {found['kept']} rounds)"
        line += f"  {share:.0%} of floor" if share is not None else ""
        line += f"  {memory:+.0%} memory" if memory is not None else ""
        print(line)
    for peer, found in cell["times_faster"].get("ours trial", {}).items():
        if found["median"] is not None:
            print(
                f"  ours / {peer:25s} {found['median']:>7.2f}x  "
                f"({found['low']:.2f} to {found['high']:.2f})"
            )
    for one in cell["skipped"]:
        print(f"  skipped: {one['side']}: {one['why']}")
    sys.stdout.flush()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--size", action="append", metavar="D_INxD_SAE")
    parser.add_argument("--source", action="append", choices=("synthetic", "pylm"))
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3, help="per turn; the fastest counts")
    parser.add_argument("--turn-seconds", type=float, default=4.0, help="no new step after that")
    parser.add_argument("--wait", type=float, default=2.0, help="seconds per turn, for quiet")
    parser.add_argument(
        "--most-foreign",
        type=float,
        default=timing.QUIET,
        help="others' share, for a step to count",
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="one small cell, two rounds")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "sae_step.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size = arguments.size or [REAL]
        arguments.kind = arguments.kind or ["topk"]
        arguments.source = arguments.source or ["synthetic"]
        arguments.rounds, arguments.wait, arguments.most_foreign = 2, 0.2, 1.0
    arguments.size = arguments.size or list(SIZES)
    arguments.kind = arguments.kind or list(KINDS)
    arguments.source = arguments.source or ["synthetic", "pylm"]
    return arguments


def main() -> None:
    arguments = parse()
    pythons = {"textbook": sys.executable} | environments.pythons(given=tuple(arguments.peer))
    names = ("k", "batch_tokens", "threads", "rounds", "steps", "most_foreign", "quick")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    cells: list[dict[str, Any]] = []
    for source in arguments.source:
        for size in arguments.size if source == "synthetic" else [REAL]:
            d_in, d_sae = (int(part) for part in size.split("x"))
            for kind in arguments.kind:
                setting = Setting(kind, d_in, d_sae, arguments.k, arguments.batch_tokens)
                cells.append(compare(setting, source, pythons, arguments))
                show(cells[-1])
    machine.save(arguments.out, "sae_step", settings, {"cells": cells})


if __name__ == "__main__":
    main()
