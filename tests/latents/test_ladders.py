"""The table of ladders: values, what each rung adds, and what is missing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sae_placebo.latents.ladder.fitting import RUNGS
from sae_placebo.latents.ladder.table import COLUMNS, SUBJECTS, ladder_table
from sae_placebo.stats.replicates import ReplicateKey, ReplicateTable

PLACE, SAE, LEVEL = "resid_post.1", "topk", 0.95
LEVELS = dict(zip(RUNGS[1:], (0.05, 0.2, 0.3, 0.32, 0.33, 0.5, 0.55), strict=True))


def table_of(missing: tuple[str, ...] = (), sae_seeds: int = 3) -> ReplicateTable:
    """One drawn arm of two re-draws; every rung has its level, give or take seeds and documents."""
    found = ReplicateTable({PLACE: 40}, {PLACE: 4_000}, frozenset({"redraw"}))
    draw = np.random.default_rng(0)
    documents = draw.normal(0, 0.002, 61)
    documents[0] = 0
    for prefix in SUBJECTS.values():
        for rung, level in LEVELS.items():
            for model in range(2):
                for seed in range(sae_seeds):
                    cell = ReplicateKey("redraw", PLACE, SAE, prefix + rung)
                    if prefix + rung in missing:
                        found.add(cell, model, seed, None, reason="there is no placebo")
                        continue
                    found.add(cell, model, seed, level + 0.01 * model + 0.001 * seed + documents)
    return found


def latents() -> pd.DataFrame:
    return pd.DataFrame(
        {"arm": "redraw", "hookpoint": PLACE, "sae": SAE, "n_active": [0, 7, 8, 9, 100]}
    )


def test_a_row_for_every_subject_and_rung_but_the_constant() -> None:
    found = ladder_table(table_of(), latents(), {PLACE: 32}, 8, LEVEL)
    assert list(found.columns) == list(COLUMNS)
    assert found[["subject", "rung"]].apply(tuple, axis=1).tolist() == [
        (subject, rung) for subject in SUBJECTS for rung in RUNGS[1:]
    ]
    n = found.groupby("subject")["n"].agg(set).to_dict()
    assert n == {"latents": {3}, "activations": {32}}  # three latents fire eight times or more
    assert found["model_seed"].isna().all()
    assert found["sae_seed"].isna().all()
    assert found["reason"].isna().all()


def test_values_are_means_over_seeds_and_gains_are_differences_of_rungs() -> None:
    found = ladder_table(table_of(), latents(), {PLACE: 32}, 8, LEVEL)
    for _, part in found.groupby("subject"):
        np.testing.assert_allclose(part["value"], np.array([*LEVELS.values()]) + 0.006)
        np.testing.assert_allclose(part["gain"].iloc[0], part["value"].iloc[0])
        np.testing.assert_allclose(part["gain"].iloc[1:], np.diff(part["value"]))
    assert (found["low"] < found["value"]).all()
    assert (found["value"] < found["high"]).all()
    # seeds and documents move all rungs alike, so what a rung adds is known better than its value
    later = found[found["rung"] != RUNGS[1]]
    width, of_gain = later["high"] - later["low"], later["gain_high"] - later["gain_low"]
    assert (of_gain < 0.1 * width).all()


def test_a_rung_that_is_missing_says_why_and_the_next_gains_over_the_last_that_is_known() -> None:
    missing = tuple(f"{SUBJECTS['latents']}{rung}" for rung in ("bag", "placebo_latents"))
    found = ladder_table(table_of(missing), latents(), {PLACE: 32}, 8, LEVEL)
    rows = found[found["subject"] == "latents"].set_index("rung")
    for rung in ("bag", "placebo_latents"):
        assert "there is no placebo" in rows.loc[rung, "reason"]
        assert rows.loc[rung, ["value", "low", "gain", "gain_high"]].isna().all()
    assert rows.loc["window", "gain"] == pytest.approx(LEVELS["window"] - LEVELS["pair"])
    assert found[found["subject"] == "activations"]["value"].notna().all()


def test_one_seed_has_values_and_no_interval() -> None:
    found = ladder_table(table_of(sae_seeds=1), latents(), {PLACE: 32}, 8, LEVEL)
    assert found["value"].notna().all()
    assert found["low"].isna().all()
    assert found["gain"].notna().all()
    assert found["gain_low"].isna().all()
    assert found["reason"].str.contains("seed").all()
