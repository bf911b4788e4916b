from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from planted_readings import reading_of, token_table, without_group
from sae_placebo.latents.base import Encoded, Folds
from sae_placebo.latents.columns.ngrams import most_common, ngrams


@pytest.fixture(scope="module")
def planted() -> tuple[Encoded, Folds]:
    """Latents: 0 fires on three pairs, 1 on these and as often elsewhere, 2 on one token, 3 dead,
    4 on ten pairs, 5 once, others at random."""
    draw = np.random.default_rng(2)
    tokens = token_table(draw.integers(0, 12, (400, 41)), 16, ("x",) * 12)
    pair = tokens.previous * 12 + tokens.ids
    codes = (draw.random((len(tokens), 20)) < 0.05) * 1.0
    codes[:, 0] = np.isin(pair, [5, 77, 130]) * 2.0
    others = draw.choice(
        np.flatnonzero(codes[:, 0] == 0), int((codes[:, 0] > 0).sum()), replace=False
    )
    codes[:, 1] = codes[:, 0]
    codes[others, 1] = 1
    codes[:, 2] = tokens.ids == 4
    codes[:, 3] = 0
    codes[:, 4] = np.isin(pair, np.arange(10) * 13)
    codes[:, 5] = 0
    codes[100, 5] = 1
    return reading_of(tokens, codes), Folds.of(tokens.documents, 16, 0, 4)


def test_cover_of_planted_pairs(planted):
    cover = ngrams(*planted)["ngram_cover"]
    assert (cover[0] == 1).all()
    # half, and the two most common of some 140 pairs by chance
    assert ((cover[1] > 0.5 + 0.5 * 2 / 141) & (cover[1] < 0.55)).all()
    # twelve tokens before it, about as often each
    assert cover[2, 0] == pytest.approx(5 / 12, abs=0.05)
    assert np.isnan(cover[3]).all()
    assert cover[4, 0] == pytest.approx(0.5, abs=0.06)
    assert cover[5, 0] == 1


def test_null_of_random_firing_is_low(planted):
    cover = ngrams(*planted)["ngram_cover"]
    assert (cover[6:] < 0.09).all()
    assert (cover[6:] > 5 / 144 * 0.9).all()


def test_no_trigrams_cover_more(planted):
    reading, folds = planted
    cover = ngrams(reading, folds)["ngram_cover"][:, 0]
    ids, places = reading.tokens.rows.token_ids, reading.tokens.places
    for latent in (0, 1, 2, 4, 9):
        active = [places[t] for t in reading.by_latent[:, [latent]].indices]
        inside = [tuple(ids[row, pos - 2 : pos + 1]) for row, pos in active if pos >= 2]
        pairs = Counter(tuple(ids[row, pos - 1 : pos + 1]) for row, pos in active)
        assert cover[latent] == sum(n for _, n in pairs.most_common(5)) / len(active)
        assert cover[latent] >= sum(n for _, n in Counter(inside).most_common(5)) / len(active)


def test_folds_are_the_statistic_without_their_documents(planted):
    reading, folds = planted
    found = ngrams(reading, folds)["ngram_cover"]
    for group in range(folds.n_groups):
        again = ngrams(without_group(reading, folds, group), folds)["ngram_cover"][:, 0]
        planted_ones = [0, 1, 2, 4]
        np.testing.assert_allclose(found[planted_ones, 1 + group], again[planted_ones], atol=1e-12)
        # where nothing is common, the sixteen candidates may miss a pair that rises by chance
        np.testing.assert_allclose(found[6:, 1 + group], again[6:], atol=0.01)


def test_of_equally_common_pairs_the_first_are_kept():
    """A partition alone leaves to the processor which of equals are kept."""
    draw = np.random.default_rng(3)
    for _ in range(20):
        pairs = draw.permutation(300)[:200]
        counts = draw.integers(1, 4, 200)
        wanted = np.lexsort((pairs, -counts))[:16]
        assert set(most_common(pairs, counts, 16)) == set(pairs[wanted])
    assert set(most_common(pairs[:7], counts[:7], 16)) == set(pairs[:7])


def test_small_blocks_give_the_same(planted, monkeypatch):
    reading, folds = planted
    whole = ngrams(reading, folds)["ngram_cover"]
    monkeypatch.setattr("sae_placebo.latents.latent_blocks.latent_blocks.__defaults__", (50, 3))
    np.testing.assert_array_equal(ngrams(reading, folds)["ngram_cover"], whole)
