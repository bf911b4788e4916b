from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from conftest import trial_table
from sae_placebo.core.errors import NotEstimable
from sae_placebo.stats.calibration import (
    KINDS,
    RATES,
    SHAPES,
    SPREADS,
    DealSpec,
    TrialShare,
    aa_trials,
    deals,
    planted_coverage,
    planted_placebo,
    rates,
)
from sae_placebo.stats.calibration_redraws import APART, planted_redraws
from sae_placebo.stats.replicates import ReplicateKey, ReplicateTable


def pool(
    random: np.random.Generator,
    redraws: int = 12,
    documents: float = 0.1,
    step: float = 0.0,
    arm: str = "redraw",
) -> ReplicateTable:
    """A pool whose re-draws differ by a standard deviation of 1, SAE seeds within them by 0.5."""
    table = ReplicateTable({"here": 60}, {"here": 600}, frozenset({arm}))
    weights = random.multinomial(60, np.full(60, 1 / 60), size=60)
    weights = np.concatenate([np.ones((1, 60)), weights]).T
    for redraw in range(redraws):
        of_redraw = random.normal()
        noise = random.normal(0, documents * 60**0.5, 60) @ weights / 60
        for sae_seed in (0, 1):
            values = of_redraw + 0.5 * random.normal() + noise
            if step:
                values = np.round(values / step) * step
            table.add(
                ReplicateKey(arm, "here", "sae", "x"),
                redraw,
                sae_seed,
                values,
                counted=round(1 / step) if step else 0,
            )
            table.add(ReplicateKey(arm, "here", "sae", "same"), redraw, sae_seed, np.full(61, 3.0))
    table.add(ReplicateKey(arm, "here", "sae", "never"), 0, 0, None, reason="no label occurs")
    return table


def test_trials_of_one_round_share_no_redraw() -> None:
    found = deals(range(100, 113), DealSpec(each=2, trials=8))
    assert [deal.round for deal in found] == [0, 0, 0, 1, 1, 1, 2, 2]
    for turn in range(2):
        used = [s for deal in found if deal.round == turn for s in (*deal.first, *deal.second)]
        assert len(used) == len(set(used)) == 12
    assert deals(range(4), DealSpec(each=2, trials=2), 0) != deals(range(4), DealSpec(trials=2), 1)
    with pytest.raises(NotEstimable, match="takes 6"):
        deals(range(5), DealSpec(each=3))


def test_every_kind_of_interval_of_every_metric_is_there() -> None:
    found = aa_trials(pool(np.random.default_rng(0)), "redraw", DealSpec(trials=6))
    assert set(found["kind"]) == set(KINDS)
    assert set(found["metric"]) == {"x", "same", "never"}
    assert len(found) == 6 * len(KINDS) * 3
    never = found[found["metric"] == "never"]
    assert never["low"].isna().all()
    assert never["reason"].str.contains("no label occurs").all()
    same = found[found["metric"] == "same"]
    assert (same["low"] == 0).all()
    # the same re-draws under the same and other names: one difference, two widths
    x = found[found["metric"] == "x"].pivot(index="trial", columns="kind", values="effect")
    np.testing.assert_allclose(x["paired"], x["unpaired"])
    np.testing.assert_allclose(x["paired"], x["halves"])
    three = aa_trials(pool(np.random.default_rng(0)), "redraw", DealSpec(each=3, trials=2))
    assert "borrowed" not in set(three["kind"])
    with pytest.raises(NotEstimable, match="no metric of 'other'"):
        aa_trials(pool(np.random.default_rng(0)), "other")


