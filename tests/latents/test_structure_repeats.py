from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from sae_placebo.core.errors import SpecError
from sae_placebo.latents.base import Folds
from sae_placebo.latents.columns.repeats import induction, occurrences, repeat_rows

FOLDS = Folds(np.arange(4), np.zeros(4, dtype=np.int64))
IDS = np.arange(3, 90)


def test_a_block_comes_twice_behind_bos():
    rows = repeat_rows(100, IDS, 5, 20, 0, bos=1)
    assert rows.shape == (5, 41)
    assert rows.dtype == np.int32
    assert (rows[:, 0] == 1).all()
    np.testing.assert_array_equal(rows[:, 1:21], rows[:, 21:])
    assert all(len(set(row[1:21])) == 20 for row in rows)
    assert np.isin(rows[:, 1:], IDS).all()
    assert not (rows[0] == rows[1]).all()
    np.testing.assert_array_equal(rows, repeat_rows(100, IDS, 5, 20, 0, bos=1))
    assert not np.array_equal(rows, repeat_rows(100, IDS, 5, 20, 1, bos=1))


def test_the_control_has_the_same_second_block_and_another_first():
    rows = repeat_rows(100, IDS, 5, 20, 0)
    control = repeat_rows(100, IDS, 5, 20, 0, repeated=False)
    np.testing.assert_array_equal(rows[:, 20:], control[:, 20:])
    assert (rows[:, :20] == control[:, :20]).mean() < 0.1


def test_blocks_longer_than_the_ids_repeat_tokens():
    assert repeat_rows(5, np.arange(2, 5), 2, 10, 0).shape == (2, 20)


@pytest.mark.parametrize(
    ("ids", "bos"), [([4], None), ([1, 200], None), ([1, 2], 100), ([-1, 2], 0)]
)
def test_ids_outside_the_vocabulary_are_refused(ids, bos):
    with pytest.raises(SpecError, match="repeated blocks"):
        repeat_rows(100, np.array(ids), 2, 4, 0, bos=bos)


def test_text_of_one_token_names_the_setting():
    with pytest.raises(SpecError, match=r"has 1 distinct token to draw .*text\.heldout_tokens"):
        repeat_rows(10, np.array([4, 4, 4]), 3, 5, 0, None)


def test_occurrences_hold_the_same_tokens_and_the_same_ones_before():
    rows = repeat_rows(100, IDS, 6, 9, 0, bos=0)
    first, second = occurrences(6, 9, bos=True)
    assert len(first) == 6 * 8
    for shift in (0, -1):
        before = rows[first[:, 0], first[:, 1] + shift]
        np.testing.assert_array_equal(before, rows[second[:, 0], second[:, 1] + shift])


def test_cohens_d_of_planted_latents():
    """0: on half of second occurrences; 1: alike on both; 2: silent; 3: rare, second only; 4: first
    only; 5: values shifted by a standard deviation; 6: always the same."""
    draw = np.random.default_rng(3)
    n = 40_000
    first, second = np.zeros((n, 7)), np.zeros((n, 7))
    second[:, 0] = draw.random(n) < 0.5
    first[:, 1], second[:, 1] = (draw.random((2, n)) < 0.1) * draw.random((2, n))
    second[:, 3] = (draw.random(n) < 0.005) * (1 + draw.random(n))
    first[:, 4] = draw.random(n) < 0.5
    first[:, 5], second[:, 5] = draw.normal(20, 2, n), draw.normal(22, 2, n)
    first[:, 6] = second[:, 6] = 3
    found = induction(
        csr_matrix(first.astype(np.float32)), csr_matrix(second.astype(np.float32)), FOLDS
    )
    d, active = found["induction_d"], found["induction_active_d"]
    assert d.shape == (7, 5)
    assert (d[~np.isnan(d).any(1)] == d[~np.isnan(d).any(1)][:, :1]).all()
    assert d[0] == pytest.approx(np.sqrt(2 * 0.5 / 0.5), abs=0.03)
    assert d[1] == pytest.approx(0, abs=3 * np.sqrt(2 / n))
    assert np.isnan(d[2]).all()
    assert d[3, 0] < 0.12
    assert active[3, 0] > 3
    assert active[1, 0] == pytest.approx(0, abs=0.06)
    assert d[4] == pytest.approx(-np.sqrt(2), abs=0.03)
    assert d[5] == pytest.approx(1, abs=0.03)
    assert np.isnan(d[6]).all()


def test_few_pairs_have_no_effect_size():
    first, second = np.zeros((100, 1), np.float32), np.zeros((100, 1), np.float32)
    second[:5, 0] = np.arange(1, 6)
    found = induction(csr_matrix(first), csr_matrix(second), FOLDS)
    assert np.isnan(found["induction_active_d"]).all()
    assert found["induction_d"][0, 0] > 0
