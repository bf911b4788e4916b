from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.core.tables.effects import EFFECTS
from sae_placebo.latents.metrics import METRICS
from sae_placebo.stats.components import Component, interval
from sae_placebo.stats.inference import Difference, p_of_large, p_of_none, p_of_small
from sae_placebo.stats.multiplicity import (
    ABOVE,
    EQUIVALENT,
    INCONCLUSIVE,
    SMALL,
    MultiplicitySpec,
    adjusted,
    judged,
    p_values,
)


def of(effect: float, se: float = 0.01, df: float = 20.0) -> Difference:
    return Difference(effect, (Component("sae_seeds", se**2, df),))


def table(rows: list[dict[str, Any]], spec: MultiplicitySpec | None = None) -> pd.DataFrame:
    """Return a table of effects with their tests; a row may hold effect, se and the keys of an effect."""
    usual = {
        "metric": "coverage_token", "hookpoint": "resid_post.2", "sae": "topk",
        "arm": "trained", "control": "redraw", "unit": "share", "reason": None,
        "arm_value": 0.6, "control_value": 0.6,
    }  # fmt: skip
    made = []
    for row in rows:
        whole = dict.fromkeys(EFFECTS.names) | usual | row
        effect = whole["effect"]
        found = None if effect is None else of(effect, row.get("se", 0.01))
        made.append(whole | p_values(whole, found, spec or MultiplicitySpec()))
    return pd.DataFrame(made, columns=list(EFFECTS.names))


def conclusions(rows: list[dict[str, Any]], spec: MultiplicitySpec | None = None) -> pd.DataFrame:
    spec = spec or MultiplicitySpec()
    return judged(table(rows, spec), spec)


def test_p_is_below_the_level_exactly_where_the_interval_leaves_zero_out() -> None:
    parts = (Component("documents", 0.5, 54), Component("model_seeds", 1.5, 1))
    for estimate in (0.3, 9.5, 11.9, 12.4, 30.0):
        for level in (0.9, 0.95, 0.99):
            found = interval(estimate, parts, level)
            p = p_of_none(Difference(estimate, parts))
            assert (p < 1 - level) == (found.low > 0)
    assert p_of_none(of(0.025)) == pytest.approx(2 * stats.t.sf(2.5, 20), rel=1e-6)
    assert p_of_none(of(9.0)) <= 1e-11


def test_equivalence_is_inclusion_of_the_ninety_percent_interval() -> None:
    half = float(stats.t.ppf(0.95, 7)) * 0.01
    assert p_of_large(of(0.02, 0.01, 7), 0.02 + half) == pytest.approx(0.05, rel=1e-6)
    assert p_of_large(of(-0.02, 0.01, 7), 0.02 + half) == pytest.approx(0.05, rel=1e-6)
    assert p_of_large(of(0.02, 0.01, 7), 0.02 + half + 1e-4) < 0.05
    assert p_of_large(of(0.05, 0.01, 7), 0.02) >= 0.5  # an effect outside is no evidence of none


def test_a_larger_effect_meets_the_test_of_zero_at_a_small_margin() -> None:
    assert p_of_small(of(0.03, 0.01, 5), 1e-12) == pytest.approx(p_of_none(of(0.03, 0.01, 5)))
    assert p_of_small(of(0.05, 0.01, 5), 0.05) > 0.99
    assert p_of_small(of(0.0, 0.01, 5), 0.05) > p_of_small(of(0.06, 0.01, 5), 0.05)


def test_what_cannot_be_tested_is_refused() -> None:
    with pytest.raises(NotEstimable, match="nothing varied"):
        p_of_none(of(0.0, 0.0))
    with pytest.raises(ValueError, match="must be above 0"):
        p_of_large(of(0.1, 0.1), 0.0)


def test_q_values_are_scipys_and_leave_out_what_has_no_p() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.2, 0.9, np.nan])
    known = np.isfinite(p)
    q = adjusted(p)
    assert np.isnan(q[~known]).all()
    np.testing.assert_allclose(q[known], stats.false_discovery_control(p[known]))
    assert len(adjusted(np.array([]))) == 0


def test_false_ones_stay_below_the_level() -> None:
    random = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        z = random.normal(size=40)
        z[:10] += 3.5
        passed = adjusted(2 * stats.norm.sf(abs(z))) <= 0.1
        shares.append(passed[10:].sum() / max(passed.sum(), 1))
    # nominal: 0.1 x 30 / 40 hypotheses that are true
    assert np.mean(shares) == pytest.approx(0.075, abs=0.02)


