"""Generators with a known truth, and scores against it, by hand and by training."""

from __future__ import annotations

import math

import pytest
import torch

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.spec import generator
from sae_placebo.lab import (
    GENERATORS,
    GeneratorTruth,
    Sample,
    Scaling,
    SuperpositionSpec,
    ceilings,
    expected_share,
    from_truth,
    recovery,
    recovery_null,
    support,
)
from sae_placebo.lab.generators.base import compose
from sae_placebo.saes import SAE, Codes, TopKSpec
from sae_placebo.saes.training import Fit, TrainingSpec

G1 = SuperpositionSpec()
SMALL = SuperpositionSpec(d_in=32, n_features=48, l0=2.0, decay=0.98)


@pytest.fixture(scope="module")
def g1_draw() -> Sample:
    return G1.draw(20_000, generator(1, "tokens"))


def codes(rows: list[dict[int, float]], d_sae: int) -> Codes:
    offsets = torch.tensor([0, *[len(row) for row in rows]]).cumsum(0)
    latents = torch.tensor([latent for row in rows for latent in row], dtype=torch.int64)
    values = torch.tensor([value for row in rows for value in row.values()], dtype=torch.float32)
    return Codes(offsets, latents, values, d_sae)


# the generator


def test_the_default_is_g1_with_five_active_features_after_the_decay(g1_draw: Sample) -> None:
    rates = G1.truth.rates
    assert (G1.d_in, G1.n_features) == (256, 512)
    assert G1.truth.l0 == pytest.approx(5.0, abs=1e-5)
    assert torch.allclose(rates[1:] / rates[:-1], torch.tensor(0.99), atol=1e-5)
    measured = len(g1_draw.codes.latents) / 20_000
    assert measured == pytest.approx(5.0, abs=5 * math.sqrt(5 / 20_000))
    counts = torch.bincount(g1_draw.codes.latents, minlength=512)
    expected = 20_000 * rates
    assert ((counts - expected).abs() < 5 * expected.sqrt() + 3).all()


def test_the_legacy_mode_has_fewer_active_features_than_it_states() -> None:
    legacy = SuperpositionSpec(legacy="unscaled_decay")
    # (5 / 512) (1 - 0.99^512) / (1 - 0.99)
    assert legacy.truth.l0 == pytest.approx(0.970875, abs=1e-5)
    assert torch.equal(legacy.truth.dictionary, G1.truth.dictionary)
    drawn = legacy.draw(20_000, generator(1, "tokens")).codes
    empty = float((drawn.offsets.diff() == 0).double().mean())
    assert empty == pytest.approx(float((1 - legacy.truth.rates.double()).prod()), abs=0.02)
    assert empty > 0.35


def test_tokens_are_sums_of_the_features_that_their_codes_name(g1_draw: Sample) -> None:
    dense = g1_draw.codes.dense()[:500]
    assert torch.allclose(g1_draw.x[:500], dense @ G1.truth.dictionary, atol=1e-5)
    assert torch.allclose(G1.truth.dictionary.norm(dim=1), torch.ones(512), atol=1e-6)
    values = g1_draw.codes.values
    assert values.min() > 0
    assert values.max() <= 1
    assert values.mean() == pytest.approx(0.5, abs=0.01)
    assert values.var() == pytest.approx(1 / 12, abs=0.005)


def test_a_draw_depends_on_settings_and_generator_alone() -> None:
    first, again = (SuperpositionSpec().draw(300, generator(3, "t")) for _ in range(2))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.codes.latents, again.codes.latents)
    other = SuperpositionSpec(seed=1)
    assert not torch.equal(other.truth.dictionary, G1.truth.dictionary)
    assert not torch.equal(G1.draw(300, generator(4, "t")).x, first.x)
    # a truth that has been drawn changes nothing about the value
    assert SuperpositionSpec() == G1
    assert "truth" not in G1.model_dump()
    copied = G1.model_copy(update={"seed": 1})
    assert torch.equal(copied.truth.dictionary, other.truth.dictionary)
    assert GENERATORS["superposition"] is SuperpositionSpec


def test_noise_is_added_to_tokens_and_not_to_codes() -> None:
    clean = SMALL.draw(4_000, generator(0, "t"))
    noisy = SMALL.model_copy(update={"noise": 0.1}).draw(4_000, generator(0, "t"))
    assert torch.equal(clean.codes.latents, noisy.codes.latents)
    assert (noisy.x - clean.x).std() == pytest.approx(0.1, rel=0.02)


def test_correlated_features_keep_their_number_and_share_tokens() -> None:
    spec = SuperpositionSpec(n_features=24, d_in=16, l0=4.0, decay=1.0, correlated=True)
    drawn = spec.draw(40_000, generator(0, "t")).codes
    assert len(drawn.latents) / 40_000 == pytest.approx(4.0, abs=0.05)
    active = (drawn.dense() > 0).double()
    off = ~torch.eye(24, dtype=torch.bool)
    correlated = torch.corrcoef(active.t())[off].mean()
    plain = spec.model_copy(update={"correlated": False}).draw(40_000, generator(0, "t")).codes
    independent = torch.corrcoef((plain.dense() > 0).double().t())[off].mean()
    assert abs(independent) < 0.002
    assert correlated > 0.01


