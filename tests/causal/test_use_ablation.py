"""Firings, ablations and null directions on tiny models whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from planted_subjects import random_directions, tiny_subject
from sae_placebo.causal.use import null_directions
from sae_placebo.causal.use.ablation import ablate
from sae_placebo.causal.use.base import Directions, pseudo_latents
from sae_placebo.causal.use.evidence import ask
from sae_placebo.causal.use.firings import choose_firings
from sae_placebo.causal.use.null_directions import against_nulls, n_alike, turned
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.errors import NotEstimable

SPEC = UseSpec(firings=6, null_firings=4, window=2, first_nulls=19, nulls=39)


def test_firings_hold_their_direction_once_per_document() -> None:
    subject = tiny_subject()
    directions = random_directions(subject)
    which = np.array([3, 7, 11])
    found = choose_firings(directions, which, subject.tokens.documents, 6, 0)
    assert set(found.directions) == set(which)
    assert (directions.amounts[found.tokens, found.directions] != 0).all()
    for direction in which:
        documents = subject.tokens.documents[found.tokens[found.directions == direction]]
        assert len(set(documents)) == len(documents) == 6
    assert (np.diff(found.tokens) >= 0).all()


def test_rare_directions_give_the_firings_that_there_are() -> None:
    subject = tiny_subject()
    directions = random_directions(subject, n=4)
    amounts = directions.amounts.tolil()
    amounts[:, 2] = 0
    amounts[5, 2] = 1.0
    rare = Directions(directions.vectors, amounts.tocsr())
    found = choose_firings(rare, np.arange(4), subject.tokens.documents, 6, 0)
    assert list(found.tokens[found.directions == 2]) == [5]


def test_costs_are_those_of_the_edits() -> None:
    subject = tiny_subject()
    directions = random_directions(subject)
    firings = choose_firings(directions, np.arange(5), subject.tokens.documents, 3, 0)
    found = ablate(subject, directions, firings, 2, 0)
    i = 4
    token, direction = firings.tokens[i], firings.directions[i]
    amount = float(directions.amounts[token, direction])
    assert found.amounts[i] == pytest.approx(amount)
    row, position = subject.tokens.places[token]
    edit = -amount * torch.from_numpy(directions.vectors[direction])[None]
    cost = subject.downstream.kl_of_edits(subject.clean(int(row)), int(position), edit, 2)
    assert found.zero[i] == pytest.approx(float(cost), rel=1e-4)
    assert found.full_swap > found.zero.mean()


def test_null_directions_keep_length_and_angle() -> None:
    random = torch.Generator().manual_seed(0)
    x, d = torch.randn(32, generator=random), torch.randn(32, generator=random)
    d = d / d.norm()
    found = turned(torch.randn(9, 32, generator=random), d, x)
    edited = x - 1.7 * found
    assert torch.allclose(found.norm(dim=1), torch.ones(9), atol=1e-5)
    assert torch.allclose(found @ x, (d @ x).expand(9), atol=1e-4)
    assert torch.allclose(edited.norm(dim=1), (x - 1.7 * d).norm().expand(9), atol=1e-4)


def test_p_is_uniform_on_directions_that_mean_nothing() -> None:
    subject = tiny_subject()
    like = random_directions(subject, n=120)
    nothing = pseudo_latents(like, 1, 120)
    which = np.arange(len(nothing))
    firings = choose_firings(nothing, which, subject.tokens.documents, 4, 0)
    ablated = ablate(subject, nothing, firings, 2, 0)
    spec = SPEC.model_copy(update={"give_up": 1.0})
    found = against_nulls(subject, nothing, ablated, which, spec, 0)
    assert ((found.n_nulls == 39) | (found.p == 1)).all()
    assert (
        kstest(found.p - np.random.default_rng(0).uniform(0, 1 / 40, 120), "uniform").pvalue > 1e-3
    )
    assert (found.p <= 0.05).mean() < 0.13


def test_nulls_that_cost_the_same_up_to_rounding_say_nothing() -> None:
    """With as many dimensions as constraints a null is the direction itself, but for its last bits."""
    subject = tiny_subject()
    directions = random_directions(subject, n=3)
    which = np.arange(3)
    firings = choose_firings(directions, which, subject.tokens.documents, 4, 0)
    ablated = ablate(subject, directions, firings, 2, 0)

    def itself(vectors: torch.Tensor, d: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return d * (1 - 1e-8 * torch.arange(len(vectors))[:, None])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(null_directions, "turned", itself)
        spec = SPEC.model_copy(update={"give_up": 1.0})
        found = against_nulls(subject, directions, ablated, which, spec, 0)
    assert (found.p == 1).all()
    nulls = 0.1 * (1 - 1e-9 * np.arange(8))[None]
    assert null_directions._tail(np.array([0.1001]), nulls) == [1.0]
    assert null_directions._tail(np.array([0.1001]), nulls * np.arange(1, 9) / 9) < 0.5


def test_an_early_end_only_raises_p() -> None:
    subject = tiny_subject()
    directions = random_directions(subject, n=40)
    which = np.arange(40)
    firings = choose_firings(directions, which, subject.tokens.documents, 4, 0)
    ablated = ablate(subject, directions, firings, 2, 0)
    told: list[int] = []
    early = against_nulls(subject, directions, ablated, which, SPEC, 0, told.append)
    # what is given up counts as done, and the later nulls are told of as well
    assert sum(told) == len(firings) * (SPEC.nulls + n_alike(directions, SPEC))
    late = against_nulls(
        subject, directions, ablated, which, SPEC.model_copy(update={"give_up": 1.0}), 0
    )
    stopped = early.n_nulls == 19
    assert stopped.any()
    assert (early.p[stopped] >= SPEC.give_up).all()
    assert np.allclose(early.p[~stopped], late.p[~stopped])
    # a glance only leaves those that would be given up anyway
    glance = SPEC.model_copy(update={"glance_nulls": 9})
    glanced = against_nulls(subject, directions, ablated, which, glance, 0)
    left = glanced.n_nulls == 9
    assert left.any()
    assert stopped[left].all()
    assert (glanced.p[left] >= SPEC.give_up).all()
    assert np.allclose(glanced.p[~left], early.p[~left])


def test_what_the_model_reads_stands_out() -> None:
    subject = tiny_subject()
    directions = random_directions(subject, n=40)
    # at the last token of a row only the unembedding reads: plant its most spread direction
    unembedding = subject.downstream.model.get_output_embeddings().weight
    top = torch.linalg.svd(unembedding, full_matrices=False).Vh[0].numpy()
    norms = subject.downstream.model.base_model.norm.weight.detach().numpy()
    vectors = directions.vectors.copy()
    vectors[0] = top * norms / np.linalg.norm(top * norms)
    planted = Directions(vectors, directions.amounts)
    firings = choose_firings(planted, np.array([0]), subject.tokens.documents, 8, 0)
    ablated = ablate(subject, planted, firings, 2, 0)
    found = against_nulls(subject, planted, ablated, np.array([0]), SPEC, 0)
    assert found.p[0] <= 0.05
    assert found.cost[0] > found.null[0]


@pytest.mark.parametrize(("scale", "cost"), [(0.0, "0"), (float("nan"), "nan")])
def test_a_hookpoint_that_no_prediction_depends_on_has_no_unit(scale: float, cost: str) -> None:
    subject = tiny_subject()
    head = subject.downstream.model.lm_head.weight
    with torch.no_grad():
        head.mul_(scale)
    with pytest.raises(NotEstimable, match=f"costs {cost} nats, so predictions do not depend"):
        ask(subject, random_directions(subject), np.arange(4), SPEC, 0)
