"""How often do intervals leave the truth out? A/A trials on a small model, and planted truth.

    python benchmarks/calibration.py [--pools 10] [--redraws 12] [--trials 20] [--quick] [--out FILE]
    python benchmarks/calibration.py --shares | --own-scale

A pool is one trial on `pylm` with small SAEs, in which the control `redraw` is drawn many times; it is
dealt into A/A trials of two re-draws against two (and three against three). Each pool has its own seed:
other documents held out, other training text, other re-draws, other initial bits. Pools share the
reference model and the collection of text. See `sae_placebo.stats.calibration` for what the standard errors
hold.

A stopped run goes on: every trial's artefacts are kept under --work, and the A/A trials of each finished
pool. `seconds` is the processor time of this process, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pandas as pd
import validity

from sae_placebo.core.progress import Progress, for_terminal
from sae_placebo.core.spec import digest, numpy_generator
from sae_placebo.core.store import Store
from sae_placebo.latents.metrics import METRICS
from sae_placebo.latents.origin.decoys import decoys
from sae_placebo.stats.calibration import (
    KINDS,
    SHAPES,
    SPREADS,
    DealSpec,
    aa_trials,
    planted_coverage,
    planted_placebo,
    rates,
)
from sae_placebo.stats.calibration_redraws import planted_redraws
from sae_placebo.stats.calibration_shares import planted_shares
from sae_placebo.trial.plan import plan_steps
from sae_placebo.trial.results import gather
from sae_placebo.trial.run import run
from sae_placebo.trial.spec import load_trial

ARM = "redraw"
EACH = (2, 3)
PLANTED, PLANTED_PLACEBO, PLANTED_DECOYS = 2_500, 400, 400
PLANTED_SHARES = 200
PLANTED_REDRAWS = 1_000
TIMES = (1.0, 2.0)
RATES_ASKED = (0.05, 0.1, 0.2)
SHARE_SHAPES = ((2, 2), (3, 3))
OVERDISPERSIONS = (0.0, 0.0005, 0.003)


def protocol(seed: int, redraws: int, quick: bool = False) -> dict[str, Any]:
    """Return the settings of one pool's trial; seeds of models and SAEs are of this pool alone."""
    return {
        "name": f"calibration-{seed}",
        "seed": seed,
        "hookpoints": ["resid_post.1"],
        "model_seeds": [1_000 * seed + i for i in range(redraws)],
        "sae_seeds": [1_000 * seed, 1_000 * seed + 1],
        "model": {"id": "pylm"},
        "text": {
            "source": "python-stdlib",
            "context_tokens": 64,
            "train_tokens": 4_000 if quick else 12_000,
            "heldout_tokens": 2_000 if quick else 6_000,
            "max_document_tokens": 126,
        },
        "arms": {"trained": {"control": "trained"}, ARM: {"control": "redraw"}},
        "saes": {"topk": {"kind": "topk", "d_sae": 64 if quick else 128, "k": 8}},
        "training": {"batch_tokens": 256},
        "measurement": {"replicates": 40 if quick else 100, "shown_per_class": 0},
        # a coarse search: what is calibrated is the interval, not the bits
        "baselines": {
            **{"n_atoms": 64, "nmf_atoms": 16, "fit_tokens": 1_500, "ica_tokens": 800},
            **{"nmf_tokens": 500, "iterations": 5, "choose_tokens": 600, "score_tokens": 600},
            **{"sae_pursuit_tokens": 0, "coded_tokens": 0, "distortions": [0.2]},
            "n_labels": 2,
        },
    }


