"""Firings, ablations and null directions on tiny models whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from planted_subjects import random_directions, tiny_subject
from sae_placebo.causal.use import null_directions
from sae_placebo.causal.use.ablation import ablate, full_swap
from sae_placebo.causal.use.base import (
    Directions,
    Subject,
    direction_sets,
    pseudo_latents,
    single_sets,
)
from sae_placebo.causal.use.evidence import Asked, ask, ask_alone
from sae_placebo.causal.use.firing_screen import FiringScreen, screen_firings
from sae_placebo.causal.use.firings import Firings, important_firings, uniform_firings
from sae_placebo.causal.use.null_directions import NullEdits, turned
from sae_placebo.causal.use.null_test import costlier_share, pooled_test
from sae_placebo.causal.use.spec import UseSpec
from sae_placebo.core.errors import NotEstimable

SPEC = UseSpec(firings=4, null_firings=4, window=2, nulls=24)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return tiny_subject()


@pytest.fixture(scope="module")
def directions(subject: Subject) -> Directions:
    return random_directions(subject)


def _drawn(
    subject: Subject, directions: Directions, which: np.ndarray, n: int, seed: int = 0
) -> tuple[FiringScreen, Firings]:
    screened = screen_firings(subject, single_sets(directions), which, 10_000, seed)
    return screened, important_firings(screened.sets, which, screened, n, seed)


# --- firings -----------------------------------------------------------------------------------------


def test_draws_of_one_hang_on_no_other_and_the_first_are_those_of_fewer(
    subject: Subject, directions: Directions
) -> None:
    screened, many = _drawn(subject, directions, np.array([3, 7, 11]), 12)
    _, alone = _drawn(subject, directions, np.array([7]), 12)
    seven = many.kept(many.sets == 7)
    assert np.array_equal(seven.tokens, alone.tokens)
    assert np.array_equal(seven.draws, alone.draws)
    assert seven.draws.sum() == 12
    fewer = important_firings(screened.sets, np.array([7]), screened, 5, 0)
    assert fewer.draws.sum() == 5
    assert set(fewer.tokens) <= set(seven.tokens)
    assert (directions.amounts[many.tokens, many.sets] != 0).all()
    assert (many.weights <= 4 + 1e-9).all(), "a quarter of the draws is uniform"


def test_all_firings_of_a_rare_direction_count_once(
    subject: Subject, directions: Directions
) -> None:
    amounts = directions.amounts.tolil()
    amounts[:, 2] = 0
    amounts[5, 2] = 1.0
    rare = Directions(directions.vectors, amounts.tocsr())
    _, found = _drawn(subject, rare, np.array([2]), 6)
    assert (list(found.tokens), list(found.draws), list(found.weights)) == ([5], [1], [1.0])


def test_importance_keeps_the_mean_and_lowers_the_variance(
    subject: Subject, directions: Directions
) -> None:
    which = np.array([0])
    sets, screened = single_sets(directions), _drawn(subject, directions, which, 6)[0]
    every = uniform_firings(sets, which, 10_000, 0)
    cost = ablate(subject, sets, every, 2, 0).zero
    chance = screened.chances(0)
    assert chance.sum() == pytest.approx(1)
    weighted = cost / (len(cost) * chance)
    assert (chance * weighted).sum() == pytest.approx(cost.mean())
    of_draws = (chance * (weighted - cost.mean()) ** 2).sum()
    assert of_draws < 0.5 * cost.var()


# --- ablations ---------------------------------------------------------------------------------------


def test_costs_are_those_of_the_edits(subject: Subject, directions: Directions) -> None:
    _, firings = _drawn(subject, directions, np.arange(5), 3)
    found = ablate(subject, single_sets(directions), firings, 2, 0)
    i = 4
    token, direction = firings.tokens[i], firings.sets[i]
    amount = float(directions.amounts[token, direction])
    row, position = subject.tokens.places[token]
    edit = -amount * torch.from_numpy(directions.vectors[direction])[None]
    cost = subject.downstream.kl_of_edits(subject.clean(int(row)), int(position), edit, 2)
    assert found.zero[i] == pytest.approx(float(cost), rel=1e-4)
    assert full_swap(subject, 2, 400, 0) > found.zero.mean()


def test_a_set_takes_away_the_sum_of_its_members(subject: Subject, directions: Directions) -> None:
    sets = direction_sets(directions, [np.array([1, 4, 9])])
    token = int(np.flatnonzero((directions.amounts[:, [1, 4, 9]] != 0).toarray().sum(1) > 1)[0])
    expected = (
        directions.amounts[token, [1, 4, 9]].toarray().ravel() @ directions.vectors[[1, 4, 9]]
    )
    taken = sets.taken_away(np.array([0]), np.array([token]))[0]
    assert np.allclose(taken, expected, atol=1e-6)
    assert sets.amounts[token, 0] == pytest.approx(np.linalg.norm(expected), rel=1e-5)
    held = (directions.amounts[:, [1, 4, 9]] != 0).toarray().any(1)
    assert np.array_equal(sets.held(0), np.flatnonzero(held))


def test_an_edit_on_top_of_another_costs_what_both_do(
    subject: Subject, directions: Directions
) -> None:
    """Every position changed first, then one of them: as the whole row edited at once."""
    clean = subject.clean(3)
    random = torch.Generator().manual_seed(0)
    base = 0.3 * torch.randn(clean.site.shape, generator=random)
    edit = torch.randn(clean.site.shape[1], generator=random)
    found = subject.downstream.kl_of_edits(
        subject.downstream.on_top(clean, base), 5, torch.stack([0 * edit, edit]), 2
    )
    for cost, change in zip(found, (0 * edit, edit), strict=True):
        whole = base.clone()
        whole[5] += change
        logits = subject.downstream.logits(clean.token_ids[None], clean.entering[None], whole[None])
        log_q = logits[0].float().log_softmax(-1)
        kl = (clean.log_probs.exp() * (clean.log_probs - log_q)).sum(-1)[5:8].sum()
        assert float(cost) == pytest.approx(float(kl), rel=1e-3)


# --- null directions ---------------------------------------------------------------------------------


def test_null_directions_keep_length_and_angle() -> None:
    random = torch.Generator().manual_seed(0)
    x, d = torch.randn(32, generator=random), torch.randn(32, generator=random)
    d = d / d.norm()
    found = turned(torch.randn(9, 32, generator=random), d, x)
    edited = x - 1.7 * found
    assert torch.allclose(found.norm(dim=1), torch.ones(9), atol=1e-5)
    assert torch.allclose(found @ x, (d @ x).expand(9), atol=1e-4)
    assert torch.allclose(edited.norm(dim=1), (x - 1.7 * d).norm().expand(9), atol=1e-4)


def test_nulls_of_a_set_are_as_long_and_at_its_angle(
    subject: Subject, directions: Directions
) -> None:
    sets = direction_sets(directions, [np.array([1, 4, 9])])
    token = int(sets.held(0)[0])
    taken = torch.from_numpy(sets.taken_away(np.array([0]), np.array([token]))[0])
    x = subject.activations[token]
    firings = uniform_firings(sets, np.array([0]), 10_000, 0)
    found = -NullEdits.of(subject, sets, firings).at(0, 7, (0, "test"))
    assert torch.allclose(found.norm(dim=1), taken.norm().expand(7), rtol=1e-4)
    assert torch.allclose(found @ x, (taken @ x).expand(7), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def nothing(subject: Subject) -> Asked:
    like = random_directions(subject, n=120)
    return ask_alone(subject, pseudo_latents(like, 1, 120), SPEC, 0)


def test_p_is_uniform_on_directions_that_mean_nothing(nothing: Asked) -> None:
    assert nothing.test.n_nulls == 120 * 24
    assert kstest(nothing.p, "uniform").pvalue > 1e-3
    for level in (0.05, 0.005):
        error = np.sqrt(level * (1 - level) / len(nothing.p))
        assert (nothing.p <= level).mean() <= level + 2 * error
    share, low, high = costlier_share(nothing.p, np.ones(120), np.arange(120), 0)
    assert low == 0
    assert share < 0.25 < high + 0.25


def test_nulls_that_cost_the_same_up_to_rounding_say_nothing(
    subject: Subject, directions: Directions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many dimensions as constraints a null is the direction itself, but for its last bits."""

    def itself(vectors: torch.Tensor, d: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return d * (1 - 1e-8 * torch.arange(len(vectors))[:, None])

    monkeypatch.setattr(null_directions, "turned", itself)
    found = ask_alone(
        subject, Directions(directions.vectors[:3], directions.amounts[:, :3]), SPEC, 0
    )
    assert (found.p > 0.2).all()


def test_spreads_are_pooled_and_tails_are_counted() -> None:
    random = np.random.default_rng(0)
    logs = 0.4 * random.standard_normal((200, 25)) + random.normal(0, 2, (200, 1))
    logs[:20, 0] += 3
    found = pooled_test(np.exp(logs), 1.0)
    assert found.spread == pytest.approx(0.4, rel=0.05)
    assert (found.p[:20] < 2 / (200 * 24)).mean() > 0.9, "no rank among 24 is as small"
    assert (found.p[20:] <= 0.05).mean() == pytest.approx(0.05, abs=0.035)
    missing = pooled_test(np.array([[np.nan] * 25, *np.exp(logs)]), 1.0)
    assert np.isnan(missing.p[0])
    assert np.array_equal(missing.p[1:], found.p)


def test_what_the_model_reads_stands_out(subject: Subject, directions: Directions) -> None:
    # at the last token of a row only the unembedding reads: plant its most spread direction
    unembedding = subject.downstream.model.get_output_embeddings().weight
    top = torch.linalg.svd(unembedding, full_matrices=False).Vh[0].numpy()
    norms = subject.downstream.model.base_model.norm.weight.detach().numpy()
    vectors = directions.vectors.copy()
    vectors[0] = top * norms / np.linalg.norm(top * norms)
    found = ask_alone(subject, Directions(vectors[:12], directions.amounts[:, :12]), SPEC, 0)
    assert found.p[0] <= 0.05
    assert found.ratio.low[0] > 1


@pytest.mark.parametrize(("scale", "cost"), [(0.0, "0"), (float("nan"), "nan")])
def test_a_hookpoint_that_no_prediction_depends_on_has_no_unit(scale: float, cost: str) -> None:
    subject = tiny_subject()
    head = subject.downstream.model.lm_head.weight
    with torch.no_grad():
        head.mul_(scale)
    with pytest.raises(NotEstimable, match=f"costs {cost} nats, so predictions do not depend"):
        ask(subject, random_directions(subject), np.arange(4), SPEC, 0)
