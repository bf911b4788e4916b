"""Latents as detectors of features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from planted_truths import independent, relu_sae, rescaled, sparse
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.spec import generator
from sae_placebo.lab.generators.base import unit_rows
from sae_placebo.lab.scores.detectors import detectors
from sae_placebo.lab.scores.matching import matching


def test_detectors_by_hand() -> None:
    # latent 0 is feature 1, latent 1 is feature 0, latent 2 is near feature 0 too, latent 3 is dead
    learned = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.9, 0.1], [0.8, 0.2]])
    matched = matching(learned, torch.eye(2))
    true = sparse(torch.tensor([[1.0, 0], [1, 1], [0, 1], [0, 0]]))
    found = sparse(torch.tensor([[0.0, 2, 1, 0], [3, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]))
    score = detectors(found, true, matched)
    assert score.target.tolist() == [1, 0, 0, 0]
    assert score.precision[:3].tolist() == [0.5, 1.0, 0.5]
    assert score.recall[:3].tolist() == [0.5, 1.0, 0.5]
    assert score.f1[:3].tolist() == [0.5, 1.0, 0.5]
    assert score.null_f1[:3].tolist() == [0.5, 0.5, 0.5]
    assert np.isnan([score.f1[3], score.precision[3], score.null_f1[3]]).all()
    assert score.mean().value == pytest.approx(2 / 3)
    assert score.mean().n == 3
    dead = score.mean(dead=True)
    assert (dead.value, dead.n) == (pytest.approx(0.5), 4)
    assert score.mean("precision").null == pytest.approx(0.5)
    # support by assignment: latents 0 and 1 alone
    support = score.support_recall
    assert (support.value, support.n) == (0.75, 4)
    assert support.null == pytest.approx((2 * 2 / 4 + 2 * 2 / 4) / 4)
    assert support.low < 0.75 < support.high
    assigned = detectors(found, true, matched, by="assigned")
    assert assigned.target.tolist() == [1, 0, -1, -1]
    assert np.isnan(assigned.f1[2:]).all()


def test_the_null_is_what_independent_firing_reaches() -> None:
    rates, own = torch.full((30,), 0.2), torch.linspace(0.05, 0.6, 30)
    true = sparse(independent(rates, 20_000, seed=1))
    found = sparse(independent(own, 20_000, seed=2))
    score = detectors(found, true, matching(torch.eye(30), torch.eye(30)))
    p, q = 0.2, own.double().numpy()
    assert score.null_f1 == pytest.approx(2 * p * q / (p + q), abs=0.015)
    assert score.f1 == pytest.approx(score.null_f1, abs=0.03)
    assert score.precision == pytest.approx(np.full(30, p), abs=0.04)
    assert score.recall == pytest.approx(q, abs=0.04)
    mean = score.mean()
    assert mean.null == pytest.approx(mean.value, abs=0.005)
    assert score.mean("precision").null == pytest.approx(0.2, abs=0.005)
    assert score.mean("recall").null == pytest.approx(float(own.mean()), abs=0.005)
    assert score.support_recall.value == pytest.approx(score.support_recall.null, abs=0.01)


def test_a_threshold_is_chosen_on_other_tokens() -> None:
    random = generator(0, "test")
    active = independent(torch.full((4,), 0.1), 8_000)
    leak = 0.3 * torch.rand(8_000, 4, generator=random)
    found = sparse(active + leak)
    score = detectors(found, sparse(active), matching(torch.eye(4), torch.eye(4)))
    # fires always, so plain firing says nothing
    assert score.f1 == pytest.approx(score.null_f1, abs=1e-9)
    assert score.f1_at_threshold == pytest.approx(np.ones(4))
    assert ((score.threshold > 0.25) & (score.threshold < 1.01)).all()
    # codes that say nothing gain nothing where they did not choose
    blind = detectors(sparse(leak + 0.01), sparse(active), matching(torch.eye(4), torch.eye(4)))
    assert blind.f1_at_threshold == pytest.approx(blind.null_f1, abs=0.03)


def test_lengths_order_and_copies() -> None:
    truth = unit_rows(12, 16, generator(0, "test"))
    active = independent(torch.full((12,), 0.1), 4_000)
    x, true = active @ truth, sparse(active)
    sae = relu_sae(truth, bias=-0.3)

    def scored(one):
        return detectors(one.encode(x), true, matching(one.params["W_dec"], truth))

    plain, other = scored(sae), scored(rescaled(sae))
    assert other.f1 == pytest.approx(plain.f1, abs=1e-9)
    assert other.f1_at_threshold == pytest.approx(plain.f1_at_threshold, abs=2e-3)
    assert other.support_recall.value == pytest.approx(plain.support_recall.value)
    order = torch.randperm(12, generator=generator(0, "order"))
    moved = scored(relu_sae(truth[order], bias=-0.3))
    assert moved.f1 == pytest.approx(plain.f1[order.numpy()])
    copied = scored(relu_sae(torch.cat([truth, truth]), bias=-0.3))
    assert copied.mean().value == pytest.approx(plain.mean().value)
    assert copied.support_recall.value == pytest.approx(plain.support_recall.value)


def test_what_cannot_be_scored_is_refused() -> None:
    matched = matching(torch.eye(2), torch.eye(2))
    with pytest.raises(SpecError, match="same draw"):
        detectors(sparse(torch.ones(3, 2)), sparse(torch.ones(4, 2)), matched)
    with pytest.raises(NotEstimable, match="no latent fires"):
        detectors(sparse(torch.zeros(3, 2)), sparse(torch.ones(3, 2)), matched)
    one = detectors(sparse(torch.tensor([[1.0, 0]])), sparse(torch.ones(1, 2)), matched)
    with pytest.raises(NotEstimable, match="two or more"):
        one.mean()
