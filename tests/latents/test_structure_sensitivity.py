"""How many latents change class when a threshold moves."""

from __future__ import annotations

import numpy as np
import pandas

from sae_placebo.latents.classes.classification import ClassThresholds
from sae_placebo.latents.classes.sensitivity import COLUMNS, sensitivity


def test_the_latents_near_a_threshold_are_counted() -> None:
    n = 10
    columns = {
        "n_active": np.r_[0.0, np.full(n, 100.0)],
        "density": np.r_[0.0, np.full(n, 0.01)],
        "effective_tokens": np.full(n + 1, 50.0),
        "top_token_mass": np.r_[0.0, np.full(3, 0.8), np.full(7, 0.5)],
        "top_token_recall": np.r_[0.0, np.full(n, 0.97)],
        "family_mass": np.full(n + 1, 0.5),
    }
    table = sensitivity({name: one[:, None] for name, one in columns.items()}, ClassThresholds())
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 2 * len(ClassThresholds.model_fields)
    rows = {(r.threshold, r.change): r for r in table.itertuples()}
    # a mass of .72 takes three in; one of 1.08 stops at 1
    down, up = rows["mass", -0.2], rows["mass", 0.2]
    assert (down.n_latents, down.n_moved, down.share_moved) == (10, 3, 0.3)
    assert down.most_moved == "undecided > single_token"
    assert (up.moved_to, up.n_moved) == (1.0, 0)
    assert pandas.isna(up.most_moved)
    # none of the other thresholds has a latent near it
    assert table.loc[table["threshold"] != "mass", "n_moved"].eq(0).all()
    assert rows["min_firings", -0.2].moved_to == 6
    assert rows["min_firings", 0.2].moved_to == 10
    # the lift of 1 may go down and up; a threshold at its end has no share, and says why
    ended = sensitivity(columns, ClassThresholds(seed_r=1.0))
    row = ended[(ended["threshold"] == "seed_r") & (ended["change"] > 0)].iloc[0]
    assert np.isnan(row["share_moved"])
    assert "end of its range" in row["reason"]


def test_without_a_living_latent_there_is_no_share() -> None:
    table = sensitivity({"n_active": np.zeros(3)}, ClassThresholds())
    assert table["share_moved"].isna().all()
    assert set(table["reason"]) >= {"no latent fires"}
