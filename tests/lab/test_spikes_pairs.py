"""Pairs of spikes that occur together, on codes that were made to have each outcome."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from sae_placebo.core.errors import SpecError
from sae_placebo.lab.spikes.keys import TokenKeys
from sae_placebo.lab.spikes.outcomes import Thresholds
from sae_placebo.lab.spikes.pairs import RELATIONS, PairGrid, pair_rows
from sae_placebo.lab.spikes.planting import Planting
from sae_placebo.saes import SAE, TopKSpec

N, D = 40_000, 24
KEYS = TokenKeys.plain(N)
GRID = PairGrid(frequencies=(0.05,), magnitudes=(0.3,), rate=0.8, repeats=1)


def plan_of(relation: str) -> Planting:
    return Planting.of(GRID.pair(relation, 0.05, 0.3, 0), 0, D, 1.0)


def row_of(
    plan: Planting, latents: list[tuple[torch.Tensor, np.ndarray]]
) -> dict[str, str | int | float | None]:
    """Return the row of the one pair of a plan, with latents of given directions and codes."""
    decoder = torch.nn.functional.normalize(torch.stack([row for row, _ in latents]), dim=1)
    codes = np.stack([np.asarray(code, dtype=np.float32) for _, code in latents], axis=1)
    n = len(latents)
    params = {"W_enc": decoder.t(), "b_enc": torch.zeros(n), "W_dec": decoder}
    sae = SAE(TopKSpec(d_sae=n, k=1), params | {"b_dec": torch.zeros(D)})
    (row,) = pair_rows(sae, sparse.csc_matrix(codes), plan, plan.active(KEYS), Thresholds())
    return row


@pytest.mark.parametrize("relation", RELATIONS)
def test_pairs_occur_as_their_relation_says(relation: str) -> None:
    first, second = plan_of(relation).active(KEYS)
    wanted = {"together": 0.8, "child": 0.8, "independent": 0.05}[relation]
    assert second[first].mean() == pytest.approx(wanted, abs=0.03)
    outside = {"together": 0.2 * 0.05 / 0.95, "child": 0.0, "independent": 0.05}[relation]
    assert second[~first].mean() == pytest.approx(outside, abs=0.004)


def test_apart_one_merged_and_lost() -> None:
    plan = plan_of("together")
    a, b = plan.active(KEYS)
    u, v = plan.dictionary
    aside = torch.linalg.qr(torch.cat([plan.dictionary, torch.eye(D)]).t()).Q.t()[5]
    assert row_of(plan, [(u, a), (v, b)])["outcome"] == "apart"
    both = row_of(plan, [(u + v, a | b), (aside, a)])
    assert (both["outcome"], both["shared_latent"], both["shared_f1"]) == ("merged", 0, 1.0)
    assert row_of(plan, [(u, a), (u + v, b)])["outcome"] == "one"
    # the right direction with the wrong tokens, and the right tokens with another direction
    elsewhere = np.random.default_rng(0).random(N) < 0.05
    assert row_of(plan, [(u + v, elsewhere), (aside, a | b)])["outcome"] == "lost"


def test_a_latent_of_the_sum_is_none_of_its_own_and_one_for_few_tokens_is_not_merged() -> None:
    plan = plan_of("together")
    a, b = plan.active(KEYS)
    u, v = plan.dictionary
    # a cosine of .71 to both, past the threshold of a detected spike
    twice = row_of(plan, [(u + v, a), (v + u, b)])
    assert (twice["outcome"], twice["first_latent"]) == ("merged", None)
    assert row_of(plan, [(u + v, a & ~b), (u + 0.05 * v, b & ~a)])["outcome"] == "lost"


def test_an_absorbed_child_is_one() -> None:
    plan = plan_of("child")
    parent, child = plan.active(KEYS)
    u, v = plan.dictionary
    half = np.random.default_rng(1).random(N) < 0.5
    row = row_of(plan, [(u, parent & ~(child & half)), (u + v, child & half)])
    assert (row["outcome"], row["first_latent"], row["second_latent"]) == ("one", 0, None)


def test_pairs_on_few_tokens_are_not_judged() -> None:
    grid = GRID.pair("independent", 1e-4, 0.3, 0)
    plan = Planting.of(grid, 0, D, 1.0)
    a, b = plan.active(KEYS)
    assert a.sum() < 10
    assert row_of(plan, [(plan.dictionary[0], a), (plan.dictionary[1], b)])["outcome"] is None


def test_every_training_holds_each_relation_and_too_much_energy_is_refused() -> None:
    grid = PairGrid(repeats=5)
    trainings = grid.trainings(0)
    spikes = [spike for training in trainings for spike in training]
    assert len({spike.name for spike in spikes}) == len(spikes) == 5 * 3 * 2
    for training in trainings:
        relations = [spike.name.split()[0] for spike in training]
        assert len({relations.count(one) for one in RELATIONS}) == 1
        energy = sum(s.frequency * s.squared_amplitude() * s.magnitude**2 for s in training)
        assert energy <= grid.energy_share
    with pytest.raises(SpecError, match=r"6 spikes that are planted together.*make them smaller"):
        PairGrid(frequencies=(0.1,), magnitudes=(1.0,)).trainings(0)
    with pytest.raises(SpecError, match="more than the 4 that may be planted"):
        PairGrid(per_training=4).trainings(0)


@pytest.mark.parametrize(("frequency", "rate"), [(0.95, 0.8), (0.85, 0.8), (0.6, 0.3)])
def test_a_rate_that_two_frequent_spikes_cannot_have_is_refused(
    frequency: float, rate: float
) -> None:
    least = 2 - 1 / frequency
    grid: dict[str, Any] = {"frequencies": (frequency,), "magnitudes": (0.02,), "repeats": 1}
    with pytest.raises(
        SpecError, match=f"are together on {least:.4g} or more of .* not on {rate:g}"
    ):
        PairGrid(rate=rate, **grid).trainings(0)
    (spikes,) = PairGrid(rate=least + 1e-6, **grid).trainings(0)
    Planting.of(spikes, 0, 64, 1.0)  # it refuses what has no such probabilities
