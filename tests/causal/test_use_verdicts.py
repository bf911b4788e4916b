"""Bounds of effects, and the rule that makes verdicts of them."""

from __future__ import annotations

import numpy as np
import pytest

from sae_placebo.causal.use.absence import Absence
from sae_placebo.causal.use.effects import Effects, effects_of
from sae_placebo.causal.use.null_test import ROUNDING
from sae_placebo.causal.use.rule import (
    BETWEEN,
    FEW,
    JOINT,
    NOT_USED,
    PART,
    REDUNDANT,
    SMALL,
    UNDETERMINED,
    UNSHOWN,
    USED,
    DirectionEvidence,
    false_discovery,
    screen_weights,
    sensitivity,
    use_verdicts,
    used_beside,
)
from sae_placebo.causal.use.spec import UseSpec

SPEC = UseSpec()


def _one(value: float) -> np.ndarray:
    return np.array([value], dtype=float)


def _bounded(low: float, high: float, n: int = 32) -> Effects:
    """Return an estimate between two bounds; its error is what makes `low` the lower one."""
    mean = _one(np.sqrt(max(low, 1e-9) * high))
    se = mean * np.log(mean / max(low, 1e-9)) / 1.6955  # Student's t of 31 df
    return Effects(mean, se, _one(low), _one(high), np.array([n]))


def _measured(**changes: float) -> DirectionEvidence:
    """Return one direction that is used, but for the changes."""
    given: dict[str, float] = {
        **{"low": 0.002, "high": 0.004, "beside": np.nan, "p": 0.001, "survives": 0, "ratio": 3.0},
        **{"null": 0.001, "firings": 0, "documents": 40, "alone": np.nan, "last": np.nan},
        **{"above": np.nan, "last_above": np.nan, "active": 1000},
    } | changes
    few = int(given["documents"])
    absence = Absence(
        effect=_bounded(0, given["alone"], few),
        ratio=_bounded(0, given["above"], few),
        last=_bounded(0, given["last"], few),
        last_ratio=_bounded(0, given["last_above"], few),
        n_firings=np.array([int(given["firings"])]),
    )
    return DirectionEvidence(
        effect=_bounded(given["low"], given["high"]),
        beside=_bounded(given["beside"] / 1.2, given["beside"] * 1.2),
        p=_one(given["p"]),
        null=_one(given["null"]),
        expected=_one(given["null"]),
        ratio=_one(given["ratio"]),
        survives=np.array([bool(given["survives"])]),
        absence=absence,
        n_active=np.array([int(given["active"])]),
        asked=np.array([0]),
    )


UNUSED = {"low": 1e-6, "high": 0.0001, "p": 0.9, "survives": 1, "ratio": 0.5}
UNUSED |= {"firings": 92, "alone": 0.0001, "last": 0.0001, "above": 0.6, "last_above": 0.6}


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({}, USED, ""),
        ({"p": 0.2}, UNDETERMINED, BETWEEN),
        ({"p": np.nan, "low": 0.0002, "high": 0.001}, UNDETERMINED, UNSHOWN),
        ({"low": 0.0004}, UNDETERMINED, SMALL),
        ({"low": 0.0004, "beside": 0.003}, UNDETERMINED, SMALL),
        (UNUSED, NOT_USED, ""),
        (UNUSED | {"beside": 0.003}, UNDETERMINED, REDUNDANT),
        (UNUSED | {"survives": 0}, UNDETERMINED, JOINT),
        (UNUSED | {"beside": 0.003, "survives": 0}, UNDETERMINED, REDUNDANT),
        (UNUSED | {"above": 1.1}, UNDETERMINED, PART),
        (UNUSED | {"last": 0.01}, UNDETERMINED, REDUNDANT),
        (UNUSED | {"last": 0.01, "last_above": 0.05}, NOT_USED, ""),
        (UNUSED | {"alone": 0.01, "above": 0.05}, NOT_USED, ""),
        (UNUSED | {"alone": 0.01, "above": 0.2}, UNDETERMINED, BETWEEN),
        (UNUSED | {"alone": np.nan, "above": np.nan}, UNDETERMINED, PART),
        (UNUSED | {"documents": 5}, UNDETERMINED, FEW),
        (UNUSED | {"firings": 0, "active": 91}, UNDETERMINED, FEW),
        ({"active": 91}, USED, ""),
    ],
)
def test_the_rule(changes: dict[str, float], verdict: int, reason: str) -> None:
    found = use_verdicts(_measured(**changes), SPEC)
    assert found.verdict[0] == verdict
    assert found.reason[0] == reason


def test_a_missing_test_is_no_evidence_of_use() -> None:
    found = use_verdicts(_measured(p=np.nan), SPEC)
    assert not found.beats_nulls[0]
    assert found.verdict[0] == UNDETERMINED


def test_sensitivity_moves_from_used_to_not_used() -> None:
    shares = sensitivity(
        _measured(
            **UNUSED | {"low": 0.002, "high": 0.004, "alone": 0.004, "last": 0.004, "p": 0.001}
        ),
        SPEC,
        np.array([1e-4, 1e-3, 1e-1]),
    )
    assert shares.sum(1) == pytest.approx(1)
    assert shares[0, USED] == shares[1, USED] == 1
    assert shares[2, NOT_USED] == 1


# --- bounds ------------------------------------------------------------------------------------------


