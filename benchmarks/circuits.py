"""Do claims about circuitry hold? Null edges, planted heads, A/A of ties, and coverage of their intervals.

    python benchmarks/circuits.py [edges] [planted] [aa] [coverage] [--quick] [--out FILE]

Parts that are not named keep what the file holds of them. All are of `pylm` and of re-draws of it.

- edges: readouts that stand for no latent are taken as targets; how many of their edges fall below .05
  and .01, and how many have a q of at most .05.
- planted: heads are made to write a known direction where they attend to a known token, and MLPs to read it:
  how many are tied. Beside them heads' directions that nothing was made to read, and directions that the
  embedding writes: how many are tied all the same.
- aa: one re-draw against another, as a trial compares them: how many intervals leave 0 out.
- coverage: shares with planted variance between SAEs: how many intervals hold the truth.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import numpy as np
import validity

import sae_placebo as sp
from sae_placebo.causal.circuits.edge_nulls import (
    Chance,
    Readouts,
    Standard,
    pseudo_targets,
    sources_of,
    unit_rows,
)
from sae_placebo.causal.circuits.edges import EdgeSpec
from sae_placebo.causal.circuits.readers import ReadersSpec
from sae_placebo.causal.circuits.spec import CircuitSpec
from sae_placebo.causal.circuits.ties import ties
from sae_placebo.causal.use.base import Subject, latent_directions
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.core.lazy import torch
from sae_placebo.core.progress import Progress, for_terminal
from sae_placebo.core.spec import numpy_generator
from sae_placebo.lab.planted_heads import Plant, plant, planted_directions
from sae_placebo.latents.base import TokenTable
from sae_placebo.models.reading import Reader
from sae_placebo.stats.clustered_shares import (
    Counted,
    between,
    difference,
    interval,
    pooled,
)
from sae_placebo.stats.multiplicity import adjusted
from sae_placebo.stats.proportions import wilson
from sae_placebo.trial.graph_inputs import GraphChoice, open_inputs
from sae_placebo.trial.graph_latents import on_the_same_tokens

PARTS = ("edges", "planted", "aa", "coverage")
ARMS = {
    "trained": {"control": "trained"},
    "redraw": {"control": "redraw"},
    "keep": {"control": "redraw", "keep": ["embeddings", "unembedding"]},
}
PLACE = "resid_post.2"
STRENGTHS = (0.02, 0.05, 0.1, 0.3)
LEVELS = (0.05, 0.01)
MEASURES = {"tied": "tied", "written": "written_p", "read": "read_p"}


def protocol(name: str, seed: int, hookpoints: list[str], seeds: int, quick: bool) -> Any:
    """Return the settings of a trial whose SAEs are asked for ties, and for nothing else."""
    return {
        "name": name, "seed": seed, "hookpoints": hookpoints, "sae_seeds": [seed, seed + 1],
        "model_seeds": [1_000 * seed + i for i in range(seeds)],
        "model": {"id": "pylm"}, "arms": ARMS, "training": {"batch_tokens": 512},
        "text": {
            "source": "python-stdlib", "context_tokens": 64, "max_document_tokens": 126,
            "train_tokens": 8_000 if quick else 40_000, "heldout_tokens": 3_000 if quick else 8_000,
        },
        "saes": {"topk": {"kind": "topk", "d_sae": 128 if quick else 384, "k": 12}},
        "measurement": {"replicates": 20, "shown_per_class": 0},
        "use": {"arms": []}, "audit": {"arms": []},
        "baselines": {
            "n_atoms": 64, "nmf_atoms": 16, "fit_tokens": 1_500, "ica_tokens": 800, "nmf_tokens": 500,
            "iterations": 5, "choose_tokens": 600, "score_tokens": 600, "sae_pursuit_tokens": 0,
            "coded_tokens": 0, "distortions": [0.2],
            "n_labels": 2,
        },
    }  # fmt: skip


# --- edges -------------------------------------------------------------------------------------------


def edges_part(work: Path, quick: bool, progress: Progress) -> dict[str, Any]:
    """Return, by arm and kind of null readout, how often its edges are called surprising."""
    places = ["resid_post.1", PLACE]
    trial = sp.run(protocol("edges", 0, places, 2, quick), work, progress=progress)
    rows = []
    for arm in ("trained", "redraw"):
        for model_seed in (None,) if arm == "trained" else (0, 1):
            inputs = open_inputs(
                trial, GraphChoice(arm=arm, model_seed=model_seed), "def f(", Progress()
            )
            pair = on_the_same_tokens(*(inputs.artefacts.encoded(p) for p in inputs.places))
            name = arm if model_seed is None else f"{arm}-{model_seed}"
            rows += [{"arm": name} | row for row in null_edges(*pair, 60 if quick else 400)]
    return {"edges": rows}


def null_edges(first: Any, second: Any, n: int) -> Iterator[dict[str, Any]]:
    """Yield the rates of two kinds of null readouts; errors take whole readouts as draws."""
    spec, sources = EdgeSpec(), latent_directions(first)
    encoders = unit_rows(second.sae.params["W_enc"].detach().float().numpy().T)
    targets = Readouts(encoders, (second.by_latent > 0).astype(np.float32))
    x = second.activations.float().numpy()
    standard = Standard(targets, sources, spec.levels)

    def found(readouts: Readouts) -> list[np.ndarray]:
        every = sources_of(readouts, sources, spec.together, spec.block)
        scores = [standard(one)[0] for one in every]
        return [z for z in scores if np.isfinite(z).all()]

    chance = Chance(found(pseudo_targets(targets, x, spec.pseudo, spec.together, 0)))
    tried = {
        "mixtures of other bits": pseudo_targets(targets, x, n, spec.together, 1),
        "encoders with signs flipped": _flipped(targets, x, n, spec.together),
        "the latents themselves": targets,
    }
    for kind, readouts in tried.items():
        scores = found(readouts)
        p = [chance.p(z) for z in scores]
        q = adjusted(np.concatenate(p))
        row: dict[str, Any] = {"readouts": kind, "n": len(p), "n_edges": sum(map(len, p))}
        for level in LEVELS:
            shares = np.array([(one <= level).mean() for one in p])
            row[f"below_{level}"] = float(shares.mean())
            row[f"se_{level}"] = float(shares.std(ddof=1) / len(p) ** 0.5)
        row["share_q_below_0.05"] = float((q <= 0.05).mean())
        row["n_q_below_0.05"] = int((q <= 0.05).sum())
        yield row


def _flipped(targets: Readouts, x: np.ndarray, n: int, fewest: int) -> Readouts:
    """Return encoders whose principal components have random signs, each on the tokens that it picks."""
    random = numpy_generator(0, "flipped encoders")
    basis = np.linalg.eigh(targets.encoders.T @ targets.encoders)[1]
    rows = targets.encoders[random.integers(0, len(targets), n)] @ basis
    flipped = unit_rows((rows * random.choice([-1, 1], rows.shape)) @ basis.T)
    like = pseudo_targets(targets, x, n, fewest, 2)
    counts = np.diff(like.active.indptr)
    tokens = [
        np.sort(np.argpartition(-(x @ e), k)[:k]) for e, k in zip(flipped, counts, strict=True)
    ]
    active = like.active.copy()
    active.indices = np.concatenate(tokens).astype(active.indices.dtype)
    return Readouts(flipped, active)


# --- planted heads -------------------------------------------------------------------------------------


def planted_part(work: Path, quick: bool, progress: Progress) -> dict[str, Any]:
    """Return how many planted directions are tied, by what was planted and how strongly."""
    trial = sp.run(protocol("planted", 1, [PLACE], 1, quick), work, progress=progress)
    inputs = open_inputs(trial, GraphChoice(arm="trained"), "def f(", Progress())
    tokens = inputs.artefacts.encoded(inputs.places[0]).tokens
    ids = tokens.rows.token_ids[tokens.places[:, 0], tokens.places[:, 1]]
    known, counts = np.unique(ids, return_counts=True)
    able = known[np.argsort(-counts)][: (counts >= 20).sum()]
    spec = CircuitSpec(readers=ReadersSpec(tokens=4_000))
    outcomes: dict[tuple[str, float], list[dict[str, float]]] = {}
    for strength in STRENGTHS[-1:] if quick else STRENGTHS:
        for draw in range(1 if quick else 5):
            random = numpy_generator(draw, "plants")
            chosen, heads = random.choice(able, 12, replace=False), random.permutation(24)[:8]
            plants = [
                Plant(int(t), int(h) // 8, int(h) % 8, read=i < 4)
                for i, (t, h) in enumerate(zip(chosen, heads, strict=False))
            ]
            plants += [Plant(int(t)) for t in chosen[8:]]
            model = copy.deepcopy(inputs.model).float()
            vectors = plant(_subject(model, tokens), plants, strength, draw)
            subject = _subject(model, tokens)
            directions = planted_directions(subject, plants, vectors)
            found = ties(subject, vectors, directions, spec, draw)
            for i, one in enumerate(plants):
                kind = "embedding, read" if one.layer is None else "head"
                kind += ", read" if one.layer is not None and one.read else ""
                outcomes.setdefault((kind, strength), []).append(
                    {
                        "tied": float(found.tied[i] == 1),
                        "written": float(found.written_p[i] <= spec.level),
                        "read": float(found.read_p[i] <= spec.level),
                    }
                )
            progress.note(f"planted {strength}, model {draw + 1}")
    rows = []
    for (kind, strength), every in outcomes.items():
        row: dict[str, Any] = {"planted": kind, "strength": strength, "n": len(every)}
        for name in MEASURES:
            hits = sum(one[name] for one in every)
            row[name] = hits / len(every)
            row[f"{name}_low"], row[f"{name}_high"] = wilson(hits, len(every))
        rows.append(row)
    return {"planted": rows}


def _subject(model: Any, tokens: TokenTable) -> Subject:
    """Return a model with its activations of the tokens, read again."""
    reader, places = Reader(model, [PLACE]), tokens.places
    x: Any = None
    for row in np.unique(places[:, 0]):
        ids = tokens.rows.token_ids[row, : tokens.rows.lengths[row]].astype(np.int64)
        site = reader.read(torch.from_numpy(ids)[None])[PLACE][0].float()
        x = torch.zeros(len(places), site.shape[1]) if x is None else x
        at = np.flatnonzero(places[:, 0] == row)
        x[torch.from_numpy(at)] = site[torch.from_numpy(places[at, 1])]
    return Subject(Downstream(model, PLACE), tokens, x)


# --- A/A ---------------------------------------------------------------------------------------------


def aa_part(work: Path, quick: bool, progress: Progress, pools: int = 2) -> dict[str, Any]:
    """Return how many A/A intervals of one re-draw against another leave 0 out, by measure.

    Each is made as a trial of two re-draws makes it: its dispersion is that of the trained arm's two SAEs and
    of two re-draws of the other placebo. Pairs share no re-draw; those of one pool share text.
    """
    counts: dict[str, list[tuple[bool, float]]] = {name: [] for name in MEASURES}
    for pool in range(1 if quick else pools):
        table = protocol(f"aa-{pool}", 10 + pool, [PLACE], 4 if quick else 12, quick)
        table["circuits"] = {"arms": list(ARMS)}
        spec_path = sp.run(table, work, progress=progress)
        per_sae = _per_sae(spec_path)
        for arm, other in (("redraw", "keep"), ("keep", "redraw")):
            for name in MEASURES:
                mine, others = per_sae[arm, name], per_sae[other, name]
                own = between(_together(per_sae["trained", name]))
                for i in range(0, len(mine) - 1, 2):
                    alike = [own, between(_together(others[i : i + 2]))]
                    over = pooled(alike)
                    ends = [interval(_together([one]), over) for one in mine[i : i + 2]]
                    found = difference(*ends)
                    outside = not found.low <= 0 <= found.high
                    counts[name].append((outside, found.value))
    rows = []
    for name, found in counts.items():
        outside = sum(one for one, _ in found)
        low, high = wilson(outside, len(found))
        largest = max(abs(value) for _, value in found)
        rows.append({"measure": name, "n": len(found), "outside": outside, "low": low, "high": high,
                     "largest_difference": largest})  # fmt: skip
    return {"aa": rows}


def _together(saes: list[tuple[int, int]]) -> Counted:
    return Counted(tuple(h for h, _ in saes), tuple(n for _, n in saes))


def _per_sae(trial: Any) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Return by arm and measure how many latents of each SAE have it, and how many were judged."""
    from sae_placebo.core.store import Store
    from sae_placebo.trial.plan import plan_steps
    from sae_placebo.trial.spec import load_trial
    from sae_placebo.trial.table_files import read_table

    plan, store = plan_steps(load_trial(trial.record["spec"])), Store(trial.folder.parents[1])
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for place, step in plan.ties.items():
        table = read_table(store.path(step) / "ties.parquet")
        table = table[np.isfinite(table["tied"])]
        for name, column in MEASURES.items():
            has = table[column] > 0 if name == "tied" else table[column] <= 0.05
            found.setdefault((place[0].arm, name), []).append((int(has.sum()), len(has)))
    return found


