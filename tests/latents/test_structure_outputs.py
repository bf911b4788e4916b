from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis

from planted_readings import reading_of, token_table
from sae_placebo.latents.base import Encoded, Folds
from sae_placebo.latents.columns.outputs import PRIOR_HITS, outputs

VOCABULARY = 400
D_IN = 32


@pytest.fixture(scope="module")
def planted() -> tuple[Encoded, Folds, torch.Tensor]:
    """Token 0 is followed by 300 with probability .25. Promoted by all planted latents: 300 to 319.

    Latents: 0 fires on token 0 where 300 follows; 1 on every token 0; 2 dead; 3 on token 0 where 300
    does not follow; 4 where 300 follows, promotes others; 5 on the single token 299, which one of the
    promoted always follows; 6 on one token 0 with 300 behind; others at random.
    """
    draw = np.random.default_rng(6)
    ids = draw.integers(1, 290, (400, 41))
    ids[:, ::4] = 0
    follows = draw.random(ids[:, 1::4].shape) < 0.25
    ids[:, 1::4] = np.where(follows, 300, ids[:, 1::4])
    ids[3, 6:8] = 299, 310
    tokens = token_table(ids, 20, tuple(str(i) for i in range(VOCABULARY)))
    zero, hit = tokens.ids == 0, tokens.following == 300
    codes = (draw.random((len(tokens), 30)) < 0.2) * 1.0
    codes[:, 0] = codes[:, 4] = zero & hit
    codes[:, 1] = zero
    codes[:, 2] = 0
    codes[:, 3] = zero & ~hit
    codes[:, 5] = tokens.ids == 299
    codes[:, 6] = 0
    codes[np.flatnonzero(zero & hit)[0], 6] = 1
    # W_U: those promoted share a direction
    unembedding = draw.normal(size=(VOCABULARY, D_IN))
    unembedding[:, 0] = 0
    unembedding[300:320] = 0.1 * draw.normal(size=(20, D_IN))
    unembedding[300:320, 0] = 3
    unembedding *= draw.uniform(0.5, 2, (VOCABULARY, 1))
    decoder = draw.normal(size=(30, D_IN))
    decoder[:7] = np.eye(D_IN)[0] * 2
    decoder[4] = -np.eye(D_IN)[0]
    reading = reading_of(tokens, codes, draw.normal(size=(len(tokens), D_IN)), W_dec=decoder)
    folds = Folds.of(tokens.documents, 20, 0, 5)
    return reading, folds, torch.tensor(unembedding, dtype=torch.float32)


def test_kurtosis_is_the_plain_one_of_cosines(planted):
    reading, _, unembedding = planted
    found = outputs(*planted)["unembedding_kurtosis"]
    rows = unembedding.double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for latent in (0, 9, 20):
        cosines = rows @ reading.sae.params["W_dec"][latent].double().numpy()
        assert found[latent] == pytest.approx(kurtosis(cosines, fisher=False), rel=1e-4)
    assert found[0, 0] > 10
    assert np.isnan(found[2]).all()


def test_kurtosis_of_random_directions_is_three():
    draw = np.random.default_rng(8)
    tokens = token_table(draw.integers(0, 500, (30, 9)), 3, ("x",) * 500)
    codes = (draw.random((len(tokens), 200)) < 0.5) * 1.0
    reading = reading_of(tokens, codes, draw.normal(size=(len(tokens), 128)))
    weights = torch.tensor(draw.normal(size=(500, 128)), dtype=torch.float32)
    found = outputs(reading, Folds.of(tokens.documents, 3, 0, 3), weights)["unembedding_kurtosis"]
    assert found[:, 0].mean() == pytest.approx(3, abs=0.1)
    assert found.max() < 6


def test_lift_of_planted_latents(planted):
    reading, _, _ = planted
    lift = outputs(*planted)["output_lift"][:, 0]
    tokens = reading.tokens
    pairs = (tokens.ids == 0) & (tokens.following >= 0)
    rate = (tokens.following[pairs] == 300).mean()
    n = (tokens.following[pairs] == 300).sum()
    assert lift[0] == pytest.approx((n + PRIOR_HITS) / (n * rate + PRIOR_HITS), rel=1e-4)
    assert lift[0] > 3.5
    # all of its token: what it expects it gets, however often that is
    assert lift[1] == pytest.approx(1, abs=1e-5)
    assert np.isnan(lift[2])
    assert lift[3] < 0.05
    assert lift[5] == pytest.approx(1, abs=1e-5)
    # one lucky hit is no lift
    assert lift[6] == pytest.approx((1 + PRIOR_HITS) / (rate + PRIOR_HITS), rel=1e-4)


def test_tokens_that_never_follow_have_no_lift(planted):
    reading, folds, unembedding = planted
    only = unembedding.clone()
    # 380 to 399 are promoted instead, and never occur
    only[300:320], only[380:400] = unembedding[380:400], unembedding[300:320]
    assert np.isnan(outputs(reading, folds, only)["output_lift"][:2]).all()


def test_random_firing_has_lift_one(planted):
    lift = outputs(*planted)["output_lift"][7:]
    assert np.nanmean(lift) == pytest.approx(1, abs=0.03)
    assert np.nanmax(np.abs(lift - 1)) < 0.4


def test_folds_count_without_their_documents(planted):
    reading, folds, _ = planted
    lift = outputs(*planted)["output_lift"]
    tokens = reading.tokens
    pairs = (tokens.ids == 0) & (tokens.following >= 0)
    rate = (tokens.following[pairs] == 300).mean()
    for group in range(folds.n_groups):
        kept = folds.groups[tokens.documents] != group
        n = (tokens.following[pairs & kept] == 300).sum()
        expected = (n + PRIOR_HITS) / (n * rate + PRIOR_HITS)
        assert lift[0, 1 + group] == pytest.approx(expected, rel=1e-4)


def test_without_an_unembedding_nothing_is_estimated(planted):
    reading, folds, _ = planted
    found = outputs(reading, folds, None)
    assert set(found) == {"unembedding_kurtosis", "output_lift"}
    assert all(np.isnan(one).all() and one.shape == (30, 6) for one in found.values())


def test_padded_rows_of_the_unembedding_are_left_out(planted):
    reading, folds, unembedding = planted
    padded = torch.cat([unembedding, 50 * unembedding[300:310]])
    for name, found in outputs(reading, folds, padded).items():
        np.testing.assert_array_equal(found, outputs(*planted)[name])


def test_the_unembedding_may_be_an_array(planted):
    reading, folds, unembedding = planted
    for name, found in outputs(reading, folds, unembedding.numpy()).items():
        np.testing.assert_array_equal(found, outputs(*planted)[name])
