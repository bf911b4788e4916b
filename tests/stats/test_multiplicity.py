from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sae_placebo.core.errors import NotEstimable, SpecError
from sae_placebo.latents.metrics import METRICS
from sae_placebo.stats.effects import Component, interval
from sae_placebo.stats.multiplicity import (
    ABOVE,
    COLUMNS,
    EQUIVALENT,
    INCONCLUSIVE,
    SMALL,
    MultiplicitySpec,
    adjusted,
    beyond,
    equivalence,
    judged,
    two_sided_p,
)


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    usual = {
        "metric": "share_single_token", "hookpoint": "resid_post.2", "sae": "topk",
        "arm": "trained", "control": "redraw", "unit": "share", "df": 20.0, "se": 0.01,
        "reason": None,
    }  # fmt: skip
    return pd.DataFrame([usual | row for row in rows])


def test_p_is_below_the_level_exactly_where_the_interval_leaves_zero_out() -> None:
    parts = [Component("documents", 0.5, 54), Component("model_seeds", 1.5, 1)]
    for estimate in (0.3, 9.5, 11.9, 12.4, 30.0):
        found = interval(estimate, parts)
        assert found.df is not None
        assert (two_sided_p(estimate, found.se, found.df) < 0.05) == (found.low > 0)


def test_equivalence_is_inclusion_of_the_ninety_percent_interval() -> None:
    half = float(stats.t.ppf(0.95, 7)) * 0.01
    assert equivalence(0.02, 0.01, 7.0, 0.02 + half) == pytest.approx(0.05)
    assert equivalence(-0.02, 0.01, 7.0, 0.02 + half) == pytest.approx(0.05)
    assert equivalence(0.02, 0.01, 7.0, 0.02 + half + 1e-4) < 0.05
    assert equivalence(0.05, 0.01, 7.0, 0.02) > 0.95  # an effect outside is no evidence of none


def test_beyond_meets_the_test_of_zero_at_a_small_margin() -> None:
    assert beyond(0.03, 0.01, 5.0, 1e-12) == pytest.approx(two_sided_p(0.03, 0.01, 5.0))
    assert beyond(0.05, 0.01, 5.0, 0.05) == pytest.approx(0.5, abs=1e-3)
    assert beyond(0.0, 0.01, 5.0, 0.05) > beyond(0.06, 0.01, 5.0, 0.05)


def test_what_cannot_be_tested_is_refused() -> None:
    with pytest.raises(NotEstimable, match="nothing varied"):
        two_sided_p(0.0, 0.0, float("nan"))
    with pytest.raises(NotEstimable, match="no standard error"):
        equivalence(0.1, float("nan"), 3.0, 0.05)
    with pytest.raises(ValueError, match="must be above 0"):
        equivalence(0.1, 0.1, 3.0, 0.0)


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
    found = judged(
        table(
            [
                {"effect": 0.20},
                {"effect": 0.025, "se": 0.004},
                {"effect": 0.001},
                {"effect": 0.04, "se": 0.04},
                {"effect": 0.06, "se": 0.01},
            ]
        )
    )
    conclusions = [ABOVE, SMALL, EQUIVALENT, INCONCLUSIVE, INCONCLUSIVE]
    assert found["conclusion"].tolist() == conclusions
    assert found["conclusion_reason"].iloc[:3].isna().all()
    assert "may be zero" in found["conclusion_reason"][3]
    assert "differs from zero" in found["conclusion_reason"][4]
    assert (found["seoi"] == 0.05).all()
    assert (found["q"] >= found["p"]).all()


def test_families_are_corrected_apart() -> None:
    lone = judged(table([{"effect": 0.025}]))
    rows = [{"effect": 0.025}, *({"effect": 0.001, "control": f"c{i}"} for i in range(9))]
    crowd = judged(table(rows))
    assert crowd["p"][0] == lone["p"][0]
    assert crowd["q"][0] == pytest.approx(10 * lone["q"][0])
    elsewhere = [row | {"hookpoint": "resid_post.3"} for row in rows[1:]]
    other = [row | {"metric": "explained_variance"} for row in rows[1:]]
    apart = judged(table([rows[0], *elsewhere, *other]))
    assert apart["q"][0] == lone["q"][0]
    assert apart["family"].nunique() == 3


def test_nothing_known_is_null_with_its_reason() -> None:
    nan = float("nan")
    rows = [
        {"effect": nan, "se": nan, "df": nan, "reason": "one SAE seed"},
        {"effect": 0.0, "se": 0.0, "df": nan},
        {"effect": 3.0, "unit": "parsecs", "metric": "distance"},
        {"effect": 0.2},
    ]
    found = judged(table(rows))
    assert found["conclusion"].isna().tolist() == [True, True, True, False]
    assert found["conclusion_reason"][0] == "one SAE seed"
    assert "nothing varied" in found["conclusion_reason"][1]
    assert "'parsecs'" in found["conclusion_reason"][2]
    assert np.isfinite(found["p"][2])
    assert np.isnan(found["seoi"][2])
    assert found["p"][:2].isna().all()


def test_an_empty_table_gets_its_columns() -> None:
    found = judged(table([{"effect": 0.1}]).iloc[:0])
    assert len(found) == 0
    assert set(COLUMNS) <= set(found.columns)


def test_every_metric_of_the_package_has_a_group_and_a_size() -> None:
    spec = MultiplicitySpec()
    for name, metric in METRICS.entries.items():
        assert spec.group(name)
        assert spec.seoi(name, metric.unit) is not None, name
    assert spec.seoi("explained_variance", "share") == 0.02
    assert spec.seoi("share_single_token", "share") == 0.05
    assert spec.group("coverage_context") == "coverage"
    assert spec.group("share_dead") == "classes"


def test_sizes_are_settings() -> None:
    spec = MultiplicitySpec(by_metric={"share_*": 0.3, "share_dead": 0.01})
    assert spec.seoi("share_dead", "share") == 0.01
    assert spec.seoi("share_other", "share") == 0.3
    assert judged(table([{"effect": 0.2}]), spec)["conclusion"][0] == SMALL
    with pytest.raises((SpecError, ValueError), match="greater than 0"):
        MultiplicitySpec(by_unit={"share": 0.0})