def many(n_pools: int, **settings: Any) -> pd.DataFrame:
    random = np.random.default_rng(5)
    parts = [
        aa_trials(pool(random, **settings), "redraw", DealSpec(trials=6), seed).assign(pool=seed)
        for seed in range(n_pools)
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def trials() -> pd.DataFrame:
    return many(14)


def test_true_placebos_leave_zero_out_as_often_as_stated(trials: pd.DataFrame) -> None:
    found = rates(trials).set_index(["metric", "kind"])
    for kind in KINDS:
        row = found.loc["x", kind]
        assert (row["n_trials"], row["n_pools"], row["n_apart"]) == (84, 14, 42)
        assert row["share"] <= 0.12, kind
        assert row["verdict"] != "too narrow"
        assert found.loc["same", kind]["n_points"] == 84
        assert pd.isna(found.loc["same", kind]["share"])
        assert found.loc["never", kind]["reason"].endswith("no label occurs")
    # the seeds' joint part is counted twice: too large, never too small
    assert 0.3 < found.loc["x", "paired"]["variance_ratio"] < 1.2


def test_an_interval_that_is_too_narrow_is_caught(trials: pd.DataFrame) -> None:
    half = (trials["high"] - trials["low"]) / 2
    narrow = trials.assign(
        low=trials["effect"] - half / 8, high=trials["effect"] + half / 8, se=trials["se"] / 8
    )
    found = rates(narrow[narrow["metric"] == "x"])
    assert (found["verdict"] == "too narrow").all()
    wide = trials.assign(low=trials["effect"] - 99 * half, high=trials["effect"] + 99 * half)
    assert "too narrow" not in set(rates(wide)["verdict"])
    assert (rates(wide)["share"].dropna() == 0).all()
    assert list(found.columns) == list(RATES)


def test_one_pool_gives_no_standard_error() -> None:
    row = rates(many(1)).set_index(["metric", "kind"]).loc["x", "paired"]
    assert pd.isna(row["se"])
    assert pd.isna(row["verdict"])
    assert row["reason"].startswith("one pool")


@pytest.mark.parametrize("name", list(SPREADS))
def test_planted_intervals_hold_the_truth(name: str) -> None:
    found = planted_coverage(SHAPES[0], SPREADS[name], 250)
    for share in found.values():
        assert 0.90 <= share.share <= 1
        assert share.n == 250
    assert planted_coverage(SHAPES[0], SPREADS[name], 5) == planted_coverage(
        SHAPES[0], SPREADS[name], 5
    )


def test_planted_placebos_leave_zero_out_seldom() -> None:
    assert planted_placebo(3, 80).share <= 0.15
    assert TrialShare.of(5, 20) == TrialShare(0.25, (0.25 * 0.75 / 20) ** 0.5, 20)


def test_few_redraws_on_their_own_scale_leave_zero_out_seldom() -> None:
    """Seven arms, two re-draws by two seeds, one metric: squares of re-draws are used once."""
    found = {one.arms: one for one in planted_redraws((2, 2), 1.0, 150)}
    for name, most in (("alike", 0.08), (APART, 0.11)):
        one = found[name]
        assert one.placebo is not None
        # it was 10 to 12% and 7% where squares were used twice; 450 and 150 trials have 1.0 and 1.8
        assert 0.01 <= one.placebo.share <= most
        assert 0.01 <= one.effect.share <= most
        assert one.width <= 3.2
        assert one.placebo_width is not None
        assert one.placebo_width <= 3.2
    assert found["alone"].placebo is None
    assert found["alone"].effect.share <= 0.14


def test_a_trial_of_re_draws_is_a_pool(tiny_model: Path, tiny_text: Path, tmp_path: Path) -> None:
    from sae_placebo.core.store import Store
    from sae_placebo.trial.plan import plan_steps
    from sae_placebo.trial.results import gather
    from sae_placebo.trial.run import run
    from sae_placebo.trial.spec import load_trial

    table = trial_table(tiny_model, tiny_text, model_seeds=[0, 1, 2, 3])
    del table["arms"]["redraw_keep_embeddings"]
    table["text"] |= {"train_tokens": 2_000, "heldout_tokens": 1_000}
    spec = load_trial(table)
    run(spec, tmp_path)
    values = gather(plan_steps(spec), Store(tmp_path))
    found = aa_trials(values, "redraw", DealSpec(trials=9)).assign(pool=0)
    told = rates(found).set_index(["metric", "kind"])
    assert {cell.metric for cell in values} == set(found["metric"])
    assert told.loc["explained_variance", "paired"]["n_trials"] == 9
    # l0 is fixed in TopK: it has no width, and is no evidence for its interval
    assert told.loc["l0", "paired"]["n_trials"] + told.loc["l0", "paired"]["n_points"] == 9
    # a reduced version: four re-draws of a tiny model cannot tell 5% from 10%, but can from 50%
    assert told.loc["all", "paired"]["share"] < 0.3
    assert told.loc["all", "halves"]["share"] < 0.3


def test_the_benchmark_writes_its_tables() -> None:
    folder = Path(__file__).parents[2] / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        at = importlib.util.spec_from_file_location("calibration", folder / "calibration.py")
        assert at is not None
        assert at.loader is not None
        module = importlib.util.module_from_spec(at)
        at.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    made = [{"each": 2, **row} for row in rates(many(3)).replace(np.nan, None).to_dict("records")]
    coverage = [
        {"shape": [60, 2, 2], "varies": name, "effect": TrialShare.of(95, 100)._asdict()}
        for name in SPREADS
    ]
    said = module.markdown(made, coverage)
    assert said.count("| x |") == 1
    assert "| 60, 2, 2 | 95.0" in said
    assert "nan" not in said
    own_scale = module.redraw_markdown(module.redraw_table(3))
    assert own_scale.count("\n") == 1 + 2 * 2 * 3
    assert "| alone | null | null |" in own_scale
    # pools share no seed of a model or a SAE
    first, second = (module.protocol(seed, 12) for seed in (0, 1))
    assert not set(first["model_seeds"]) & set(second["model_seeds"])
    assert not set(first["sae_seeds"]) & set(second["sae_seeds"])
