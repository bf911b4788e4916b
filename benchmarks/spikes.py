"""Detection limits: features of our own planted into a model's activations, and what SAEs find of them.

python benchmarks/spikes.py run --model pylm --arms trained redraw [--workers 2]
python benchmarks/spikes.py draw

Rows are written as they come, and those that are there are kept: a run that was stopped goes on where it was.
Activations are read once per arm and kept in the cache folder; the spikes planted upstream are read anew.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import machine

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from remaining import Row, Rows, processes, rows_in, run_remaining
from safetensors.numpy import load_file, save_file

from sae_placebo.controls import build, parse_control
from sae_placebo.core.errors import PlaceboError
from sae_placebo.core.spec import digest
from sae_placebo.data import text
from sae_placebo.lab.spikes.grid import Grid
from sae_placebo.lab.spikes.kept_activations import KeptActivations, reading_of
from sae_placebo.lab.spikes.keys import TokenKeys
from sae_placebo.lab.spikes.limits import Limit, Verified, limit_of, placed, verified
from sae_placebo.lab.spikes.outcomes import OUTCOMES, Thresholds
from sae_placebo.lab.spikes.planting import Spike
from sae_placebo.lab.spikes.recovery import Recovered, recovered
from sae_placebo.lab.spikes.upstream import Upstream, became
from sae_placebo.models import loading as models
from sae_placebo.models.activations import HarvestSpec, row_order
from sae_placebo.saes import SAE, TopKSpec
from sae_placebo.saes.training_spec import TrainingSpec
from sae_placebo.stats.proportions import wilson

HARVEST, TRAINING, THRESHOLDS = HarvestSpec(), TrainingSpec(), Thresholds()
GRID = Grid(frequencies=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2))
FREQUENCY = 8e-3
"""Of the spikes that are planted upstream."""
CHECKED = (8e-3, 1.6e-2)
"""The curve is verified with fresh plantings at the first of these at which they lie within what it was
fitted on; where they do not at another one, they are shown beside that."""
MARGINS = (1.25, 1 / 3)
"""How far above the limit, and below, a verifying spike is; see `spikes.limits.verified`."""
VERIFYING = 10_000
"""First seed of the trainings that verify; those of the next frequency begin 1,000 later."""
SHOWN = (0.5, 0.95)
ARMS: dict[str, Row] = {
    "trained": {"kind": "trained"},
    "redraw": {"kind": "redraw"},
    "redraw_keep_embeddings": {"kind": "redraw", "keep": ["embeddings", "unembedding"]},
    "init": {"kind": "init"},
}


@dataclass(frozen=True)
class Case:
    """One model, one place, one SAE; as in the demo, and as in the trial of structure."""

    hookpoint: str
    planted_at: str
    sae: TopKSpec
    train_tokens: int = 120_000
    heldout_tokens: int = 50_000


CASES = {
    "pylm": Case("resid_post.2", "resid_post.0", TopKSpec(kind="topk", d_sae=1024, k=24)),
    "smollm2": Case("resid_post.14", "resid_post.10", TopKSpec(kind="topk", d_sae=1536, k=32)),
}
SOURCES = {"pylm": "pylm", "smollm2": "smollm2-135m"}


# --- an arm's activations ----------------------------------------------------------------------------


class Arm:
    """One arm's model and rows, made when they are first needed."""

    def __init__(self, model: str, name: str) -> None:
        self.case = CASES[model]
        reference = models.load_model(SOURCES[model])
        tokenizer = models.load_tokenizer(SOURCES[model])
        spec = text.TextSpec(
            train_tokens=self.case.train_tokens, heldout_tokens=self.case.heldout_tokens
        )
        self.rows = text.tokenize(spec, tokenizer, 0)
        control = dict(ARMS[name])
        if model == "smollm2" and "keep" in control:
            control["keep"] = ["embeddings"]  # its two matrices are one
        changed, _ = build(reference, parse_control(control), 0, 0)
        self.reader = models.Reader(changed, [self.case.hookpoint], fast=True)

    def bed(self) -> KeptActivations:
        read = reading_of(self.reader, HARVEST)
        return KeptActivations.of(read, self.rows, self.case.hookpoint, HARVEST, 0)


