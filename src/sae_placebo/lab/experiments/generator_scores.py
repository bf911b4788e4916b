"""Sets of scores that only one kind of generator has."""

from __future__ import annotations

import numpy as np

from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import generator
from sae_placebo.lab import GeneratorSpec, support
from sae_placebo.lab.experiments.base import explained_variance
from sae_placebo.lab.experiments.score_sets import SCORE_SETS, Scored, ScoreSet, TrainedOn
from sae_placebo.lab.experiments.truth_scores import mean_of_units
from sae_placebo.lab.generators.bottleneck import BottleneckSpec, phase
from sae_placebo.lab.generators.compositional_shift import CompositionalShiftSpec
from sae_placebo.lab.generators.dark_matter import DarkMatterSpec


def _only(kind: str, found: GeneratorSpec) -> NotEstimable:
    return NotEstimable(f"only the generator {kind!r} has this, not {found.kind!r}")


def _arrangement(one: TrainedOn) -> list[Scored]:
    if not isinstance(one.generator, BottleneckSpec):
        raise _only("bottleneck", one.generator)
    found = phase(one.generator)
    overlaps = found.overlaps[found.kept].double().numpy()
    n, geometry = len(found.lengths), f"geometry: {found.geometry}"
    return [
        Scored("dimensions per feature", found.dimensions_per_feature, None, 1.0, note=geometry),
        Scored("features that are kept", float(found.n_kept), None, float(n), n=n, of="features"),
        mean_of_units("overlap with the others", overlaps, "features kept", None, 0.0),
    ]


def _shift(one: TrainedOn) -> list[Scored]:
    made = one.generator
    if not isinstance(made, CompositionalShiftSpec):
        raise _only("compositional_shift", made)
    if made.shift:
        raise NotEstimable(
            "the SAE was trained on the test's pairs: leave out --generator-set shift=true"
        )
    test = made.shifted().held_out(len(one.draw.x))
    reached = []
    for draw in (one.draw, test):
        codes = one.sae.encode(draw.x)
        ev = explained_variance(draw.x, one.sae.decode(codes))
        rows, truth = one.sae.params["W_dec"], draw.truth.dictionary
        reached.append((ev, support(codes, draw.codes, rows, truth)))
    (before, trained), (after, tested) = reached
    n = len(test.x)
    return [
        Scored("explained variance on held-out pairs", after, 0.0, before, n=n, of="tokens"),
        Scored(
            "support recall on held-out pairs",
            tested.recall,
            tested.null_recall,
            trained.recall,
            n=len(test.codes.values),
            of="pairs",
            note="best: on the pairs of training",
        ),
    ]


def _dark_matter(one: TrainedOn) -> list[Scored]:
    made = one.generator
    if not isinstance(made, DarkMatterSpec):
        raise _only("dark_matter", made)
    parts = made.parts(len(one.draw.x), generator(one.seed, "parts of dark matter"))
    shares = dict(zip(("sparse", "dense", "noise"), made.shares, strict=True))
    decoded = [sae.decode(sae.encode(parts.draw.x)) for sae in (one.sae, one.start)]
    scores = []
    for name, share in shares.items():
        part = getattr(parts, name).double().numpy()
        part = part - part.mean(axis=0)
        energy = float(np.square(part).sum())
        if not energy > 0:
            continue
        value, null = (float((part * x.double().numpy()).sum()) / energy for x in decoded)
        note = f"{share:.1%} of the variance; null: before training"
        best = 1.0 if name == "sparse" else 0.0
        n = len(part)
        scores.append(
            Scored(f"{name} part that is kept", value, null, best, n=n, of="tokens", note=note)
        )
    return scores


for _set in (
    ScoreSet(
        "arrangement",
        "how the toy model of superposition lays out its features (generator bottleneck)",
        _arrangement,
    ),
    ScoreSet(
        "shift",
        "pairs that occur at test only, beside those of training as the best (generator compositional_shift)",
        _shift,
    ),
    ScoreSet(
        "dark_matter",
        "how much of each part of the activations the reconstruction keeps (generator dark_matter)",
        _dark_matter,
    ),
):
    SCORE_SETS.add(_set)
