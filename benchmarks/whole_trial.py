"""A whole trial of this package beside SAELens training one SAE.

    python benchmarks/whole_trial.py [--quick] [--case pylm ...] [--out FILE]

Ours: `run` of a trial with five arms, one re-draw and two SAE seeds (ten SAEs) in a fresh store, in a
process of its own: from text to report, imports included. The peer: SAELens' runner (its activation
store, its trainer) training one TopK SAE on the same model, layer, width, k and number of training
tokens, from the same rows of token ids, which it need not make; as installed and tuned, at its own
default batch of 4,096 tokens, where it is faster than at ours. Both in alternating rounds; ratios are
taken within a round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import environments
import machine
import timing
from trial_inputs import ARMS, CASES, Case, model_folder, rows_file, trial_file
from workers import INSTALLED, TUNED, Condition

PEER = "sae-lens"
HERE = Path(__file__).parent


def ours(trial: Path) -> dict[str, Any]:
    """Run the trial in a fresh store; return its wall seconds, stages and clocks."""
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, str(HERE / "trial_worker.py"), str(trial), store]
        return _timed(command, "", {})


def peer(python: str, condition: Condition, given: dict[str, Any]) -> dict[str, Any]:
    """Train one SAE with the peer; return its wall seconds and clocks."""
    with tempfile.TemporaryDirectory() as output:
        request = given | {"products": condition.products, "output": output}
        command = [python, str(HERE / "saelens_worker.py")]
        return _timed(command, json.dumps(request) + "\n", condition.environment)


def _timed(command: list[str], text: str, environment: dict[str, str]) -> dict[str, Any]:
    done: list[subprocess.CompletedProcess[str]] = []

    def run() -> None:
        done.append(
            subprocess.run(
                command,
                input=text,
                capture_output=True,
                text=True,
                env={**os.environ, **environment},
                check=False,
            )
        )

    wall, foreign = timing.timed(run, whole_tree=True)
    lines = [line for line in done[0].stdout.splitlines() if line.startswith('{"clocks"')]
    if done[0].returncode or not lines:
        said = [line for line in done[0].stderr.splitlines() if "Error" in line]
        raise SystemExit(f"{Path(command[1]).name} failed: {(said or [done[0].stderr])[-1][-500:]}")
    return {"wall": wall, "foreign": foreign, **json.loads(lines[-1])}


def shares(found: dict[str, Any]) -> dict[str, float]:
    """Return the share of a trial's wall time that each part took; what is left is `other`."""
    wall, stages, clocks = found["wall"], found["stages"], found["clocks"]
    report = clocks.get("compare and report", 0.0)
    parts = {name: seconds for name, seconds in stages.items() if seconds} | {"report": report}
    parts["other"] = wall - sum(parts.values())
    kept = {name: seconds / wall for name, seconds in parts.items()}
    # across stages: the model's forwards and the SAEs' steps, wherever they were called
    return kept | {f"of which {n}": clocks[n] / wall for n in ("forward", "step") if n in clocks}


def run_case(case: Case, arguments: argparse.Namespace, pythons: dict[str, str]) -> dict[str, Any]:
    model = model_folder(case, arguments.cache)
    conditions = (TUNED,) if arguments.quick else (INSTALLED, TUNED)
    rounds: list[dict[str, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as work:
        context = arguments.context_tokens
        trial = trial_file(case, Path(work), model, arguments.k, context)
        rows = rows_file(case, Path(work), model, context)
        given = {
            "model": str(model),
            "rows": str(rows),
            "hook": case.hook,
            "d_in": case.d_in,
            "d_sae": case.d_sae,
            "k": arguments.k,
            "context_tokens": context,
            "training_tokens": case.train_tokens,
            "batch_tokens": arguments.peer_batch_tokens,
            "forward_rows": 32,
            "buffer_rows": 256,
            "learning_rate": 3e-4,
            "threads": arguments.threads,
        }
        for turn in range(arguments.rounds):
            cast = ["ours", *(f"{PEER} {c.name}" for c in conditions if PEER in pythons)]
            found = {}
            for name in cast if turn % 2 else cast[::-1]:
                condition = next((c for c in conditions if name.endswith(c.name)), INSTALLED)
                found[name] = (
                    ours(trial) if name == "ours" else peer(pythons[PEER], condition, given)
                )
                print(f"  {case.name} {name}: {found[name]['wall']:.1f} s", flush=True)
            rounds.append(found)
    return {"case": dataclasses.asdict(case), "arms": len(ARMS), "saes": 2 * len(ARMS)} | summary(
        rounds, [] if PEER in pythons else [{"side": PEER, "why": "not installed"}]
    )


def summary(
    rounds: list[dict[str, dict[str, Any]]], skipped: list[dict[str, str]]
) -> dict[str, Any]:
    names, last = list(rounds[0]), rounds[-1]
    return {
        "seconds": {n: timing.spread([one[n]["wall"] for one in rounds]) for n in names},
        "foreign": {n: [one[n]["foreign"] for one in rounds] for n in names},
        "ours_over_peer": {
            n: timing.spread([one["ours"]["wall"] / one[n]["wall"] for one in rounds])
            for n in names
            if n != "ours"
        },
        "stages": last["ours"]["stages"],
        "shares": shares(last["ours"]),
        "clocks": {n: last[n]["clocks"] for n in names},
        "versions": {
            n: {k: v for k, v in last[n].items() if k in ("torch", "sae_lens")} for n in names
        },
        "skipped": skipped,
    }


def show(found: dict[str, Any]) -> None:
    for name, ratio in found["ours_over_peer"].items():
        print(
            f"  our trial takes {ratio['median']:.2f} of the time of one SAE by {name} "
            f"({ratio['low']:.2f} to {ratio['high']:.2f})"
        )
    print("  " + ", ".join(f"{name} {share:.0%}" for name, share in found["shares"].items()))
    for one in found["skipped"]:
        print(f"  skipped: {one['side']}: {one['why']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--case", action="append", choices=sorted(CASES))
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--context-tokens", type=int, default=128)
    parser.add_argument("--peer-batch-tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="pylm, few tokens, one round, tuned")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "whole_trial.json")
    arguments = parser.parse_args()
    cases = [CASES[name] for name in arguments.case or (["pylm"] if arguments.quick else CASES)]
    if arguments.quick:
        arguments.rounds = 1
        cases = [
            dataclasses.replace(one, d_sae=1024, train_tokens=12_288, heldout_tokens=8_000)
            for one in cases
        ]
    pythons = environments.pythons(given=tuple(arguments.peer))
    found = {}
    for case in cases:
        print(case.name, flush=True)
        found[case.name] = run_case(case, arguments, pythons)
        show(found[case.name])
    names = ("k", "context_tokens", "peer_batch_tokens", "rounds", "threads", "quick")
    settings = {name: getattr(arguments, name) for name in names}
    machine.save(arguments.out, "whole_trial", settings, {"cases": found})


if __name__ == "__main__":
    main()