def _of_rows(values: np.ndarray) -> Effects:
    """Return the mean of each row, every value from another document."""
    m, n = values.shape
    at, documents = np.repeat(np.arange(m), n), np.tile(np.arange(n), m)
    return effects_of(values.ravel(), np.ones(m * n), at, documents, m, 0)


def test_bounds_hold_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    found = _of_rows(np.exp(random.standard_normal((400, 32)) - 0.5))
    assert 0.93 < (found.high >= 1).mean() < 1
    assert 0.92 < (found.low <= 1).mean() < 1
    assert ((found.p_below(1.0) <= 0.05) == (found.low >= 1)).all()


def test_values_of_one_document_count_as_one() -> None:
    random = np.random.default_rng(0)
    values = np.exp(random.standard_normal(16))
    documents = np.repeat(np.arange(16), 4)
    zeros = np.zeros(64, dtype=np.int64)
    fourfold = effects_of(np.repeat(values, 4), np.ones(64), zeros, documents, 1, 0)
    plain = effects_of(values, np.ones(16), zeros[:16], np.arange(16), 1, 0)
    assert fourfold.n[0] == 16
    assert fourfold.low[0] == pytest.approx(plain.low[0])
    assert fourfold.high[0] == pytest.approx(plain.high[0])


def test_few_values_have_no_bounds() -> None:
    ones = np.array([1, 1, 1])
    found = effects_of(np.array([1.0, 2.0, 3.0]), np.ones(3), ones, np.arange(3), 3, 0)
    assert found.mean[1] == 2
    assert np.isnan(found.low[1])
    assert np.isnan(found.mean[[0, 2]]).all()
    assert list(found.n) == [0, 3, 0]


def test_a_direction_critical_at_one_firing_in_twenty_is_hardly_ever_not_used() -> None:
    """What is measured at 92 uniform firings, of which 5% cost a full swap and others nothing to speak of."""
    random = np.random.default_rng(0)
    m, n = 3000, SPEC.uniform_firings
    critical = random.random((m, n)) < 0.05
    cost = np.where(critical, 1.0, 5e-5) * np.exp(0.5 * random.standard_normal((m, n)))
    effect = _of_rows(np.maximum(cost, ROUNDING))
    missed = effect.high < SPEC.negligible
    assert missed.mean() <= 0.012, "0.95^92 is .009"
    assert not missed[critical.any(1)].any()
    # where there is nothing it is found: the rule is not only cautious
    nothing = _of_rows(5e-5 * np.exp(0.5 * random.standard_normal((50, n))))
    assert (nothing.high < SPEC.negligible).all()


# --- many at once ------------------------------------------------------------------------------------


def test_false_discoveries_are_controlled_with_weights_and_more_is_found() -> None:
    random = np.random.default_rng(0)
    true, plain, weighted = [], [], []
    for _ in range(200):
        p = random.random(150)
        real = np.arange(150) < 60
        p[real] = p[real] ** 6
        expected = np.where(real, 3e-3, 1e-4) * np.exp(random.standard_normal(150))
        for found, weights in ((plain, np.ones(150)), (weighted, screen_weights(expected, 1e-3))):
            assert weights.mean() == pytest.approx(1)
            hit = false_discovery(p, weights) <= 0.05
            found.append(hit[real].mean())
            if found is weighted:
                true.append((hit & ~real).sum() / max(hit.sum(), 1))
    assert np.mean(true) <= 0.05
    assert np.mean(weighted) > np.mean(plain) + 0.03


def _many(used: bool) -> DirectionEvidence:
    """Return 60 directions; of half of them the p-values are small where some are to be used."""
    random, n, none = np.random.default_rng(0), 60, np.full(60, np.nan)
    p = random.random(n)
    p[: n // 2] *= 0.02 if used else 1.0
    mean = np.exp(random.normal(np.log(0.003), 0.5, n))
    effect = Effects(mean, 0.2 * mean, 0.7 * mean, 1.5 * mean, np.full(n, 32))
    nothing = Effects(none, none, none, none, np.zeros(n, dtype=np.int64))
    absence = Absence(nothing, nothing, nothing, nothing, np.zeros(n, dtype=np.int64))
    return DirectionEvidence(
        effect=effect,
        beside=nothing,
        p=p,
        null=mean,
        expected=random.exponential(0.002, n),
        ratio=np.ones(n),
        survives=np.zeros(n, dtype=bool),
        absence=absence,
        n_active=np.full(n, 1000),
        asked=np.arange(n),
    )


def test_further_directions_are_used_at_the_cut_off_of_those_with_a_verdict() -> None:
    """So one with the numbers of a used one is, whatever else is asked beside it."""
    measured = _many(used=True)
    used = use_verdicts(measured, SPEC).verdict == USED
    assert 5 < used.sum() < 55
    again = used_beside(measured, measured.p, measured.effect, measured.expected, SPEC)
    assert np.array_equal(again, used)
    part = np.flatnonzero(used)[:3]
    one = (values[part] for values in vars(measured.effect).values())
    alone = used_beside(measured, measured.p[part], Effects(*one), measured.expected[part], SPEC)
    assert alone.all()
    unknown = np.full(60, np.nan)
    assert not used_beside(measured, unknown, measured.effect, measured.expected, SPEC).any()


def test_no_further_direction_is_used_where_none_is() -> None:
    measured = _many(used=False)
    assert not (use_verdicts(measured, SPEC).verdict == USED).any()
    smallest = np.full(60, 1e-9)
    assert not used_beside(measured, smallest, measured.effect, measured.expected, SPEC).any()
