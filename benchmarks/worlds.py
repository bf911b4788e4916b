"""Score verdicts of use, and simpler statistics, on worlds whose truth is known; compare twins.

python benchmarks/worlds.py score [--kinds default duplicates superposed compiled] [--seeds 10] [--first 100]
python benchmarks/worlds.py twins [--pairs 20] [--first 100]
python benchmarks/worlds.py draw

Rows are written as they come, and those that are there are kept: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import machine
import validity

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from remaining import Row, Rows, processes_or_none, rows_in, run_remaining

from sae_placebo.causal.use.rule import USES
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.errors import PlaceboError
from sae_placebo.lab.worlds import PRESETS, PROGRAMS, FactoredSpec, World, compiled, factored
from sae_placebo.lab.worlds.scoring import (
    CARRIED,
    IS_NEITHER,
    IS_PASSENGER,
    IS_USED,
    PASSENGER_SHARE,
    STATISTICS,
    USED_SHARE,
    ScoredValue,
    WorldScore,
    score_world,
)
from sae_placebo.stats.proportions import wilson

KINDS = ("default", "duplicates", "superposed", "compiled")
LIMITS = ((0.001, 0.0005), (0.002, 0.001), (0.005, 0.0025), (0.01, 0.005))
"""Smallest effects of interest, and what is negligible, at which rates are given."""
_SIZES = {
    "default": ((8, 24), (8, 8), (8, 4)),
    "duplicates": ((8, 12), (8, 8), (8, 4)),
    "superposed": ((8, 24), (16, 16)),
}
"""Values of a and of b by seed: how often a latent fires must not tell which of them it stands for."""


def spec_of(kind: str, seed: int) -> FactoredSpec:
    """Return the settings of a factored world of one kind."""
    sizes = _SIZES[kind]
    n_a, n_b = sizes[seed % len(sizes)]
    return PRESETS[kind].model_copy(update={"n_a": n_a, "n_b": n_b})


def build(kind: str, seed: int) -> World:
    if kind != "compiled":
        return factored(spec_of(kind, seed), seed)
    import jax

    # what takes long is XLA's compilation of single operations
    jax.config.update("jax_disable_most_optimizations", True)
    names = list(PROGRAMS)
    return compiled(names[seed % len(names)], seed, n_rows=256)


# --- one world ---------------------------------------------------------------------------------------


def world_rows(kind: str, seed: int, spec: UseSpec) -> list[Row]:
    """Return one row per site and kind of unit; or one with the reason why there is no world."""
    import torch

    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        world = build(kind, seed)
    except PlaceboError as refusal:
        return [{"kind": kind, "seed": seed, "world": "", "reason": str(refusal)}]
    seconds = time.perf_counter() - start
    rows = []
    for depth, hookpoint in enumerate(world.hookpoints):
        for units in ("values",) if kind == "compiled" else ("latents",):
            head = {"kind": kind, "seed": seed, "world": world.name, "build_seconds": seconds}
            head |= {"hookpoint": hookpoint, "depth": depth, "units": units}
            start = time.perf_counter()
            try:
                score = score_world(world, hookpoint, seed, spec, units)  # type: ignore[arg-type]
                rows.append(head | described(score))
            except PlaceboError as refusal:
                rows.append(head | {"reason": str(refusal)})
            rows[-1]["seconds"] = time.perf_counter() - start
    return rows


def described(score: WorldScore) -> Row:
    return {
        "n_used": int((score.kinds == IS_USED).sum()),
        "n_passenger": int((score.kinds == IS_PASSENGER).sum()),
        "n_units": len(score.kinds),
        "n_labeled": int((score.labeled != IS_NEITHER).sum()),
        "auroc": {name: listed(score.separation(name)) for name in STATISTICS},
        "joint_share": score.joint_share,
        "truth": {v: [t.share, t.low, t.high] for v, t in score.truths.items()},
        "limits": [
            {"least_effect": high, "negligible": low} | counts(score.judged(high, low))
            for high, low in LIMITS
        ],
        "why": reasons(score),
        "missing": dict(score.reasons),
    }


def counts(score: WorldScore) -> Row:
    """Return counts of wrong verdicts, [wrong, of how many]; `labeled` takes in what carries little."""
    plain = score.labeled
    return {
        "false_not_used": score.false_not_used,
        "false_not_used_jointly": score.false_not_used_jointly,
        "false_used": score.false_used,
        "undetermined": score.undetermined,
        "labeled_false_not_used": among(plain == IS_USED, score.verdict == USES.index("not_used")),
        "labeled_false_used": among(plain == IS_PASSENGER, score.verdict == USES.index("used")),
        "found_used": among(score.kinds == IS_USED, score.verdict == USES.index("used")),
        "found_not_used": among(
            score.kinds == IS_PASSENGER, score.verdict == USES.index("not_used")
        ),
        "right": among(
            score.kinds != IS_NEITHER,
            score.verdict
            == np.where(score.kinds == IS_USED, USES.index("used"), USES.index("not_used")),
        ),
    }


def among(group: Any, holds: Any) -> tuple[int, int]:
    return int((group & holds).sum()), int(group.sum())


def reasons(score: WorldScore) -> dict[str, int]:
    found: dict[str, int] = {}
    for why, kind in zip(score.reason, score.kinds, strict=True):
        if why and kind != IS_NEITHER:
            found[why] = found.get(why, 0) + 1
    return found


def listed(score: ScoredValue) -> list[float | int | str]:
    return [score.value, score.low, score.high, score.n, score.reason]


# --- all worlds --------------------------------------------------------------------------------------


def summary(rows: list[Row]) -> list[Row]:
    """Return one entry per kind, unit and depth: AUROC over worlds, pooled rates with intervals."""
    good = [row for row in rows if "auroc" in row]
    keys = sorted({(row["kind"], row["units"], row["depth"]) for row in good})
    found = []
    for kind, units, depth in keys:
        here = [r for r in good if (r["kind"], r["units"], r["depth"]) == (kind, units, depth)]
        entry: Row = {"kind": kind, "units": units, "depth": depth, "worlds": len(here)}
        entry["auroc"] = {
            name: over_worlds([r["auroc"][name] for r in here]) for name in STATISTICS
        }
        entry["limits"] = [
            pooled([r["limits"][i] for r in here]) for i in range(len(here[0]["limits"]))
        ]
        found.append(entry)
    return found


def over_worlds(scores: list[list[Any]]) -> Row:
    values = [s[0] for s in scores if s[0] is not None and np.isfinite(s[0])]
    if not values:
        return {"mean": None, "low": None, "high": None, "worlds": 0}
    return {
        "mean": float(np.mean(values)),
        "low": min(values),
        "high": max(values),
        "worlds": len(values),
    }


def pooled(parts: list[Row]) -> Row:
    found: Row = {key: parts[0][key] for key in ("least_effect", "negligible")}
    for key in parts[0].keys() - found.keys():
        hits, n = (sum(part[key][i] for part in parts) for i in (0, 1))
        interval = wilson(hits, n) if n else (None, None)
        found[key] = {
            "share": hits / n if n else None,
            "low": interval[0],
            "high": interval[1],
            "hits": hits,
            "n": n,
        }
    return found


# --- running -----------------------------------------------------------------------------------------


def score(arguments: argparse.Namespace) -> None:
    path: Path = arguments.results / "worlds.json"
    spec = UseSpec()
    settings = {
        "use": spec.model_dump(mode="json"),
        "truth": {"used": USED_SHARE, "passenger": PASSENGER_SHARE, "carried": CARRIED},
    }
    rows = Rows(
        path,
        settings,
        key=lambda row: (row["kind"], row["seed"]),
        order=lambda row: (KINDS.index(row["kind"]), row["seed"], row.get("depth", 0)),
        summary=lambda rows: {"summary": summary(rows)},
        rows=rows_in(path),
    )
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    jobs = {(kind, seed): (kind, seed, spec) for seed in seeds for kind in arguments.kinds}
    with processes_or_none(arguments.workers) as pool:
        run_remaining(rows, world_rows, jobs, pool)
    found = summary(rows.rows)
    write_validity(found, path)
    for entry in found:
        print(told(entry))


def write_validity(found: list[Row], path: Path) -> None:
    """Write how many planted units of each kind were told, at the default limits, over all sites."""
    for headline, kind in (("used", "used values"), ("not_used", "passengers")):
        parts = [entry["limits"][0].get(f"found_{headline}") for entry in found]
        told = [part for part in parts if part is not None]
        n = sum(part["n"] for part in told)
        if n:
            power = validity.rate(sum(part["hits"] for part in told), n, f"{kind} of worlds")
            validity.write(headline, {"power": power}, "python benchmarks/worlds.py score", path)


def told(entry: Row) -> str:
    best = max(
        (one["mean"] or 0, name)
        for name, one in entry["auroc"].items()
        if name not in ("effect / null", "effect", "effect or beside", "1 - p")
    )
    ours = entry["auroc"]["effect"]["mean"]
    words = [f"{entry['kind']} {entry['units']} depth {entry['depth']} ({entry['worlds']} worlds):"]
    words.append(f"AUROC {ours if ours is None else round(ours, 3)}, {best[1]} {best[0]:.3f};")
    for limit in entry["limits"]:
        parts = [
            f"{k} {limit[k]['hits']}/{limit[k]['n']}"
            for k in ("false_not_used", "false_used", "undetermined")
        ]
        words.append(f"[{limit['least_effect']:g}: {', '.join(parts)}]")
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("task", choices=("score", "twins", "draw"))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    if arguments.task == "score":
        score(arguments)
    elif arguments.task == "twins":
        import world_twins

        world_twins.run(arguments)
    else:
        import world_figures
        import world_tables

        world_tables.write(arguments.results)
        world_figures.draw(arguments.results, arguments.images)
        shown = Path("src/sae_placebo/report/on_worlds.json")
        world_figures.write_record(arguments.results, shown)


if __name__ == "__main__":
    main()
