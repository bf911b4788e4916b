"""Bounds of effects, and the rule that makes verdicts of them."""

from __future__ import annotations

import numpy as np
import pytest

from sae_placebo.causal.use.effects import Effects, effects_of
from sae_placebo.causal.use.rule import (
    BETWEEN,
    FEW,
    JOINT,
    LIKE_NULLS,
    NOT_USED,
    PART,
    REDUNDANT,
    SMALL,
    UNDETERMINED,
    USED,
    DirectionEvidence,
    sensitivity,
    use_verdicts,
)
from sae_placebo.causal.use.spec import UseSpec

SPEC = UseSpec()


def _measured(**changes: object) -> DirectionEvidence:
    """Return one direction that is used, but for the changes."""
    given = {
        "low": 0.002,
        "high": 0.004,
        "n": 32,
        "beside": np.nan,
        "p": 0.001,
        "survives": False,
        "ratio": 3.0,
        "null": 0.001,
    }
    given |= changes
    one = lambda value: np.array([value], dtype=float)  # noqa: E731
    effect = Effects(one(0.003), one(given["low"]), one(given["high"]), np.array([given["n"]]))
    beside = Effects(
        one(given["beside"]), one(given["beside"]), one(given["beside"]), np.array([32])
    )
    return DirectionEvidence(
        effect,
        beside,
        one(given["p"]),
        one(given["null"]),
        one(given["ratio"]),
        np.array([bool(given["survives"])]),
        np.array([0]),
    )


UNUSED = {"low": 0.0, "high": 0.0001, "p": 0.9, "survives": True, "ratio": 0.5}


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({}, USED, ""),
        ({"p": 0.5}, UNDETERMINED, BETWEEN),
        ({"p": np.nan, "low": 0.0}, UNDETERMINED, LIKE_NULLS),
        ({"low": 0.0004}, UNDETERMINED, SMALL),
        ({"low": 0.0004, "beside": 0.003}, UNDETERMINED, SMALL),
        (UNUSED, NOT_USED, ""),
        (UNUSED | {"beside": 0.003}, NOT_USED, ""),
        (UNUSED | {"survives": False}, UNDETERMINED, JOINT),
        (UNUSED | {"beside": 0.003, "survives": False}, UNDETERMINED, REDUNDANT),
        (UNUSED | {"ratio": 1.5}, UNDETERMINED, PART),
        (UNUSED | {"high": 0.01, "null": 0.2, "ratio": 0.02}, NOT_USED, ""),
        (UNUSED | {"high": 0.01, "null": 0.05, "ratio": 0.1}, UNDETERMINED, LIKE_NULLS),
        (UNUSED | {"ratio": np.nan}, UNDETERMINED, PART),
        (UNUSED | {"n": 5}, UNDETERMINED, FEW),
    ],
)
def test_the_rule(changes: dict[str, object], verdict: int, reason: str) -> None:
    found = use_verdicts(_measured(**changes), SPEC)
    assert found.verdict[0] == verdict
    assert found.reason[0] == reason


def test_a_missing_test_is_no_evidence_of_use() -> None:
    found = use_verdicts(_measured(p=np.nan), SPEC)
    assert not found.beats_nulls[0]
    assert found.verdict[0] == UNDETERMINED


def test_sensitivity_moves_from_used_to_not_used() -> None:
    shares = sensitivity(
        _measured(survives=True, high=0.004, ratio=0.9), SPEC, np.array([1e-4, 1e-3, 1e-1])
    )
    assert shares.sum(1) == pytest.approx(1)
    assert shares[0, USED] == shares[1, USED] == 1
    assert shares[2, NOT_USED] == 1


def test_bounds_hold_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    n, size = 600, 32
    values = np.exp(random.standard_normal((n, size)) - 0.5)
    found = effects_of(values.ravel(), np.repeat(np.arange(n), size), n, 0)
    assert 0.93 < (found.high >= 1).mean() <= 0.99
    assert 0.92 < (found.low <= 1).mean() <= 0.99


def test_few_values_have_no_bounds() -> None:
    found = effects_of(np.array([1.0, 2.0, 3.0]), np.array([1, 1, 1]), 3, 0)
    assert found.mean[1] == 2
    assert np.isnan(found.low[1])
    assert np.isnan(found.mean[[0, 2]]).all()
    assert list(found.n) == [0, 3, 0]