# --- coverage ----------------------------------------------------------------------------------------


def coverage_part(_: Path, quick: bool, __: Progress) -> dict[str, Any]:
    """Return how many intervals hold planted shares and differences, by share and variance between SAEs.

    A trial has three arms of two SAEs with 250 latents each; each SAE's share is drawn from a beta
    distribution around its arm's, with the stated over-dispersion.
    """
    rows = []
    for ratio in (1.0, 2.0, 5.0):
        for shares in ((0.4, 0.01, 0.005), (0.2, 0.05, 0.05), (0.5, 0.2, 0.1)):
            random = numpy_generator(0, "planted shares", str(ratio), str(shares))
            held, n_trials = np.zeros(3), 100 if quick else 4_000
            for _trial in range(n_trials):
                held += _covered(random, shares, ratio)
            row: dict[str, Any] = {"dispersion": ratio, "shares": list(shares), "n": n_trials}
            for name, hits in zip(("trained", "placebo", "difference"), held, strict=True):
                row[name] = hits / n_trials
            rows.append(row)
    return {"coverage": rows}


def _covered(random: np.random.Generator, shares: tuple[float, ...], ratio: float) -> np.ndarray:
    counted, n = [], 250
    for share in shares:
        p = np.full(2, share)
        if ratio > 1:  # a beta-binomial's variance is 1 + (n - 1) rho times that of counting
            rho = (ratio - 1) / (n - 1)
            p = random.beta(share * (1 / rho - 1), (1 - share) * (1 / rho - 1), 2)
        counted.append(Counted(tuple(int(h) for h in random.binomial(n, p)), (n, n)))
    over = pooled([between(one) for one in counted])
    ends = [interval(one, over) for one in counted]
    apart = difference(ends[0], ends[1])
    truth = (*shares[:2], shares[0] - shares[1])
    return np.array([e.low <= t <= e.high for e, t in zip((*ends[:2], apart), truth, strict=True)])


