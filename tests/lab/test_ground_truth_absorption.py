"""Absorption, holes and hedging of SAEs made by hand."""

from __future__ import annotations

import pytest
import torch

from planted_truths import absorbing_sae, drawn, hierarchy, independent, relu_sae, rescaled
from sae_placebo.core.errors import NotEstimable
from sae_placebo.core.spec import generator
from sae_placebo.lab import GeneratorTruth
from sae_placebo.lab.generators.base import unit_rows
from sae_placebo.lab.scores.absorption import absorption, hedging_slope

HALF = 0.5**0.5


def test_an_absorbing_pair() -> None:
    found = absorption(absorbing_sae(), hierarchy(20_000))
    assert len(found.pairs) == 3
    for pair in found.pairs:
        assert (pair.parent, pair.parent_latent) == (0, 0)
        assert pair.child_latent == pair.child
        assert pair.off_given_child.value == 1.0
        assert pair.off_given_child.low > 0.99
        assert pair.off_given_parent_only.value == 0.0
        assert pair.parent_share == pytest.approx(HALF)
        assert pair.score == pytest.approx(HALF)
        assert pair.excess == pytest.approx(HALF)
        # fires on 0.25 x 0.512 of tokens
        assert pair.null_off == pytest.approx(1 - 0.25 * 0.8**3, abs=0.01)
        assert pair.null_share == pytest.approx(0.056, abs=0.001)
    assert found.mean() == pytest.approx(HALF)
    assert {(hole.feature, hole.other) for hole in found.holes} == {(0, 1), (0, 2), (0, 3)}
    assert all(hole.on_with == 0.0 for hole in found.holes)
    # without one child the others may still silence it
    assert all(hole.on_without == pytest.approx(0.64, abs=0.02) for hole in found.holes)


@pytest.mark.parametrize("dependent", [True, False])
def test_an_atomic_dictionary_absorbs_nothing(dependent: bool) -> None:
    draw = hierarchy(20_000, dependent)
    found = absorption(relu_sae(draw.truth.dictionary), draw)
    assert found.holes == ()
    if dependent:
        assert (found.mean(), found.mean_excess()) == (0.0, 0.0)
        assert found.tested == 9
    assert all(pair.parent_share == 0.0 for pair in found.pairs)


def test_what_a_latent_misses_anyway_is_no_absorption() -> None:
    # the parent's latent fires on half of its tokens, child or not; children's rows hold some parent
    dense = hierarchy(20_000).codes.dense()
    dense[:, 0] *= 0.5 + torch.rand(len(dense), generator=generator(0, "amplitude"))
    truth = hierarchy(1).truth
    decoder = truth.dictionary.clone()
    decoder[1:] = torch.nn.functional.normalize(decoder[1:] + 0.5 * decoder[0], dim=1)
    sae = relu_sae(decoder, truth.dictionary, torch.tensor([-1.0, 0, 0, 0]))
    found = absorption(sae, drawn(dense, truth))
    assert found.mean() == pytest.approx(0.5 * 0.447, abs=0.02)
    assert found.mean_excess() < 0.03
    assert found.holes == ()


def test_pairs_without_a_score_say_why() -> None:
    draw = hierarchy(5_000)
    one = relu_sae(torch.nn.functional.normalize(draw.truth.dictionary.sum(0, keepdim=True), dim=1))
    found = absorption(one, draw)
    assert all(pair.score is None for pair in found.pairs)
    assert "one latent is nearest to child and parent" in found.pairs[0].reason
    with pytest.raises(NotEstimable, match="no child"):
        found.mean()
    with pytest.raises(NotEstimable, match="nothing can be absorbed"):
        absorption(relu_sae(draw.truth.dictionary, bias=-9.0), draw)
    never = drawn(draw.codes.dense() * torch.tensor([1.0, 1, 1, 0]), draw.truth)
    pair = absorption(absorbing_sae(), never).pairs[2]
    assert pair.off_given_child.value is None


# hedging


