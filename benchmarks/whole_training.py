"""Whole trainings on the same tokens: how long they take, and how well they learn.

    python benchmarks/whole_training.py [--quick] [--kind relu ...] [--out FILE]

relu, jumprelu: from dense start to the same final L0 on held-out tokens. Every side has its own unit for
the penalty, so each gets the weight at which it ends there (within a tenth); the L0 and the explained
variance that it reached are recorded. The ratio is of whole trainings, steps alone.

topk: explained variance of the same held-out tokens against training tokens and against seconds, and
the seconds until every side has reached the least of the final values. Learning rate, warm-up and decay
are the same for all; each side takes the best of some multiples of the rate (`--rate`).

All sides read the same tokens in the same order, from memory. Held-out checks are the same function for
all and are not timed. Runs take turns, in alternating order.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import environments
import machine
import timing
from matching import Match, Training, final, match_l0
from sides import Setting
from workers import INSTALLED, TRIAL, TUNED, Condition

import data

PENALIZED = ("relu", "jumprelu")
KINDS = (*PENALIZED, "topk")
SIDES = ("ours", "sae-lens", "dictionary-learning", "sparsify")
FIRST = {("sae-lens", "relu"): 2.0, ("dictionary-learning", "relu"): 2.0}
"""First guesses of the penalty's weight, where there is no earlier result."""


class Skipped(Exception):
    """A side that does not take part, and why."""


class Bench:
    """Starts trainings, each in a process of its own."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        own = {"ours": sys.executable}
        self.pythons = own | environments.pythons(given=tuple(arguments.peer))
        n_tokens = arguments.heldout_tokens + arguments.tokens
        self.path = data.prepare(arguments.cache, arguments.source, n_tokens, arguments.d_in)

    def setting(self, kind: str) -> Setting:
        given = self.arguments
        return Setting(
            kind=kind,
            d_in=given.d_in,
            d_sae=given.d_sae,
            k=given.k,
            batch_tokens=given.batch_tokens,
            total_tokens=given.tokens // given.batch_tokens * given.batch_tokens,
            learning_rate=given.learning_rate,
            target_l0=given.l0,
        )

    def train(self, side: str, condition: Condition, setting: Setting) -> Training:
        """Train once; raise Skipped where the side cannot."""
        if side not in self.pythons:
            raise Skipped("not installed")
        given = self.arguments
        request = {
            "side": side,
            "setting": asdict(setting),
            "products": condition.products,
            "threads": given.threads,
            "data": str(self.path),
            "n_heldout": given.heldout_tokens,
            "n_checks": given.checks,
        }
        script = Path(__file__).with_name("training_worker.py")
        done = subprocess.run(
            [self.pythons[side], str(script)],
            input=json.dumps(request) + "\n",
            capture_output=True,
            text=True,
            env={**os.environ, **condition.environment},
            check=False,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            said = [line for line in done.stderr.splitlines() if "Error" in line]
            raise Skipped((said or ["no output"])[-1][:300])
        found: Training = json.loads(lines[-1])
        if "unsupported" in found:
            raise Skipped(found["unsupported"])
        print(
            f"  {setting.kind} {side} {condition.name}: {found['seconds']:.1f} s, explained variance "
            f"{final(found, 'explained_variance'):.4f}, L0 {final(found, 'l0'):.1f}",
            flush=True,
        )
        return found


def fast(side: str) -> Condition:
    return TRIAL if side == "ours" else TUNED


def settle_l0(bench: Bench, side: str, base: Setting, first: float) -> tuple[Setting, Match]:
    """Return the setting with which a side ends at the wanted L0."""

    def train(weight: float) -> Training:
        return bench.train(side, fast(side), replace(base, sparsity=weight))

    match = match_l0(train, bench.arguments.l0, first, bench.arguments.tries)
    return replace(base, sparsity=match.sparsity), match


def settle_rate(bench: Bench, side: str, base: Setting) -> tuple[Setting, dict[str, Any]]:
    """Return the setting with the best of the learning rates, and what each gave."""
    found = {}
    for multiple in bench.arguments.rate or [1.0]:
        setting = replace(base, learning_rate=multiple * base.learning_rate)
        found[setting.learning_rate] = bench.train(side, fast(side), setting)
    best = max(found, key=lambda rate: final(found[rate], "explained_variance"))
    tried = {f"{rate:.3g}": final(one, "explained_variance") for rate, one in found.items()}
    return replace(base, learning_rate=best), {"learning_rate": best, "tried": tried}


def earlier(arguments: argparse.Namespace, kind: str, side: str) -> float:
    """Return the weight of the result that is there already, else the first guess."""
    first = FIRST.get((side, kind), 1.0)
    if arguments.out.exists():
        old = json.loads(arguments.out.read_text(encoding="utf-8"))
        if all(
            old.get("settings", {}).get(n) == getattr(arguments, n)
            for n in ("d_sae", "tokens", "l0")
        ):
            known = old.get("kinds", {}).get(kind, {}).get("sides", {}).get(side, {})
            return float(known.get("sparsity") or first)
    return first


def run_kind(bench: Bench, kind: str) -> dict[str, Any]:
    """Settle each side's setting, then train all in alternating rounds."""
    settings: dict[str, Setting] = {}
    sides: dict[str, Any] = {}
    skipped = []
    for side in SIDES:
        try:
            if kind in PENALIZED:
                first = earlier(bench.arguments, kind, side)
                settings[side], match = settle_l0(bench, side, bench.setting(kind), first)
                sides[side] = {
                    "sparsity": match.sparsity,
                    "matched": match.matched,
                    "tries": match.tries,
                    "notes": match.training["notes"],
                }
            else:
                settings[side], sides[side] = settle_rate(bench, side, bench.setting(kind))
        except Skipped as reason:
            skipped.append({"side": side, "why": str(reason)})
    cast = [(side, fast(side)) for side in settings]
    if not bench.arguments.quick:
        cast += [(side, INSTALLED) for side in settings if side != "ours"]
    rounds: list[dict[str, Training]] = []
    for turn in range(bench.arguments.rounds):
        order = cast if turn % 2 else cast[::-1]
        rounds.append({f"{s} {one.name}": bench.train(s, one, settings[s]) for s, one in order})
    for side in settings:
        training = rounds[-1][f"{side} {fast(side).name}"]
        sides[side] |= {c: final(training, c) for c in ("l0", "explained_variance")}
    names = [f"{side} {one.name}" for side, one in cast]
    return {
        "sides": sides,
        **compare(rounds, names, bench.arguments.most_foreign),
        "skipped": skipped,
    }


