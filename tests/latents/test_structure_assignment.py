"""Assignment by direction: what random directions reach, and what two SAEs with a common part share."""

from __future__ import annotations

import numpy as np
import pytest

from sae_placebo.latents.partners.assignment import (
    AssignmentSpec,
    assign,
    max_cosine,
    random_assignment,
    sharing,
    sharing_by_class,
    sharing_of_both,
    unit_rows,
)
from sae_placebo.stats.proportions import wilson
from sae_placebo.stats.random_dictionaries import expected_max_cosine


def rows(seed: int, n: int, d: int) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((n, d)))


@pytest.mark.parametrize(
    ("d", "m", "known"),
    [(64, 1024, 0.393), (128, 1024, 0.281), (128, 4096, 0.314), (256, 4096, 0.223)],
)
def test_mmcs_of_random_directions(d: int, m: int, known: float) -> None:
    """The table of the survey of nulls, section 6.1: 400 queries, signed."""
    assert max_cosine(rows(0, 400, d), rows(1, m, d)).mean() == pytest.approx(known, abs=0.01)


@pytest.mark.parametrize(
    ("d", "n", "m", "signed", "absolute", "assigned"),
    [
        (20, 5, 5, 0.26, 0.36, 0.33),
        (50, 4, 4, 0.12, 0.21, 0.19),
        (100, 50, 50, 0.22, 0.25, 0.23),
        (256, 512, 512, 0.19, 0.20, 0.19),
        (256, 512, 4096, 0.22, 0.23, 0.23),
    ],
)
def test_null_dictionaries(
    d: int, n: int, m: int, signed: float, absolute: float, assigned: float
) -> None:
    """The table of null dictionaries: MMCS, mean largest |cosine|, assigned |cosine|."""
    draws = max(1, 2000 // n)
    both = [(rows(2 * i, n, d), rows(2 * i + 1, m, d)) for i in range(draws)]
    # the table's smallest rows are of one draw each: four atoms' mean has a standard error of .03 to
    # .05, and what many draws give is held against the closed form instead
    near = 0.03 if n < 10 else 0.01
    found = np.mean([max_cosine(x, y).mean() for x, y in both])
    assert found == pytest.approx(signed, abs=near)
    assert found == pytest.approx(expected_max_cosine(d, m), abs=0.01)
    found = np.mean([max_cosine(x, y, signed=False).mean() for x, y in both])
    assert found == pytest.approx(absolute, abs=near)
    null = random_assignment(d, n, m, None, 0, False).mean
    assert null == pytest.approx(assigned, abs=near)


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_an_auction_before_it_leaves_the_best_sum_as_it_is(shared: float) -> None:
    from scipy.optimize import linear_sum_assignment

    x, noise = rows(0, 300, 24), rows(1, 300, 24)
    y = noise.copy()
    n = int(300 * shared)
    y[:n] = unit_rows(x[:n] + 0.5 * noise[:n])
    found = assign(x, y)
    best = (x @ y.T)[linear_sum_assignment(x @ y.T, maximize=True)].sum()
    assert found.cosine.sum() == pytest.approx(best, abs=1e-4)
    assert sorted(found.partner) == list(range(300))


def test_rows_that_are_all_alike_are_assigned_as_well() -> None:
    x = np.repeat(rows(0, 3, 24), 100, axis=0)
    found = assign(x, x)
    assert found.cosine == pytest.approx(np.ones(300), abs=1e-5)
    assert sorted(found.partner) == list(range(300))


@pytest.mark.parametrize("optimal_up_to", [1000, 10])
def test_both_sides_of_a_pair_see_the_same(optimal_up_to: int) -> None:
    spec = AssignmentSpec(optimal_up_to=optimal_up_to)
    a, b = (rows(0, 90, 16), rows(1, 90, 16)), (rows(2, 70, 16), rows(3, 70, 16))
    both = sharing_of_both(a, b, spec)
    for found, alone in zip(both, (sharing(a, b, spec), sharing(b, a, spec)), strict=True):
        for part in ("encoder", "decoder"):
            one, other = getattr(found, part), getattr(alone, part)
            assert (one.partner == other.partner).all()
            np.testing.assert_allclose(one.cosine, other.cosine, atol=1e-6)
        assert (found.shared == alone.shared).all()
        assert found.mmcs.value == pytest.approx(alone.mmcs.value, abs=1e-6)
        assert found.mmcs.null == alone.mmcs.null
        assert found.mmcs.n == len(found.shared)


def test_greedy_takes_the_nearest_pairs_first() -> None:
    x, y = rows(0, 60, 8), rows(1, 50, 8)
    found = assign(x, y, AssignmentSpec(optimal_up_to=10))
    left = (x @ y.T).astype(float)
    expected = np.full(60, -1)
    for _ in range(50):
        i, j = np.unravel_index(left.argmax(), left.shape)
        expected[i] = j
        left[i], left[:, j] = -np.inf, -np.inf
    assert found.method == "greedy"
    assert (found.partner == expected).all()
    assert np.isnan(found.cosine[expected < 0]).all()
    assert (expected < 0).sum() == 10


@pytest.mark.parametrize("optimal_up_to", [1000, 10])
def test_shared_latents_are_counted(optimal_up_to: int) -> None:
    random = np.random.default_rng(0)
    enc, dec, order = rows(0, 200, 64), rows(1, 200, 64), random.permutation(200)
    enc2, dec2 = rows(2, 200, 64), rows(3, 200, 64)
    enc2[:80] = unit_rows(enc[:80] + 0.05 * random.standard_normal((80, 64)))
    dec2[:120] = unit_rows(dec[:120] + 0.05 * random.standard_normal((120, 64)))
    spec = AssignmentSpec(optimal_up_to=optimal_up_to)
    found = sharing((enc, dec), (enc2[order], dec2[order]), spec)
    # encoder and decoder must both agree: only the first 80 do
    assert found.shared[:80].all()
    assert not found.shared[80:].any()
    assert found.share == 0.4
    assert found.share_low < 0.4 < found.share_high
    assert (order[found.encoder.partner[:80]] == np.arange(80)).all()
    assert found.mmcs.low < found.mmcs.value < found.mmcs.high
    assert found.mmcs.null < found.mmcs.value
    assert found.pw_mcc.null < found.pw_mcc.value
    assert found.null_share == 0
    alone = sharing((enc, dec), (rows(8, 200, 64), rows(9, 200, 64)), spec)
    assert alone.share == 0
    assert alone.mmcs.value == pytest.approx(alone.mmcs.null, abs=0.01)
    assert alone.pw_mcc.value == pytest.approx(alone.pw_mcc.null, abs=0.01)


def test_sharing_by_class() -> None:
    shared = np.array([True] * 9 + [False] + [False] * 10)
    found = sharing_by_class(np.array(["token"] * 10 + ["other"] * 10), shared)
    assert [(one.name, one.n, one.shared) for one in found] == [("other", 10, 0), ("token", 10, 9)]
    assert found[0].low == 0
    assert found[0].high == pytest.approx(0.2775, abs=1e-4)
    assert (found[1].low, found[1].high) == pytest.approx(wilson(9, 10))