def bed_file(cache: Path, model: str, name: str) -> Path:
    case = CASES[model]
    parts = [model, ARMS[name], case.hookpoint, case.train_tokens, case.heldout_tokens]
    return cache / f"bed-{digest(parts)[:12]}.safetensors"


def keep(bed: KeptActivations, path: Path) -> None:
    arrays = {"x": bed.x.numpy(), "heldout": bed.heldout.numpy()}
    for prefix, keys in (("", bed.keys), ("heldout_", bed.heldout_keys)):
        for part in ("documents", "positions", "token_ids"):
            arrays[prefix + part] = getattr(keys, part)
    draft = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, draft)
    draft.replace(path)


@lru_cache(maxsize=1)
def kept(path: Path) -> KeptActivations:
    found = load_file(path)

    def keys(prefix: str) -> TokenKeys:
        return TokenKeys(*(found[prefix + p] for p in ("documents", "positions", "token_ids")))

    x, heldout = torch.from_numpy(found["x"]), torch.from_numpy(found["heldout"])
    return KeptActivations(x, keys(""), heldout, keys("heldout_"))


@lru_cache(maxsize=2)
def without(path: Path, sae: TopKSpec) -> SAE:
    """Return the SAE of an arm in which nothing is planted."""
    return kept(path).train(None, sae, TRAINING, 0)


# --- trainings ---------------------------------------------------------------------------------------


def training_row(path: Path, sae: TopKSpec, task: str, index: int, spikes: list[Spike]) -> Row:
    """Return what one training found of spikes; its plan and its SAE have the seed `index`."""
    torch.set_num_threads(1)
    bed, start = kept(path), time.perf_counter()
    plan = bed.plan(spikes, index)
    trained = bed.train(plan, sae, TRAINING, index)
    seconds = time.perf_counter() - start
    shaped = any(spike.direction == "covariance" for spike in spikes)
    found = recovered(
        trained,
        bed.planted(plan),
        plan,
        bed.heldout_keys,
        THRESHOLDS,
        covariance=bed.covariance() if shaped else None,
        without=without(path, sae),
    )
    return row_of(found, task, index) | {
        "train_seconds": seconds,
        "seconds": time.perf_counter() - start,
    }


def row_of(found: Recovered, task: str, index: int) -> Row:
    return {
        "task": task,
        "training": index,
        "energy_share": found.plan.energy_share,
        "largest_cosine": found.plan.largest_cosine,
        "spikes": found.table(),
    }


def latent_row(path: Path, sae: TopKSpec) -> Row:
    """Return rate and size of the latents of the SAE in which nothing is planted."""
    torch.set_num_threads(1)
    bed = kept(path)
    flat = Limit(np.zeros(3), np.zeros((1, 3)), (1.0, 1.0), (1.0, 1.0), 0, 0, "plantings", (0, 0))
    points = placed(flat, without(path, sae), bed.heldout, bed.scale())
    return {
        "task": "latents",
        "training": 0,
        "scale": bed.scale(),
        "rates": points.rates.tolist(),
        "magnitudes": points.magnitudes.tolist(),
    }


