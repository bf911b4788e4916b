"""Scores on worlds: by hand on small numbers, and on a whole small world whose truth is measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from sae_placebo.causal.use.ablation import ablate
from sae_placebo.causal.use.base import Directions, Subject, single_sets
from sae_placebo.causal.use.firings import uniform_firings
from sae_placebo.causal.use.masks import MaskSpec
from sae_placebo.causal.use.rule import NOT_USED, USED
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.causal.use.worst import WorstSpec
from sae_placebo.lab.worlds import BASELINES, PRESETS, STATISTICS, World, WorldScore, factored
from sae_placebo.lab.worlds.baselines import baselines
from sae_placebo.lab.worlds.scoring import (
    IS_NEITHER,
    IS_PASSENGER,
    IS_USED,
    SiteTruth,
    joint_share,
    rate,
    score_world,
    separation,
    site_truths,
)
from sae_placebo.lab.worlds.units import held_often, value_units, world_subject
from sae_placebo.latents.base import TokenTable

SITE = "resid_pre.0"
QUICK = UseSpec(
    firings=16,
    null_firings=8,
    documents=12,
    least_effect=0.005,
    negligible=0.0025,
    masks=MaskSpec(n_masks=4, n_pivots=0, n_tokens=300),
    worst=WorstSpec(n_tokens=300, steps=2),
)


@pytest.fixture(scope="module")
def world() -> World:
    small = PRESETS["small"].model_copy(update={"n_b": 4, "margin_nats": 0.05, "passenger_norm": 1})
    return factored(small, seed=3)


@pytest.fixture(scope="module")
def subject(world: World) -> Subject:
    return world_subject(world, SITE)


@pytest.fixture(scope="module")
def score(world: World) -> WorldScore:
    return score_world(world, SITE, 3, QUICK, "values")


# --- by hand -----------------------------------------------------------------------------------------


def test_separation_counts_pairs_and_half_of_ties() -> None:
    found = separation(np.array([3.0, 1.0, 2.0]), np.array([2.0, 0.0]))
    # above: 3 > 2, 3 > 0, 1 > 0, 2 > 0; tie: 2 = 2; below: 1 < 2
    assert found.value == pytest.approx(4.5 / 6)
    assert found.low < found.value < found.high
    assert found.n == 5


def test_separation_of_too_few_has_a_reason() -> None:
    found = separation(np.array([3.0]), np.array([2.0, 0.0]))
    assert np.isnan(found.value)
    assert "1 used" in found.reason


def test_rate_of_none_has_a_reason() -> None:
    assert rate((0, 0)).reason
    found = rate((1, 20))
    assert found.low < found.value == 0.05 < found.high


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [(0.02, 0.5, IS_USED), (0.0, 0.004, IS_PASSENGER), (0.004, 0.03, IS_NEITHER)],
)
def test_truth_is_what_its_interval_says(low: float, high: float, kind: int) -> None:
    assert SiteTruth("a", (low + high) / 2, low, high).kind == kind


# --- baselines ---------------------------------------------------------------------------------------


def test_baselines_by_their_formulas(subject: Subject) -> None:
    random = np.random.default_rng(0)
    n, width = subject.activations.shape
    vectors = np.eye(width, dtype=np.float32)[:3]
    dense = np.where(random.random((n, 3)) < [0.5, 0.1, 0.0], random.random((n, 3)), 0)
    found = baselines(subject, Directions(vectors, csr_matrix(dense.astype(np.float32))), 0)
    assert tuple(found.values) == BASELINES
    assert not found.reasons
    assert np.allclose(found.values["firing rate"], (dense > 0).mean(0))
    assert np.allclose(found.values["variance"], (dense**2).mean(0))
    # the lens: what each direction adds to the logits behind the norm's gains, up to a constant
    model = subject.downstream.model
    logits = model.lm_head.weight * model.model.norm.weight
    expected = (logits - logits.mean(0))[:, :3].norm(dim=0)
    assert np.allclose(found.values["logit lens"], expected, rtol=1e-3)
    for name in ("gradient x activation", "|gradient x activation|", "attribution patching"):
        assert np.isfinite(found.values[name]).tolist() == [True, True, False]
    signed, size = (found.values[n] for n in ("gradient x activation", "|gradient x activation|"))
    assert (signed[:2] <= size[:2]).all()


def test_gradients_foretell_small_edits(subject: Subject) -> None:
    # a tiny amount: the mean square of a g . d is twice the divergence, the second order is all
    n, width = subject.activations.shape
    random = np.random.default_rng(1)
    vector = random.standard_normal((1, width))
    vector /= np.linalg.norm(vector)
    amounts = csr_matrix(np.full((n, 1), 1e-2, dtype=np.float32))
    tiny = Directions(vector.astype(np.float32), amounts)
    screened = baselines(subject, tiny, 0).values["Fisher screen"][0]
    sets = single_sets(tiny)
    firings = uniform_firings(sets, np.array([0]), 128, 0)
    cost = ablate(subject, sets, firings, 16, 0).zero.mean()
    assert screened / 2 == pytest.approx(cost, rel=0.5)


# --- a whole world -----------------------------------------------------------------------------------


def test_values_are_the_directions_of_the_embedding(world: World, subject: Subject) -> None:
    units = value_units(world, subject)
    names = list(units.names)
    table = world.model.model.embed_tokens.weight.numpy()
    # tokens that differ in b alone differ by the difference of two of its directions
    b = [names.index(f"b={k}") for k in (0, 1)]
    lengths = [units.directions.by_direction[:, i].data[0] for i in b]
    levels = units.directions.vectors[b] * np.array(lengths)[:, None]
    step = table[4] - table[0]  # ids run over a, b, c, kind; two values of c, two kinds
    assert np.allclose(levels[1] - levels[0], step, atol=0.05 * np.abs(step).max())


def test_a_world_is_scored_right(score: WorldScore) -> None:
    assert set(score.statistics) == set(STATISTICS)
    kinds = {v: set(score.kinds[score.variables == v]) for v in ("a", "b", "marker")}
    assert kinds == {"a": {IS_USED}, "b": {IS_PASSENGER}, "marker": {IS_USED}}
    assert score.separation("effect").value > 0.95
    assert score.false_not_used[0] == 0
    assert score.false_used[0] == 0
    # in so narrow a model random directions hit what is used: values of a rank high, with few verdicts
    effect, p = score.answer.measured.effect.mean, score.statistics["1 - p"]
    assert np.median(p[score.variables == "a"]) > np.median(p[score.variables == "b"])
    assert np.median(effect[score.answer.which][score.variables == "a"]) > 0.05


def test_limits_move_verdicts(score: WorldScore) -> None:
    measured, at = score.answer.measured, score.answer.which
    absence, ratio = measured.absence, score.spec.negligible_of_null
    # what costs a tenth of null directions is negligible whatever the other limit is
    far_below = (absence.ratio.high[at] < ratio) & (absence.last_ratio.high[at] < ratio)
    none = score.judged(1e9, 1e-12)
    assert (none.verdict != USED).all()
    assert not (none.verdict == NOT_USED)[~far_below].any()
    everything = score.judged(1e9, 1e8)
    assert ((everything.verdict == NOT_USED) == (absence.ratio.high[at] < 1)).all()
    assert measured.survives[at][everything.verdict == NOT_USED].all()
    assert (everything.verdict == NOT_USED).any()


def test_removing_what_is_used_costs_much_and_a_passenger_little(
    world: World, subject: Subject
) -> None:
    units = value_units(world, subject)
    a, b = (
        np.flatnonzero([variable == name for variable in units.variables]).astype(np.int64)
        for name in ("a", "b")
    )
    shares = [joint_share(subject, units.directions, which, 0) for which in (a, b)]
    assert shares[0] > 10 * shares[1]
    assert np.isnan(joint_share(subject, units.directions, a[:0], 0))


def test_duplicates_have_the_truth_of_the_whole() -> None:
    spec = PRESETS["small"].model_copy(
        update={"duplicates": True, "n_b": 2, "steps": 30, "margin_nats": 9.0}
    )
    found = site_truths(factored(spec, 1), SITE, 0)
    assert found["a_first"].share == found["a"].share == found["a_second"].share


def test_directions_of_few_documents_are_left_out(subject: Subject) -> None:
    table: TokenTable = subject.tokens
    width = subject.activations.shape[1]
    held = np.zeros((len(table), 3), dtype=np.float32)
    held[table.documents < 5, 0] = 1
    held[table.documents < 6, 1:] = 1
    vectors = np.eye(width, dtype=np.float32)[:3]
    vectors[2] = 0
    assert held_often(subject, Directions(vectors, csr_matrix(held)), 6).tolist() == [1]


def test_a_subject_has_what_the_model_reads(world: World, subject: Subject) -> None:
    rows, positions = subject.tokens.places.T
    ids = torch.from_numpy(world.rows[rows, positions])
    assert (positions > 0).all()
    assert torch.equal(subject.activations, world.model.model.embed_tokens.weight[ids])
