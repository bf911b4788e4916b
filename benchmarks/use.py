"""Is what is said about use true? Where it is planted, and on the package's own model.

python benchmarks/use.py redundancy [--worlds 200] [--densities .5 .05 .005 .0005]
python benchmarks/use.py bounds [--latents 24] [--many 300]
python benchmarks/use.py pseudo [--latents 200]
python benchmarks/use.py verdicts [--latents 150] [--controls 80] [--seeds 0 1] [--arms trained placebo]

`redundancy`: worlds in which either of two directions suffices, at several densities; how often both, or one,
are called not used. The other three train SAEs on `pylm` and on a re-draw of it (kept under --work).
`bounds`: many firings of some latents are taken as the truth, and bounds from few of them are held against
it. `pseudo`: p-values of directions of no trained dictionary. `verdicts`: the shares of each verdict, and how
well two draws of firings agree, beside what is called used of control directions on the same model.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import validity

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from remaining import Row, Rows, rows_in, run_remaining

from sae_placebo.causal.use.ablation import ablate, full_swap
from sae_placebo.causal.use.base import (
    Directions,
    Subject,
    latent_directions,
    pseudo_latents,
    single_sets,
)
from sae_placebo.causal.use.control_directions import (
    COVARIANCE,
    PSEUDO,
    UNTRAINED,
    covariance_directions,
    untrained_directions,
)
from sae_placebo.causal.use.downstream import Downstream
from sae_placebo.causal.use.effects import effects_of
from sae_placebo.causal.use.evidence import Answer, ask, ask_alone
from sae_placebo.causal.use.firing_screen import screen_firings
from sae_placebo.causal.use.firings import uniform_firings
from sae_placebo.causal.use.joint import JointSpec
from sae_placebo.causal.use.masks import MaskSpec
from sae_placebo.causal.use.null_test import costlier_share
from sae_placebo.causal.use.rule import NOT_USED, USED, USES, used_beside
from sae_placebo.causal.use.sampling import share
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.causal.use.worst import WorstSpec
from sae_placebo.core.progress import Progress, for_terminal
from sae_placebo.core.spec import numpy_generator
from sae_placebo.core.store import Store
from sae_placebo.data.rows import Rows as TokenRows
from sae_placebo.latents.base import TokenTable
from sae_placebo.stats.clustered_shares import Bounded, difference
from sae_placebo.trial.artefacts import Artefacts
from sae_placebo.trial.plan import plan_steps
from sae_placebo.trial.run import run
from sae_placebo.trial.spec import load_trial
from sae_placebo.trial.stages.arm_models import arm_model

TRIAL: dict[str, Any] = {
    "name": "use",
    "hookpoints": ["resid_post.2"],
    "model": {"id": "pylm"},
    "text": {
        **{"source": "python-stdlib", "context_tokens": 128},
        **{"train_tokens": 120_000, "heldout_tokens": 50_000},
    },
    "arms": {
        "trained": {"control": "trained"},
        "placebo": {"control": "redraw", "keep": ["embeddings", "unembedding"]},
    },
    "saes": {"topk": {"kind": "topk", "d_sae": 1024, "k": 24}},
    "model_seeds": [0, 1],
    "use": {"arms": []},
    "audit": {"arms": []},
}
N_IDS, N_DIRECTIONS, WIDTH = 40, 13, 24
EITHER, PASSENGERS = [0, 1], list(range(5, 13))


# --- planted: either of two suffices -----------------------------------------------------------------


def redundant_world(density: float, seed: int) -> tuple[Subject, Directions]:
    """Return a GPT-2 without norms and attention whose MLP computes min(x0 + x1, 1), and its directions.

    Tokens of one id, of the frequency `density`, hold both x0 and x1, and no other does. The head reads the
    MLP's output, x2, and x3 - x4; nothing reads the other eight. There are enough tokens for 130 firings.
    """
    random = np.random.default_rng(seed)
    held = (random.random((N_IDS, N_DIRECTIONS)) < 0.5).astype(np.float32)
    held[:, 4], held[:, EITHER], held[0, EITHER] = held[:, 3], 0, 1
    config = transformers.GPT2Config(
        **{"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_inner": 2, "n_positions": 32},
        **{"vocab_size": N_IDS, "activation_function": "relu", "tie_word_embeddings": False},
        **{"bos_token_id": 0, "eos_token_id": 0},
    )
    model = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    model.transformer.wte.weight[:, :N_DIRECTIONS] = torch.from_numpy(held)
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = torch.nn.Identity(), torch.nn.Identity()
    model.transformer.ln_f = torch.nn.Identity()
    last = model.transformer.h[1].mlp
    last.c_fc.weight[EITHER], last.c_fc.bias[1] = 1, -1
    last.c_proj.weight[:, 20] = torch.tensor([1.0, -1.0])
    head = np.zeros((N_IDS, WIDTH), dtype=np.float32)
    head[:, [20, 2, 3]] = random.normal(size=(N_IDS, 3))
    head[:, 4] = -head[:, 3]
    model.lm_head.weight[:] = torch.from_numpy(head)

    chance = np.full(N_IDS, (1 - density) / (N_IDS - 1))
    chance[0] = density
    n = max(100, round(130 / density / 30))
    ids = random.choice(N_IDS, (n, 30), p=chance).astype(np.int32)
    documents = np.arange(n, dtype=np.int32)
    rows = TokenRows(ids, np.full(n, 30, dtype=np.int32), documents, tuple(map(str, documents)))
    places = np.argwhere(rows.usable()).astype(np.int64)
    tokens = TokenTable(rows, places, ())
    amounts = held[ids[places[:, 0], places[:, 1]]]
    from scipy.sparse import csr_matrix

    vectors = np.eye(WIDTH, dtype=np.float32)[:N_DIRECTIONS]
    subject = Subject(
        Downstream(model, "resid_post.0"), tokens, torch.from_numpy(amounts @ vectors)
    )
    return subject, Directions(vectors, csr_matrix(amounts))


def redundancy_rows(density: float, seed: int) -> list[Row]:
    torch.set_num_threads(1)
    start = time.process_time()
    subject, directions = redundant_world(density, seed)
    spec = UseSpec(
        **{"window": 1, "firings": 16, "null_firings": 8, "nulls": 8, "screen_tokens": 3_000},
        masks=MaskSpec(n_tokens=1_500, n_masks=16, n_pivots=0),
        joint=JointSpec(n_tokens=3_000),
        worst=WorstSpec(n_tokens=600, steps=4),
    )
    answer = ask(subject, directions, np.arange(N_DIRECTIONS), spec, seed)
    verdict = answer.verdicts.verdict
    return [
        {
            **{"density": density, "seed": seed, "firings": int(directions.n_active[0])},
            **{"asked_uniformly": int(answer.measured.absence.n_firings[EITHER].max())},
            **{"in_joint_set": int(answer.measured.survives[EITHER].sum())},
            **{"pair_not_used": int((verdict[EITHER] == NOT_USED).sum())},
            **{"passengers_not_used": int((verdict[PASSENGERS] == NOT_USED).sum())},
            "seconds": time.process_time() - start,
        }
    ]


def redundancy(arguments: argparse.Namespace) -> None:
    path = arguments.results / "use-redundancy.json"
    rows = Rows(
        path,
        {"directions": N_DIRECTIONS},
        key=lambda row: (row["density"], row["seed"]),
        order=lambda row: (-row["density"], row["seed"]),
        rows=rows_in(path),
    )
    jobs = {(d, seed): (d, seed) for seed in range(arguments.worlds) for d in arguments.densities}
    run_remaining(rows, redundancy_rows, jobs)
    for density in arguments.densities:
        here = [row for row in rows.rows if row["density"] == density]
        told = {name: sum(row[name] >= n for row in here) for name, n in (("in_joint_set", 2),)}
        told["both not used"] = sum(row["pair_not_used"] == 2 for row in here)
        told["one not used"] = sum(row["pair_not_used"] == 1 for row in here)
        passengers = sum(row["passengers_not_used"] for row in here)
        print(f"density {density:g}, {len(here)} worlds: {told}, passengers not used {passengers}"
              f" of {len(PASSENGERS) * len(here)}")  # fmt: skip


# --- on pylm -----------------------------------------------------------------------------------------


def sites(arguments: argparse.Namespace) -> list[tuple[str, Subject, Directions]]:
    """Return the name, the model behind the hookpoint, and the latents of each SAE that is asked for."""
    progress = for_terminal() if arguments.progress else Progress()
    run(TRIAL, arguments.work, progress=progress, replace=True)
    store = Store(arguments.work, progress.note, {})
    artefacts = Artefacts(plan_steps(load_trial(TRIAL)), store, progress)
    found = []
    for place in artefacts.plan.measure:
        arm = place[0].label
        if place[0].arm not in arguments.arms or place[3] != 0:
            continue
        encoded = artefacts.encoded(place)
        model, _ = arm_model(artefacts, place[0], [place[1]])
        model.config._attn_implementation = "eager"
        subject = Subject(Downstream(model, place[1]), encoded.tokens, encoded.activations)
        found.append((arm, subject, latent_directions(encoded)))
    return found


def often(directions: Directions, least: int, n: int) -> Any:
    """Return some of the latents that fire at least so often, at random, ascending."""
    able = np.flatnonzero(directions.n_active >= least)
    random = numpy_generator(0, "latents of the benchmark", least)
    return np.sort(random.permutation(able)[:n]).astype(np.int64)


def bounds(arguments: argparse.Namespace) -> None:
    """Print how often bounds from few firings miss the mean over many, by how the few are drawn."""
    draws, spec, held = 200, UseSpec(), []
    for arm, subject, directions in sites(arguments):
        sets, unit = single_sets(directions), full_swap(subject, spec.window, spec.swap_tokens, 0)
        which = often(directions, arguments.many, arguments.latents)
        many = uniform_firings(sets, which, arguments.many, 0)
        cost = ablate(subject, sets, many, spec.window, 0).zero / unit
        screened = screen_firings(subject, sets, which, spec.screen_tokens, 0)
        missed: dict[str, list[tuple[float, float, float]]] = {}
        for i in which:
            here = many.sets == i
            values, tokens, truth = cost[here], many.tokens[here], cost[here].mean()
            documents = subject.tokens.documents[tokens]
            chance = screened.chances(int(i))[np.searchsorted(sets.held(int(i)), tokens)]
            chance = chance / chance.sum()
            random = numpy_generator(1, "draws", int(i))
            for name, n, p in (
                ("uniform", spec.uniform_firings, None),
                ("uniform, as few", spec.firings, None),
                ("by importance", spec.firings, chance),
            ):
                at = np.stack([random.choice(len(values), n, p=p) for _ in range(draws)])
                weights = np.ones(len(values)) if p is None else 1 / (len(values) * p)
                found = effects_of(
                    (weights[at] * values[at]).ravel(),
                    np.ones(at.size),
                    np.repeat(np.arange(draws), n),
                    documents[at].ravel(),
                    draws,
                    0,
                )
                error = np.sqrt(np.mean((found.mean - truth) ** 2)) / truth
                rates = float((found.low > truth).mean()), float((found.high < truth).mean())
                missed.setdefault(name, []).append((*rates, float(error)))
        held.append((len(which), *(missed[kind] for kind in ("by importance", "uniform"))))
        for name, parts in missed.items():
            low, high, error = np.array(parts).T
            print(f"{arm}, {len(parts)} latents, {name}: lower bound misses {100 * low.mean():.1f}% (worst "
                  f"{100 * low.max():.1f}), upper {100 * high.mean():.1f}% (worst {100 * high.max():.1f}), "
                  f"relative error {np.median(error):.3f}")  # fmt: skip
    n = draws * sum(one[0] for one in held)
    for headline, at, end in (("used", 1, 0), ("not_used", 2, 1)):
        rates = np.concatenate([[part[end] for part in one[at]] for one in held])
        what = (f"{draws} draws of firings of each of {len(rates)} latents of `pylm` and a re-draw; "
                f"worst latent {100 * (1 - rates.max()):.0f}%")  # fmt: skip
        cover = validity.rate(round(n * (1 - rates.mean())), n, what)
        where = arguments.results / "use.json"
        validity.write(headline, {"coverage": cover}, "python benchmarks/use.py bounds", where)


def controls(
    subject: Subject, directions: Directions, n: int, seed: int
) -> Iterator[tuple[str, Directions]]:
    """Yield the kinds of control directions, `n` of each, like latents that fire often enough."""
    often_held = often(directions, 8, len(directions))
    like = Directions(directions.vectors[often_held], directions.amounts[:, often_held])
    yield PSEUDO, pseudo_latents(like, seed, n)
    yield COVARIANCE, covariance_directions(subject, like, seed, n)
    yield UNTRAINED, untrained_directions(subject, like, seed, n)


def percent(bounded: tuple[float, ...]) -> str:
    value, low, high = (100 * x for x in bounded)
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


def pseudo(arguments: argparse.Namespace) -> None:
    """Print how many p-values of control directions lie below each level, each kind by itself."""
    for arm, subject, directions in sites(arguments):
        for kind, drawn in controls(subject, directions, arguments.latents, 0):
            found = ask_alone(subject, drawn, UseSpec(), 0, kind=kind)
            p = found.p[np.isfinite(found.p)]
            told = ", ".join(
                f"{int((p <= level).sum())} below {level:g} ({level * len(p):.1f} expected)"
                for level in (0.05, 0.005, 0.0005)
            )
            costlier = costlier_share(p, np.ones(len(p)), np.arange(len(p)), 0)
            print(f"{arm}, {len(p)} {kind}: {told}; above one half {(p > 0.5).mean():.3f}; 1 - pi0 "
                  f"{percent(costlier)}")  # fmt: skip


def beside(
    subject: Subject, directions: Directions, answer: Answer, n: int, spec: UseSpec, seed: int
) -> list[str]:
    """Return, in words, what of each kind of control directions costs more than nulls and is called used."""
    told = []
    latents = share(answer.verdicts.verdict == USED, np.ones(len(answer.which)))
    for kind, drawn in controls(subject, directions, n, seed):
        found = ask_alone(subject, drawn, spec, seed, kind=kind, beside=answer.asked)
        expected = found.expected / found.unit
        used = used_beside(answer.measured, found.p, found.effect, expected, spec)
        own = share(used, np.ones(len(used)))
        costlier = costlier_share(found.p, np.ones(len(used)), np.arange(len(used)), 0)
        margin = difference(Bounded(*latents), Bounded(*own))
        told.append(f"{kind}: 1 - pi0 {percent(costlier)}, used {used.sum()} of {len(used)}, "
                    f"{percent(own)}; latents less these {percent(margin)}")  # fmt: skip
    return told


def verdicts(arguments: argparse.Namespace) -> None:
    """Print the verdicts on latents of both arms, and Cohen's kappa of two draws of firings."""
    called, spec = [0, 0], UseSpec()
    for arm, subject, directions in sites(arguments):
        which = often(directions, 8, arguments.latents)
        found = []
        for seed in arguments.seeds:
            start = time.process_time()
            answer = ask(subject, directions, which, spec, seed)
            verdict, measured = answer.verdicts.verdict, answer.measured
            found.append(verdict)
            if arm != "trained" and seed == arguments.seeds[0]:
                called[0] += int((verdict == USED).sum())
                called[1] += len(verdict)
            shares = {name: int((verdict == i).sum()) for i, name in enumerate(USES)}
            reasons = {w: int((answer.verdicts.reason == w).sum())
                       for w in np.unique(answer.verdicts.reason) if w}  # fmt: skip
            costlier = costlier_share(measured.p[which], np.ones(len(which)), which, 0)
            groups = answer.groups
            print(f"{arm}, seed {seed}, {len(which)} latents: {shares}, beats nulls "
                  f"{int(answer.verdicts.beats_nulls.sum())}, 1 - pi0 {costlier[0]:.2f} [{costlier[1]:.2f}, "
                  f"{costlier[2]:.2f}], in the joint set {int(measured.survives.sum())}, asked uniformly "
                  f"{int((measured.absence.n_firings > 0).sum())}, groups used {int(groups.used.sum())} of "
                  f"{len(groups.members)}; {reasons}; {time.process_time() - start:.0f} s",
                  flush=True)  # fmt: skip
            if seed == arguments.seeds[0]:
                told = beside(subject, directions, answer, arguments.controls, spec, seed)
                print(*told, sep="\n", flush=True)
        if len(found) > 1:
            print(f"{arm}: kappa of used or not {kappa(found[0] == USED, found[1] == USED):.2f}, of all "
                  f"three verdicts {kappa(found[0], found[1]):.2f}")  # fmt: skip
    if not called[1]:
        return
    wrong = validity.rate(*called, "latents of two re-draws of `pylm` called used")
    where = arguments.results / "use.json"
    validity.write("used", {"aa": wrong}, "python benchmarks/use.py verdicts", where)


def kappa(one: Any, other: Any) -> float:
    """Return Cohen's kappa of two ratings; NaN where chance alone would agree."""
    kinds = np.unique(np.concatenate([one, other]))
    chance = sum((one == kind).mean() * (other == kind).mean() for kind in kinds)
    return float("nan") if chance == 1 else float(((one == other).mean() - chance) / (1 - chance))


def main() -> None:
    tasks = {"redundancy": redundancy, "bounds": bounds, "pseudo": pseudo, "verdicts": verdicts}
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--densities", nargs="+", type=float, default=[0.5, 0.05, 0.005, 0.0005])
    parser.add_argument("--latents", type=int, default=150)
    parser.add_argument("--arms", nargs="+", default=["trained", "placebo"])
    parser.add_argument("--controls", type=int, default=80)
    parser.add_argument("--many", type=int, default=300)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--work", type=Path, default=Path("runs/use"))
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    parser.add_argument("--progress", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tasks[arguments.task](arguments)


if __name__ == "__main__":
    main()
