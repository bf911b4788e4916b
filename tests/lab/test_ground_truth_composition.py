"""Latents that are combinations by construction, by direction and by firing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from planted_truths import (
    absorbing_sae,
    drawn,
    hierarchy,
    independent,
    pair_sae,
    relu_sae,
    rescaled,
    two_sets,
)
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import generator
from sae_placebo.lab import GeneratorTruth
from sae_placebo.lab.generators.base import unit_rows
from sae_placebo.lab.scores.composition import composition
from sae_placebo.lab.scores.decoder_orders import orders
from sae_placebo.lab.scores.firing_parts import Cells, split


def test_an_atomic_dictionary_is_atomic() -> None:
    draw = two_sets(4, 8_000, d_in=30)
    found = composition(relu_sae(draw.truth.dictionary, bias=-0.1), draw)
    assert found.n_live == 8
    assert found.order == pytest.approx(np.ones(8))
    assert found.unexplained == pytest.approx(np.zeros(8), abs=1e-9)
    assert found.main_effect == pytest.approx(np.ones(8), abs=1e-6)
    assert found.firing.explained == pytest.approx(np.ones(8), abs=1e-6)
    assert (found.decoder_atomic, found.conjunction_share) == (1.0, 0.0)
    assert found.atomic().low > 0.6
    assert found.atomic().null == 0.0
    assert found.dictionary == "truth"


def test_a_pair_dictionary_is_of_order_two_and_all_conjunctions() -> None:
    draw = two_sets(4, 20_000, d_in=30)
    found = composition(pair_sae(4, d_in=30), draw)
    assert found.order == pytest.approx(np.full(16, 2.0))
    assert (found.decoder_atomic, found.conjunction_share) == (0.0, 1.0)
    # one cell of a 4 x 4 table: interaction 9 / 15
    assert found.conjunction == pytest.approx(np.full(16, 0.6), abs=0.02)
    assert found.main_effect == pytest.approx(np.full(16, 0.4), abs=0.02)
    assert found.complement == pytest.approx(np.zeros(16), abs=0.02)
    share = found.conjunctions()
    assert (share.value, share.high, share.n) == (1.0, 1.0, 16)
    # the same firings on other tokens are no conjunctions
    assert found.shuffled.share(found.live) == 0.0
    assert np.nan_to_num(found.shuffled.explained).max() < 0.01
    assert found.random_rows.order.mean() > 1.5
    assert found.random_rows.unexplained.mean() > 0.5


def test_decoder_and_code_come_apart() -> None:
    draw = two_sets(4, 8_000)
    pairs = pair_sae(4)
    atoms = relu_sae(draw.truth.dictionary, bias=-0.1)
    rows = torch.cat([draw.truth.dictionary, draw.truth.dictionary])
    fires_for_pairs = relu_sae(rows, pairs.params["W_enc"].t(), -1.5)
    found = composition(fires_for_pairs, draw)
    assert (found.decoder_atomic, found.conjunction_share) == (1.0, 1.0)
    mixed = relu_sae(pairs.params["W_dec"][:8], atoms.params["W_enc"].t(), -0.1)
    found = composition(mixed, draw)
    assert (found.decoder_atomic, found.conjunction_share) == (0.0, 0.0)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_an_and_of_independent_features(rate: float) -> None:
    dense = independent(torch.full((5,), rate), 60_000)
    draw = drawn(dense, GeneratorTruth(torch.eye(5), torch.full((5,), rate)))
    encoder = torch.zeros(1, 5)
    encoder[0, :2] = 1.0
    found = composition(relu_sae(encoder / 2**0.5, encoder, -1.5), draw)
    assert found.conjunction[0] == pytest.approx((1 - rate) / (1 + rate), abs=0.02)
    assert found.complement[0] == pytest.approx(0.0, abs=0.01)


def test_a_hole_is_a_complement_and_no_conjunction() -> None:
    draw = hierarchy(40_000)
    found = composition(absorbing_sae(), draw)
    assert found.conjunction == pytest.approx(np.zeros(4), abs=0.02)
    assert found.main_effect[1:] == pytest.approx(np.ones(3), abs=0.02)
    # fires at 0.512 of the parent's tokens: what the parent alone explains is 0.25 0.75 0.512^2
    fires = 0.25 * 0.512
    expected = 1 - 0.25 * 0.75 * 0.512**2 / (fires * (1 - fires))
    assert found.complement[0] == pytest.approx(expected, abs=0.02)
    assert found.order == pytest.approx([1, 2, 2, 2])
    assert found.decoder_atomic == 0.25


def test_shares_of_known_tables() -> None:
    both = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=bool)
    n = np.full(4, 1e6)
    cases = {
        (0.0, 1.0, 0.0, 1.0): (1.0, 0.0, 0.0),
        # AND: 1/16 1/16 1/16 of each effect and of their interaction
        (0.0, 0.0, 0.0, 1.0): (2 / 3, 1 / 3, 0.0),
        # one but not the other: the first's effect alone is a third
        (0.0, 1.0, 0.0, 0.0): (1 / 3, 0.0, 2 / 3),
        # XOR: effects cancel; a rising function has the empty set apart at best
        (0.0, 1.0, 1.0, 0.0): (0.0, 1 / 3, 2 / 3),
        # NOT: no rising function at all
        (1.0, 0.0, 1.0, 0.0): (0.0, 0.0, 1.0),
    }
    for rates, expected in cases.items():
        found = split(Cells(both, n, np.array(rates)))
        single, pair, absent = expected
        values = [found[name] for name in ("main_effect", "conjunction", "complement")]
        assert values == pytest.approx([single, pair, absent], abs=1e-5)
        assert sum(values) == pytest.approx(1.0)


def test_sampling_noise_is_taken_off() -> None:
    # rates that are a sum of two effects; measured on few tokens they are not quite
    random = np.random.default_rng(0)
    both = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=bool)
    rates = np.array([0.2, 0.5, 0.4, 0.7])
    n = np.full(4, 60.0)
    found = [split(Cells(both, n, random.binomial(60, rates) / 60)) for _ in range(200)]
    explained = np.mean([one["explained"] for one in found])
    assert explained == pytest.approx(0.0325 / (0.45 * 0.55), abs=0.01)


def test_features_of_several_dimensions_count_as_one() -> None:
    random = generator(0, "test")
    basis, _ = torch.linalg.qr(torch.randn(10, 10, generator=random))
    features = basis.t().double().numpy()
    angle = 0.7
    row = np.cos(angle) * features[0] + np.sin(angle) * features[1]
    mixed = (row + features[2]) / 2**0.5
    apart = orders(np.stack([row, mixed]), features[:4])
    whole = orders(np.stack([row, mixed, -row]), features[:4], ((0, 1),))
    assert apart.order[0] == pytest.approx(1 / (np.cos(angle) ** 4 + np.sin(angle) ** 4))
    assert whole.order == pytest.approx([1.0, 2.0, 1.0])
    assert whole.top_cosine == pytest.approx([1.0, 0.5**0.5, 1.0])


def test_orders_in_superposition() -> None:
    features = unit_rows(300, 100, generator(0, "test")).double().numpy()
    rows = np.stack([features[i] + features[i + 1] + features[i + 2] for i in range(0, 60, 3)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = orders(rows, features)
    assert found.order.mean() == pytest.approx(3.0, abs=0.15)
    assert found.unexplained.max() < 1e-6
    assert orders(features[:20], features).order == pytest.approx(np.ones(20))
    assert np.isnan(orders(np.zeros((1, 100)), features).order[0])


def test_another_dictionary_that_gives_the_same_activations_is_named() -> None:
    draw = two_sets(3, 6_000)
    shift = torch.tensor([0.0, 0.0, 0.0, 0.9, 0.9, 0.9])
    sign = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])[:, None]
    moved = torch.nn.functional.normalize(draw.truth.dictionary + sign * shift, dim=1)
    truth = GeneratorTruth(
        draw.truth.dictionary,
        draw.truth.rates,
        exclusive=draw.truth.exclusive,
        alternatives={"shifted": moved},
        symmetry="a_i + s, b_j - s",
    )
    same = type(draw)(draw.x, draw.codes, truth)
    found = composition(relu_sae(moved, truth.dictionary, -0.1), same)
    assert found.decoder_atomic < 1
    assert found.dictionary == "shifted"
    assert found.by_best.order == pytest.approx(np.ones(6))
    assert found.atomic_by_best().value == 1.0


def test_rows_that_point_from_a_set_s_mean_are_known_by_the_bias() -> None:
    draw = two_sets(4, 6_000)
    mean = torch.zeros(8)
    mean[:4] = 0.25
    rows = draw.truth.dictionary.clone()
    rows[:4] -= mean
    sae = relu_sae(torch.nn.functional.normalize(rows, dim=1), draw.truth.dictionary, -0.1)
    sae.params["b_dec"].copy_(mean)
    sae.params["b_enc"].fill_(0.0)
    found = composition(sae, draw)
    assert found.dictionary == "centered"
    assert found.top_cosine[:4] == pytest.approx(np.full(4, 0.75**0.5), abs=1e-6)
    assert found.decoder_atomic == 0.5
    assert found.atomic_by_best().value == 1.0


def test_lengths_order_and_copies_change_nothing() -> None:
    draw = two_sets(3, 6_000)
    sae = pair_sae(3)
    one, two = composition(sae, draw), composition(rescaled(sae), draw)
    threshold = composition(rescaled(sae), draw, threshold=0.05)
    for other in (two, threshold):
        assert other.order == pytest.approx(one.order, abs=1e-5)
        assert other.conjunction == pytest.approx(one.conjunction, abs=1e-9)
    order = torch.randperm(9, generator=generator(0, "order"))
    rows = torch.cat([sae.params["W_dec"][order], sae.params["W_dec"]])
    encoder = torch.cat([sae.params["W_enc"].t()[order], sae.params["W_enc"].t()])
    copied = composition(relu_sae(rows, encoder, -1.5), draw)
    assert copied.conjunction[:9] == pytest.approx(one.conjunction[order.numpy()], abs=1e-9)
    assert copied.conjunction_share == one.conjunction_share


def test_dead_latents_have_no_composition() -> None:
    draw = two_sets(3, 2_000)
    rows = torch.cat([draw.truth.dictionary, draw.truth.dictionary[:1]])
    bias = torch.cat([torch.full((6,), -0.1), torch.tensor([-9.0])])
    found = composition(relu_sae(rows, bias=bias), draw)
    assert found.n_live == 6
    assert np.isnan([found.order[6], found.conjunction[6], found.firing.explained[6]]).all()
    with pytest.raises(NotEstimable, match="no latent fires"):
        composition(relu_sae(rows, bias=-9.0), draw)


def test_what_chance_gives_is_seldom_a_conjunction() -> None:
    rates = torch.full((40,), 0.08)
    truth = unit_rows(40, 24, generator(0, "test"))
    draw = drawn(independent(rates, 20_000), GeneratorTruth(truth, rates))
    found = composition(relu_sae(truth, bias=-0.6), draw)
    assert found.conjunction_share < 0.1
    assert np.isfinite(found.shuffled.conjunction).sum() <= 2
    assert found.conjunctions().null == found.random.share(found.live)