def pair_law(child_given: float, child_else: float) -> tuple[torch.Tensor, GeneratorTruth]:
    first = independent(torch.tensor([0.25]), 20_000)[:, 0]
    draw = torch.rand(20_000, generator=generator(0, "child"))
    second = (draw < torch.where(first > 0, child_given, child_else)).float()
    truth = GeneratorTruth(torch.eye(2, 50), torch.tensor([0.25, 0.1]))
    return torch.stack([first, second], dim=1), truth


@pytest.mark.parametrize(
    ("given", "otherwise", "lean"), [(0.2, 0.0, 0.24), (0.2, 0.1, 0.22), (0.1, 0.2, -0.34)]
)
def test_the_sign_of_what_one_latent_carries(given: float, otherwise: float, lean: float) -> None:
    dense, truth = pair_law(given, otherwise)
    row = torch.nn.functional.normalize(truth.dictionary[:1] + lean * truth.dictionary[1:], dim=1)
    for sign in (1.0, -1.0):
        sae = relu_sae(sign * row, row)
        found = hedging_slope(sae, drawn(dense, truth))
        assert found.slope > 0
        assert (found.agree, found.n_sign, found.n) == (1, 1, 1)
        assert found.low is None
        assert "too few" in found.reason
    against = torch.nn.functional.normalize(
        truth.dictionary[:1] - lean * truth.dictionary[1:], dim=1
    )
    assert hedging_slope(relu_sae(against, row), drawn(dense, truth)).agree == 0


def correlated(n_tokens: int = 20_000) -> tuple[torch.Tensor, GeneratorTruth]:
    """Return 24 features in superposition, of which each even one brings along the next one."""
    dense = independent(torch.full((24,), 0.1), n_tokens)
    along = torch.rand(n_tokens, 12, generator=generator(0, "along")) < 0.4
    dense[:, 1::2] = torch.maximum(dense[:, 1::2], dense[:, ::2] * along)
    return dense, GeneratorTruth(unit_rows(24, 20, generator(0, "rows")), torch.full((24,), 0.1))


def test_hedged_latents_have_a_slope_and_pure_ones_do_not() -> None:
    dense, truth = correlated()
    draw = drawn(dense, truth)
    pure = hedging_slope(relu_sae(truth.dictionary), draw)
    assert abs(pure.slope) < 0.01
    neighbor = torch.arange(24) ^ 1
    rows = torch.nn.functional.normalize(truth.dictionary + 0.3 * truth.dictionary[neighbor], dim=1)
    hedged = hedging_slope(relu_sae(rows), draw)
    assert hedged.low > 0.2
    assert hedged.slope > hedged.null + 5 * hedged.null_sd
    assert hedged.agree >= 0.95 * hedged.n_sign
    assert hedged.n_sign >= 24
    assert hedged.sign_p < 1e-4
    assert hedged.n == 24 * 23
    # features that go along with none of a latent's own: leaning on them follows nothing
    other = torch.nn.functional.normalize(
        truth.dictionary + 0.3 * truth.dictionary[(torch.arange(24) + 4) % 24], dim=1
    )
    blind = hedging_slope(relu_sae(other), draw)
    assert blind.low < 0 < blind.high or abs(blind.slope) < 0.15
    again = hedging_slope(rescaled(relu_sae(rows)), draw)
    assert again.slope == pytest.approx(hedged.slope, abs=1e-6)


def test_absorption_does_not_depend_on_lengths_or_order() -> None:
    draw, sae = hierarchy(10_000), absorbing_sae()
    assert absorption(rescaled(sae), draw).mean() == pytest.approx(HALF, abs=1e-6)
    order = torch.tensor([2, 0, 3, 1])
    moved = relu_sae(sae.params["W_dec"][order], sae.params["W_enc"].t()[order])
    assert absorption(moved, draw).mean() == pytest.approx(HALF, abs=1e-6)
    assert absorption(moved, draw).pairs[0].parent_latent == 1


def test_hedging_needs_latents_and_correlations() -> None:
    dense, truth = pair_law(0.2, 0.0)
    with pytest.raises(NotEstimable, match="no latent that fires"):
        hedging_slope(relu_sae(truth.dictionary, bias=-9.0), drawn(dense, truth))
    constant = drawn(torch.ones(100, 2), truth)
    with pytest.raises(NotEstimable, match="no two features are correlated"):
        hedging_slope(relu_sae(truth.dictionary), constant)