def relations() -> list[list[Spike]]:
    """Return spikes with relations and shapes, four of each kind, one training per size."""
    groups = []
    for size in (0.35, 0.7):
        spikes: list[Spike] = []

        def add(
            name: str,
            frequency: float,
            size: float = size,
            spikes: list[Spike] = spikes,
            **more: Any,
        ) -> None:
            spike = GRID.spike(frequency, size, f"{name} {size:g}")
            spikes.append(Spike.model_validate(spike.model_dump() | more))

        for k in range(4):
            add(f"alone {k}", 8e-3)
            add(f"parent {k}", 1e-2)
            add(f"child {k}", 4e-3, parent=f"parent {k} {size:g}")
            add(f"first {k}", 5e-3)
            add(f"second {k}", 5e-3, beside=f"first {k} {size:g}", correlation=0.8)
            add(f"circle {k}", 8e-3, dimension=2)
            add(f"covariance {k}", 8e-3, direction="covariance")
        groups.append(spikes)
    return groups


def upstream_row(arm: Arm) -> Row:
    """Return what an SAE finds of spikes that were planted some blocks earlier."""
    start, case = time.perf_counter(), arm.case
    earlier = models.Reader(arm.reader.model, [case.planted_at], fast=True)
    few = {name: head(rows, 64) for name, rows in arm.rows.items()}
    scale = KeptActivations.of(reading_of(earlier, HARVEST), few, case.planted_at, HARVEST, 0)
    spikes = [
        GRID.spike(FREQUENCY, size, f"{size:g} {k}")
        for size in (0.2, 0.35, 0.5, 0.7)
        for k in range(6)
    ]
    there = Upstream(arm.reader, scale.plan(spikes, 0), case.planted_at, HARVEST.block_rows)
    order = row_order(len(arm.rows["train"].lengths), 0)[:192]
    made = became(there, arm.rows["train"], order, case.hookpoint)
    bed = KeptActivations.of(there, arm.rows, case.hookpoint, HARVEST, 0)
    sae = bed.train(None, case.sae, TRAINING, 0)
    found = recovered(sae, bed.heldout, made.plan, bed.heldout_keys, THRESHOLDS)
    row = row_of(found, "upstream", 0)
    for i, one in enumerate(row["spikes"]):
        one |= {
            "gain": float(made.gain[i]),
            "one_direction": float(made.cosine[i]),
            "kept": float(made.kept[i]),
            "arrives": one["magnitude"] * float(made.gain[i]) * there.plan.scale / bed.scale(),
        }
    row |= {"planted_at": case.planted_at, "spilled": made.spilled, "explained": made.explained}
    return row | {"seconds": time.perf_counter() - start}


def head(rows: text.Rows, n: int) -> text.Rows:
    return text.Rows(rows.token_ids[:n], rows.lengths[:n], rows.documents[:n], rows.names)


# --- what the rows say -------------------------------------------------------------------------------


def limit_from(rows: list[Row]) -> Limit:
    """Return the detection limit of an arm from its rows of the grid."""
    pairs = [
        (one, row["training"])
        for row in rows
        if row["task"] == "grid"
        for one in row["spikes"]
        if one["outcome"] is not None
    ]
    return limit_of(
        np.array([one["frequency"] for one, _ in pairs]),
        np.array([one["magnitude"] for one, _ in pairs]),
        np.array([one["outcome"] == "detected" for one, _ in pairs]),
        np.array([training for _, training in pairs]),
        0,
    )


def check_of(limit: Limit) -> int:
    """Return which of `CHECKED` the curve is verified at."""
    for i, frequency in enumerate(CHECKED):
        if MARGINS[0] * limit.magnitude(0.95, frequency).high <= max(GRID.magnitudes):
            return i
    return len(CHECKED) - 1


def verification(rows: list[Row], limit: Limit, n: int, check: int) -> Row:
    """Return how the fresh plantings of an arm came out; nothing where some are not there yet."""
    there = {row["training"]: row for row in rows if row["task"] == "verify"}
    if not {seed for seed, _ in to_verify(limit, n, check)} <= there.keys():
        return {}

    def look_up(_: list[Spike], seed: int) -> Any:
        return np.array([one["outcome"] == "detected" for one in there[seed]["spikes"]])

    told = _verified(look_up, limit, n, check)
    return {
        "frequency": told.frequency,
        "above": told.above,
        "below": told.below,
        "found_above": share(told.found_above, told.n),
        "found_below": share(told.found_below, told.n),
        "holds": told.holds,
    }


