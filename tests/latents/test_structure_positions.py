from __future__ import annotations

import numpy as np
import pytest

from planted_readings import reading_of, token_table, without_group
from sae_placebo.latents.base import Encoded, Folds
from sae_placebo.latents.columns.positions import position_bins, positions


@pytest.fixture(scope="module")
def planted() -> tuple[Encoded, Folds]:
    """Latents: 0 fires at position 1 alone, 1 on the second half, 2 dead, others at random."""
    draw = np.random.default_rng(1)
    tokens = token_table(draw.integers(0, 50, (300, 65)), 15, ("x",) * 50)
    codes = (draw.random((len(tokens), 203)) < draw.uniform(0.02, 0.5, 203)) * 1.0
    codes[:, 0] = tokens.positions == 1
    codes[:, 1] = tokens.positions > 32
    codes[:, 2] = 0
    return reading_of(tokens, codes), Folds.of(tokens.documents, 15, 0, 5)


def test_bins_are_single_positions_first_and_widen():
    places = np.arange(1, 129)
    bins = position_bins(places)
    widths = np.bincount(bins)
    assert bins[0] == 0
    assert (np.diff(bins) >= 0).all()
    assert widths[0] == 1
    assert widths[-1] > 20
    assert 10 <= len(widths) <= 16
    assert len(np.bincount(position_bins(np.arange(1, 4)))) == 3


def test_a_latent_of_one_position_has_all_the_bits_of_its_firing(planted):
    bits = positions(*planted)["position_bits"]
    p = 1 / 64
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    assert bits[0] == pytest.approx(entropy, abs=1e-3)
    assert np.isnan(bits[2]).all()
    assert bits[1, 0] > 0.5


def test_independent_latents_have_zero_bits_in_the_mean(planted):
    reading, folds = planted
    bits = positions(reading, folds)["position_bits"][3:, 0]
    bins = position_bins(reading.tokens.positions).max() + 1
    bias = (bins - 1) / (2 * len(reading.tokens) * np.log(2))
    # plug-in estimates would be off by the bias, and never below zero
    assert abs(bits.mean()) < 0.15 * bias
    assert (bits < 0).mean() > 0.3


def test_folds_are_the_statistic_without_their_documents(planted):
    reading, folds = planted
    found = positions(reading, folds)["position_bits"]
    for group in range(folds.n_groups):
        again = positions(without_group(reading, folds, group), folds)["position_bits"][:, 0]
        np.testing.assert_allclose(found[:, 1 + group], again, atol=1e-12)
