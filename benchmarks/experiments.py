"""Published figures about SAEs on known truth, each as a function of a seed: what the laboratory gets.

Every function returns numbers by name. `PUBLISHED` says what was published under the same name, and where.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from sae_placebo.lab import GeneratorSpec, SuperpositionSpec, ceilings, from_truth, recovery
from sae_placebo.lab.experiments.base import LabTraining, TrainedSAE, fit_on
from sae_placebo.lab.experiments.objectives import ObjectiveMeter, SplitSpec
from sae_placebo.lab.generators.bottleneck import BottleneckSpec
from sae_placebo.lab.generators.composed_sets import ComposedSetsSpec
from sae_placebo.lab.generators.hedging import HedgingSpec
from sae_placebo.lab.generators.high_expansion import HighExpansionSpec
from sae_placebo.lab.generators.parent_child import ParentChildSpec
from sae_placebo.lab.generators.solvable_pair import SolvablePairSpec
from sae_placebo.lab.generators.synth_bench import SynthBenchSpec
from sae_placebo.lab.generators.tree import TreeSpec
from sae_placebo.lab.generators.wrong_l0 import WrongL0Spec
from sae_placebo.lab.scores.closed_forms import epsilon_star
from sae_placebo.lab.scores.composition import composition
from sae_placebo.lab.scores.detectors import detectors
from sae_placebo.lab.scores.matching import matching
from sae_placebo.lab.scores.null_tables import matching_null
from sae_placebo.saes import SAE, BatchTopKSpec, JumpReLUSpec, MatryoshkaSpec, ReLUSpec, TopKSpec
from sae_placebo.saes.training_spec import TrainingSpec

Numbers = dict[str, float]


def lab(steps: int, batch: int, rate: float, bias: str = "none", **more: Any) -> LabTraining:
    settings = {"decay_share": 0.3, "warmup_share": 0.02, "beta2": 0.999} | more
    training = TrainingSpec(batch_tokens=batch, learning_rate=rate, **settings)
    return LabTraining(steps=steps, training=training, bias=bias)  # type: ignore[arg-type]


def one(
    generator: GeneratorSpec, sae: Any, training: LabTraining, seed: int, **more: Any
) -> TrainedSAE:
    return fit_on(generator, {"sae": sae}, training, [seed], **more)["sae", seed]


def best(
    generator: GeneratorSpec, sae: Any, training: LabTraining, seed: int, starts: int = 4
) -> tuple[TrainedSAE, float]:
    """Return the SAE of the lowest objective of a few starts, and the share of starts that reach it.

    What a closed form says is said of the optimum; that a start ends elsewhere is the optimizer's doing.
    """
    judge = ObjectiveMeter.of(generator, sae, training, SplitSpec())
    found = fit_on(generator, {"sae": sae}, training, [1000 * seed + i for i in range(starts)])
    losses = {key: judge.of_sae(trained.sae).mean for key, trained in found.items()}
    lowest = min(losses, key=lambda key: losses[key])
    reached = sum(loss <= 1.01 * losses[lowest] for loss in losses.values())
    return found[lowest], reached / starts


def explained(sae: SAE, draw: Any) -> float:
    """Return 1 - squared error over squared distance from the mean, on held-out tokens."""
    x = draw.x.double()
    error = (x - sae.decode(sae.encode(draw.x)).double()).square().sum()
    return float(1 - error / (x - x.mean(0)).square().sum())


def live_rows(sae: SAE, draw: Any) -> torch.Tensor:
    """Return the decoder rows of latents that fire on held-out tokens."""
    fired = torch.unique(sae.encode(draw.x).latents)
    return sae.params["W_dec"][fired]


# --- Anders and Till: composed sets -------------------------------------------------------------------

SETS: dict[str, tuple[dict[str, Any], int, float]] = {
    "m 8, constant": ({"amplitude": "constant"}, 8, 0.1),
    "m 8, shared": ({"correlation": 1.0}, 8, 0.1),
    "m 8, independent": ({}, 8, 0.1),
    "m 8, constant, 25% solo": ({"amplitude": "constant", "solo": 0.25}, 8, 0.1),
    "m 8, constant, 75% solo": ({"amplitude": "constant", "solo": 0.75}, 8, 0.1),
    "m 24, constant": ({"amplitude": "constant"}, 24, 0.1),
    "m 24, shared": ({"correlation": 1.0}, 24, 0.1),
    "m 24, independent": ({}, 24, 0.1),
    "m 24, independent, lambda .02": ({}, 24, 0.02),
    "m 24, independent, lambda .3": ({}, 24, 0.3),
    "m 24, independent, lambda .6": ({}, 24, 0.6),
}


def composed_sets(seed: int, case: str, tied: bool = False) -> Numbers:
    """Train on two sets; `tied`: from W_enc = W_dec^T, the note's start, longer than this package's own."""
    settings, width, penalty = SETS[case]
    generator = ComposedSetsSpec(items=4, seed=seed, **settings)
    spec = ReLUSpec(d_sae=width, coefficient=penalty, warmup_share=0.2)
    starts = None
    if tied:
        params = spec.create(generator.d_in, seed).params
        encoder = params["W_dec"].t().contiguous()
        starts = {"sae": SAE(spec, {**params, "W_enc": encoder})}
    found = one(generator, spec, lab(5000, 384, 2e-3), seed, starts=starts)
    draw = generator.held_out(8192)
    score = composition(found.sae, draw, seed, threshold=0.05)
    rows = live_rows(found.sae, draw)
    return {
        "ev": explained(found.sae, draw),
        "atomic": score.decoder_atomic,
        "conjunctions": score.conjunction_share,
        "mmcs": recovery(rows, draw.truth.dictionary).mmcs,
        "live": float(score.n_live),
    }


def topk_composes(seed: int) -> Numbers:
    generator = ComposedSetsSpec(items=4, seed=seed, amplitude="constant")
    found = one(generator, TopKSpec(d_sae=16, k=2), lab(5000, 384, 2e-3), seed)
    score = composition(found.sae, generator.held_out(8192), seed)
    return {"conjunctions": score.conjunction_share, "atomic": score.decoder_atomic}


# --- Chanin: absorption, hedging, wrong L0 ------------------------------------------------------------


def parent_child(seed: int, law: str) -> Numbers:
    generator = ParentChildSpec(law=law, seed=seed)  # type: ignore[arg-type]
    spec = ReLUSpec(d_sae=4, coefficient=0.05)
    found, reached = best(generator, spec, lab(6000, 1024, 1e-3, "trained"), seed)
    draw = generator.held_out(8192)
    cosines = _cosines(found.sae, draw)
    child, parent = int(cosines[:, 1].argmax()), int(cosines[:, 0].argmax())
    if child == parent:
        parent = int(cosines[:, 0].topk(2).indices[1])
    active = draw.codes.dense() > 0
    fires = found.sae.encode(draw.x).dense()[:, parent] > 0
    both, alone = active[:, 0] & active[:, 1], active[:, 0] & ~active[:, 1]
    return {
        "child latent, cosine to child": float(cosines[child, 1]),
        "child latent, cosine to parent": float(cosines[child, 0]),
        "parent latent, recall without child": float(fires[alone].double().mean()),
        "parent latent, recall with child": float(fires[both].double().mean()),
        "share of starts at the lowest objective": reached,
    }


def hedging(seed: int, law: str) -> Numbers:
    generator = HedgingSpec(law=law, seed=seed)  # type: ignore[arg-type]
    spec = ReLUSpec(d_sae=1, coefficient=1e-3)
    found = one(generator, spec, lab(6000, 1024, 1e-3, "trained"), seed)
    cosines = _cosines(found.sae, generator.held_out(16))[0]
    # some latents stand for the parent's absence: signs are up to the latent's own
    sign = float(torch.sign(cosines[0]))
    return {
        "cosine to parent": sign * float(cosines[0]),
        "cosine to child": sign * float(cosines[1]),
    }


def wrong_l0(seed: int, k: float) -> Numbers:
    generator = WrongL0Spec(seed=seed)
    spec = BatchTopKSpec(d_sae=50, k=k)
    training = lab(12_000, 1024, 1e-3, "trained")
    draw = generator.held_out(16_384)
    found = one(generator, spec, training, seed)
    true = from_truth(spec, draw, seed)
    rows = found.sae.params["W_dec"]
    return {
        "mmcs": recovery(rows, draw.truth.dictionary).mmcs,
        "squared error, trained": _squared_error(found.sae, draw, k),
        "squared error, true": _squared_error(true, draw, k),
    }


def wrong_l0_small(seed: int, correlation: float) -> Numbers:
    """The first feature's correlation with the others, and what of them its latent takes in at k = 1.8."""
    generator = WrongL0Spec(preset="small", correlation=correlation, seed=seed)
    spec = BatchTopKSpec(d_sae=5, k=1.8)
    draw = generator.held_out(8192)
    start = from_truth(spec, draw, seed)
    found = one(generator, spec, lab(8000, 1024, 1e-3, "none"), seed, starts={"sae": start})
    cosines = _cosines(found.sae, draw)
    return {
        "mmcs": recovery(found.sae.params["W_dec"], draw.truth.dictionary).mmcs,
        "mixing of the first feature": float(cosines[1:, 0].mean()),
    }


