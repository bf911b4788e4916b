"""How far `plan` is from what a trial takes: stage, planned, taken, ratio.

    python benchmarks/plan_accuracy.py examples/demo.toml --store /tmp/plan-demo

plans the trial, runs it in the same process, and prints both, by stage and by piece of work. The store
must be new. On a busy machine both are of the busy machine, if it stays as busy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sae_placebo.core.progress import Advance, LineProgress
from sae_placebo.core.store import Store
from sae_placebo.core.time_left import WorkPiece
from sae_placebo.trial.costs import probed
from sae_placebo.trial.estimates import estimate, of_usual_machine
from sae_placebo.trial.plan import plan_steps
from sae_placebo.trial.run import run
from sae_placebo.trial.spec import load_trial


class Recorder(LineProgress):
    """Writes lines, and keeps what each piece of work took."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[str, float]] = []
        self._depth: Counter[int] = Counter()  # by thread

    @contextlib.contextmanager
    def track(
        self, label: str, total: int, unit: str = "tokens", before: int = 0
    ) -> Iterator[Advance]:
        """Keep how long a piece of work takes that is within no other of its thread."""
        start, thread = time.perf_counter(), threading.get_ident()
        self._depth[thread] += 1
        try:
            with super().track(label, total, unit, before) as advance:
                yield advance
        finally:
            self._depth[thread] -= 1
            if not self._depth[thread]:
                self.taken.append((label, time.perf_counter() - start))


def matched(
    pieces: Sequence[WorkPiece], taken: Sequence[tuple[str, float]]
) -> tuple[list[tuple[WorkPiece, float]], list[tuple[str, float]]]:
    """Return what each piece added to the whole, 0 where it was not needed; and work in no piece."""
    found, other = dict.fromkeys(range(len(pieces)), 0.0), list[tuple[str, float]]()
    for label, seconds in taken:
        places = (i for i, one in enumerate(pieces) if label.startswith(one.label) and not found[i])
        place = next(places, None)
        if place is None:
            other.append((label, seconds))
        else:
            found[place] = seconds / pieces[place].lanes
    return [(pieces[i], seconds) for i, seconds in found.items()], other


def main() -> None:
    """Plan a trial, run it, and print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trial", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="a JSON file for the same numbers")
    given = parser.parse_args()
    spec, progress = load_trial(given.trial), Recorder()
    plan, store = plan_steps(spec), Store(given.store)
    if any(store.has(step) for step in plan.steps()):
        sys.exit(f"{given.store} holds steps of this trial; give a new folder")
    start = time.perf_counter()
    machine = probed(plan, store, progress)
    probing = time.perf_counter() - start
    pieces = estimate(plan, lambda step: not store.has(step), machine)
    rough = estimate(
        plan, lambda step: not store.has(step), of_usual_machine(spec, machine.threads)
    )
    progress.taken.clear()
    start, processor = time.perf_counter(), time.process_time()
    run(spec, given.store, progress=progress)
    wall, processor = time.perf_counter() - start, time.process_time() - processor
    pairs, other = matched(pieces, progress.taken)
    print(f"\n{'piece':<60} {'planned s':>10} {'taken s':>10} {'ratio':>7}")
    for piece, seconds in pairs:
        print(_line(piece.label[:60], piece.seconds, seconds, 60))
    for label, seconds in other:
        print(_line(f"not planned: {label}"[:60], 0.0, seconds, 60))
    print(f"\n{'stage':<14} {'planned s':>10} {'taken s':>10} {'ratio':>7}")
    stages = dict.fromkeys(piece.stage for piece in pieces)
    for stage in stages:
        mine = [(p.seconds, s) for p, s in pairs if p.stage == stage]
        print(_line(stage, sum(p for p, _ in mine), sum(s for _, s in mine), 14))
    planned = sum(piece.seconds for piece in pieces)
    between = wall - sum(seconds for _, seconds in [*pairs, *other])
    print(_line("between them", 0.0, between, 14))
    print(_line("whole trial", planned, wall, 14))
    print(_line("without probe", sum(piece.seconds for piece in rough), wall, 14))
    print(
        f"probes took {probing:.1f} s; {processor:.0f} processor seconds, {machine.threads} threads"
    )
    if given.out:
        record = {
            "trial": spec.name,
            "pieces": [[*piece, seconds] for piece, seconds in pairs],
            "not planned": other,
            "planned": planned,
            "wall": wall,
            "processor": processor,
            "probing": probing,
        }
        given.out.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _line(name: str, planned: float, taken: float, width: int) -> str:
    ratio = f"{taken / planned:.2f}" if planned > 0 else "-"
    return f"{name:<{width}} {planned:>10.1f} {taken:>10.1f} {ratio:>7}"


if __name__ == "__main__":
    main()