def compare(rounds: list[dict[str, Training]], names: list[str], most_foreign: float) -> Any:
    """Return seconds, ratios within rounds, the way to equal explained variance, and the curves."""

    def seconds(training: Training) -> float:
        return math.nan if training["foreign"] > most_foreign else float(training["seconds"])

    mine, last = "ours trial", rounds[-1]
    common = min(final(one, "explained_variance") for one in last.values())
    reached = {
        name: [_reached(one[name]["curve"], common, "seconds") for one in rounds] for name in names
    }
    found: dict[str, Any] = {
        "seconds": {name: timing.spread([seconds(one[name]) for one in rounds]) for name in names},
        "common_explained_variance": common,
        "tokens_to_common": {n: _reached(last[n]["curve"], common, "tokens") for n in names},
        "seconds_to_common": {name: timing.spread(values) for name, values in reached.items()},
        "foreign": {name: [one[name]["foreign"] for one in rounds] for name in names},
        "curves": {name: last[name]["curve"] for name in names},
    }
    if mine in names:
        peers = [name for name in names if name != mine]
        found["times_faster"] = {
            n: timing.spread([seconds(one[n]) / seconds(one[mine]) for one in rounds])
            for n in peers
        }
        found["times_faster_to_common"] = {
            n: timing.spread([_ratio(a, b) for a, b in zip(reached[n], reached[mine], strict=True)])
            for n in peers
        }
    return found


def _ratio(theirs: float, mine: float) -> float:
    """Return a ratio of seconds; NaN where ours had the level before its first step."""
    return theirs / mine if mine else math.nan


def _reached(curve: list[dict[str, float]], level: float, column: str) -> float:
    """Return where a curve first has the level, between checks by a line."""
    for before, after in itertools.pairwise(curve):
        low, high = before["explained_variance"], after["explained_variance"]
        if high >= level:
            share = 1.0 if high <= low else (level - low) / (high - low)
            return before[column] + max(0.0, share) * (after[column] - before[column])
    return math.nan


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--kind", action="append", choices=(*KINDS, "batchtopk"))
    parser.add_argument("--source", choices=("synthetic", "pylm"), default="pylm")
    parser.add_argument("--d-in", type=int, help="256 for pylm, 512 for synthetic")
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--l0", type=float, default=32.0, help="wanted at the end, where penalized")
    parser.add_argument("--tokens", type=int, default=409_600)
    parser.add_argument("--heldout-tokens", type=int, default=8192)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, help="peak; a trial's default")
    parser.add_argument("--rate", action="append", type=float, help="multiples that topk tries")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tries", type=int, default=7, help="trainings at most, to match L0")
    parser.add_argument("--checks", type=int, default=12, help="held-out checks")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--most-foreign", type=float, default=timing.QUIET)
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="small and short; peers tuned only")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "whole_training.json")
    found = parser.parse_args()
    found.kind = found.kind or list(KINDS)
    if found.quick:
        found.tokens, found.heldout_tokens, found.d_sae = 40_960, 2048, 1024
        found.rounds, found.tries, found.most_foreign, found.source = 1, 2, 1.0, "synthetic"
        found.d_in = found.d_in or 128
    found.d_in = found.d_in or (256 if found.source == "pylm" else 512)
    found.learning_rate = found.learning_rate or 4e-3 / math.sqrt(found.d_sae / 2**11)
    found.rate = found.rate or ([1.0] if found.quick else [1.0, 0.25])
    return found


def main() -> None:
    arguments = parse()
    bench = Bench(arguments)
    left_out = ("peer", "kind", "tries", "checks", "cache", "out")
    names = [name for name in vars(arguments) if name not in left_out]
    settings = {name: getattr(arguments, name) for name in names}
    kinds: dict[str, Any] = {}
    for kind in arguments.kind:
        print(kind, flush=True)
        kinds[kind] = run_kind(bench, kind)
        for name, found in kinds[kind].get("times_faster", {}).items():
            if found["median"] is not None:
                print(f"  ours / {name}: {found['median']:.2f}x")
        for one in kinds[kind]["skipped"]:
            print(f"  skipped: {one['side']}: {one['why']}")
    machine.save(arguments.out, "whole_training", settings, {"kinds": kinds})


if __name__ == "__main__":
    main()