# --- Korznikov: high expansion ------------------------------------------------------------------------


def high_expansion(seed: int, law: str, kind: str, rate: float = 3e-4) -> Numbers:
    generator = HighExpansionSpec(law=law, seed=seed)  # type: ignore[arg-type]
    frozen: tuple[str, ...] = ("W_dec",) if kind == "frozen decoder" else ()
    spec: Any = BatchTopKSpec(d_sae=3200, k=20)
    if kind == "jumprelu":
        spec = JumpReLUSpec(d_sae=3200, l0=20)
    training = lab(4000, 1024, rate, "trained")
    found = one(generator, spec, training, seed, frozen=frozen)
    draw = generator.held_out(4096)
    top = recovery(found.sae.params["W_dec"], draw.truth.dictionary)
    limit = ceilings(draw, 512, over="tokens")
    return {
        "ev": explained(found.sae, draw),
        "features above .8": float((top.best_cosine > 0.8).sum()),
        "mmcs": top.mmcs,
        "pursuit ceiling": limit.nonnegative,
        "linear ceiling": limit.linear,
        "l0": len(found.sae.encode(draw.x).latents) / len(draw.x),
    }


# --- the others ---------------------------------------------------------------------------------------


def superposition(seed: int, kind: str) -> Numbers:
    generator = SuperpositionSpec(seed=seed)
    spec: Any = {"topk": TopKSpec, "batchtopk": BatchTopKSpec}[kind](d_sae=512, k=5)
    found = one(generator, spec, lab(4000, 1024, 4e-3, "mean"), seed)
    draw = generator.held_out(8192)
    score = recovery(found.sae.params["W_dec"], draw.truth.dictionary)
    return {
        "mmcs": score.mmcs,
        "share above .9": score.share(0.9),
        "ev": explained(found.sae, draw),
    }