def test_four_conclusions() -> None:
    found = conclusions(
        [
            {"effect": 0.20},
            {"effect": 0.025, "se": 0.004},
            {"effect": 0.001},
            {"effect": 0.04, "se": 0.04},
            {"effect": 0.06, "se": 0.01},
        ]
    )
    expected = [ABOVE, SMALL, EQUIVALENT, INCONCLUSIVE, INCONCLUSIVE]
    assert found["conclusion"].tolist() == expected
    assert found["conclusion_reason"].iloc[:3].isna().all()
    assert "may be zero" in found["conclusion_reason"][3]
    assert "differs from zero" in found["conclusion_reason"][4]
    assert (found["seoi"] == 0.05).all()
    assert (found["q"] >= found["p"]).all()


def test_two_small_values_are_not_equivalent_because_the_size_of_interest_is_larger() -> None:
    """R2 of 0.0009 and 0.0014 at 0.02, and 0.002 and 0.015 of a share of something else at 0.05."""
    r2 = {"metric": "ladder_r2_position", "unit": "R2"}
    found = conclusions(
        [
            r2 | {"effect": -0.0005, "se": 2e-4, "arm_value": 0.0009, "control_value": 0.0014},
            {"effect": 0.013, "se": 1e-3, "arm_value": 0.015, "control_value": 0.002},
            {"effect": 0.001, "se": 1e-3, "arm_value": 0.021, "control_value": 0.02},
            r2 | {"effect": 0.0, "se": 1e-3, "arm_value": 0.0, "control_value": 0.0},
            r2 | {"effect": 0.001, "se": 1e-3, "arm_value": 0.501, "control_value": 0.5},
        ]
    )
    assert found["conclusion"].tolist() == [
        *(INCONCLUSIVE, INCONCLUSIVE, EQUIVALENT, INCONCLUSIVE, EQUIVALENT)
    ]
    reasons = found["conclusion_reason"].fillna("")
    assert reasons.str.contains("would say nothing").tolist() == [True, True, False, True, False]
    assert np.isnan(found["equivalent_p"][3])
    assert (found["seoi"] == [0.02, 0.05, 0.05, 0.02, 0.02]).all()


def test_families_are_corrected_apart() -> None:
    lone = conclusions([{"effect": 0.025}])
    rows = [{"effect": 0.025}, *({"effect": 0.001, "control": f"c{i}"} for i in range(9))]
    crowd = conclusions(rows)
    assert crowd["p"][0] == lone["p"][0]
    assert crowd["q"][0] == pytest.approx(10 * lone["q"][0])
    elsewhere = [row | {"hookpoint": "resid_post.3"} for row in rows[1:]]
    other = [row | {"metric": "explained_variance"} for row in rows[1:]]
    apart = conclusions([rows[0], *elsewhere, *other])
    assert apart["q"][0] == lone["q"][0]
    assert apart["family"].nunique() == 3


def test_nothing_known_is_null_with_its_reason() -> None:
    rows = [
        {"effect": None, "reason": "one SAE seed"},
        {"effect": 0.0, "se": 0.0},
        {"effect": 3.0, "unit": "parsecs", "metric": "distance"},
        {"effect": 0.2},
    ]
    found = conclusions(rows)
    assert found["conclusion"].isna().tolist() == [True, True, True, False]
    assert found["conclusion_reason"][0] == "one SAE seed"
    assert "nothing varied" in found["conclusion_reason"][1]
    assert "'parsecs'" in found["conclusion_reason"][2]
    assert np.isfinite(found["p"][2])
    assert np.isnan(found["seoi"][2])
    assert found["p"][:2].isna().all()


def test_every_metric_of_the_package_has_a_group_and_a_size() -> None:
    spec = MultiplicitySpec()
    for name, metric in METRICS.entries.items():
        assert spec.group(name)
        assert spec.seoi(name, metric.unit) is not None, name
    assert spec.seoi("explained_variance", "share") == 0.02
    assert spec.group("coverage_context") == "coverage"
    assert spec.group("share_dead") == "classes"


def test_sizes_are_settings() -> None:
    spec = MultiplicitySpec(by_metric={"coverage_*": 0.3, "coverage_pair": 0.01})
    assert spec.seoi("coverage_pair", "share") == 0.01
    assert spec.seoi("coverage_token", "share") == 0.3
    assert conclusions([{"effect": 0.2}], spec)["conclusion"][0] == SMALL
    with pytest.raises((SpecError, ValueError), match="greater than 0"):
        MultiplicitySpec(by_unit={"share": 0.0})
