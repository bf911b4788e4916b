"""Does training find the features that are there, and as well as SAELens' own training does?

    python benchmarks/recovery.py [--peer-python PYTHON] [--quick] [--out FILE]

Data: G1, independent features in superposition (`sae_placebo.lab.SuperpositionSpec`), a new
truth and a new stream per seed. All sides see the same tokens in the same order, centered and at mean
squared norm d_in, in batches of the same size, at the same widths, and are scored on the same
held-out tokens by the same code.

- *fast*: `Fit` as it is; *plain*: the same with SAE_PLACEBO_COMPILED=0, without compiled loops.
- *saelens*: its training SAEs and `SAETrainer`, in its own environment; skipped if there is none.

Every side is trained at its own defaults (*default*), and over a grid of step sizes that is the same
for all (*grid*). In the grid SAELens also gets the schedule of `Fit` (its default is a constant step
size) and its window for dead latents (its default, 1,000 steps, is longer than the run). A side's
*best* is the step size with the largest mean of MMCS over seeds, per architecture and width.

Peers take no part in timing here: `seconds` are of one thread, several runs at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import machine
import torch
from recovery_worker import BATCH, HELD_OUT, TRAINERS, Job
from safetensors.torch import load_file, save_file

THRESHOLD = 0.9
L0 = 5
RATES = (5e-3, 1e-2, 2e-2)
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "topk": ({"k": L0}, {"k": L0}),
    "batchtopk": ({"k": float(L0)}, {"k": float(L0)}),
    "relu": ({"l0": 10.0}, {"l1_coefficient": 1.2}),
    "jumprelu": (
        {"l0": float(L0)},
        {
            "jumprelu_sparsity_loss_mode": "quadratic",
            "target_l0": float(L0),
            "jumprelu_bandwidth": 0.5,
            "jumprelu_init_threshold": 0.5,
        },
    ),
}
"""What makes each side's SAEs about as sparse as the truth: ours, and SAELens'. Its defaults for JumpReLU
are made for activations of another scale and find less here. A ReLU SAE with five active latents finds
little at either side, so both get ten. SAELens cannot steer its L1 to an L0: what it reached is shown."""
LIGHT = ("relu", "jumprelu")
"""Trained at the first width and one step size of the grid, besides the default."""
SCORES = ("mmcs", "share_recovered", "mmcs_of_latents", "recall", "precision", "l0", "fvu")


def prepare(folder: Path, seed: int, n_tokens: int) -> None:
    """Write the codes, the truth and the scaling of one seed's stream; held-out tokens come last."""
    from sae_placebo.core.spec import generator
    from sae_placebo.lab import Scaling, SuperpositionSpec

    spec = SuperpositionSpec(d_in=256, n_features=512, l0=float(L0), seed=seed)
    draw = spec.draw(n_tokens + HELD_OUT, generator(seed, "recovery", "tokens"))
    scaling = Scaling.of(draw.x[: min(n_tokens, 1 << 16)])
    tensors = {
        "offsets": draw.codes.offsets,
        "features": draw.codes.latents,
        "values": draw.codes.values,
        "dictionary": draw.truth.dictionary,
        "mean": scaling.mean,
        "factor": torch.tensor(scaling.factor),
    }
    save_file(tensors, folder / f"data{seed}.safetensors")


def scored(folder: Path, job: Job) -> dict[str, float]:
    """Return the scores of one finished job."""
    from sae_placebo.lab import recovery, support
    from sae_placebo.saes import Codes

    data = load_file(folder / job["data"])
    found = load_file(folder / job["result"])
    offsets = data["offsets"][-HELD_OUT - 1 :]
    part = slice(int(offsets[0]), None)
    truth = data["dictionary"]
    true = Codes(offsets - offsets[0], data["features"][part], data["values"][part], len(truth))
    codes = Codes(found["offsets"], found["latents"], found["values"], job["d_sae"])
    near, fired = recovery(found["W_dec"], truth), support(codes, true, found["W_dec"], truth)
    return {
        "mmcs": near.mmcs,
        "share_recovered": near.share(THRESHOLD),
        "mmcs_of_latents": near.mmcs_of_latents,
        "recall": fired.recall,
        "precision": fired.precision,
        "null_recall": fired.null_recall,
        "l0": fired.l0,
    }


