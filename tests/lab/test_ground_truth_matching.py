"""Pairs of latents and features, and what chance reaches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from planted_truths import independent, relu_sae, rescaled, sparse
from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.spec import generator
from sae_placebo.lab.experiments.chance import SIZES, null_table
from sae_placebo.lab.generators.base import unit_rows
from sae_placebo.lab.scores.matching import matching, matching_by_activation
from sae_placebo.lab.scores.null_tables import (
    matching_null,
    random_null,
)
from sae_placebo.latents.partners.assignment import AssignmentSpec
from sae_placebo.stats.random_dictionaries import expected_max_cosine


def test_matching_by_hand() -> None:
    truth = torch.eye(3)
    learned = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, -2.0], [0.0, 5.0, 0.0], [0.0, 0.0, 0.0]])
    found = matching(learned, truth)
    assert found.feature.tolist() == [0, 2, 1, -1]
    assert found.mcc == pytest.approx((0.6 + 1 + 1) / 3)
    # signed: the second row is the opposite of the third feature, and nothing beats the row of zeros
    assert found.mcc_signed == pytest.approx((0.6 + 1 + 0) / 3)
    assert found.nearest.tolist() == [1, 2, 1, -1]
    assert found.nearest_similarity.tolist() == pytest.approx([0.8, -1.0, 1.0, 0.0])
    assert found.mmcs == pytest.approx(1.6 / 3)
    assert found.mmcs_of_latents == pytest.approx((0.8 + 0 + 1 + 0) / 4)
    assert found.multiplicity.tolist() == [0, 2, 1]
    assert found.uniqueness == pytest.approx(2 / 4)
    assert found.pairs.tolist() == [[0, 0], [1, 2], [2, 1]]
    assert (found.kind, found.method) == ("direction", "optimal")


def test_order_lengths_and_copies() -> None:
    random = generator(0, "test")
    truth = unit_rows(40, 64, random)
    learned = truth + 0.1 * torch.randn(40, 64, generator=random)
    plain = matching(learned, truth)
    order = torch.randperm(40, generator=random)
    moved = matching(learned[order] * torch.arange(1, 41)[:, None], truth)
    for name in ("mcc", "mcc_signed", "mmcs", "mmcs_of_latents", "uniqueness"):
        assert getattr(moved, name) == pytest.approx(getattr(plain, name), abs=1e-6)
    assert moved.feature.tolist() == plain.feature[order.numpy()].tolist()
    copied = matching(torch.cat([learned, learned]), truth)
    assert copied.mmcs == pytest.approx(plain.mmcs, abs=1e-6)
    assert copied.mcc == pytest.approx(plain.mcc, abs=1e-6)
    assert plain.uniqueness == 1.0
    assert copied.uniqueness == 0.5
    assert copied.multiplicity.tolist() == [2] * 40


def test_many_rows_are_matched_nearest_first() -> None:
    random = generator(0, "test")
    truth = unit_rows(60, 32, random)
    learned = truth + 0.05 * torch.randn(60, 32, generator=random)
    greedy = matching(learned, truth, AssignmentSpec(optimal_up_to=10))
    assert greedy.method == "greedy"
    assert greedy.mcc == pytest.approx(matching(learned, truth).mcc, abs=1e-6)


def test_matching_by_activation_sees_what_directions_do_not() -> None:
    true = independent(torch.tensor([0.3, 0.2, 0.1]), 5_000)
    # latents 0 and 1 are features 2 and 0; latent 2 fires where feature 1 does not
    found = torch.stack([2 * true[:, 2], true[:, 0], 1 - true[:, 1]], dim=1)
    pairs = matching_by_activation(sparse(found), sparse(true))
    assert pairs.feature.tolist() == [2, 0, 1]
    assert pairs.mcc == pytest.approx(1.0)
    assert pairs.mcc_signed < 0.7
    assert pairs.nearest_similarity.tolist() == pytest.approx([1.0, 1.0, -1.0])
    assert pairs.kind == "activation"
    shuffled = found[torch.randperm(5_000, generator=generator(0, "order"))]
    assert matching_by_activation(sparse(shuffled), sparse(true)).mcc < 0.04


def test_lengths_of_rows_change_no_matching() -> None:
    random = generator(0, "test")
    truth = unit_rows(12, 16, random)
    x = independent(torch.full((12,), 0.1), 3_000) @ truth
    sae = relu_sae(truth, bias=-0.2)
    other = rescaled(sae)
    one, two = (matching(each.params["W_dec"], truth) for each in (sae, other))
    assert two.mcc == pytest.approx(one.mcc, abs=1e-6)
    true = sparse(independent(torch.full((12,), 0.1), 3_000))
    one, two = (matching_by_activation(each.encode(x), true) for each in (sae, other))
    assert two.mcc == pytest.approx(one.mcc, abs=1e-5)
    assert two.feature.tolist() == one.feature.tolist()


def test_what_cannot_be_matched_is_refused() -> None:
    with pytest.raises(SpecError, match="of one width"):
        matching(torch.eye(3)[:0], torch.eye(3))
    with pytest.raises(SpecError, match="same draw"):
        matching_by_activation(sparse(torch.ones(3, 2)), sparse(torch.ones(4, 2)))
    with pytest.raises(NotEstimable, match="no latent fires"):
        matching_by_activation(sparse(torch.zeros(3, 2)), sparse(torch.ones(3, 2)))


# what chance reaches


def test_the_null_table() -> None:
    table = null_table(SIZES[:-1])
    assert tuple(table) == SIZES[:-1]
    table[SIZES[-1]] = random_null(*SIZES[-1], seed=0, draws=2)
    for (d_in, n, m), null in table.items():
        # drawn, against integrated
        error = 4 * null.mmcs.sd / math.sqrt(null.mmcs.draws)
        assert null.mmcs.mean == pytest.approx(expected_max_cosine(d_in, m), abs=0.002 + error)
        assert null.mean_max_abs.mean == pytest.approx(
            expected_max_cosine(d_in, m, signed=False), abs=0.002 + error
        )
        assert null.mcc.mean <= null.mean_max_abs.mean + (0.1 if m < n else 1e-3)
    published = {
        (100, 50, 50): (0.22, 0.25, 0.23),
        (256, 512, 512): (0.19, 0.20, 0.19),
        (256, 512, 4096): (0.22, 0.23, 0.23),
    }
    for size, values in published.items():
        null = table[size]
        means = (null.mmcs.mean, null.mean_max_abs.mean, null.mcc.mean)
        assert means == pytest.approx(values, abs=0.01)
    # those of a handful of rows were published from few draws: they lie within the spread of one
    few = {(20, 5, 5): (0.26, 0.36, 0.33), (50, 4, 4): (0.12, 0.21, 0.19)}
    for size, values in few.items():
        for null_of, value in zip(
            (table[size].mmcs, table[size].mean_max_abs, table[size].mcc), values, strict=True
        ):
            assert abs(null_of.z(value)) < 1
    circle = table[2, 4, 4]
    assert circle.mean_max_abs.mean == pytest.approx(0.92, abs=0.01)
    assert abs(circle.mcc.z(0.84)) < 1


def test_uniqueness_of_few_random_latents() -> None:
    # 1 - m / (2 n)
    null = random_null(64, 2_000, 100, seed=0, draws=6)
    assert null.uniqueness.mean == pytest.approx(1 - 100 / 4_000, abs=0.02)


def test_nulls_of_this_truth() -> None:
    random = generator(0, "test")
    truth = unit_rows(30, 20, random)
    sphere = matching_null(truth, 60, seed=0)
    assert sphere.mmcs.mean == pytest.approx(expected_max_cosine(20, 60), abs=0.02)
    again = matching_null(truth, 60, seed=0)
    assert again == sphere
    assert matching_null(truth, 60, seed=1) != sphere
    # features and activations in 4 of the 20 dimensions: rows that follow the activations come nearer
    flat = torch.nn.functional.normalize(
        torch.cat([torch.randn(30, 4, generator=random), torch.zeros(30, 16)], dim=1), dim=1
    )
    x = independent(torch.full((30,), 0.1), 2_000) @ flat
    plain, like = (matching_null(flat, 60, 0, atoms=atoms, x=x) for atoms in ("sphere", "gaussian"))
    assert like.mmcs.mean > plain.mmcs.mean + 0.2
    assert like.mmcs.mean == pytest.approx(expected_max_cosine(4, 60), abs=0.03)
    # where one feature is active at a time, tokens are features
    one = torch.nn.functional.one_hot(torch.arange(30).repeat(40), 30).float() @ truth
    assert matching_null(truth, 400, 0, atoms="data", x=one).mcc.mean > 0.99


def test_how_far_a_score_stands_above_chance() -> None:
    null = matching_null(torch.eye(16), 16, seed=0).mcc
    assert null.above(1.0) == pytest.approx(1.0)
    assert null.above(null.mean) == 0.0
    assert null.z(null.mean + 2 * null.sd) == pytest.approx(2.0)
    assert np.isfinite(null.z(1.0))
    with pytest.raises(NotEstimable, match="no z"):
        matching_null(torch.eye(4), 4, 0, atoms="data", x=torch.eye(4)).mcc.z(1.0)


def test_nulls_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(SpecError, match="no spread"):
        matching_null(torch.eye(4), 4, 0, draws=1)
    with pytest.raises(SpecError, match="give x"):
        matching_null(torch.eye(4), 4, 0, atoms="gaussian")
    with pytest.raises(SpecError, match="draw more tokens"):
        matching_null(torch.eye(4), 9, 0, atoms="data", x=torch.eye(4))
    with pytest.raises(SpecError, match="1 or more"):
        random_null(4, 0, 4, 0)
