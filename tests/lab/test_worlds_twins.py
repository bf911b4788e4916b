"""Twins share everything but one term of the rule, and only one of them reads b."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_placebo.lab.worlds import PRESETS, World, activations, truth, twins

SMALL = PRESETS["small"].model_copy(update={"margin_nats": 0.04})


@pytest.fixture(scope="module")
def pair() -> tuple[World, World]:
    return twins(SMALL, seed=5)


def test_twins_have_the_same_data(pair: tuple[World, World]) -> None:
    uses, passes = pair
    assert np.array_equal(uses.rows, passes.rows)
    assert np.array_equal(uses.train_rows, passes.train_rows)
    x, y = (activations(world, "resid_pre.0", world.rows) for world in pair)
    assert torch.equal(x, y)
    assert [v.name for v in uses.variables] == [v.name for v in passes.variables]
    assert [world.variable("b").role for world in pair] == ["used", "passenger"]


def test_only_one_twin_reads_b(pair: tuple[World, World]) -> None:
    uses, passes = (truth(world, "resid_pre.0", "b") for world in pair)
    assert uses.interval[0] > 5 * passes.interval[1]
    assert uses.share_interval[0] > 5 * passes.share_interval[1]
    # what both rules hold, both read
    for world in pair:
        assert truth(world, "resid_pre.0", "a").interval[0] > passes.interval[1]


def test_a_twin_comes_out_the_same_again(pair: tuple[World, World]) -> None:
    again = twins(SMALL.model_copy(update={"steps": 3, "margin_nats": 99.0}), seed=5)
    same = twins(SMALL.model_copy(update={"steps": 3, "margin_nats": 99.0}), seed=5)
    for one, other in zip(again, same, strict=True):
        for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(p, q)
    assert np.array_equal(again[0].rows, pair[0].rows)