def synth_bench(seed: int, kind: str) -> Numbers:
    """The 1/8 twin: 512 latents for 2,048 features, k scaled from 15 of 34 to 5 of 11."""
    generator = SynthBenchSpec(seed=seed)
    spec: Any = BatchTopKSpec(d_sae=512, k=5)
    if kind == "matryoshka":
        spec = MatryoshkaSpec(d_sae=512, k=5)
    found = one(generator, spec, lab(10_000, 1024, 1e-3, "mean"), seed)
    draw = generator.held_out(16_384)
    rows, truth = found.sae.params["W_dec"], draw.truth.dictionary
    matched = matching(rows, truth)
    detected = detectors(found.sae.encode(draw.x), draw.codes, matched)
    null = matching_null(truth, 512, seed)
    return {
        "mcc": matched.mcc,
        "mcc of random rows": null.mcc.mean,
        "uniqueness": matched.uniqueness,
        "f1": detected.mean("f1").value,
        "ev": explained(found.sae, draw),
    }


def tree(seed: int, kind: str) -> Numbers:
    generator = TreeSpec(seed=seed)
    if kind == "matryoshka":
        spec: Any = MatryoshkaSpec(d_sae=20, k=1.12)
    else:
        spec = BatchTopKSpec(d_sae=20, k=1.12)
    found = one(generator, spec, lab(8000, 1024, 3e-3, "none"), seed)
    draw = generator.held_out(8192)
    cosines = _cosines(found.sae, draw)
    parents = draw.truth.parents
    carried = [
        float(cosines[int(cosines[:, i].argmax()), p]) for i, p in enumerate(parents) if p >= 0
    ]
    return {
        "mmcs": recovery(found.sae.params["W_dec"], draw.truth.dictionary).mmcs,
        "children's cosine to their parent": sum(carried) / len(carried),
    }


