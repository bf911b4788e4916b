"""Time one TopK training step of this package beside peers, alternating in one run.

    python benchmarks/sae_step.py --peer sparsify=PYTHON [--rounds 8] [--out FILE]
    python benchmarks/sae_step.py --grid [--out FILE]

A step is forward, backward, decoder projection and renormalization, and Adam, on a batch that is
in memory. `ours` also does its bookkeeping (silent latents, log, refusal of NaN). No latent is
dead within so few steps, so AuxK is on but idle everywhere.

Two settings of each: *installed*, as it comes; *tuned*, with two changes that any user can make to
a program that he did not write (float32 products by oneDNN, a heap that keeps its pages). Ours tuned
is `precision.fast_products()`, which is how trials run, with the heap as it comes.

`--peer` names the Python of an environment in which that peer is installed (eai-sparsify); without
it the peer is skipped, by name. Workers live through the run and take turns; ratios are taken
within a round. A step counts only if other processes took at most a tenth of the machine meanwhile
(Linux only); `kept` says how many of the turns had such a step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUIET = 0.1  # foreign share up to which a sample counts
KEPT_HEAP = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
DATA_SEED, SAE_SEED = 7919, 1
Step = Callable[["torch.Tensor"], float]


def batches(n_batches: int, batch_tokens: int, d_in: int) -> list[torch.Tensor]:
    """Sparse sums of unit directions plus noise, at mean squared norm d_in."""
    import torch

    random = torch.Generator().manual_seed(DATA_SEED)
    truth = torch.nn.functional.normalize(torch.randn(2048, d_in, generator=random), dim=1)
    found = []
    for _ in range(n_batches):
        index = torch.randint(0, len(truth), (batch_tokens, 16), generator=random)
        size = torch.rand(batch_tokens, 16, generator=random) + 0.5
        x = torch.nn.functional.embedding_bag(index, truth, per_sample_weights=size, mode="sum")
        x += 0.05 * torch.randn(batch_tokens, d_in, generator=random)
        found.append(x * math.sqrt(d_in / float(x.square().sum(dim=1).mean())))
    return found


def ours(d_in: int, d_sae: int, k: int) -> Step:
    from sae_placebo.saes import TopKSpec
    from sae_placebo.training import Fit, TrainingSpec

    sae = TopKSpec(d_sae=d_sae, k=k).create(d_in, SAE_SEED)
    fit = Fit(sae, TrainingSpec(learning_rate=1e-4), 10**9)

    def step(x: torch.Tensor) -> float:
        fit.step(x)
        return float(fit.log()[-1]["fvu"] or 0)

    return step


def textbook(d_in: int, d_sae: int, k: int) -> Step:
    import torch

    torch.manual_seed(SAE_SEED)
    encoder, decoder = torch.nn.Linear(d_in, d_sae), torch.nn.Linear(d_sae, d_in)
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-4)

    def step(x: torch.Tensor) -> float:
        adam.zero_grad()
        values, index = encoder(x - decoder.bias).relu().topk(k, dim=-1)
        codes = torch.zeros(len(x), d_sae).scatter_(1, index, values)
        loss = (x - decoder(codes)).square().sum(dim=1).mean()
        loss.backward()
        adam.step()
        return float(loss.detach()) / d_in

    return step


def sparsify(d_in: int, d_sae: int, k: int) -> Step:
    import torch
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    torch.manual_seed(SAE_SEED)
    config = SparseCoderConfig(num_latents=d_sae, k=k)
    sae = SparseCoder(d_in, config, dtype=torch.float32)
    adam = torch.optim.Adam(sae.parameters(), lr=1e-4)
    since_fired = torch.zeros(d_sae, dtype=torch.long)

    # the body of sparsify.Trainer.fit for one hookpoint and one micro-batch
    def step(x: torch.Tensor) -> float:
        sae.set_decoder_norm_to_unit_norm()
        variance = (x - x.mean(0)).pow(2).sum()
        out = sae(x=x, y=x, dead_mask=None, total_variance=variance)
        fired = torch.zeros(d_sae, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        fvu = float(out.fvu.detach())
        (out.fvu + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()
        since_fired.add_(len(x))
        since_fired[fired] = 0
        return fvu

    return step


STEPS = {"ours": ours, "textbook": textbook, "sparsify": sparsify}


def busy_seconds() -> float:
    stat = Path("/proc/stat")
    if not stat.exists():
        return math.nan
    ticks = [int(part) for part in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def wait_until_quiet(limit_seconds: float) -> None:
    """Wait until other processes leave the machine alone, or the limit has passed."""
    end = time.monotonic() + limit_seconds
    while time.monotonic() < end:
        busy = busy_seconds()
        time.sleep(0.1)
        if not busy_seconds() - busy > QUIET * 0.1 * (os.cpu_count() or 1):
            return


def work(arguments: argparse.Namespace) -> None:
    """Run in a worker: answer every line of input with the times of some steps."""
    import torch

    torch.set_num_threads(arguments.threads)
    if arguments.tuned and arguments.worker == "ours":
        from sae_placebo.precision import measure

        torch.set_float32_matmul_precision("medium" if measure().fast else "highest")
    elif arguments.tuned:
        torch.set_float32_matmul_precision("medium")
    step = STEPS[arguments.worker](arguments.d_in, arguments.d_sae, arguments.k)
    data = batches(3, arguments.batch_tokens, arguments.d_in)
    step(data[0])
    print(json.dumps({"torch": torch.__version__}), flush=True)
    turn = 0
    for _ in sys.stdin:
        wait_until_quiet(arguments.wait)
        step(data[turn % 3])  # wakes the threads
        seconds, foreign, fvu = [], [], math.nan
        for _ in range(arguments.steps):
            turn += 1
            x = data[turn % 3]
            busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
            fvu = step(x)
            taken = time.perf_counter() - start
            others = busy_seconds() - busy - (time.process_time() - own)
            seconds.append(taken)
            foreign.append(max(0.0, others / taken / (os.cpu_count() or 1)))
        print(json.dumps({"seconds": seconds, "foreign": foreign, "fvu": fvu}), flush=True)


class Worker:
    """One process that steps on request."""

    def __init__(self, python: str, name: str, tuned: bool, arguments: argparse.Namespace) -> None:
        names = ("d_in", "d_sae", "k", "batch_tokens", "threads", "steps", "wait")
        flags = [f"--{n.replace('_', '-')}={getattr(arguments, n)}" for n in names]
        command = [python, __file__, f"--worker={name}", *flags, *(["--tuned"] if tuned else [])]
        heap = KEPT_HEAP if tuned and name != "ours" else {}
        self.name = f"{name} {'tuned' if tuned else 'installed'}"
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **heap},
        )
        self.environment = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # peers print on import
                return dict(json.loads(line))
        raise SystemExit(f"{self.name} ended with status {self.process.wait()}")

    def run(self) -> float:
        """Return the seconds of the fastest quiet step of a turn; NaN if there was none."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.last_fvu = answer["fvu"]
        quiet = [
            taken
            for taken, foreign in zip(answer["seconds"], answer["foreign"], strict=True)
            if not foreign > QUIET
        ]
        return min(quiet, default=math.nan)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def spread(values: list[float]) -> dict[str, float | None]:
    ordered = sorted(value for value in values if not math.isnan(value))
    if not ordered:
        return {"median": None, "low": None, "high": None, "kept": 0}
    return {
        "median": round(statistics.median(ordered), 3),
        "low": round(ordered[0], 3),
        "high": round(ordered[-1], 3),
        "kept": len(ordered),
    }