def pool(table: dict[str, Any], work: Path, trials: int, progress: Progress) -> pd.DataFrame:
    """Return the A/A trials of one pool, from its trial or from what an earlier run kept."""
    spec = load_trial(table)
    kept = work / "pools" / f"{digest([spec, trials, list(EACH), list(METRICS)])[:16]}.parquet"
    if kept.exists():
        return pd.read_parquet(kept)
    start = time.process_time()
    run(spec, work, progress=progress)
    values = gather(plan_steps(spec), Store(work))
    parts = []
    for each in EACH:
        if 2 * each <= len(spec.model_seeds):
            deal = DealSpec(each=each, trials=trials)
            parts.append(aa_trials(values, ARM, deal, spec.seed).assign(each=each))
    found = pd.concat(parts, ignore_index=True)
    found["pool"], found["seconds"] = spec.seed, time.process_time() - start
    kept.parent.mkdir(parents=True, exist_ok=True)
    draft = kept.with_suffix(".draft")
    found.to_parquet(draft)
    draft.replace(kept)
    return found


def coverage_table(trials: int) -> list[dict[str, Any]]:
    """Return how often planted intervals hold the truth, a row per shape and spread."""
    rows = []
    for shape in SHAPES:
        for name, spread in SPREADS.items():
            found = planted_coverage(shape, spread, trials)
            rows.append(
                {"shape": list(shape), "varies": name}
                | {what: share._asdict() for what, share in found.items()}
            )
    return rows


def share_table(trials: int) -> list[dict[str, Any]]:
    """Return how intervals of planted shares do, a row per shape, overdispersion and expected count."""
    rows = []
    for shape in SHARE_SHAPES:
        for overdispersion in OVERDISPERSIONS:
            for found in planted_shares(shape, overdispersion, trials):
                row = {"shape": list(shape), "overdispersion": overdispersion}
                kinds = ("control", "effect", "placebo", "power")
                row |= {kind: getattr(found, kind)._asdict() for kind in kinds}
                rows.append(row | {"expected": found.expected, "width": found.width})
    return rows


def redraw_table(trials: int) -> list[dict[str, Any]]:
    """Return how often planted re-draws on a metric's own scale leave 0 out, a row per group of arms."""
    rows = []
    for shape in SHARE_SHAPES:
        for times in TIMES:
            for found in planted_redraws(shape, times, trials):
                row = found._asdict() | {"effect": found.effect._asdict()}
                row["placebo"] = found.placebo and found.placebo._asdict()
                rows.append({"shape": list(shape), "times": times, **row})
    return rows


def fdr_table(trials: int) -> list[dict[str, Any]]:
    """Return the share of false ones among targets that pass, planted, beside the rate asked for.

    1,000 targets, of which some score 2.5 standard deviations higher than the others, which score as
    the 2,000 decoys do. A trial in which none passes has a share of 0.
    """
    rows = []
    for rate in RATES_ASKED:
        for real in (0.0, 0.1, 0.5):
            random = numpy_generator(0, "planted decoys", str(rate), str(real))
            shares, passing = [], []
            for trial in range(trials):
                scores = random.normal(size=1_000)
                true = np.arange(1_000) < round(1_000 * real)
                scores[true] += 2.5
                found = decoys(scores, random.normal(size=2_000), rate, seed=trial, draws=2)
                passed = scores >= (np.inf if found.threshold is None else found.threshold)
                shares.append(float((passed & ~true).sum() / max(passed.sum(), 1)))
                passing.append(float(passed.sum()))
            rows.append(
                {"rate": rate, "real": real, "achieved": float(np.mean(shares))}
                | {"se": float(np.std(shares) / trials**0.5), "passing": float(np.mean(passing))}
            )
    return rows


