"""Decoys keep false targets near the rate asked for, and find nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sae_placebo.core.errors import SpecError
from sae_placebo.latents.origin.decoy_scores import decoy_table
from sae_placebo.latents.origin.decoys import decoys


def mixture(seed: int, n: int = 2000, real: float = 0.2) -> tuple[np.ndarray, ...]:
    """Return scores of targets, of decoys, and which targets are real."""
    random = np.random.default_rng(seed)
    is_real = random.random(n) < real
    return random.normal(np.where(is_real, 3.0, 0.0)), random.standard_normal(n), is_real


@pytest.mark.parametrize("rate", [0.1, 0.2])
def test_false_discoveries_are_near_nominal(rate: float) -> None:
    false, n_passing = [], []
    for seed in range(60):
        targets, others, is_real = mixture(seed)
        found = decoys(targets, others, rate, draws=2)
        assert found.threshold is not None
        assert found.achieved is not None
        assert found.achieved <= rate
        passes = targets >= found.threshold
        assert passes.sum() == found.passing
        false.append(1 - is_real[passes].mean())
        n_passing.append(found.passing)
    # 4 in 5 targets are false ones, so that the rate achieved is four fifths of nominal
    assert np.mean(false) == pytest.approx(0.8 * rate, abs=0.015)
    assert np.mean(n_passing) > 250


def test_two_equal_groups_pass_almost_nothing() -> None:
    found = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        one = decoys(random.standard_normal(500), random.standard_normal(500), draws=2)
        found.append(one.passing)
        if one.passing is None:
            assert "at no score" in str(one.reason)
            assert one.low is None
    assert np.mean([one is None for one in found]) > 0.95


def test_unequal_numbers_are_scaled_and_nan_never_passes() -> None:
    targets, others, _ = mixture(0, n=4000)
    equal = decoys(targets, others, draws=2)
    fewer = decoys(targets, others[:1000], draws=2)
    assert equal.share == pytest.approx(fewer.share, abs=0.03)
    dead = decoys(targets, np.append(others, np.full(4000, np.nan)), draws=2)
    # half as many decoys per latent, so more may pass
    assert dead.passing > equal.passing
    assert dead.n_decoys == 8000
    none = decoys(np.full(5, np.nan), others, draws=2)
    assert none.passing is None
    assert none.reason


def test_the_interval_covers_what_other_draws_give() -> None:
    counts = [decoys(*mixture(seed)[:2], draws=2).passing for seed in range(100, 160)]
    expected = np.mean(counts)
    covered = [
        found.low <= expected <= found.high
        for found in (decoys(*mixture(seed)[:2], draws=100) for seed in range(25))
    ]
    assert np.mean(covered) > 0.8
    found = decoys(*mixture(0)[:2], draws=50)
    assert found == decoys(*mixture(0)[:2], draws=50)
    assert "one SAE" in str(found.remark)


def test_seeds_that_differ_widen_the_interval() -> None:
    parts = [mixture(seed, 1000, real) for seed, real in enumerate((0.1, 0.3, 0.2, 0.4))]
    targets, others = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    seeds = np.repeat(np.arange(4), 1000)
    alone = decoys(targets, others, draws=100)
    by_seed = decoys(targets, others, 0.1, seeds, seeds, draws=100)
    assert by_seed.passing == alone.passing
    assert by_seed.remark is None
    assert by_seed.high - by_seed.low > 1.5 * (alone.high - alone.low)


def test_what_is_refused() -> None:
    with pytest.raises(SpecError, match="between 0 and 1"):
        decoys(np.ones(3), np.ones(3), 1.0)
    with pytest.raises(SpecError, match="one of each"):
        decoys(np.ones(3), np.ones(0))
    with pytest.raises(SpecError, match="one for each"):
        decoys(np.ones(3), np.ones(3), 0.1, np.zeros(2, int))


def scored(**lifts: np.ndarray) -> pd.DataFrame:
    """Return latents of some arms with these lifts, and attributes that are as large as the lifts."""
    parts = [
        pd.DataFrame({"arm": arm, "output_lift": lift, "attribute_r2": lift / 10})
        for arm, lift in lifts.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(hookpoint="resid_post.0", sae="topk", model_seed=pd.NA, sae_seed=0)


def passing(latents: pd.DataFrame, *same_model: str) -> pd.DataFrame:
    table = decoy_table(latents, "trained", "redraw", same_model, None, 0.1, 0, {})
    return table.set_index("score")


def test_of_several_kinds_of_decoys_the_harder_one_counts() -> None:
    random = np.random.default_rng(0)
    trained, frozen = random.normal(2, 0.3, 400), random.normal(2, 0.3, 400)
    latents = scored(trained=trained, redraw=random.normal(1, 0.1, 400), frozen=frozen)
    alone, both = passing(latents), passing(latents, "frozen")
    # with decoys of a re-draw, which promotes nothing, nearly all directions would pass
    assert alone["passing"].isna().all()
    assert "of the same model" in alone.loc["output_lift", "reason"]
    for name in ("attribute_r2", "output_lift"):
        assert both.loc[name, "placebo"] == "frozen"
        assert pd.isna(both.loc[name, "passing"]) or both.loc[name, "passing"] < 40
    easy = passing(
        latents.assign(output_lift=lambda t: t["output_lift"].where(t["arm"] != "frozen", 0)),
        "frozen",
    )
    assert easy.loc["output_lift", "passing"] > 350