def run_jobs(folder: Path, python: str, jobs: list[Job]) -> list[dict[str, Any]]:
    """Train jobs one after the other in one process, and return them with their scores."""
    side = jobs[0]["side"]
    compiled = {"SAE_PLACEBO_COMPILED": "0"} if side == "plain" else {}
    with (folder / f"{side}-{jobs[0]['result']}.log").open("w") as log:
        done = subprocess.run(
            [python, str(Path(__file__).with_name("recovery_worker.py")), str(folder)],
            input="".join(json.dumps(job) + "\n" for job in jobs),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **compiled, "OMP_NUM_THREADS": "1"},
        )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"fvu"')]
    if len(lines) < len(jobs):
        told = (folder / f"{side}-{jobs[0]['result']}.log").read_text().strip().splitlines()
        raise SystemExit(f"{side} failed at {jobs[len(lines)]}: {told[-1] if told else ''}")
    found = [{**job, **line, **scored(folder, job)} for job, line in zip(jobs, lines, strict=True)]
    for job in jobs:
        (folder / job["result"]).unlink()
    name = f"{side} {jobs[0]['kind']} {jobs[0]['d_sae']}, seed {jobs[0]['seed']}"
    print(f"{name}: {sum(line['seconds'] for line in lines):.0f} s", file=sys.stderr, flush=True)
    return found