def to_verify(limit: Limit, n: int, check: int) -> list[tuple[int, list[Spike]]]:
    """Return seed and spikes of each training that verification needs."""
    wanted: list[tuple[int, list[Spike]]] = []

    def note(spikes: list[Spike], seed: int) -> Any:
        wanted.append((seed, spikes))
        return np.zeros(len(spikes), dtype=bool)

    _verified(note, limit, n, check)
    return wanted


def _verified(recover: Any, limit: Limit, n: int, check: int) -> Verified:
    first = VERIFYING + 1000 * check
    return verified(recover, limit, CHECKED[check], first, n=n, grid=GRID, margins=MARGINS)


def summary(rows: list[Row], n: int) -> Row:
    """Return what the rows of one arm say."""
    planted = [one for row in rows if row["task"] == "grid" for one in row["spikes"]]
    entry: Row = {
        "plantings": len(planted),
        "outcomes": {name: sum(o["outcome"] == name for o in planted) for name in OUTCOMES},
        "not_judged": sum(one["outcome"] is None for one in planted),
        "decoys": share(
            sum(one["null_detected"] for one in planted),
            sum(one["null_judged"] for one in planted),
        ),
        "without": share(
            sum(one["without_outcome"] == "detected" for one in planted),
            sum(one["without_outcome"] is not None for one in planted),
        ),
    }
    try:
        limit = limit_from(rows)
        entry["coefficients"] = limit.coefficients.tolist()
        entry["certain"] = limit.certain
        entry["unit"] = limit.unit
        entry["limits"] = [limit_row(limit, f) for f in GRID.frequencies]
        check = check_of(limit)
        if told := verification(rows, limit, n, check):
            entry["verified"] = told
        others = [verification(rows, limit, n, i) for i in range(len(CHECKED)) if i != check]
        entry["beyond"] = [told for told in others if told]
        for row in rows:
            if row["task"] == "latents":
                f, m = np.array(row["rates"]), np.array(row["magnitudes"])
                entry["latents"] = {
                    "n": len(f),
                    "inside": share(int((limit.extrapolated(f, m) == 0).sum()), len(f)),
                    "median_extrapolated": float(np.median(limit.extrapolated(f, m))),
                    "likely_found": share(int((limit.probability(f, m) >= 0.5).sum()), len(f)),
                }
    except PlaceboError as refusal:
        entry["reason"] = str(refusal)
    return entry


def limit_row(limit: Limit, frequency: float) -> Row:
    row: Row = {"frequency": frequency}
    for part in SHOWN:
        one = limit.magnitude(part, frequency)
        row[f"{part:g}"] = {
            "magnitude": one.value,
            "low": one.low,
            "high": one.high,
            "extrapolated": one.extrapolated,
        }
    return row


def share(hits: int, n: int) -> Row:
    low, high = wilson(hits, n) if n else (None, None)
    return {"share": hits / n if n else None, "low": low, "high": high, "hits": hits, "n": n}


# --- running -----------------------------------------------------------------------------------------


def results_in(path: Path, n: int) -> Rows:
    """Return what the results file holds already; `n` spikes on each side verify a limit."""

    def of_arms(rows: list[Row]) -> Row:
        arms = sorted({(row["model"], row["arm"]) for row in rows})
        found = [{"model": m, "arm": a} | summary(of_arm(rows, m, a), n) for m, a in arms]
        return {"summary": found}

    settings = {
        "grid": GRID.model_dump(mode="json"),
        "training": TRAINING.model_dump(mode="json"),
        "thresholds": THRESHOLDS.model_dump(mode="json"),
        "cases": {
            name: vars(case) | {"sae": case.sae.model_dump(mode="json")}
            for name, case in CASES.items()
        },
    }
    return Rows(path, settings, key_of, key_of, of_arms, rows_in(path))