def markdown(results: dict[str, Any]) -> Iterator[str]:
    """Yield the tables of docs/concepts/circuits.md, in percent."""
    if "edges" in results:
        lines = [
            "| arm | targets | n | below .05 | below .01 | q ≤ .05 |",
            "|---|---|---|---|---|---|",
        ]
        for row in results["edges"]:
            cells = [f"{100 * row[f'below_{x}']:.1f} ± {100 * row[f'se_{x}']:.1f}" for x in LEVELS]
            cells += [f"{row['n_q_below_0.05']} of {row['n_edges']:,}"]
            lines.append(f"| {row['arm']} | {row['readouts']} | {row['n']} | {' | '.join(cells)} |")
        yield "\n".join(lines)
    if "planted" in results:
        lines = ["| planted | strength | n | tied | written | read |", "|---|---|---|---|---|---|"]
        for row in results["planted"]:
            cells = [_percent(row[x], row[f"{x}_low"], row[f"{x}_high"]) for x in MEASURES]
            lines.append(
                f"| {row['planted']} | {row['strength']:g} | {row['n']} | {' | '.join(cells)} |"
            )
        yield "\n".join(lines)
    if "aa" in results:
        lines = ["| A/A of | pairs | leave 0 out | largest difference |", "|---|---|---|---|"]
        for row in results["aa"]:
            rate = _percent(row["outside"] / row["n"], row["low"], row["high"])
            largest = f"{100 * row['largest_difference']:.1f} points"
            lines.append(f"| {row['measure']} | {row['n']} | {rate} | {largest} |")
        yield "\n".join(lines)
    if "coverage" in results:
        lines = [
            "| over-dispersion | shares | trained | placebo | difference |",
            "|---|---|---|---|---|",
        ]
        for row in results["coverage"]:
            shares = ", ".join(f"{100 * x:g}" for x in row["shares"])
            cells = [f"{100 * row[x]:.1f}" for x in ("trained", "placebo", "difference")]
            lines.append(f"| {row['dispersion']:g} | {shares} | {' | '.join(cells)} |")
        yield "\n".join(lines)


