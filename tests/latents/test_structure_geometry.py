from __future__ import annotations

import numpy as np
import pytest

from planted_readings import reading_of, token_table, without_group
from sae_placebo.latents.base import Encoded, Folds
from sae_placebo.latents.columns.geometry import geometry

D_IN = 64


@pytest.fixture(scope="module")
def planted() -> tuple[Encoded, Folds]:
    """Latents: 0 the norm, 1 independent, 2 the first component, 3 and 4 antipodes, 5 and 6 twins,
    7 dead, 8 antipode of the dead one, 9 half way to the first component, then random ones."""
    draw = np.random.default_rng(0)
    tokens = token_table(draw.integers(0, 50, (200, 33)), 20, ("x",) * 50)
    n = len(tokens)
    x = draw.normal(size=(n, D_IN)) * draw.uniform(0.5, 2, (n, 1))
    direction = np.eye(D_IN)[0]
    x += 3 * draw.normal(size=(n, 1)) * direction + 5 * np.eye(D_IN)[1]
    codes = np.where(draw.random((n, 60)) < 0.1, draw.random((n, 60)) + 0.1, 0)
    codes[:, 0] = np.linalg.norm(x, axis=1)
    codes[:, 7] = 0
    decoder = draw.normal(size=(60, D_IN))
    decoder[2] = -4 * direction
    decoder[4], decoder[6], decoder[8] = -2 * decoder[3], decoder[5], -decoder[7]
    decoder[9] = direction + np.eye(D_IN)[40]
    reading = reading_of(tokens, codes, x, W_dec=decoder, W_enc=decoder.T)
    return reading, Folds.of(tokens.documents, 20, 0, 5)


def test_norm_correlation_finds_the_norm_and_is_zero_for_an_independent_latent(planted):
    found = geometry(*planted)["norm_correlation"]
    assert found.shape == (60, 6)
    assert found[0] == pytest.approx(1, abs=1e-5)
    assert (found[1] < 0.06).all()
    assert np.isnan(found[7]).all()


def test_norm_correlation_is_that_of_the_dense_codes(planted):
    reading, folds = planted
    dense = reading.codes.toarray().astype(np.float64)
    norms = np.linalg.norm(reading.activations.numpy(), axis=1)
    found = geometry(reading, folds)["norm_correlation"]
    for latent in (1, 3, 20):
        assert found[latent, 0] == pytest.approx(
            abs(np.corrcoef(dense[:, latent], norms)[0, 1]), abs=1e-6
        )


def test_folds_are_the_statistic_without_their_documents(planted):
    reading, folds = planted
    found = geometry(reading, folds)["norm_correlation"]
    for group in range(folds.n_groups):
        again = geometry(without_group(reading, folds, group), folds)["norm_correlation"][:, 0]
        np.testing.assert_allclose(found[:, 1 + group], again, atol=1e-6)


def test_principal_cosine_and_its_null(planted):
    found = geometry(*planted)["pc_cosine"]
    assert found[2] == pytest.approx(1, abs=0.01)
    assert found[9] == pytest.approx(np.sqrt(0.5), abs=0.08)
    assert np.mean(found[10:, 0]) == pytest.approx(1.9 / np.sqrt(D_IN), rel=0.15)


def test_antipodes_are_found_and_duplicates_are_not(planted):
    found = geometry(*planted)["antipodality"]
    assert found[3] == pytest.approx(1, abs=1e-5)
    assert found[4] == pytest.approx(1, abs=1e-5)
    # an equal twin is no antipode, and a dead antipode is none either
    assert (found[[5, 6, 8]] < 0.3).all()
    assert np.isnan(found[7]).all()


def test_antipodality_across_blocks_is_that_of_all_pairs(planted, monkeypatch):
    reading, folds = planted
    whole = geometry(reading, folds)["antipodality"]
    monkeypatch.setattr("sae_placebo.latents.columns.geometry._PAIRS", 7)
    np.testing.assert_allclose(geometry(reading, folds)["antipodality"], whole, atol=1e-6)
    rows = reading.sae.params["W_dec"].numpy()[np.arange(60) != 7]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    negative = np.minimum(rows @ rows.T, 0)
    expected = (negative**2).max(1)
    np.testing.assert_allclose(np.delete(whole[:, 0], 7), expected, atol=1e-5)