def compare(arguments: argparse.Namespace) -> dict[str, object]:
    """Return speeds of all, and ratios to ours taken within each round."""
    pythons = {"ours": sys.executable, "textbook": sys.executable}
    pythons |= dict(item.split("=", 1) for item in arguments.peer)
    skipped = [name for name in STEPS if name not in pythons]
    workers = [
        Worker(python, name, tuned, arguments)
        for name, python in pythons.items()
        for tuned in (False, True)
    ]
    rounds: list[dict[str, float]] = []
    for turn in range(arguments.rounds):
        rounds.append({w.name: w.run() for w in (workers if turn % 2 else reversed(workers))})
    for worker in workers:
        worker.end()
    tokens = arguments.batch_tokens
    return {
        "tokens_per_second": {
            w.name: spread([tokens / found[w.name] for found in rounds]) for w in workers
        },
        "ours_times_faster": {
            f"{mine} / {w.name}": spread([found[w.name] / found[mine] for found in rounds])
            for mine in ("ours installed", "ours tuned")
            for w in workers
            if not w.name.startswith("ours")
        },
        "last_fvu": {w.name: w.last_fvu for w in workers},
        "torch": {w.name: w.environment["torch"] for w in workers},
        "skipped": skipped,
    }


def grid(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Return our own speed, tuned, over widths and batch sizes, in alternating rounds."""
    workers: dict[tuple[int, int], Worker] = {}
    for d_sae in (2048, 4096):
        for batch_tokens in (512, 1024, 2048, 4096):
            size = argparse.Namespace(**vars(arguments))
            size.d_in, size.d_sae, size.batch_tokens = 576, d_sae, batch_tokens
            workers[d_sae, batch_tokens] = Worker(sys.executable, "ours", True, size)
    times: dict[tuple[int, int], list[float]] = {key: [] for key in workers}
    for _ in range(arguments.rounds):
        for key, worker in workers.items():
            times[key].append(worker.run())
    for worker in workers.values():
        worker.end()
    return [
        {
            "d_in": 576,
            "d_sae": d_sae,
            "k": arguments.k,
            "batch_tokens": batch_tokens,
            "tokens_per_second": spread([batch_tokens / taken for taken in found]),
        }
        for (d_sae, batch_tokens), found in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="per turn; the fastest counts")
    parser.add_argument("--wait", type=float, default=2.0, help="seconds per turn, for quiet")
    parser.add_argument("--grid", action="store_true", help="our own speed over sizes")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", choices=sorted(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--tuned", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    names = ("d_in", "d_sae", "k", "batch_tokens", "threads", "rounds", "steps")
    results: dict[str, object] = {name: getattr(arguments, name) for name in names}
    results |= {"grid": grid(arguments)} if arguments.grid else compare(arguments)
    text = json.dumps(results, indent=2) + "\n"
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