def _percent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.0f} [{100 * low:.0f}, {100 * high:.0f}]"


def _validity(results: dict[str, Any]) -> dict[str, Any]:
    """Return what every report shows of the validity of ties, from whatever parts were measured."""
    found: dict[str, Any] = {}
    for row in results.get("aa", []):
        if row["measure"] == "tied":
            found["aa"] = validity.rate(row["outside"], row["n"], "A/A pairs of re-draws of `pylm`")
    cover = results.get("coverage", [])
    if cover:
        each = [row["difference"] for row in cover]
        n = sum(row["n"] for row in cover)
        found["coverage"] = validity.rate(
            round(sum(e * row["n"] for e, row in zip(each, cover, strict=True))), n,
            f"planted trials; lowest cell {100 * min(each):.1f}%",
        )  # fmt: skip
    planted = [r for r in results.get("planted", []) if r["planted"] == "head, read"]
    if planted:
        at = next((row for row in planted if row["strength"] == 0.1), planted[-1])
        found["power"] = validity.rate(
            round(at["tied"] * at["n"]), at["n"],
            f"heads planted into `pylm` that write {at['strength']:g} of the activations' spread",
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", default=[], help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--work", type=Path, default=Path("runs/circuits"))
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "circuits.json")
    parser.add_argument("--pools", type=int, default=2, help="trials of 12 re-draws of A/A")
    parser.add_argument("--quick", action="store_true", help="small; shows that it works")
    args = parser.parse_args()
    known = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    results = {name: known[name] for name in PARTS if name in known}
    seconds = dict(known.get("seconds", {}))
    progress = for_terminal()
    for name in args.parts or PARTS:
        start = time.process_time()
        more = {"pools": args.pools} if name == "aa" else {}
        results |= globals()[f"{name}_part"](args.work, args.quick, progress, **more)
        seconds[name] = time.process_time() - start
        settings = {"quick": args.quick, "place": PLACE, "strengths": list(STRENGTHS)}
        machine.save(args.out, "circuits", settings, results | {"seconds": seconds})
    if not args.quick:
        validity.write("tied", _validity(results), "python benchmarks/circuits.py", args.out)
    print("\n\n".join(markdown(results)))


if __name__ == "__main__":
    main()