def kinds_here(wanted: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the architectures that this package can train, and why the others are skipped."""
    from sae_placebo.core.errors import SpecError
    from sae_placebo.saes import parse_sae

    usable, skipped = [], {}
    for kind in wanted:
        try:
            parse_sae({"kind": kind, "d_sae": 64, **SETTINGS[kind][0]})
            usable.append(kind)
        except SpecError as problem:
            skipped[kind] = str(problem)
    return usable, skipped


def planned(arguments: argparse.Namespace, sides: list[str], kinds: list[str]) -> list[list[Job]]:
    """Return the jobs, in groups that one process trains; the slow ones first."""
    groups = []
    for side in sorted(sides, key=list(reversed(TRAINERS)).index):
        for kind in kinds:
            light = kind in LIGHT
            rates = arguments.rates[len(arguments.rates) // 2 :][:1] if light else arguments.rates
            for d_sae in arguments.widths[:1] if light else arguments.widths:
                ours, peer = SETTINGS[kind]
                runs: list[tuple[float | None, str]] = [(None, "random")]
                runs += [(rate, "random") for rate in rates if side != "plain"]
                runs += [(None, "truth")] if side == "fast" else []
                for seed in range(arguments.seeds):
                    job = {"side": side, "kind": kind, "d_sae": d_sae, "seed": seed}
                    job |= {"ours": ours, "peer": peer, "data": f"data{seed}.safetensors"}
                    name = f"{side}-{kind}-{d_sae}-{seed}"
                    groups.append(
                        [
                            {**job, "rate": rate, "start": start, "result": f"{name}-{i}"}
                            for i, (rate, start) in enumerate(runs)
                        ]
                    )
    return groups


def spread(values: list[float]) -> dict[str, Any]:
    """Return mean and standard deviation; one value has no spread."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd}


def text(value: dict[str, Any], sign: str = "") -> str:
    sd = "" if value["sd"] is None else f" +- {value['sd']:.3f}"
    return f"{value['mean']:{sign}.3f}{sd}"


def summarized(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over seeds for every setting."""
    settings: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        key = tuple(run[name] for name in ("kind", "d_sae", "side", "start", "rate"))
        settings.setdefault(key, []).append(run)
    lines = []
    for (kind, d_sae, side, start, rate), same in settings.items():
        line = {"kind": kind, "d_sae": d_sae, "side": side, "start": start, "rate": rate}
        scores = {name: spread([run[name] for run in same]) for name in (*SCORES, "seconds")}
        lines.append({**line, "seeds": len(same), **scores})
    return sorted(lines, key=lambda line: (line["kind"], line["d_sae"], line["side"]))


def verdicts(lines: list[dict[str, Any]], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return ours less SAELens' MMCS and share recovered, seed by seed: at defaults, and best to best.

    `at_least_as_good`: the mean difference is not below zero by more than two standard errors;
    null with one seed.
    """
    found = []
    for kind, d_sae in sorted({(line["kind"], line["d_sae"]) for line in lines}):
        sides: dict[str, dict[str, float | None]] = {}
        for side in ("fast", "saelens"):
            own = [
                line
                for line in lines
                if (line["kind"], line["d_sae"], line["side"]) == (kind, d_sae, side)
                and line["start"] == "random"
            ]
            if own:
                best = max(own, key=lambda line: line["mmcs"]["mean"])
                sides[side] = {"default": None, "best": best["rate"]}
        for name in ("default", "best") if len(sides) == 2 else ():
            by_seed = {
                (run["side"], run["seed"]): run
                for run in runs
                if (run["kind"], run["d_sae"], run["start"]) == (kind, d_sae, "random")
                and run["side"] in sides
                and run["rate"] == sides[run["side"]][name]
            }
            entry: dict[str, Any] = {"kind": kind, "d_sae": d_sae, "at": name}
            entry["rates"] = {side: rates[name] for side, rates in sides.items()}
            for score in ("mmcs", "share_recovered"):
                gaps = [
                    by_seed["fast", seed][score] - by_seed["saelens", seed][score]
                    for side, seed in by_seed
                    if side == "fast"
                ]
                gap = spread(gaps)
                allowed = 2 * (gap["sd"] or 0.0) / math.sqrt(len(gaps))
                good = None if gap["sd"] is None else gap["mean"] >= -allowed
                entry[score] = {**gap, "at_least_as_good": good}
            found.append(entry)
    return found


def show(lines: list[dict[str, Any]], nulls: list[dict[str, Any]], found: list[Any]) -> None:
    for null in nulls:
        print(
            f"null, {null['d_sae']} random directions: MMCS {null['mmcs']:.3f} "
            f"+- {null['mmcs_sd']:.3f}, share recovered {null['share']:.3f}"
        )
    head = ("architecture", "latents", "side", "start", "rate", *SCORES, "seconds")
    print("\n" + " ".join(f"{name:>15}" for name in head))
    for line in lines:
        rate = "default" if line["rate"] is None else f"{line['rate']:g}"
        cells = [line["kind"], str(line["d_sae"]), line["side"], line["start"], rate]
        cells += [text(line[name]) for name in (*SCORES, "seconds")]
        print(" ".join(f"{cell:>15}" for cell in cells))
    judged = {True: " (at least as good)", False: " (WORSE)", None: " (one seed decides nothing)"}
    for entry in found:
        told = ", ".join(
            f"{score} {text(entry[score], '+')}{judged[entry[score]['at_least_as_good']]}"
            for score in ("mmcs", "share_recovered")
        )
        print(f"fast less saelens, {entry['kind']} {entry['d_sae']}, {entry['at']}: {told}")


def measured(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """Run everything and return the results, and what was skipped and why."""
    from sae_placebo.core.spec import generator
    from sae_placebo.lab import SuperpositionSpec, ceilings, recovery_null

    kinds, skipped = kinds_here(arguments.kinds)
    pythons = {"fast": sys.executable, "plain": sys.executable}
    if arguments.peer_python and Path(arguments.peer_python).exists():
        pythons["saelens"] = arguments.peer_python
    else:
        skipped["saelens"] = "no environment was given that has it (--peer-python)"
    spec = SuperpositionSpec()
    nulls = [
        {"d_sae": d_sae, **vars(recovery_null(spec.truth.dictionary, d_sae, 0, THRESHOLD))}
        for d_sae in arguments.widths
    ]
    ceiling = vars(ceilings(spec.draw(512, generator(0, "recovery", "ceilings"))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in range(arguments.seeds):
            prepare(folder, seed, arguments.tokens)
        groups = planned(arguments, list(pythons), kinds)
        with ThreadPoolExecutor(arguments.processes) as pool:
            done = pool.map(lambda jobs: run_jobs(folder, pythons[jobs[0]["side"]], jobs), groups)
            runs = [run for group in done for run in group]
    kept = ("kind", "d_sae", "side", "start", "rate", "seed", *SCORES, "seconds")
    used = {run["side"]: run["versions"] for run in runs}
    runs = [{name: run[name] for name in kept} for run in runs]
    lines = summarized(runs)
    found = verdicts(lines, runs)
    show(lines, nulls, found)
    results = {"nulls": nulls, "ceilings": ceiling, "summary": lines, "ours_less_peer": found}
    return {**results, "runs": runs, "versions": used}, skipped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peer-python", help="Python of an environment that has sae-lens")
    parser.add_argument("--kinds", nargs="+", choices=sorted(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--quick", action="store_true", help="under a minute: little is learned")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tokens, arguments.seeds, arguments.widths = 40_000, 1, [512]
        arguments.rates, arguments.kinds = [1e-2], ["topk"]
    torch.set_num_threads(1)
    results, skipped = measured(arguments)
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    settings = {n: getattr(arguments, n) for n in ("tokens", "seeds", "widths", "rates", "kinds")}
    settings |= {"batch_tokens": BATCH, "held_out_tokens": HELD_OUT, "threshold": THRESHOLD}
    settings |= {"saes": {kind: SETTINGS[kind] for kind in arguments.kinds}, "skipped": skipped}
    if arguments.out:
        machine.save(arguments.out, "recovery", settings, results)


if __name__ == "__main__":
    main()
