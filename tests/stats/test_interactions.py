"""Interactions: by hand, against the effect of two arms, and coverage by simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas
import pytest

from sae_placebo.stats.designs import Quad
from sae_placebo.stats.effects import document_weights
from sae_placebo.stats.inference import difference
from sae_placebo.stats.interactions import COLUMNS, interactions, signed_interval
from sae_placebo.stats.replicates import ReplicateKey, ReplicateTable
from sae_placebo.stats.spreads import Spreads

QUAD = Quad("trained", "redraw_embeddings", "keep", "redraw")


@dataclass(frozen=True)
class Described:
    unit: str = "share"
    better: str = "higher"
    null: str = "0"


METRICS = {"score": Described()}
PLACE = ("resid_post.1", "topk", "score")


def table_of(arms: Mapping[str, np.ndarray], n_documents: int = 50) -> ReplicateTable:
    """Return a table with each arm's values [model, sae_seed, replicate]; `trained` is given."""
    table = ReplicateTable(
        {PLACE[0]: n_documents}, {PLACE[0]: 1_000}, frozenset(arms) - {"trained"}
    )
    for arm, values in arms.items():
        for model, seed in np.ndindex(values.shape[:2]):
            table.add(ReplicateKey(arm, *PLACE), model, seed, values[model, seed])
    return table


def constant(values: list[list[float]]) -> np.ndarray:
    """Return values [model, sae_seed] that are the same in every resample."""
    return np.repeat(np.array(values)[:, :, None], 21, axis=2)


def row_of(table: ReplicateTable) -> pandas.Series:
    found = interactions(table, {"embeddings_x_blocks": QUAD}, METRICS)
    assert len(found) == 1
    return found.iloc[0]


def test_by_hand() -> None:
    arms = {
        "trained": constant([[5.0, 7.0]]),
        "redraw_embeddings": constant([[1.0, 2.0], [3.0, 2.0]]),
        "keep": constant([[4.0, 4.0], [2.0, 2.0]]),
        "redraw": constant([[1.0, 1.0], [1.0, 3.0]]),
    }
    row = row_of(table_of(arms))
    assert row["effect"] == pytest.approx((6 - 2) - (3 - 1.5))
    # [model, seed]: 5-1-4+1, 7-2-4+1; 5-3-2+1, 7-2-2+3 = 1, 2; 1, 6: mean squares of re-draws 4, of seeds 9,
    # of both together 4: (4 + 9 - 4) / 4
    assert row["se"] == pytest.approx((9 / 4) ** 0.5)
    assert row["low"] < row["effect"] < row["high"]
    assert row["cells"] == list(QUAD)
    assert row["n_models"] == [1, 2, 2, 2]
    assert row[["n_sae_seeds", "n_documents", "n_tokens", "null"]].tolist() == [2, 50, 1_000, 0]
    assert row["reason"] is None


def test_with_two_arms_it_is_the_interval_of_an_effect() -> None:
    draw = np.random.default_rng(0)
    table = table_of(
        {"trained": draw.normal(size=(1, 3, 51)), "redraw": draw.normal(size=(2, 3, 51))}
    )
    cells = [ReplicateKey(arm, *PLACE) for arm in ("trained", "redraw")]
    found = signed_interval(Spreads(table), cells, (1, -1))
    expected = difference(Spreads(table), (cells[0], cells[1])).bounds()
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_what_is_missing_is_null_with_a_reason() -> None:
    draw = np.random.default_rng(1)
    values = {arm: draw.normal(size=(1 if arm == "trained" else 2, 2, 21)) for arm in QUAD}
    alone = row_of(table_of(values | {"keep": values["keep"][:1]}))
    assert np.isfinite(alone["effect"])
    assert np.isnan(alone["low"])
    assert "one re-draw" in alone["reason"]

    table = table_of(values)
    table.add(ReplicateKey("keep", *PLACE), 1, 1, None, reason="no active latent")
    lost = row_of(table)
    assert np.isnan(lost["effect"])
    assert lost["reason"] == "keep: no active latent"

    del values["keep"]
    assert not len(interactions(table_of(values), {"x": QUAD}, METRICS))
    assert list(interactions(table_of(values), {}, METRICS).columns) == list(COLUMNS)
    with pytest.raises(ValueError, match="four arms, not 3"):
        interactions(table_of(values), {"x": QUAD[:3]}, METRICS)


def simulated(draw: np.random.Generator, planted: float) -> ReplicateTable:
    """Return four arms, W_E worth 1, blocks worth 2, and `planted` more for both together."""
    n_documents, n_seeds = 40, 2
    weights = document_weights(n_documents, 100, int(draw.integers(2**31)))
    documents = draw.normal(size=n_documents)
    seeds = 0.2 * draw.normal(size=n_seeds)
    arms = {}
    for arm, blocks, embeddings in (
        ("trained", 1, 1),
        ("redraw_embeddings", 1, 0),
        ("keep", 0, 1),
        ("redraw", 0, 0),
    ):
        models = 1 if arm == "trained" else 3
        level = 1.0 * embeddings + 2.0 * blocks + planted * embeddings * blocks
        own = 0.5 * draw.normal(size=n_documents) + documents
        redraws = np.zeros(1) if arm == "trained" else 0.2 * draw.normal(size=models)
        mean = (own @ weights) / n_documents
        noise = 0.1 * draw.normal(size=(models, n_seeds))
        per_seed = seeds + 0.1 * draw.normal(size=n_seeds)
        arms[arm] = level + mean + (redraws[:, None] + per_seed[None, :] + noise)[:, :, None]
    return table_of(arms, n_documents)


def test_coverage_and_power() -> None:
    draw = np.random.default_rng(2)
    rounds = 200
    covered = found = 0
    for _ in range(rounds):
        row = row_of(simulated(draw, 0.0))
        covered += row["low"] <= 0 <= row["high"]
        row = row_of(simulated(draw, 4.0))
        assert abs(row["effect"] - 4) < 2
        found += row["low"] > 0
    assert covered >= 0.92 * rounds
    assert found >= 0.8 * rounds