def test_rates_above_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"probability 1\.5: lower l0"):
        SuperpositionSpec(n_features=2, l0=3.0, decay=1.0)
    with pytest.raises(ValueError, match=r"probability 1\.2"):
        SuperpositionSpec(n_features=5, l0=3.0, decay=1.0, correlated=True)


def test_scaling_centers_and_brings_the_norm_to_d_in(g1_draw: Sample) -> None:
    x = Scaling.of(g1_draw.x).apply(g1_draw.x)
    assert float(x.mean(dim=0).abs().max()) < 1e-4
    assert float(x.square().sum(dim=1).mean()) == pytest.approx(256, rel=1e-4)
    with pytest.raises(SpecError, match="no scale"):
        Scaling.of(torch.ones(3, 2))
    with pytest.raises(SpecError, match="no scale"):
        Scaling.of(torch.full((7, 2), 0.1))


# what can be found


def test_ceilings_of_g1(g1_draw: Sample) -> None:
    found = ceilings(g1_draw, n_tokens=300)
    assert found.tokens == 300
    assert found.omp > 0.99
    assert 0.74 < found.linear < 0.82
    # with amplitudes exp(N(0, 1/4)) instead, the published reference of 0.90 for linear codes
    random = generator(0, "lognormal")
    values = torch.exp(0.5 * torch.randn(len(g1_draw.codes.values), generator=random))
    same = Codes(g1_draw.codes.offsets, g1_draw.codes.latents, values, 512)
    lognormal = Sample(compose(same, G1.truth.dictionary), same, G1.truth)
    assert ceilings(lognormal, n_tokens=300).linear == pytest.approx(0.90, abs=0.03)


def test_ceilings_by_hand() -> None:
    # features e1, e2 and their diagonal; a token of e1 + e2 looks like the diagonal, twice over
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5**0.5, 0.5**0.5]])
    truth = GeneratorTruth(rows, torch.tensor([0.5, 0.5, 0.0]))
    one_each = codes([{0: 1.0}, {1: 1.0}, {}], 3)
    assert ceilings(Sample(compose(one_each, rows), one_each, truth)).omp == 1.0
    both = codes([{0: 1.0, 1: 1.0}], 3)
    found = ceilings(Sample(compose(both, rows), both, truth))
    assert (found.omp, found.linear) == (0.5, 0.5)
    nothing = codes([{}, {}], 3)
    with pytest.raises(NotEstimable, match="none to find"):
        ceilings(Sample(compose(nothing, rows), nothing, truth))


# scores by hand


def test_recovery_by_hand() -> None:
    truth = torch.eye(3)
    learned = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, -2.0], [0.0, 5.0, 0.0], [0.0, 0.0, 0.0]])
    found = recovery(learned, truth)
    # e1: 0.6 of the first row; e2: the third row; e3: the second points away, zero is nearer
    assert found.best_cosine.tolist() == pytest.approx([0.6, 1.0, 0.0])
    assert found.best_latent[:2].tolist() == [0, 2]
    assert found.nearest_cosine.tolist() == pytest.approx([0.8, 0.0, 1.0, 0.0])
    assert found.mmcs == pytest.approx(1.6 / 3)
    assert found.mmcs_of_latents == pytest.approx(1.8 / 4)
    assert found.share(0.9) == pytest.approx(1 / 3)
    assert found.share(0.5) == pytest.approx(2 / 3)


def test_recovery_ignores_order_length_and_copies() -> None:
    truth, random = G1.truth.dictionary[:40], generator(0, "test")
    learned = truth + 0.05 * torch.randn(40, 256, generator=random)
    plain = recovery(learned, truth)
    order = torch.randperm(40, generator=random)
    changed = recovery(torch.cat([learned[order] * 7, learned]), truth)
    assert changed.mmcs == pytest.approx(plain.mmcs, abs=1e-6)
    assert changed.mmcs_of_latents == pytest.approx(plain.mmcs_of_latents, abs=1e-6)


def test_support_by_hand() -> None:
    truth, learned = torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.1], [0.7, 0.7]])
    # feature 0 belongs to latent 1, feature 1 to latent 0; latent 2 belongs to none
    true = codes([{0: 1.0}, {0: 1.0, 1: 1.0}, {1: 1.0}, {}], 2)
    found = codes([{1: 1.0}, {1: 1.0, 2: 1.0}, {2: 1.0}, {0: 1.0}], 3)
    score = support(found, true, learned, truth)
    assert score.recall == pytest.approx(2 / 4)
    assert score.precision == pytest.approx(2 / 5)
    # n = (2, 2), m of their latents = (2, 1), over 4 tokens: (4 + 2) / 4 agreements by chance
    assert score.null_recall == pytest.approx(1.5 / 4)
    assert score.null_precision == pytest.approx(1.5 / 5)
    assert score.l0 == pytest.approx(5 / 4)


