"""Outcomes of spikes, on codes that were made to have each of them, and on SAEs that were trained."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import sparse

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.lab.spikes.kept_activations import KeptActivations
from sae_placebo.lab.spikes.keys import TokenKeys
from sae_placebo.lab.spikes.outcomes import Thresholds, best_threshold
from sae_placebo.lab.spikes.planting import Planting, Spike
from sae_placebo.lab.spikes.recovery import (
    RecoveredDirections,
    decoy_plan,
    look,
    recovered,
    share_detected,
)
from sae_placebo.saes import SAE, TopKSpec
from sae_placebo.saes.training_spec import TrainingSpec

N, D = 20_000, 24
KEYS = TokenKeys.plain(N)


def plan_of(*spikes: Spike) -> Planting:
    return Planting.of(spikes, 0, D, 1.0)


def spike(name: str = "a", **settings: object) -> Spike:
    return Spike.model_validate({"name": name, "frequency": 0.05, "magnitude": 1.0} | settings)


def found(plan: Planting, latents: list[tuple[torch.Tensor, np.ndarray]]) -> RecoveredDirections:
    """Return what is found of a plan by latents of given decoder rows and codes, among eight others."""
    random = np.random.default_rng(1)
    others = torch.linalg.qr(torch.cat([plan.dictionary, torch.eye(D)]).t()).Q.t()[-8:]
    decoder = torch.cat([torch.stack([row for row, _ in latents]), others])
    codes = np.zeros((N, len(decoder)), dtype=np.float32)
    for i, (_, code) in enumerate(latents):
        codes[:, i] = code
    codes[:, len(latents) :] = random.random((N, 8)) < 0.05
    sae = SAE(
        TopKSpec(d_sae=len(decoder), k=1),
        {
            "W_enc": decoder.t(),
            "b_enc": torch.zeros(len(decoder)),
            "W_dec": decoder,
            "b_dec": torch.zeros(D),
        },
    )
    return look(sae, sparse.csc_matrix(codes), plan, plan.active(KEYS), Thresholds())


def test_detected_also_behind_weak_firings_elsewhere() -> None:
    plan = plan_of(spike())
    (on,) = plan.active(KEYS)
    noise = np.random.default_rng(0).random(N) < 0.3
    one = found(plan, [(plan.dictionary[0], on + 0.2 * (noise & ~on))])
    assert one.outcome == ("detected",)
    assert one.f1[0] == 1.0
    expected = 2 * on.sum() / (2 * on.sum() + (noise & ~on).sum())
    assert one.firing_f1[0] == pytest.approx(expected)
    assert one.precision[0] == pytest.approx(on.sum() / (on | noise).sum())
    assert (one.latent[0], one.n_latents[0], one.n_tokens[0]) == (0, 1, on.sum())


def test_the_direction_without_the_tokens_is_lost_and_so_are_the_tokens_without_the_direction() -> (
    None
):
    plan = plan_of(spike(), spike("b"))
    a, b = plan.active(KEYS)
    elsewhere = np.random.default_rng(0).random(N) < 0.05
    both = found(plan, [(plan.dictionary[0], elsewhere), (torch.eye(D)[0], b.astype(float))])
    assert both.outcome == ("lost", "lost")
    assert both.cosine[0] == pytest.approx(1.0)
    assert both.f1[0] < 0.12
    assert both.best_f1[1] == 1.0
    assert a.any()


def test_split_and_composed() -> None:
    plan = plan_of(spike(), spike("b"), spike("c"))
    a, b, c = plan.active(KEYS)
    first = np.random.default_rng(0).random(N) < 0.5
    direction, second, third = plan.dictionary
    aside = torch.linalg.qr(torch.cat([plan.dictionary, torch.eye(D)]).t()).Q.t()[5]
    tilted = [torch.nn.functional.normalize(direction + s * aside, dim=0) for s in (1.2, -1.2)]
    mixed = torch.nn.functional.normalize(second + third, dim=0) * 0.99
    mixed = torch.nn.functional.normalize(mixed + 0.2 * aside, dim=0)
    told = found(
        plan, [(tilted[0], a & first), (tilted[1], a & ~first), (mixed, (b | c).astype(float))]
    )
    assert told.outcome == ("split", "composed", "composed")
    assert 0.35 < told.cosine[0] < 0.7
    assert told.cosine[1] == pytest.approx(1 / np.sqrt(2), abs=0.02)


def test_a_parent_whose_latent_is_silent_on_its_child_is_absorbed() -> None:
    plan = plan_of(spike(), spike("b", frequency=0.02, parent="a"))
    parent, child = plan.active(KEYS)
    both = torch.nn.functional.normalize(plan.dictionary.sum(0), dim=0)
    told = found(plan, [(plan.dictionary[0], parent & ~child), (both, child.astype(float))])
    assert told.outcome[0] == "absorbed"
    # the child's latent is at 45 degrees, .707: past the threshold, and it fires with it
    assert told.outcome[1] == "detected"
    whole = found(plan, [(plan.dictionary[0], parent.astype(float)), (both, child.astype(float))])
    assert whole.outcome[0] == "detected"


def test_a_circle_is_found_by_the_latents_of_its_plane_together() -> None:
    plan = plan_of(spike(dimension=2))
    codes = plan.codes(KEYS).dense().numpy()
    ends = [(plan.dictionary[i] * s, (s * codes[:, i]).clip(0)) for i in (0, 1) for s in (1, -1)]
    assert found(plan, ends).outcome == ("detected",)
    assert found(plan, ends).n_latents[0] == 4
    assert found(plan, ends).f1[0] < 0.8
    assert found(plan, ends[:1]).outcome != ("split",)


def test_too_few_tokens_are_not_judged() -> None:
    plan = plan_of(spike(frequency=1e-4))
    (on,) = plan.active(KEYS)
    assert 0 < on.sum() < 10
    told = found(plan, [(plan.dictionary[0], on.astype(float))])
    assert told.outcome == ("",)
    with pytest.raises(NotEstimable, match="enough held-out tokens"):
        share_detected(told)


def test_the_threshold_with_the_largest_f1() -> None:
    values = np.array([5, 4, 3, 2, 1], dtype=np.float32)
    right = np.array([True, True, False, False, False])
    assert best_threshold(values, right, 2) == 4.0
    assert best_threshold(values, ~right, 3) == 1.0
    assert best_threshold(values, right & False, 2) == np.inf
    # of three equal values one is right: a threshold takes them all, whichever comes first
    equal = np.array([5, 5, 5, 4], dtype=np.float32)
    for place in range(3):
        right = np.array([place == 0, place == 1, place == 2, True])
        assert best_threshold(equal, right, 2) == 4.0


@pytest.fixture(scope="module")
def bed() -> Iterator[KeptActivations]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, D, generator=random) * torch.linspace(3, 0.5, D)
    keys = TokenKeys.plain(30_000, "train")
    yield KeptActivations(x[:30_000] + 5, keys, x[30_000:] + 5, TokenKeys.plain(10_000, "heldout"))
    torch.set_num_threads(before)


def test_training_finds_large_spikes_and_no_small_ones_nor_decoys(bed: KeptActivations) -> None:
    large = [spike(f"large {i}", frequency=0.02, magnitude=1.5) for i in range(3)]
    small = [spike(f"small {i}", frequency=0.02, magnitude=0.05) for i in range(3)]
    plan = bed.plan(large + small, 1)
    recipe, training = TopKSpec(d_sae=48, k=4), TrainingSpec(batch_tokens=512)
    sae = bed.train(plan, recipe, training, 0)
    without = bed.train(None, recipe, training, 0)
    told = recovered(sae, bed.planted(plan), plan, bed.heldout_keys, decoys=4, without=without)
    assert told.found.outcome == ("detected",) * 3 + ("lost",) * 3
    assert told.without is not None
    assert not told.without.detected.any()
    hits, _, high, n = told.null_share()
    assert (hits, n) == (0.0, 24)
    assert high < 0.2
    rows = told.table()
    assert rows[0]["outcome"] == "detected"
    assert rows[0]["f1"] > 0.9 > 0.3 > rows[0]["null_f1"]
    assert share_detected(told.found)[0] == 0.5


def test_training_is_the_same_twice_and_needs_a_batch(bed: KeptActivations) -> None:
    short = KeptActivations(bed.x[:600], bed.keys[np.arange(600)], bed.heldout, bed.heldout_keys)
    plan = short.plan([spike()], 0)
    recipe, training = TopKSpec(d_sae=8, k=2), TrainingSpec(batch_tokens=128)
    one, other = (short.train(plan, recipe, training, 0) for _ in range(2))
    assert all(torch.equal(one.params[name], other.params[name]) for name in one.params)
    with pytest.raises(SpecError, match="less than a batch"):
        short.train(plan, recipe, TrainingSpec(), 0)


def test_the_unit_of_magnitudes_is_the_rms_norm_about_the_mean(bed: KeptActivations) -> None:
    expected = float((bed.x - bed.x.mean(0)).square().sum(1).mean().sqrt())
    assert bed.scale() == pytest.approx(expected, rel=1e-5)
    assert np.allclose(bed.covariance(), np.cov(bed.x.numpy().T, bias=True), rtol=1e-3, atol=1e-3)


def test_decoys_have_the_law_and_not_the_tokens(bed: KeptActivations) -> None:
    plan = bed.plan([spike(), spike("b", frequency=0.02, parent="a")], 0)
    others = decoy_plan(plan, 3)
    assert [s.frequency for s in others.spikes] == [0.05] * 3 + [0.02] * 3
    assert not any(s.parent for s in others.spikes)
    mine, theirs = plan.active(KEYS)[0], others.active(KEYS)[0]
    assert abs(np.corrcoef(mine, theirs)[0, 1]) < 0.04