def markdown(found: list[dict[str, Any]], coverage: list[dict[str, Any]]) -> str:
    """Return the tables of the docs: rates at two against two, and planted coverage."""
    lines = ["| metric | " + " | ".join(KINDS) + " | n |", "|---|" + "---|" * (len(KINDS) + 1)]
    at_two = [row for row in found if row["each"] == EACH[0]]
    for metric in dict.fromkeys(row["metric"] for row in at_two):
        cells = {row["kind"]: row for row in at_two if row["metric"] == metric}
        n = max(row["n_trials"] for row in cells.values())
        shown = " | ".join(_cell(cells.get(kind)) for kind in KINDS)
        lines.append(f"| {metric} | {shown} | {n} |")
    lines += ["", "| documents, models, SAE seeds | " + " | ".join(SPREADS) + " |"]
    lines.append("|---|" + "---|" * len(SPREADS))
    for shape in dict.fromkeys(tuple(row["shape"]) for row in coverage):
        cells = [row for row in coverage if tuple(row["shape"]) == shape]
        values = " | ".join(f"{100 * row['effect']['share']:.1f}" for row in cells)
        lines.append(f"| {', '.join(map(str, shape))} | {values} |")
    return "\n".join(lines)


def share_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table of planted shares of the docs, in percent, and widths over the true spread."""
    names = ("control", "effect", "placebo", "power")
    lines = [
        "| re-draws, SAE seeds | overdispersion | expected | arm | effect | A/A | power | width |"
    ]
    lines.append("|---|" + "---|" * 7)
    for row in rows:
        shares = " | ".join(f"{100 * row[name]['share']:.1f}" for name in names)
        shape = ", ".join(map(str, row["shape"]))
        at = f"| {shape} | {row['overdispersion']:g} | {row['expected']:g} |"
        lines.append(f"{at} {shares} | {row['width']:.2f} |")
    return "\n".join(lines)


def redraw_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table of planted re-draws of the docs, in percent, and widths over the true spread."""
    lines = ["| re-draws, SAE seeds | `apart` varies | arms | A/A | width | effect | width |"]
    lines.append("|---|" + "---|" * 6)
    for row in rows:
        shape = ", ".join(map(str, row["shape"]))
        cells = []
        for kind, width in (("placebo", "placebo_width"), ("effect", "width")):
            told = row[kind]
            if told is None:
                cells += ["null", "null"]
                continue
            cells.append(f"{100 * told['share']:.1f} ± {100 * told['se']:.1f}")
            cells.append(f"{row[width]:.2f}")
        lines.append(f"| {shape} | {row['times']:g}x | {row['arms']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or pd.isna(row["share"]):
        return "null"
    said = f"{100 * row['share']:.1f}"
    if not pd.isna(row["se"]):
        said += f" ± {100 * row['se']:.1f}"
    marked = row["verdict"] in ("too wide", "too narrow")
    return said + (f", {row['verdict']}" if marked else "")


def write_shown(found: list[dict[str, Any]], out: Path) -> None:
    """Write what every report shows beside its intervals: one line per metric, into the package."""
    if out.resolve() != (machine.RESULTS / "calibration.json").resolve():
        return
    import sae_placebo

    columns = (
        "metric",
        "share",
        "se",
        "n_trials",
        "n_points",
        "variance_ratio",
        "verdict",
        "reason",
    )
    rows = [row for row in found if row["each"] == EACH[0] and row["kind"] == "paired"]
    shown = [{name: row[name] for name in columns} for row in rows if row["metric"] != "all"]
    folder = Path(sae_placebo.__file__).parent / "report" / "assets"
    text = json.dumps(shown, indent=1, allow_nan=False)
    (folder / "calibration.json").write_text(text + "\n", encoding="utf-8")


def write_validity(rows: list[dict[str, Any]], out: Path) -> None:
    """Write how planted shares of latents did, two re-draws and two seeds, beside every headline share."""
    at_two = [row for row in rows if row["shape"] == [2, 2]]

    def of(kind: str, cells: list[dict[str, Any]], what: str) -> dict[str, Any]:
        n = sum(row[kind]["n"] for row in cells)
        hits = sum(row[kind]["share"] * row[kind]["n"] for row in cells)
        lowest = min(row[kind]["share"] for row in cells)
        return validity.rate(round(hits), n, f"{what}; lowest cell {100 * lowest:.1f}%")

    found = {
        "coverage": of("effect", at_two, "planted shares of 1,024 latents"),
        "power": of("power", [row for row in at_two if row["expected"] >= 30],
                    "planted shares, 3% and 10% of latents, odds 1.5 times as large"),
    }  # fmt: skip
    for headline in ("explained", "not_explained", "classes"):
        validity.write(headline, found, "python benchmarks/calibration.py --shares", out)


def only(out: Path, **measured: list[dict[str, Any]]) -> None:
    """Write what was measured anew, beside what the file holds of everything else."""
    kept = json.loads(out.read_text(encoding="utf-8"))
    about = ("benchmark", "date", "machine", "settings")
    results = {name: value for name, value in kept.items() if name not in about} | measured
    machine.save(out, "calibration", kept["settings"], results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pools", type=int, default=10)
    parser.add_argument("--redraws", type=int, default=12)
    parser.add_argument("--trials", type=int, default=20, help="A/A trials per pool and size")
    parser.add_argument("--work", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "calibration.json")
    parser.add_argument("--quick", action="store_true", help="two small pools; measures nothing")
    parser.add_argument(
        "--shares", action="store_true", help="planted shares alone; the rest stays"
    )
    parser.add_argument(
        "--own-scale", action="store_true", help="planted re-draws alone; the rest stays"
    )
    args = parser.parse_args()
    if args.shares:
        shares = share_table(PLANTED_SHARES)
        only(args.out, shares=shares)
        write_validity(shares, args.out)
        print(share_markdown(shares))
    if args.own_scale:
        own_scale = redraw_table(PLANTED_REDRAWS)
        only(args.out, own_scale=own_scale)
        print(redraw_markdown(own_scale))
    if args.shares or args.own_scale:
        return
    if args.quick:
        args.pools, args.redraws, args.trials = 2, 6, 3
    progress = for_terminal()
    parts = []
    for seed in range(args.pools):
        table = protocol(seed, args.redraws, args.quick)
        parts.append(pool(table, args.work, args.trials, progress))
        progress.note(f"pool {seed + 1} of {args.pools}: {parts[-1]['seconds'].iloc[0]:.0f} s")
    trials = pd.concat(parts, ignore_index=True)
    found = [
        {"each": int(each), **row}
        for each, group in trials.groupby("each")
        for row in json.loads(rates(group).to_json(orient="records"))
    ]
    start = time.process_time()
    coverage = coverage_table(40 if args.quick else PLANTED)
    placebo = [
        {"redraws": n, **planted_placebo(n, 20 if args.quick else PLANTED_PLACEBO)._asdict()}
        for n in (2, 3, 4)
    ]
    false = fdr_table(10 if args.quick else PLANTED_DECOYS)
    seconds = {
        "pools": [float(part["seconds"].iloc[0]) for part in parts],
        "planted": time.process_time() - start,
    }
    settings = {
        "quick": args.quick, "pools": args.pools, "redraws": args.redraws,
        "trials_per_pool": args.trials, "protocol": protocol(0, args.redraws, args.quick),
        "planted_trials": 40 if args.quick else PLANTED,
        "versions": machine.versions("sae-placebo", "torch", "numpy", "scipy"),
    }  # fmt: skip
    shares = share_table(10 if args.quick else PLANTED_SHARES)
    results = {"rates": found, "coverage": coverage, "placebo": placebo, "shares": shares}
    own_scale = redraw_table(10 if args.quick else PLANTED_REDRAWS)
    results |= {"own_scale": own_scale, "false_discoveries": false, "seconds": seconds}
    machine.save(args.out, "calibration", settings, results)
    if not args.quick:
        write_shown(found, args.out)
        write_validity(shares, args.out)
    print(markdown(found, coverage))
    print(share_markdown(shares))
    print(redraw_markdown(own_scale))


if __name__ == "__main__":
    main()