def test_a_latent_counts_for_one_feature() -> None:
    truth = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    true = codes([{0: 1.0}, {1: 1.0}], 2)
    only = support(codes([{0: 1.0}, {0: 1.0}], 1), true, torch.tensor([[1.0, 0.0]]), truth)
    assert (only.recall, only.precision) == (0.5, 0.5)


def test_the_null_of_support_is_what_shuffled_tokens_reach(g1_draw: Sample) -> None:
    true = g1_draw.codes
    order = torch.randperm(true.n_tokens, generator=generator(5, "shuffle"))
    counts = true.offsets.diff()[order]
    slots = torch.cat([torch.arange(true.offsets[t], true.offsets[t + 1]) for t in order.tolist()])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    shuffled = Codes(offsets, true.latents[slots], true.values[slots], 512)
    rows = G1.truth.dictionary
    measured, perfect = support(shuffled, true, rows, rows), support(true, true, rows, rows)
    assert (perfect.recall, perfect.precision) == (1.0, 1.0)
    assert measured.recall == pytest.approx(perfect.null_recall, rel=0.1)
    assert perfect.null_recall == pytest.approx(float(G1.truth.rates.square().sum()) / 5, rel=0.1)


def test_support_refuses_what_cannot_be_compared() -> None:
    rows = torch.eye(2)
    some, none = codes([{0: 1.0}], 2), codes([{}], 2)
    with pytest.raises(SpecError, match="same draw"):
        support(some, codes([{0: 1.0}, {}], 2), rows, rows)
    with pytest.raises(NotEstimable, match="no latent fires"):
        support(none, some, rows, rows)


# nulls


def test_the_null_of_g1_is_0_19() -> None:
    null = recovery_null(G1.truth.dictionary, 512, seed=0)
    assert null.mmcs == pytest.approx(0.19, abs=0.01)
    assert null.expected_mmcs == pytest.approx(null.mmcs, abs=0.003)
    assert null.share == 0.0
    assert 0 < null.expected_share < 1e-80
    assert 0 < null.mmcs_sd < 0.005
    with pytest.raises(SpecError, match="no spread"):
        recovery_null(G1.truth.dictionary, 4, seed=0, draws=1)


def test_the_share_null_agrees_with_random_directions() -> None:
    # in two dimensions cos > 0.9 is an arc: P = arccos(0.9) / pi
    arc = math.acos(0.9) / math.pi
    assert expected_share(2, 1, 0.9) == pytest.approx(arc)
    assert expected_share(2, 4, 0.9) == pytest.approx(1 - (1 - arc) ** 4)
    truth = torch.nn.functional.normalize(torch.randn(4_000, 4, generator=generator(0, "t")), dim=1)
    null = recovery_null(truth, 8, seed=0, threshold=0.8, draws=20)
    assert null.share == pytest.approx(null.expected_share, abs=0.04)
    assert expected_share(4, 8, -1.0) == 1.0
    with pytest.raises(SpecError, match="and a cosine"):
        expected_share(4, 8, 1.5)


# training


def trained(start: SAE, spec: SuperpositionSpec, n_tokens: int) -> tuple[SAE, Scaling]:
    drawn = spec.draw(n_tokens, generator(1, "training"))
    scaling = Scaling.of(drawn.x)
    fit = Fit(start, TrainingSpec(batch_tokens=512, learning_rate=1e-2), n_tokens)
    for batch in scaling.apply(drawn.x).split(512):
        fit.step(batch)
    return fit.sae(), scaling


def test_training_recovers_a_planted_dictionary_far_above_the_null() -> None:
    truth = SMALL.truth.dictionary
    sae, scaling = trained(TopKSpec(d_sae=96, k=2).create(32, seed=0), SMALL, 120 * 512)
    found, null = recovery(sae.params["W_dec"], truth), recovery_null(truth, 96, seed=0)
    assert null.mmcs < 0.45
    assert found.mmcs > 0.85
    assert found.share(0.9) > 0.7
    assert null.share < 0.01
    held_out = SMALL.draw(4_000, generator(2, "held out"))
    fired = support(
        sae.encode(scaling.apply(held_out.x)), held_out.codes, sae.params["W_dec"], truth
    )
    assert fired.recall > 0.6 > 5 * fired.null_recall
    assert fired.precision > 0.6


def test_training_that_starts_at_the_truth_stays_there() -> None:
    drawn = SMALL.draw(10, generator(0, "t"))
    start = from_truth(TopKSpec(d_sae=48, k=2), drawn, seed=0)
    assert recovery(start.params["W_dec"], SMALL.truth.dictionary).mmcs == pytest.approx(1.0)
    sae, _ = trained(start, SMALL, 60 * 512)
    assert recovery(sae.params["W_dec"], SMALL.truth.dictionary).mmcs > 0.95
    with pytest.raises(NotEstimable, match="cannot start at 48 features"):
        from_truth(TopKSpec(d_sae=47, k=2), drawn, seed=0)