def solvable_pair(seed: int, ratio: float) -> Numbers:
    """A child alone `ratio` times as often as the crossover: the angle of its latent to the parent."""
    penalty, q = 0.1, 0.2
    generator = SolvablePairSpec(q=q, p0=0.3, epsilon=ratio * epsilon_star(penalty, q), seed=seed)
    spec = ReLUSpec(d_sae=2, coefficient=penalty)
    found, reached = best(generator, spec, lab(6000, 1024, 1e-3, "none"), seed, starts=8)
    cosines = _cosines(found.sae, generator.held_out(16))
    child = int(cosines[:, 1].argmax())
    angle = math.degrees(math.atan2(float(cosines[child, 1]), float(cosines[child, 0])))
    return {"angle": angle, "share of starts at the lowest objective": reached}


def bottleneck(seed: int, sparsity: float) -> Numbers:
    generator = BottleneckSpec(n_features=5, d_in=2, sparsity=sparsity, importance=0.9, seed=seed)
    return {"features kept": float(len(generator.kept))}


def _cosines(sae: SAE, draw: Any) -> torch.Tensor:
    rows = torch.nn.functional.normalize(sae.params["W_dec"], dim=1)
    found: torch.Tensor = rows @ draw.truth.dictionary.t()
    return found


def _squared_error(sae: SAE, draw: Any, k: float) -> float:
    """Return the mean squared error of a token, of exactly k codes for each on average."""
    z = (draw.x - sae.params["b_dec"]) @ sae.params["W_enc"] + sae.params["b_enc"]
    z = z.clamp_min(0.0)
    threshold = z.flatten().topk(int(k * len(z))).values[-1]
    codes = torch.where(z >= threshold, z, 0.0)
    left = draw.x - (codes @ sae.params["W_dec"] + sae.params["b_dec"])
    return float(left.square().sum(1).mean())


Experiment = tuple[Callable[..., Numbers], tuple[Any, ...]]
EXPERIMENTS: dict[str, Experiment] = {
    **{f"composed sets: {case}": (composed_sets, (case,)) for case in SETS},
    "composed sets: TopK, m 16": (topk_composes, ()),
    **{f"composed sets, tied start: {case}": (composed_sets, (case, True)) for case in SETS},
    **{
        f"parent and child: {law}": (parent_child, (law,))
        for law in ("independent", "hierarchical")
    },
    **{
        f"hedging: {law}": (hedging, (law,))
        for law in ("independent", "hierarchical", "partial", "anti")
    },
    **{f"wrong L0: k {k:g} of 11": (wrong_l0, (k,)) for k in (5.0, 8.0, 11.0)},
    **{f"wrong L0: correlation {c:+g}": (wrong_l0_small, (c,)) for c in (0.4, -0.4)},
    **{
        f"high expansion: {law}, {kind}": (high_expansion, (law, kind))
        for law in ("constant", "variable")
        for kind in ("batchtopk", "jumprelu", "frozen decoder")
    },
    **{
        f"high expansion: {law}, batchtopk, rate 2e-3": (high_expansion, (law, "batchtopk", 2e-3))
        for law in ("constant", "variable")
    },
    **{f"superposition: {kind}": (superposition, (kind,)) for kind in ("topk", "batchtopk")},
    **{
        f"synthetic bench, 1/8: {kind}": (synth_bench, (kind,))
        for kind in ("batchtopk", "matryoshka")
    },
    **{f"tree: {kind}": (tree, (kind,)) for kind in ("batchtopk", "matryoshka")},
    **{
        f"solvable pair: {r:g} of the crossover": (solvable_pair, (r,))
        for r in (0.0, 0.5, 1.0, 2.0, 4.0)
    },
    **{f"toy model: sparsity {s:g}": (bottleneck, (s,)) for s in (0.0, 0.7, 0.9, 0.99)},
}
