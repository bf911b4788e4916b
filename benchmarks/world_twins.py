"""Twins: which statistics of b differ between a model that uses it and one that does not."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from remaining import Row, Rows, processes_or_none, rows_in, run_remaining
from worlds import spec_of

from sae_placebo.causal.use.base import single_sets
from sae_placebo.causal.use.evidence import effect_alone
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.errors import PlaceboError
from sae_placebo.core.spec import numpy_generator
from sae_placebo.lab.worlds import World, activations, train_sae, truth, twins
from sae_placebo.lab.worlds.baselines import BASELINES, baselines
from sae_placebo.lab.worlds.scoring import CARRIED
from sae_placebo.lab.worlds.units import held_often, latent_units, world_subject
from sae_placebo.stats.bootstrap import percentile_interval, resampled_units

SITES = ("resid_pre.0", "resid_post.0")
DATA_SIDE = ("firing rate", "variance", "probe accuracy")
"""Statistics that need no more than activations."""


def pair_rows(seed: int, spec: UseSpec) -> list[Row]:
    """Return one row per site of a pair of twins; or one with the reason why there is none."""
    import torch

    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        pair = twins(spec_of("default", seed), seed)
    except PlaceboError as refusal:
        return [{"seed": seed, "reason": str(refusal)}]
    rows: list[Row] = []
    for hookpoint in SITES:
        uses, passes = (statistics(world, hookpoint, seed, spec) for world in pair)
        found = {
            name: {"uses": uses[name], "passes": passes[name]} | compared(uses[name], passes[name])
            for name in uses
        }
        rows.append({"seed": seed, "hookpoint": hookpoint, "statistics": found})
    rows[-1]["seconds"] = time.perf_counter() - start
    return rows


def compared(one: list[float], other: list[float]) -> dict[str, bool | None]:
    """Return whether two intervals have nothing in common; null where one has no number."""
    if not np.isfinite([*one, *other]).all():
        return {"differs": None}
    return {"differs": bool(one[1] > other[2] or other[1] > one[2])}


def statistics(world: World, hookpoint: str, seed: int, spec: UseSpec) -> dict[str, list[float]]:
    """Return [value, low, high] of each statistic of b at a site.

    Those of latents are means over the latents that stand for a value of b, with a bootstrap over these.
    """
    subject = world_subject(world, hookpoint)
    units = latent_units(world, subject, train_sae(world, hookpoint, seed))
    often = held_often(subject, units.directions, spec.documents)
    ours = [i for i in often if units.variables[i] == "b" and units.carried[i] >= CARRIED]
    which = np.array(ours, dtype=np.int64)
    measured = truth(world, hookpoint, "b", per_row=2, seed=seed)
    found = {"swap of b": [measured.share_of_full_swap, *measured.share_interval]}
    found["probe accuracy"] = probe(world, hookpoint, seed)
    if len(which) < 2:
        return found | {name: [float("nan")] * 3 for name in ("effect", *BASELINES)}
    effect = effect_alone(subject, single_sets(units.directions), which, spec, seed)
    values = {"effect": effect.mean} | baselines(subject, units.directions, seed).values
    return found | {name: of_latents(x[which], seed) for name, x in values.items()}


def of_latents(values: Any, seed: int) -> list[float]:
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return [float("nan")] * 3
    random = numpy_generator(seed, "twins", len(values))
    picked = values[resampled_units(random, len(values), 2000)].mean(1)
    return [float(values.mean()), *percentile_interval(picked)]


def probe(world: World, hookpoint: str, seed: int) -> list[float]:
    """Return the accuracy of b on held-out rows, by least squares on the training rows; over rows."""
    b = world.variable("b")
    x, y = (
        activations(world, hookpoint, rows)[:, 1:].double().numpy()
        for rows in (world.train_rows, world.rows)
    )
    flat = x.reshape(-1, x.shape[-1])
    wanted = b.train_values[:, 1:].ravel()[:, None] == np.arange(b.n_values)
    center, rates = flat.mean(0), wanted.mean(0)
    gram = (flat - center).T @ (flat - center)
    gram += 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram, (flat - center).T @ (wanted - rates))
    hits = (((y - center) @ weights + rates).argmax(-1) == b.values[:, 1:]).mean(1)
    return of_latents(hits, seed)


def summary(rows: list[Row]) -> dict[str, Row]:
    """Return, by site, in how many pairs each statistic differs."""
    found: dict[str, Row] = {}
    for row in rows:
        for name, one in row.get("statistics", {}).items():
            entry = found.setdefault(row["hookpoint"], {}).setdefault(name, {"differs": 0, "n": 0})
            if one["differs"] is not None:
                entry["differs"] += one["differs"]
                entry["n"] += 1
    return found


def run(arguments: argparse.Namespace) -> None:
    path: Path = arguments.results / "twins.json"
    spec = UseSpec()
    rows = Rows(
        path,
        {"use": spec.model_dump(mode="json")},
        key=lambda row: row["seed"],
        order=lambda row: row["seed"],
        summary=lambda rows: {"summary": summary(rows)},
        rows=rows_in(path),
    )
    seeds = range(arguments.first, arguments.first + arguments.pairs)
    jobs = {seed: (seed, spec) for seed in seeds}
    with processes_or_none(arguments.workers) as pool:
        run_remaining(rows, pair_rows, jobs, pool)
    for hookpoint, entry in summary(rows.rows).items():
        print(hookpoint, json.dumps({k: f"{v['differs']}/{v['n']}" for k, v in entry.items()}))