def key_of(row: Row) -> tuple[str, str, str, int]:
    return row["model"], row["arm"], row["task"], row["training"]


def of_arm(rows: list[Row], model: str, arm: str) -> list[Row]:
    return [row for row in rows if (row["model"], row["arm"]) == (model, arm)]


def run(arguments: argparse.Namespace) -> None:
    results = results_in(arguments.results / "spikes.json", arguments.plantings)
    with processes(arguments.workers) as pool:
        for name in arguments.arms:
            start = time.perf_counter()
            run_arm(arguments, name, results, pool)
            print(f"{arguments.model} {name}: {time.perf_counter() - start:.0f} s", flush=True)
    for entry in summary_lines(results.rows, arguments.model, arguments.plantings):
        print(entry)


def run_arm(arguments: argparse.Namespace, name: str, results: Rows, pool: Executor) -> None:
    """Do what is left of an arm; what verifies its limit is known once the grid is done."""
    model, case = arguments.model, CASES[arguments.model]
    path, arm = bed_file(arguments.cache, model, name), None
    if not path.exists():
        arm = Arm(model, name)
        keep(arm.bed(), path)

    def train(trainings: list[tuple[str, int, list[Spike]]]) -> None:
        jobs = {
            (model, name, task, i): (model, name, path, case.sae, task, i, spikes)
            for task, i, spikes in trainings
        }
        run_remaining(results, training_rows, jobs, pool)

    def make(task: str, row: Callable[[], Row]) -> None:
        head = {"model": model, "arm": name}
        run_remaining(results, lambda: [head | row()], {(model, name, task, 0): ()})

    make("latents", lambda: latent_row(path, case.sae))
    grid = list(enumerate(GRID.trainings(0)))[: arguments.trainings]
    shaped = list(enumerate(relations(), 100))
    train([("grid", i, spikes) for i, spikes in grid] + [("relations", *one) for one in shaped])
    try:
        limit = limit_from(of_arm(results.rows, model, name))
        fresh = to_verify(limit, arguments.plantings, check_of(limit))
    except PlaceboError as refusal:
        print(f"{model} {name}: {refusal}")
        fresh = []
    train([("verify", seed, spikes) for seed, spikes in fresh])
    if arguments.upstream:
        make("upstream", lambda: upstream_row(arm or Arm(model, name)))


def training_rows(model: str, arm: str, *job: Any) -> list[Row]:
    return [{"model": model, "arm": arm} | training_row(*job)]


def summary_lines(rows: list[Row], model: str, n: int) -> Iterator[str]:
    for name in sorted({row["arm"] for row in rows if row["model"] == model}):
        entry = summary(of_arm(rows, model, name), n)
        limits = [
            f"{row['frequency']:g}: {row['0.5']['magnitude']:.2f}/{row['0.95']['magnitude']:.2f}"
            for row in entry.get("limits", [])
        ]
        told = entry.get("verified", {})
        yield f"{model} {name}: {entry['outcomes']}; 50%/95% from {', '.join(limits)}"
        if told:
            above, below = told["found_above"], told["found_below"]
            yield (
                f"  above {told['above']:.2f}: {above['hits']}/{above['n']}; "
                f"below {told['below']:.3f}: {below['hits']}/{below['n']}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("task", choices=("run", "draw"))
    parser.add_argument("--model", choices=sorted(CASES), default="pylm")
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), default=["trained", "redraw"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--trainings", type=int, default=None, help="of the grid; all if not given")
    parser.add_argument("--plantings", type=int, default=100, help="on each side of the limit")
    parser.add_argument("--upstream", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/spikes"))
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    if arguments.task == "run":
        run(arguments)
    else:
        import spike_figures

        spike_figures.draw(arguments.results, arguments.images)


if __name__ == "__main__":
    main()
